"""Runs that are told to stop."""

import threading
import time

from hyps.adapters.deadlines import Turn, Watchdog

WAIT_S = 20.0


def wait_for_end(turn: Turn) -> float:
    begin_s = time.monotonic()
    while not turn.options.terminate:
        assert time.monotonic() < begin_s + WAIT_S
        time.sleep(0.001)
    return time.monotonic() - begin_s


def test_a_run_in_time_is_left_alone() -> None:
    watchdog = Watchdog(0.05)
    with watchdog.watch() as turn:
        pass
    time.sleep(0.1)
    assert (turn.is_over, turn.options.terminate) == (False, False)
    watchdog.close()


def test_a_long_run_is_told_to_stop_whatever_ran_before() -> None:
    watchdog = Watchdog(0.1)
    for _ in range(50):
        with watchdog.watch():
            pass
    with watchdog.watch() as turn:
        assert wait_for_end(turn) > 0.05
        assert turn.is_over
    watchdog.close()


def test_of_runs_at_once_each_has_its_own_time() -> None:
    watchdog = Watchdog(60.0)
    with watchdog.watch() as fresh, watchdog.watch(used_s=59.9) as spent:
        wait_for_end(spent)
        assert not fresh.is_over
    watchdog.close()


def test_a_run_that_does_not_stop_is_reported_once() -> None:
    told: list[int] = []
    was_told = threading.Event()

    def tell(index: int) -> None:
        told.append(index)
        was_told.set()

    watchdog = Watchdog(0.01, grace_s=0.01)
    watchdog.call_when_stuck(tell)
    with watchdog.watch(index=7):
        assert was_told.wait(WAIT_S)
        time.sleep(0.05)
    watchdog.close()
    assert told == [7]


def test_a_run_does_not_end_while_it_is_called_stuck() -> None:
    """Otherwise the index could be looked up among the requests that came next."""
    happened: list[str] = []
    is_told = threading.Event()

    def tell(_index: int) -> None:
        is_told.set()
        time.sleep(0.05)
        happened.append("told")

    watchdog = Watchdog(0.01, grace_s=0.01)
    watchdog.call_when_stuck(tell)
    with watchdog.watch():
        assert is_told.wait(WAIT_S)
    happened.append("ended")
    watchdog.close()
    assert happened == ["told", "ended"]
