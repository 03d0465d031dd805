"""A remote clock is told from one-way messages to within what the quickest of them took."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.core.clocks import RemoteClock


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(0, 0.5), min_size=1, max_size=100),
    st.floats(-5e-5, 5e-5),
)
def test_the_error_is_at_most_what_the_quickest_message_took_and_the_drift(
    offset_s: float, ways_s: list[float], drift: float
) -> None:
    clock, now_s = RemoteClock(), 0.0
    for beat, way_s in enumerate(ways_s):
        now_s = beat * 0.1
        clock.add(now_s * (1 + drift) - offset_s, now_s + way_s)
    theirs_s = now_s * (1 + drift) - offset_s
    error_s = clock.ours(theirs_s) - now_s
    moved_s = abs(drift) * 10 + 1e-6
    assert min(ways_s) - moved_s <= error_s <= max(ways_s) + moved_s
    assert error_s <= min(ways_s) + moved_s


def test_what_the_way_takes_is_taken_off() -> None:
    clock = RemoteClock()
    for beat in range(10):
        clock.add(beat, beat + 100.02)
    assert clock.ours(5.0, way_s=0.02) == pytest.approx(105.0)


def test_clocks_that_drift_are_followed() -> None:
    clock, rng = RemoteClock(), random.Random(0)
    for beat in range(20_000):
        ours_s = beat * 0.5
        clock.add(ours_s * 1.0001, ours_s + 0.001 + rng.expovariate(1000))
    assert abs(clock.ours(ours_s * 1.0001) - ours_s) < 0.01


def test_silence_leaves_the_last_that_was_known() -> None:
    clock = RemoteClock()
    clock.add(1.0, 11.0)
    clock.add(5000.0, 5010.5)
    assert clock.ours(5000.0) == pytest.approx(5010.0, abs=0.51)


def test_an_unknown_clock_is_taken_for_ours() -> None:
    clock = RemoteClock()
    assert not clock.is_known
    assert clock.ours(5.0) == 5.0


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_nonsense_does_not_spoil_a_clock(nonsense: float) -> None:
    clock = RemoteClock()
    clock.add(nonsense, 3.0)
    clock.add(1.0, 3.0)
    assert clock.ours(1.0) == 3.0
