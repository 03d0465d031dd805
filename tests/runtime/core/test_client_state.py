"""The client's state machine: what is sent when, and how every request ends."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.core.client_events import (
    Arrived,
    Asked,
    Beat,
    ClientEvent,
    ClientInstruction,
    Closed,
    Connect,
    Deliver,
    Disconnect,
    Ended,
    Fail,
    GivenUp,
    Greet,
    Greeted,
    Kept,
    LinkLost,
    LinkOpened,
    Reached,
    Refused,
    Send,
    Tick,
    Unfit,
    Unreachable,
    Wanted,
    Withdraw,
)
from hyps.core.client_state import LINK_TRANSITIONS, STAGE_TRANSITIONS, ClientState, LinkState, Patience
from hyps.errors import BusyError, DeadlineError, InternalError, LostError, PeerError, UsageError

PATIENCE = Patience(connect_s=5.0, busy_s=30.0, beat_s=1e9, grace_s=0.25)


def client(most: int = 4) -> ClientState:
    return ClientState("tcp://there", most, PATIENCE)


def ready(most: int = 4) -> ClientState:
    state = client(most)
    for event in (Wanted(), LinkOpened(), Greeted()):
        state.handle(0.0, event)
    return state


def told(state: ClientState, now_s: float, *events: ClientEvent) -> list[ClientInstruction]:
    made = [instruction for event in events for instruction in state.handle(now_s, event)]
    state.check_invariants()
    return made


def sends(instructions: Iterable[ClientInstruction]) -> list[int]:
    return [instruction.request for instruction in instructions if isinstance(instruction, Send)]


def failures(instructions: Iterable[ClientInstruction]) -> dict[int, Exception]:
    return {instruction.request: instruction.error for instruction in instructions if isinstance(instruction, Fail)}


def busy(request: int, retry_after_s: float = 0.5) -> Refused:
    return Refused(request, retry_after_s, "full", "later")


# The connection.


def test_the_first_request_connects_and_is_sent_once_the_peer_has_greeted() -> None:
    state = client()
    assert told(state, 0.0, Asked(1)) == [Connect()]
    assert told(state, 0.1, LinkOpened()) == [Greet()]
    assert told(state, 0.2, Greeted()) == [Reached(), Send(1, None)]
    assert told(state, 0.3, Ended(1)) == [Deliver(1)]
    assert len(state) == 0


def test_who_waits_for_a_connection_that_is_there_is_told_at_once() -> None:
    assert told(ready(), 1.0, Wanted()) == [Reached()]


def test_nobody_there_is_given_up_after_the_patience_and_tried_again_by_the_next() -> None:
    state = client()
    told(state, 0.0, Asked(1))
    assert state.due_s == 5.0
    made = told(state, 5.0, Tick())
    assert made[0] == Disconnect()
    assert isinstance(made[1], Unreachable)
    assert "no worker answers at `tcp://there`" in str(failures(made)[1])
    assert told(state, 6.0, Asked(2)) == [Connect()]


def test_a_peer_that_opens_and_says_nothing_is_silent() -> None:
    state = client()
    told(state, 0.0, Asked(1), LinkOpened())
    assert "is silent" in str(failures(told(state, 5.0, Tick()))[1])


def test_a_link_that_is_lost_before_the_greeting_is_made_again_until_patience_ends() -> None:
    state = client()
    told(state, 0.0, Asked(1), LinkOpened())
    assert told(state, 1.0, LinkLost("it left")) == [Disconnect()]
    assert told(state, 1.05, Tick()) == []
    assert told(state, state.due_s or 0.0, Tick()) == [Connect()]
    assert told(state, 1.2, LinkOpened(), Greeted()) == [Greet(), Reached(), Send(1, None)]
    state = client()
    told(state, 0.0, Asked(1))
    now_s = 0.0
    while len(state):
        told(state, now_s, *([LinkLost("nobody")] if state.state is LinkState.CONNECTING else [Tick()]))
        now_s += 0.05
    assert 5.0 <= now_s < 5.2


def test_a_peer_that_is_unfit_fails_all_that_wait_at_once() -> None:
    state = client()
    told(state, 0.0, Wanted(), Asked(1), Asked(2), LinkOpened())
    made = told(state, 0.1, Unfit(PeerError("another model", "open a new session", "E_X")))
    assert made[0] == Disconnect()
    assert isinstance(made[1], Unreachable)
    errors = failures(made)
    assert [str(error) for error in errors.values()] == ["another model"] * 2
    assert errors[1] is not errors[2]
    assert state.state is LinkState.IDLE


# Requests on a connection that is lost.


def test_what_was_under_way_fails_and_says_whether_it_was_accepted() -> None:
    state = ready()
    told(state, 0.0, Asked(1), Asked(2), Kept(1), Arrived(1), Arrived(2))
    made = told(state, 1.0, LinkLost("\x1b it died"))
    errors = failures(made)
    assert made[0] == Disconnect()
    assert isinstance(errors[1], LostError)
    assert isinstance(errors[2], LostError)
    assert (errors[1].was_accepted, errors[2].was_accepted) == (True, None)
    assert "was lost with a request that it had accepted: \\x1b it died" in errors[1].message
    assert "may have accepted" in errors[2].message
    assert Connect() not in made


def test_what_was_not_sent_or_was_refused_is_sent_on_the_next_connection() -> None:
    state = ready(most=2)
    made = told(state, 0.0, Asked(1), Asked(2), Asked(3), busy(1))
    assert sends(made) == [1, 2]
    made = told(state, 1.0, Arrived(2), LinkLost("it died"))
    assert (list(failures(made)), made[-1]) == ([2], Connect())
    assert sends(told(state, 1.1, LinkOpened(), Greeted())) == [1, 3]


def test_what_is_not_known_to_have_arrived_is_sent_again_once() -> None:
    state = ready()
    told(state, 0.0, Asked(1))
    assert told(state, 1.0, LinkLost("it died")) == [Disconnect(), Connect()]
    assert sends(told(state, 1.1, LinkOpened(), Greeted())) == [1]
    error = failures(told(state, 2.0, LinkLost("it died")))[1]
    assert isinstance(error, LostError)
    assert error.was_accepted is None


def test_nonsense_on_a_good_link_fails_what_was_under_way_and_the_rest_goes_on() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1), Asked(2))
    made = told(state, 1.0, Arrived(1), Arrived(2), Unfit(PeerError("nonsense", code="E_PROTOCOL")))
    assert list(failures(made)) == [1]
    assert (made[0], made[-1]) == (Disconnect(), Connect())


# A peer without room.


def test_a_refused_request_waits_for_the_answers_to_others_and_no_more_are_sent_meanwhile() -> None:
    state = ready()
    told(state, 0.0, Asked(1), Asked(2), Asked(3))
    assert told(state, 0.1, busy(3, 0.01), Asked(4)) == []
    assert told(state, 5.0, Tick()) == []
    assert told(state, 6.0, Ended(1)) == [Deliver(1), Send(3, None)]


def test_a_peer_full_of_others_requests_is_asked_again_after_the_time_it_names_with_the_oldest_alone() -> None:
    state = ready()
    told(state, 0.0, Asked(1), Asked(2))
    told(state, 0.1, busy(2), busy(1, 0.5))
    assert state.due_s == pytest.approx(0.6)
    assert told(state, 0.5, Tick()) == []
    assert told(state, 0.6, Tick()) == [Send(1, None)]


@pytest.mark.parametrize(("named_s", "waits_s"), [(0.0, 0.01), (-3.0, 0.01), (1e9, 5.0)])
def test_the_wait_that_a_peer_names_is_bounded(named_s: float, waits_s: float) -> None:
    state = ready()
    told(state, 0.0, Asked(1), busy(1, named_s))
    assert state.due_s == pytest.approx(waits_s)


def test_patience_with_a_peer_that_takes_none_ends_for_all_and_begins_anew_for_later_ones() -> None:
    state = ready(most=2)
    told(state, 0.0, Asked(1), Asked(2))
    failed: dict[int, Exception] = {}
    now_s = 0.0
    while len(state):
        for number in sorted(state._in_flight):
            failed |= failures(told(state, now_s, busy(number, 1.0)))
        now_s = state.due_s or now_s
        failed |= failures(told(state, now_s, Tick()))
    assert set(failed) == {1, 2}
    assert all(isinstance(error, BusyError) and error.retry_after_s == 1.0 for error in failed.values())
    assert 29.0 <= now_s <= 32.0
    made = told(state, now_s, Asked(3))
    made += told(state, now_s + 5, Tick())
    assert sends(made) == [3]
    assert not failures(told(state, now_s + 5, busy(3, 1.0)))


def test_answers_to_our_own_requests_keep_patience_up() -> None:
    state = ready(most=2)
    told(state, 0.0, *(Asked(number) for number in range(1, 61)))
    now_s, done = 0.0, 0
    while len(state):
        under_way = sorted(state._in_flight)
        for number in under_way[1:]:
            assert not failures(told(state, now_s, busy(number, 0.5)))
        now_s += 10.0
        made = told(state, now_s, Ended(under_way[0]))
        assert not failures(made)
        done += 1
    assert done == 60


def test_an_answer_begins_patience_anew() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1), Asked(2), busy(1))
    told(state, 20.0, Tick(), Ended(1))
    for now_s in range(21, 50):
        assert not failures(told(state, now_s, busy(2, 1.0)))
        told(state, now_s + 1.0, Tick())


def test_no_patience_beyond_the_requests_own_deadline() -> None:
    state = ready()
    told(state, 0.0, Asked(1, 2.0))
    error = failures(told(state, 1.0, busy(1, 1.5)))[1]
    assert isinstance(error, BusyError)


def test_a_request_that_is_refused_after_its_time_is_not_sent_again() -> None:
    state = ready()
    told(state, 0.0, Asked(1), Asked(2, 1.0))
    made = told(state, 1.1, Tick(), busy(2), Ended(1))
    assert isinstance(failures(made)[2], DeadlineError)
    assert sends(made) == []


def test_a_request_that_was_kept_may_be_sent_back() -> None:
    state = ready()
    told(state, 0.0, Asked(1), Kept(1), busy(1, 2.0))
    assert told(state, 2.0, Tick()) == [Send(1, None)]


def test_signs_of_life_are_asked_for_while_requests_are_under_way() -> None:
    state = ClientState("tcp://there", 4, Patience(beat_s=1.0))
    told(state, 0.0, Wanted(), LinkOpened(), Greeted())
    assert state.due_s is None
    told(state, 5.0, Asked(1))
    assert state.due_s == 6.0
    assert told(state, 5.9, Tick()) == []
    assert told(state, 6.0, Tick(), Tick()) == [Beat()]
    assert told(state, 6.5, Ended(1)) == [Deliver(1)]
    assert state.due_s is None


# Deadlines and second thoughts.


def test_the_peer_hears_what_is_left_of_the_time() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1, 9.0), Asked(2, 10.0))
    assert told(state, 4.0, Ended(1)) == [Deliver(1), Send(2, 6.0)]


def test_a_silent_peer_is_given_a_moment_beyond_the_deadline() -> None:
    state = ready()
    told(state, 0.0, Asked(1, 1.0))
    assert state.due_s == 1.0
    assert told(state, 1.0, Tick()) == []
    assert state.due_s == 1.25
    made = told(state, 1.25, Tick())
    assert made[0] == Withdraw(1)
    error = failures(made)[1]
    assert isinstance(error, DeadlineError)
    assert "did not answer within 1 s" in error.message


def test_a_request_that_is_not_sent_by_its_deadline_ends_there() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1), Asked(2, 1.0))
    made = told(state, 1.0, Tick())
    assert "could not be sent" in str(failures(made)[2])
    assert Withdraw(2) not in made


def test_a_deadline_holds_while_nobody_answers() -> None:
    state = client()
    told(state, 0.0, Asked(1, 0.5))
    assert isinstance(failures(told(state, 0.5, Tick()))[1], DeadlineError)


def test_who_gives_up_withdraws_what_was_sent_and_nothing_else() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1), Asked(2), Asked(3))
    assert told(state, 0.1, GivenUp(2)) == []
    assert told(state, 0.2, GivenUp(1)) == [Withdraw(1), Send(3, None)]
    assert told(state, 0.3, GivenUp(1), Ended(1), Ended(2), Kept(2), busy(2)) == []


def test_closing_ends_everything_and_nothing_follows() -> None:
    state = ready(most=1)
    told(state, 0.0, Asked(1), Asked(2))
    made = told(state, 1.0, Closed())
    assert made[0] == Withdraw(1)
    assert all(isinstance(error, UsageError) for error in failures(made).values())
    assert set(failures(made)) == {1, 2}
    assert state.due_s is None
    later = told(state, 2.0, Asked(3), Wanted(), Ended(1), Tick(), LinkLost("x"), Closed())
    assert [type(instruction) for instruction in later] == [Fail, Unreachable]


def test_what_cannot_be_is_a_bug() -> None:
    with pytest.raises(InternalError, match="was ready and then opened"):
        ready().handle(0.0, LinkOpened())
    state = ready()
    state.handle(0.0, Asked(1))
    with pytest.raises(InternalError, match="asked twice"):
        state.handle(0.0, Asked(1))


def test_every_state_is_reached_and_left() -> None:
    assert set(LINK_TRANSITIONS.values()) == set(LinkState)
    assert {before for before, _ in LINK_TRANSITIONS} == set(LinkState)
    assert set(STAGE_TRANSITIONS.values()) == {before for before, _ in STAGE_TRANSITIONS}


def test_long_deadlines_of_ended_requests_are_not_hoarded() -> None:
    state = ready()
    for number in range(1, 2000):
        told(state, 0.0, Asked(number, 1e6), Ended(number))
    assert len(state._deadlines) < 100


# Whatever happens, in any order.

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "timed", "give up", "open", "greet", "lose", "unfit", "keep", "arrive", "busy", "end"]
        ),
        st.integers(0, 30),
        st.floats(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, most=st.integers(1, 5), is_closed=st.booleans())
def test_every_request_ends_once_and_is_sent_twice_at_most_unless_it_is_refused(
    steps: list[tuple[str, int, float]], most: int, is_closed: bool
) -> None:
    state = client(most)
    now_s, asked = 0.0, 0
    ended: dict[int, str] = {}
    on_the_wire: set[int] = set()
    times_sent: Counter[int] = Counter()
    """Since a refusal."""
    has_link = False

    def feed(event: ClientEvent) -> None:
        nonlocal has_link
        for instruction in told(state, now_s, event):
            match instruction:
                case Connect():
                    assert not has_link
                    has_link = True
                case Disconnect():
                    has_link = False
                    on_the_wire.clear()
                case Send(request, timeout_s):
                    assert has_link
                    assert request not in on_the_wire
                    assert request not in ended
                    assert timeout_s is None or timeout_s > 0
                    on_the_wire.add(request)
                    times_sent[request] += 1
                    assert times_sent[request] <= 2
                case Withdraw(request):
                    assert request in on_the_wire
                    on_the_wire.discard(request)
                case Deliver(request) | Fail(request):
                    assert request not in ended
                    ended[request] = type(instruction).__name__
                    on_the_wire.discard(request)
        assert len(on_the_wire) <= most

    for kind, number, gap_s in steps:
        now_s += gap_s
        feed(Tick())
        match kind:
            case "ask" | "timed":
                asked += 1
                feed(Asked(asked, gap_s + 0.1 if kind == "timed" else None))
            case "give up":
                if number <= asked:
                    is_new = number not in ended
                    feed(GivenUp(number))
                    if is_new and number > 0:
                        ended[number] = "given up"
            case "open" if state.state is LinkState.CONNECTING:
                feed(LinkOpened())
            case "greet":
                feed(Greeted())
            case "lose" if has_link:
                feed(LinkLost("gone"))
            case "unfit" if has_link:
                feed(Unfit(PeerError("nonsense")))
            case "keep":
                feed(Kept(number))
            case "arrive":
                feed(Arrived(number))
            case "busy":
                was_out = number in on_the_wire
                on_the_wire.discard(number)
                times_sent[number] -= was_out
                feed(Refused(number, gap_s, "full", "later"))
                assert was_out or number not in on_the_wire
            case "end":
                was_out = number in on_the_wire
                feed(Ended(number))
                assert not was_out or ended[number] == "Deliver"
    if is_closed:
        feed(Closed())
        assert set(ended) == set(range(1, asked + 1))
        assert len(state) == 0
    # Nobody answers any more: what has a deadline, or waits for a connection, ends all the same.
    for _ in range(200):
        if state.due_s is None or state.due_s > 1e6:
            break
        now_s = max(now_s, state.due_s)
        feed(Tick())
    assert state.due_s is None or state.due_s > 1e6
    assert len(state) == len(on_the_wire) or state.state is LinkState.READY
