"""The hub's tensors: each kept once, released when nobody needs it, within the bytes there are."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.core.hub_state import TRANSITIONS, Arrival, EntryState, EntryTrigger, HubState
from hyps.errors import InternalError


def hub_with(**tensors: int) -> HubState:
    hub = HubState(1000)
    hub.open(1, tensors)
    return hub


def test_the_first_tensor_of_its_name_and_epoch_wins() -> None:
    hub = hub_with(x=10)
    assert hub.arrive(1, 1, "y", 20, is_wanted=True) is Arrival.KEPT
    assert hub.arrive(1, 1, "y", 20, is_wanted=True) is Arrival.SECOND
    assert hub.arrive(1, 1, "x", 10, is_wanted=True) is Arrival.SECOND
    assert hub.held_nbytes == 30


def test_tensors_of_other_epochs_and_of_ended_requests_are_refused() -> None:
    hub = hub_with(x=10)
    hub.begin_anew(1, 2)
    assert hub.arrive(1, 1, "y", 20, is_wanted=True) is Arrival.STALE
    assert hub.arrive(1, 3, "y", 20, is_wanted=True) is Arrival.STALE
    assert hub.close(1) == ["x"]
    assert hub.arrive(1, 2, "y", 20, is_wanted=True) is Arrival.STALE
    assert hub.held_nbytes == hub.used_nbytes == 0


def test_what_is_only_passed_on_is_released_when_everybody_has_it() -> None:
    hub = hub_with(x=10)
    hub.arrive(1, 1, "t", 20, is_wanted=False)
    hub.note_sent(1, "t")
    hub.note_sent(1, "t")
    assert not hub.note_taken(1, 1, "t")
    assert hub.has(1, "t")
    assert hub.note_taken(1, 1, "t")
    assert not hub.has(1, "t")
    assert not hub.note_taken(1, 1, "t"), "a second time is harmless"
    assert hub.passed_nbytes == 20


def test_what_is_wanted_stays_although_everybody_has_it() -> None:
    hub = hub_with(x=10)
    hub.note_sent(1, "x")
    assert not hub.note_taken(1, 1, "x")
    assert hub.has(1, "x")


def test_a_request_begun_anew_takes_again_what_was_released_and_keeps_what_is_held() -> None:
    hub = hub_with(x=10)
    hub.arrive(1, 1, "t", 20, is_wanted=False)
    hub.note_sent(1, "t")
    hub.note_taken(1, 1, "t")
    hub.begin_anew(1, 2)
    assert hub.held(1) == ["x"]
    assert hub.arrive(1, 2, "t", 20, is_wanted=False) is Arrival.KEPT
    hub.note_sent(1, "t")
    assert not hub.note_taken(1, 1, "t"), "that was the epoch before"
    assert hub.note_taken(1, 2, "t")


def test_a_durable_tensor_is_held_and_released_as_others_are() -> None:
    hub = hub_with(x=10)
    hub.note_written(1, "x")
    assert hub.held(1) == ["x"]
    with pytest.raises(InternalError):
        hub.note_written(1, "x")
    assert hub.keep_only(1, ()) == ["x"]
    assert hub.held_nbytes == 0


def test_what_is_reserved_counts_until_it_is_given_back() -> None:
    hub = HubState(100)
    hub.open(1, {"x": 20})
    hub.reserve(1, 60)
    assert not hub.has_room(30)
    hub.arrive(1, 1, "y", 50, is_wanted=True)
    assert hub.used_nbytes == 80
    assert hub.keep_only(1, {"y"}) == ["x"]
    assert hub.used_nbytes == 50
    assert hub.has_room(50)


def test_one_request_fits_whatever_its_bytes() -> None:
    hub = HubState(10)
    assert hub.has_room(1000)
    hub.open(1, {"x": 1000})
    assert not hub.has_room(1)


@given(st.integers(0, 2**32))
def test_bytes_are_counted_right_in_any_order_of_events(seed: int) -> None:
    rng, hub = random.Random(seed), HubState(500)
    epochs: dict[int, int] = {}
    for step in range(60):
        number = rng.choice([*epochs, step + 1])
        choice = rng.randrange(7)
        if number not in epochs:
            hub.open(number, {"x": rng.randrange(50)})
            epochs[number] = 1
        elif choice == 0:
            hub.reserve(number, rng.randrange(100))
        elif choice in (1, 2):
            hub.arrive(number, epochs[number], rng.choice("abc"), rng.randrange(50), is_wanted=rng.random() < 0.5)
        elif choice == 3 and hub.held(number):
            hub.note_sent(number, rng.choice(hub.held(number)))
        elif choice == 4:
            hub.note_taken(number, epochs[number], rng.choice("xabc"))
        elif choice == 5:
            epochs[number] += 1
            hub.begin_anew(number, epochs[number])
        else:
            hub.close(number)
            del epochs[number]
        hub.check_invariants()
    for number in list(epochs):
        hub.close(number)
    assert hub.held_nbytes == hub.used_nbytes == len(hub) == 0


def test_every_state_can_be_left_and_entered() -> None:
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(EntryState)
    assert {trigger for _, trigger in TRANSITIONS} == set(EntryTrigger)
