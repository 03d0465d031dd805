"""What a worker accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.core.admission import TRANSITIONS, Admission, ServiceState, Trigger, Verdict
from hyps.errors import InternalError


def test_requests_are_bounded_in_number_and_bytes() -> None:
    admission = Admission(max_requests=2, max_nbytes=100)
    assert admission.offer("a", 60) is Verdict.ACCEPTED
    assert admission.offer("b", 60) is Verdict.BUSY
    assert admission.offer("b", 40) is Verdict.ACCEPTED
    assert admission.offer("c", 0) is Verdict.BUSY
    admission.end("a", 0.1)
    assert admission.offer("c", 60) is Verdict.ACCEPTED


def test_one_request_is_accepted_whatever_its_bytes() -> None:
    assert Admission(2, 100).offer("large", 1000) is Verdict.ACCEPTED


def test_draining_finishes_what_was_accepted_and_takes_nothing_more() -> None:
    admission = Admission(2, 100)
    admission.offer("a", 1)
    admission.drain()
    assert admission.state.value == "draining"
    assert admission.offer("b", 1) is Verdict.LEAVING
    admission.drain()
    admission.end("a", 0.1)
    assert admission.state is ServiceState.GONE
    admission.drain()


def test_an_idle_service_leaves_at_once() -> None:
    admission = Admission(2, 100)
    admission.drain()
    assert admission.state is ServiceState.GONE


def test_the_wait_follows_what_requests_take() -> None:
    admission = Admission(100, 100)
    for i in range(50):
        admission.offer(f"warm{i}", 0)
        admission.end(f"warm{i}", 0.02)
    for i in range(10):
        admission.offer(f"r{i}", 0)
    assert 0.05 < admission.retry_after_s < 0.2
    admission.end("r0", 1e9)
    assert admission.retry_after_s == 5.0


def test_ending_twice_is_harmless_and_offering_twice_is_a_bug() -> None:
    admission = Admission(5, 100)
    admission.offer("a", 10)
    with pytest.raises(InternalError):
        admission.offer("a", 10)
    admission.end("a", 0.1)
    admission.end("a", 0.1)
    assert (len(admission), admission.nbytes) == (0, 0)


def test_nothing_comes_back_once_gone() -> None:
    assert (ServiceState.GONE, Trigger.LAST_ANSWERED) not in TRANSITIONS
    with pytest.raises(InternalError, match="serving and then last answered"):
        Admission(1, 1)._move(Trigger.LAST_ANSWERED)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60), st.booleans()), max_size=40))
def test_the_bounds_hold_at_every_step(steps: list[tuple[str, int, bool]]) -> None:
    admission = Admission(3, 100)
    accepted: set[str] = set()
    for name, nbytes, is_end in steps:
        if is_end:
            admission.end(name, 0.1)
            accepted.discard(name)
        elif name not in accepted and admission.offer(name, nbytes) is Verdict.ACCEPTED:
            accepted.add(name)
        assert len(admission) == len(accepted) <= 3
        assert admission.nbytes <= 100
