"""Seconds that were measured are shared out such that they can be put together again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps_compiler.profiling_split import CutSeconds, share_out, share_out_pairs

SECONDS = st.floats(0.0, 1.0)
STEPS = st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=12)


@given(STEPS, SECONDS)
def test_heads_tails_and_what_is_between_come_out_as_measured(
    steps: list[tuple[float, float, float]], last: float
) -> None:
    layers = [seconds for seconds, _, _ in steps] + [last]
    whole_s = sum(layers)
    cuts = [
        CutSeconds(sum(layers[: place + 1]) + export_s, sum(layers[place + 1 :]) + import_s)
        for place, (_, export_s, import_s) in enumerate(steps)
    ]

    shares = share_out(whole_s, cuts)

    assert sum(shares.stretches) == pytest.approx(whole_s)
    assert min((*shares.stretches, *shares.export_s, *shares.import_s)) >= 0
    for place, cut in enumerate(cuts):
        done = sum(shares.stretches[: place + 1])
        head_s, tail_s = done + shares.export_s[place], whole_s - done + shares.import_s[place]
        # a cut that costs more than the whole on one side is told as it is; nothing is told below what was measured
        assert head_s == pytest.approx(cut.head_s, abs=1e-9)
        assert tail_s == pytest.approx(cut.tail_s, abs=1e-9)


@given(STEPS)
def test_noise_makes_nothing_negative(steps: list[tuple[float, float, float]]) -> None:
    shares = share_out(0.5, [CutSeconds(head_s, tail_s) for head_s, tail_s, _ in steps])

    assert min((*shares.stretches, *shares.export_s, *shares.import_s)) >= 0
    assert sum(shares.stretches) == pytest.approx(0.5)


def test_without_borders_all_is_one_stretch() -> None:
    assert share_out(0.7, []).stretches == [0.7]


def test_pairs_tell_what_is_between_two_layers() -> None:
    # layers of 1, 2 and 3 s; cuts that cost 0.2 and 0.4 s; 0.1 s for any partition
    alone = [0.1 + 1 + 0.1, 0.1 + 2 + 0.1 + 0.2, 0.1 + 3 + 0.2]
    pairs = [0.1 + 3 + 0.2, 0.1 + 5 + 0.1]

    shares = share_out_pairs(alone, pairs, 0.1)

    assert shares.stretches == pytest.approx([1, 2, 3])
    assert shares.export_s == shares.import_s == pytest.approx([0.1, 0.2])


def test_what_was_not_measured_together_is_taken_to_cost_nothing_between() -> None:
    shares = share_out_pairs([1.1, 2.1], [None], 0.1)

    assert shares.stretches == pytest.approx([1.0, 2.0])
    assert shares.export_s == [0.0]
