"""Rates, shares and quantiles against what a list of everything says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.core.rates import Latencies, Rate, quantile
from hyps.formats.status import BUCKETS_S

times = st.lists(st.floats(0, 100), min_size=1, max_size=60).map(sorted)


@given(times)
def test_a_rate_is_what_happened_in_the_window(moments: list[float]) -> None:
    rate = Rate(window_s=10.0)
    for moment in moments:
        rate.add(moment)
    now_s = moments[-1] + 0.25
    begin_s = max(moments[0], (now_s // 0.5 - 20) * 0.5)
    inside = sum(moment // 0.5 >= now_s // 0.5 - 20 for moment in moments)
    assert rate.per_s(now_s) == pytest.approx(inside / max(now_s - begin_s, 0.5))
    assert rate.total == len(moments)


def test_a_steady_rate_is_told_exactly_and_silence_ends_it() -> None:
    rate = Rate()
    for tenth in range(1000):
        rate.add(tenth / 10)
    assert rate.per_s(99.95) == pytest.approx(10, rel=0.03)
    assert 4 < rate.per_s(105.0) < 6
    assert rate.per_s(111.0) == 0.0


def test_nothing_has_no_rate() -> None:
    assert Rate().per_s(5.0) == 0.0


def test_the_first_moment_does_not_make_a_huge_rate() -> None:
    rate = Rate()
    rate.add(7.0)
    assert rate.per_s(7.0) == pytest.approx(2.0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_time_taken_is_a_share_of_the_window(share: float) -> None:
    rate = Rate()
    for second in range(50):
        rate.add_between(second, second + share)
    assert rate.per_s(50.0) == pytest.approx(share, abs=0.01)


def test_a_run_longer_than_the_window_counts_no_more_than_the_window() -> None:
    rate = Rate()
    rate.add_between(0.0, 1000.0)
    assert rate.per_s(1000.0) == pytest.approx(1.0, abs=0.06)


def test_runs_told_late_and_out_of_turn_count_where_they_belong() -> None:
    turned, straight = Rate(), Rate()
    runs = [(0.1, 0.7), (0.7, 2.2), (2.3, 2.9), (3.0, 4.4)]
    for rate, order in ((straight, runs), (turned, [runs[0], *reversed(runs[1:])])):
        for begin_s, end_s in order:
            rate.add_between(begin_s, end_s)
    assert turned.per_s(5.0) == pytest.approx(straight.per_s(5.0))


def test_memory_stays_bounded() -> None:
    rate, latencies = Rate(), Latencies(latest=100)
    for moment in range(10_000):
        rate.add(moment * 0.1)
        latencies.add(moment)
    assert len(rate._slots) <= 60
    assert len(latencies._latest) == 100


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(sorted(values), share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values)
    smaller = [value for value in values if value < found]
    assert len(smaller) < max(share * len(values), 1)


def test_durations_count_in_classes_and_tell_the_quantiles_of_the_latest() -> None:
    latencies = Latencies(latest=4)
    for seconds in (100.0, 0.001, 0.002, 0.003, 0.004):
        latencies.add(seconds)
    told = latencies.durations()
    assert told.n == 5
    assert told.total_s == pytest.approx(100.01)
    assert (told.p50_s, told.p95_s, told.p99_s) == (0.002, 0.004, 0.004)
    assert told.counts == (1, 1, 2, *[0] * (len(BUCKETS_S) - 3), 1)


def test_nothing_has_no_durations() -> None:
    told = Latencies().durations()
    assert (told.n, told.counts, told.p50_s) == (0, (), None)
