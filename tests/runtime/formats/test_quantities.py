import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.errors import UsageError
from hyps.formats.quantities import (
    format_count,
    format_nbytes,
    format_seconds,
    parse_bytes_per_s,
    parse_count,
    parse_nbytes,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("256MB", 256 * 10**6), ("1GiB", 2**30), ("100000", 100_000), ("1.5 kB", 1500), ("64k", 64_000), ("2mib", 2**21)],
)
def test_sizes_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize(("text", "count"), [("30000000", 30_000_000), ("30M", 30_000_000), ("1.5G", 1_500_000_000)])
def test_counts_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(("text", "rate"), [("57Mbit/s", 7_125_000), ("7MB/s", 7_000_000), ("8kbit/s", 1000)])
def test_rates_read_as_people_write_them(text: str, rate: float) -> None:
    assert parse_bytes_per_s(text) == rate


@pytest.mark.parametrize(("text", "seconds"), [("28ms", 0.028), ("1.5", 1.5), ("2min", 120.0), ("50us", 50e-6)])
def test_times_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "abc", "-1", "0", "1XB", "1e3", "MB", "\uff11MB", "1 000"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError):
        parse_nbytes(text)


@pytest.mark.parametrize("text", ["7MB", "57Mbit", "fast", "0MB/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes_per_s(text)


@given(st.integers(1, 10**15))
def test_shown_sizes_read_back_within_their_three_digits(nbytes: int) -> None:
    assert parse_nbytes(format_nbytes(nbytes)) == pytest.approx(nbytes, rel=0.006)
    assert parse_count(format_count(nbytes)) == pytest.approx(nbytes, rel=0.006)


@given(st.floats(1e-6, 1e6))
def test_shown_times_read_back_within_their_three_digits(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.006)
