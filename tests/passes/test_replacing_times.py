"""What partitions take where they have not run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hyps.formats.replanning import DeviceFacts, Question, Timing
from hyps_passes.replacing_times import times_of
from replanning_fixtures import chain

BARE = replace(chain((0.1, 0.2, 0.4), {"a": 1, "b": 1}), timings=())


def _timed(question: Question, *timings: tuple[str, str, float, bool]) -> Question:
    told = tuple(Timing(partition=p, device=d, seconds=s, is_measured=m) for p, d, s, m in timings)
    return replace(question, timings=told)


def test_what_was_measured_stands() -> None:
    question = chain((0.1, 0.2, 0.4), {"a": 1, "b": 4})

    assert times_of(question).seconds == ((0.1, 0.025), (0.2, 0.05), (0.4, 0.1))
    assert times_of(question).guessed == ()


def test_a_device_that_is_slow_with_some_is_slow_with_the_others() -> None:
    question = _timed(BARE, *[(f"p{i}", "a", 0.1 * 2**i, True) for i in range(3)], ("p0", "b", 0.4, True))

    told = times_of(question).seconds

    assert told[1][1] == pytest.approx(0.8, rel=0.1)
    assert told[2][1] == pytest.approx(1.6, rel=0.1)


def test_a_prediction_is_corrected_by_how_predictions_hold_on_that_device() -> None:
    predicted = [(f"p{i}", "a", 0.1 * 2**i, False) for i in range(3)]

    told = times_of(_timed(BARE, *predicted, ("p0", "a", 0.4, True))).seconds

    assert [row[0] for row in told] == pytest.approx([0.4, 0.8, 1.6])


def test_what_a_device_that_is_gone_took_tells_which_partitions_are_long() -> None:
    question = _timed(BARE, *[(f"p{i}", "gone", 0.1 * 4**i, True) for i in range(3)], ("p0", "a", 0.2, True))

    told = times_of(question).seconds

    assert told[2][0] / told[0][0] == pytest.approx(16, rel=0.15)


def test_without_timings_work_and_speed_decide() -> None:
    parts = tuple(replace(part, macs=10**9 * (1 + i)) for i, part in enumerate(BARE.partitions))
    devices = (DeviceFacts(name="a", macs_per_s=1e9), DeviceFacts(name="b", macs_per_s=4e9), DeviceFacts(name="c"))

    told = times_of(replace(BARE, partitions=parts, devices=devices))

    assert told.seconds[0] == pytest.approx((1.0, 0.25, 0.25))
    assert told.seconds[2] == pytest.approx((3.0, 0.75, 0.75))
    assert told.guessed == ("p0", "p1", "p2")


def test_a_prediction_of_nothing_is_none() -> None:
    told = times_of(_timed(BARE, ("p0", "a", 0.0, False)))

    assert "p0" in told.guessed
    assert told.seconds[0][0] > 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["p0", "p1", "p2", "strange"]),
            st.sampled_from(["a", "b", "gone"]),
            st.floats(0, 1e6),
            st.booleans(),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_any_timings_give_seconds_that_can_be(timings: list[tuple[str, str, float, bool]]) -> None:
    told = times_of(_timed(BARE, *timings)).seconds

    assert all(0 <= seconds <= 1.001e9 for row in told for seconds in row)
