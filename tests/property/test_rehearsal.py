"""A whole cluster in virtual time with faults drawn from seeds: what is promised to clients holds whatever happens."""

import pytest
from click.testing import CliRunner

from hyps_compiler.rehearsal.command import main, rehearse
from hyps_compiler.rehearsal.options import FAULTS, draw_options

_SEEDS = 130
_MANY_SEEDS = 5_000


def test_promises_hold_whatever_happens() -> None:
    outcomes = [rehearse(seed) for seed in range(_SEEDS)]

    broken = [f"python -m hyps_compiler.rehearsal --seed {o.seed}: {o.broken}" for o in outcomes if o.broken]
    assert not broken
    happened = {kind for outcome in outcomes for kind in outcome.counts}
    begun = {f"fault {name}" for name in FAULTS if name not in _MADE_SO}
    assert begun <= happened, "a kind of fault never happened"
    assert {"request done", "request cancelled", "request lost", "request E_DEADLINE", "request E_BUSY"} <= happened


_MADE_SO = ("cancel", "client-leaves", "deadline", "late-node", "duplicate-node")
"""Faults that are how clients and nodes are, and begin at no moment."""


def test_the_same_seed_gives_the_same_story() -> None:
    first = [rehearse(seed).trace for seed in range(6)]

    assert [rehearse(seed).trace for seed in range(6)] == first
    assert len(set(first)) == len(first)


def test_without_faults_every_request_is_answered() -> None:
    for seed in range(5):
        outcome = rehearse(seed, without=FAULTS)
        ended = {kind for kind in outcome.counts if kind.startswith("request ")}

        assert not outcome.broken
        assert ended <= {"request done", "request E_BUSY"}


def test_the_command_tells_the_story_of_a_seed() -> None:
    result = CliRunner().invoke(main, ["--seed", "1", "--show"])

    assert result.exit_code == 0, result.output
    assert "manager event" in result.output
    assert "1 rehearsals, 0 failed" in result.output


def test_what_was_drawn_can_be_read() -> None:
    options = draw_options(3)

    text = options.expanded()

    assert "weather" in text
    assert all(name in text for name in options.faults)
    assert options.without(FAULTS).faults == frozenset()


@pytest.mark.slow
def test_promises_hold_many_times() -> None:
    broken = [outcome.seed for outcome in map(rehearse, range(_SEEDS, _MANY_SEEDS)) if outcome.broken]

    assert not broken
