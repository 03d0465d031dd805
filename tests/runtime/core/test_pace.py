"""How much a link keeps under way, on links from slow to fast."""

import pytest

from hyps.core.pace import MAX_WINDOW_NBYTES, MIN_PIECE_NBYTES, MIN_WINDOW_NBYTES, Pace
from hyps.formats.packets import MAX_PIECE_NBYTES


def settled(bytes_per_s: float, delay_s: float, pace: Pace) -> float:
    """Keep a link busy for a while; return the longest that a piece then took."""
    now_s, took_s = 0.0, []
    for _ in range(400):
        pace.is_full = True
        took_s.append(delay_s + pace.window_nbytes / bytes_per_s)
        now_s += pace.piece_nbytes / bytes_per_s
        pace.note(now_s, took_s[-1], pace.window_nbytes)
    return max(took_s[-100:])


@pytest.mark.parametrize(
    ("bytes_per_s", "delay_s"), [(1e9, 0.0001), (1e8, 0.001), (7e6, 0.028), (1e6, 0.1), (1e5, 0.0)]
)
def test_a_link_is_busy_and_nothing_waits_long_on_it(bytes_per_s: float, delay_s: float) -> None:
    pace = Pace()
    assert settled(bytes_per_s, delay_s, pace) < delay_s + 0.7
    assert pace.window_nbytes >= min(MAX_WINDOW_NBYTES, bytes_per_s * delay_s), "else it would stand idle"


def test_what_was_full_once_says_nothing_of_a_small_message() -> None:
    pace = Pace(window_nbytes=MAX_WINDOW_NBYTES, is_full=True)
    pace.note(1.0, 0.001, 100)
    assert pace.window_nbytes == MAX_WINDOW_NBYTES


def test_a_new_connection_begins_carefully_and_never_with_nothing() -> None:
    pace = Pace()
    for _ in range(20):
        pace.restart()
    assert pace.window_nbytes == MIN_WINDOW_NBYTES
    assert pace.piece_nbytes == MIN_PIECE_NBYTES
    assert Pace(window_nbytes=MAX_WINDOW_NBYTES).piece_nbytes == MAX_PIECE_NBYTES
