"""Two ends of a link, whatever the wire does: each message once, whole and in the order of its lane."""

import pytest

from hyps_compiler.rehearsal.story import Story
from hyps_compiler.rehearsal.talk import rehearse_talk

_SEEDS = 150
_MANY_SEEDS = 20_000


def _told(seed: int) -> Story:
    story = Story()
    rehearse_talk(seed, story)
    return story


def test_links_keep_their_promises_on_bad_wires() -> None:
    stories = [_told(seed) for seed in range(_SEEDS)]

    happened = {kind for story in stories for kind in story.counts}
    assert {"sends", "hears", "breaks"} <= happened


def test_the_same_seed_gives_the_same_story() -> None:
    assert [_told(seed).trace for seed in range(10)] == [_told(seed).trace for seed in range(10)]


@pytest.mark.slow
def test_links_keep_their_promises_on_many_bad_wires() -> None:
    for seed in range(_SEEDS, _MANY_SEEDS):
        _told(seed)
