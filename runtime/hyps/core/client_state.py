"""The client's side of a connection: which requests are sent when, which wait, and how each of them ends.

Every request ends once: with its answer, or with an error that says why not. When a link is lost, what was not sent yet
or was refused for want of room is sent on the next one, as if nothing had been. So is, once, what was sent and not
known to have arrived: it may be computed twice, and is answered once. What had arrived fails with a `LostError` for the
caller to decide, since it may be what the peer died of.
"""

import copy
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

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
from hyps.core.send_window import SendWindow
from hyps.errors import BusyError, DeadlineError, HypsError, InternalError, LostError, PeerError, UsageError, printable
from hyps.formats.quantities import format_seconds

_RECONNECT_S = 0.1
_LEAST_RETRY_S, _MOST_RETRY_S = 0.01, 5.0


class LinkState(Enum):
    """Where the connection is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    GREETING = "greeting"
    READY = "ready"
    CLOSED = "closed"


class LinkTrigger(Enum):
    """What moves it on."""

    WANTED = "wanted"
    OPENED = "opened"
    GREETED = "greeted"
    LOST = "lost"
    CLOSED = "closed"


LINK_TRANSITIONS: Mapping[tuple[LinkState, LinkTrigger], LinkState] = {
    (LinkState.IDLE, LinkTrigger.WANTED): LinkState.CONNECTING,
    (LinkState.CONNECTING, LinkTrigger.OPENED): LinkState.GREETING,
    (LinkState.GREETING, LinkTrigger.GREETED): LinkState.READY,
    (LinkState.CONNECTING, LinkTrigger.LOST): LinkState.IDLE,
    (LinkState.GREETING, LinkTrigger.LOST): LinkState.IDLE,
    (LinkState.READY, LinkTrigger.LOST): LinkState.IDLE,
    **{(state, LinkTrigger.CLOSED): LinkState.CLOSED for state in LinkState},
}
"""Every change of the connection's state; what is not in here cannot happen."""


class Stage(Enum):
    """Where a request is in its life; one that has ended is forgotten."""

    WAITING = "waiting"
    SENT = "sent"
    ARRIVED = "arrived"
    KEPT = "kept"


class StageTrigger(Enum):
    """What moves it on."""

    SENT = "sent"
    ARRIVED = "arrived"
    KEPT = "kept"
    REFUSED = "refused"
    LOST = "lost"


STAGE_TRANSITIONS: Mapping[tuple[Stage, StageTrigger], Stage] = {
    (Stage.WAITING, StageTrigger.SENT): Stage.SENT,
    (Stage.SENT, StageTrigger.ARRIVED): Stage.ARRIVED,
    (Stage.ARRIVED, StageTrigger.ARRIVED): Stage.ARRIVED,
    (Stage.KEPT, StageTrigger.ARRIVED): Stage.KEPT,
    **{(stage, StageTrigger.KEPT): Stage.KEPT for stage in (Stage.SENT, Stage.ARRIVED, Stage.KEPT)},
    **{(stage, StageTrigger.REFUSED): Stage.WAITING for stage in (Stage.SENT, Stage.ARRIVED, Stage.KEPT)},
    (Stage.SENT, StageTrigger.LOST): Stage.WAITING,
}
"""Every change of a request's stage; what is not in here cannot happen."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits for what."""

    connect_s: float = 5.0
    """For a peer that answers and greets."""
    busy_s: float = 30.0
    """For a peer that has no room, and none of our requests under way whose end would make some."""
    beat_s: float = 1.0
    """Between the signs of life that are asked for while requests are under way."""
    grace_s: float = 0.25
    """Beyond a request's deadline, for the peer's own word that it was missed."""


@dataclass(slots=True)
class _Request:
    number: int
    asked_s: float
    timeout_s: float | None
    stage: Stage = Stage.WAITING
    was_lost: bool = False
    """Whether it was sent on a link that was lost, and waits to be sent again."""

    @property
    def deadline_s(self) -> float | None:
        return None if self.timeout_s is None else self.asked_s + self.timeout_s


class ClientState:
    """One connection's requests; `handle` takes what happened and returns what to do."""

    def __init__(self, shown: str, most_in_flight: int, patience: Patience | None = None) -> None:
        """Take the peer's address as messages show it, and how many requests may be under way at once."""
        self._shown = shown
        self._patience = patience or Patience()
        self._most = most_in_flight
        self._window = SendWindow(most_in_flight)
        self._state = LinkState.IDLE
        self._requests: dict[int, _Request] = {}
        self._in_flight: set[int] = set()
        self._waiting: list[int] = []
        """A heap of numbers; may name requests that wait no more."""
        self._deadlines: list[tuple[float, int]] = []
        """A heap; may name requests that have ended."""
        self._give_up_s: float | None = None
        """While a connection is sought: until when."""
        self._reconnect_s: float | None = None
        self._pause_s: float | None = None
        """When a peer without room is to be asked again, where no answer of ours will come before."""
        self._starved_s: float | None = None
        """Since when the peer takes none of ours."""
        self._beat_due_s: float | None = None
        """While requests are under way."""

    @property
    def state(self) -> LinkState:
        """Where the connection is in its life."""
        return self._state

    @property
    def in_flight(self) -> int:
        """How many requests the peer has, or may have."""
        return len(self._in_flight)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def due_s(self) -> float | None:
        """When a `Tick` is wanted at the latest; None: not before something else happens."""
        times = [self._give_up_s, self._reconnect_s, self._pause_s, self._beat_due_s]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min((time_s for time_s in times if time_s is not None), default=None)

    def handle(self, now_s: float, event: ClientEvent) -> list[ClientInstruction]:
        """Take what happened and return what to do, in this order.

        Raises:
            InternalError: it cannot have happened.
        """
        if self._state is LinkState.CLOSED:
            return self._refuse_when_closed(event)
        made: list[ClientInstruction] = []
        match event:
            case Closed():
                return self._close()
            case Wanted():
                made = [Reached()] if self._state is LinkState.READY else self._seek(now_s)
            case Asked():
                made = self._ask(now_s, event)
            case GivenUp():
                made = self._withdraw(event.request)
                self._forget(event.request)
            case LinkOpened():
                self._move(LinkTrigger.OPENED)
                made = [Greet()]
            case Greeted():
                made = self._on_greeted()
            case LinkLost():
                made = self._on_lost(now_s, event.reason)
            case Unfit():
                made = self._on_unfit(now_s, event.error)
            case Arrived():
                if event.request in self._in_flight:
                    self._advance(self._requests[event.request], StageTrigger.ARRIVED)
            case Kept():
                self._on_kept(event.request)
            case Refused():
                made = self._on_refused(now_s, event)
            case Ended():
                made = self._on_ended(event.request)
            case Tick():
                pass
            case _:
                assert_never(event)
        return [*made, *self._on_time(now_s), *self._send(now_s), *self._beat(now_s)]

    def check_invariants(self) -> None:
        """Make sure of what must always hold.

        Raises:
            AssertionError: it does not.
        """
        under_way = {n for n, request in self._requests.items() if request.stage is not Stage.WAITING}
        assert under_way == self._in_flight
        assert not under_way or self._state is LinkState.READY
        assert len(under_way) <= self._most
        assert set(self._requests) - under_way <= set(self._waiting)
        assert (self._give_up_s is None) == (self._state in (LinkState.READY, LinkState.CLOSED) or self._is_at_rest())
        assert len(self._deadlines) <= 2 * len(self._requests) + _SPARE
        assert len(self._waiting) <= 2 * len(self._requests) + _SPARE
        timed = {number for _, number in self._deadlines}
        assert all(request.timeout_s is None or n in timed for n, request in self._requests.items())
        assert (self._beat_due_s is None) == (not self._in_flight)
        if self._state is LinkState.CLOSED:
            assert not self._requests

    # The connection.

    def _seek(self, now_s: float) -> list[ClientInstruction]:
        if not self._is_at_rest():
            return []
        self._give_up_s = now_s + self._patience.connect_s
        self._move(LinkTrigger.WANTED)
        return [Connect()]

    def _is_at_rest(self) -> bool:
        return self._state is LinkState.IDLE and self._reconnect_s is None

    def _on_greeted(self) -> list[ClientInstruction]:
        if self._state is not LinkState.GREETING:
            return []
        self._move(LinkTrigger.GREETED)
        self._give_up_s = self._pause_s = self._starved_s = None
        self._window = SendWindow(self._most)
        return [Reached()]

    def _on_lost(self, now_s: float, reason: str) -> list[ClientInstruction]:
        was_ready = self._state is LinkState.READY
        self._move(LinkTrigger.LOST)
        made: list[ClientInstruction] = [Disconnect()]
        if not was_ready:
            self._reconnect_s = now_s + _RECONNECT_S
            return made
        self._take_back()
        made += [Fail(number, self._lost(number, reason)) for number in sorted(self._in_flight)]
        return [*made, *self._leave_link(now_s)]

    def _on_unfit(self, now_s: float, error: HypsError) -> list[ClientInstruction]:
        """A peer that greets wrongly is as bad for those that wait; what goes wrong later may be a request's fault."""
        was_ready = self._state is LinkState.READY
        self._move(LinkTrigger.LOST)
        if not was_ready:
            return self._give_up(error)
        made = [Fail(number, copy.copy(error)) for number in sorted(self._in_flight)]
        return [Disconnect(), *made, *self._leave_link(now_s)]

    def _take_back(self) -> None:
        """Let what was sent and is not known to have arrived wait again, each once."""
        for number in list(self._in_flight):
            request = self._requests[number]
            if request.stage is Stage.SENT and not request.was_lost:
                request.was_lost = True
                self._put_back(request, StageTrigger.LOST)

    def _put_back(self, request: _Request, trigger: StageTrigger) -> None:
        self._advance(request, trigger)
        self._in_flight.discard(request.number)
        heapq.heappush(self._waiting, request.number)

    def _leave_link(self, now_s: float) -> list[ClientInstruction]:
        """Forget what was under way on a link that was ready, and seek another for what still waits."""
        for number in list(self._in_flight):
            self._forget(number)
        self._pause_s = None
        return self._seek(now_s) if self._requests else []

    def _give_up(self, error: HypsError) -> list[ClientInstruction]:
        return [Disconnect(), *self._fail_all(error)]

    def _fail_all(self, error: HypsError) -> list[ClientInstruction]:
        """Fail all, each with an error of its own: one that is raised twice gathers both callers' tracebacks."""
        failed = [Fail(number, copy.copy(error)) for number in sorted(self._requests)]
        for number in list(self._requests):
            self._forget(number)
        self._waiting.clear()
        self._deadlines.clear()
        self._give_up_s = self._reconnect_s = None
        return [Unreachable(copy.copy(error)), *failed]

    def _close(self) -> list[ClientInstruction]:
        made: list[ClientInstruction] = [Withdraw(number) for number in sorted(self._in_flight)]
        self._move(LinkTrigger.CLOSED)
        made += self._fail_all(_closed())  # the link goes when what was said last has left
        self._pause_s = self._starved_s = self._beat_due_s = None
        return made

    def _refuse_when_closed(self, event: ClientEvent) -> list[ClientInstruction]:
        match event:
            case Asked():
                return [Fail(event.request, _closed())]
            case Wanted():
                return [Unreachable(_closed())]
            case _:
                return []

    # A request.

    def _ask(self, now_s: float, event: Asked) -> list[ClientInstruction]:
        if event.request in self._requests:
            raise InternalError(f"request {event.request} was asked twice")
        request = _Request(event.request, now_s, event.timeout_s)
        self._requests[event.request] = request
        heapq.heappush(self._waiting, event.request)
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (request.deadline_s, event.request))
        return [] if self._state is LinkState.READY else self._seek(now_s)

    def _on_kept(self, number: int) -> None:
        if number in self._in_flight:
            self._advance(self._requests[number], StageTrigger.KEPT)
            self._starved_s = None

    def _on_ended(self, number: int) -> list[ClientInstruction]:
        if number not in self._in_flight:
            return []
        self._forget(number)
        self._window.note_answer()
        self._starved_s = None
        return [Deliver(number)]

    def _on_refused(self, now_s: float, event: Refused) -> list[ClientInstruction]:
        if event.request not in self._in_flight:
            return []
        request = self._requests[event.request]
        self._put_back(request, StageTrigger.REFUSED)
        self._window.note_refusal(len(self._in_flight))
        if self._in_flight:
            return []  # the answers to those make room
        self._starved_s = now_s if self._starved_s is None else self._starved_s
        self._pause_s = now_s + min(_MOST_RETRY_S, max(_LEAST_RETRY_S, event.retry_after_s))
        if self._pause_s <= self._patient_until_s(request, self._starved_s):
            return []
        self._forget(request.number)
        error = BusyError(event.message, event.hint, retry_after_s=event.retry_after_s)
        return [Fail(request.number, error)]

    def _patient_until_s(self, request: _Request, starved_s: float) -> float:
        until_s = max(starved_s, request.asked_s) + self._patience.busy_s
        return until_s if request.deadline_s is None else min(until_s, request.deadline_s)

    def _withdraw(self, number: int) -> list[ClientInstruction]:
        return [Withdraw(number)] if number in self._in_flight else []

    def _forget(self, number: int) -> None:
        self._in_flight.discard(number)
        if self._requests.pop(number, None) is not None:
            self._sweep()

    def _sweep(self) -> None:
        """Keep what the heaps hold of ended requests within bounds."""
        bound = 2 * len(self._requests) + _SPARE
        if len(self._deadlines) > bound:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
            heapq.heapify(self._deadlines)
        if len(self._waiting) > bound:
            self._waiting = [n for n, r in self._requests.items() if r.stage is Stage.WAITING]
            heapq.heapify(self._waiting)

    # What is due.

    def _on_time(self, now_s: float) -> list[ClientInstruction]:
        made = self._expire(now_s)
        if self._pause_s is not None and now_s >= self._pause_s:
            self._pause_s = None
        if self._give_up_s is not None and now_s >= self._give_up_s:
            error = self._no_answer()
            if self._state is not LinkState.IDLE:
                self._move(LinkTrigger.LOST)
            return [*made, *self._give_up(error)]
        if self._reconnect_s is not None and now_s >= self._reconnect_s:
            self._reconnect_s = None
            self._move(LinkTrigger.WANTED)
            made.append(Connect())
        return made

    def _expire(self, now_s: float) -> list[ClientInstruction]:
        made: list[ClientInstruction] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, number = heapq.heappop(self._deadlines)
            request = self._requests.get(number)
            if request is None or request.deadline_s is None:
                continue
            patient_until_s = request.deadline_s + self._patience.grace_s
            if number in self._in_flight and now_s < patient_until_s:
                heapq.heappush(self._deadlines, (patient_until_s, number))
                continue
            made += [*self._withdraw(number), Fail(number, self._late(request))]
            self._forget(number)
        return made

    def _send(self, now_s: float) -> list[ClientInstruction]:
        made: list[ClientInstruction] = []
        while self._waiting and self._state is LinkState.READY and self._pause_s is None:
            if len(self._in_flight) >= self._window.width:
                break
            request = self._requests.get(heapq.heappop(self._waiting))
            if request is None or request.stage is not Stage.WAITING:
                continue
            left_s = None if request.deadline_s is None else request.deadline_s - now_s
            if left_s is not None and left_s <= 0:  # refused when its time was over
                made.append(Fail(request.number, self._late(request)))
                self._forget(request.number)
                continue
            self._advance(request, StageTrigger.SENT)
            self._in_flight.add(request.number)
            made.append(Send(request.number, left_s))
        return made

    def _beat(self, now_s: float) -> list[ClientInstruction]:
        if not self._in_flight:
            self._beat_due_s = None
            return []
        is_due = self._beat_due_s is not None and now_s >= self._beat_due_s
        if is_due or self._beat_due_s is None:
            self._beat_due_s = now_s + self._patience.beat_s
        return [Beat()] if is_due else []

    # Words.

    def _lost(self, number: int, reason: str) -> LostError:
        was_kept = self._requests[number].stage is Stage.KEPT
        which = "a request that it had accepted" if was_kept else "a request that it may have accepted"
        return LostError(
            f"the connection to `{self._shown}` was lost with {which}: {printable(reason)}",
            "send the request again; the session connects anew by itself",
            was_accepted=True if was_kept else None,
        )

    def _late(self, request: _Request) -> DeadlineError:
        seconds = format_seconds(request.timeout_s or 0.0)
        if request.stage is Stage.WAITING:
            return DeadlineError(f"the request could not be sent to `{self._shown}` within {seconds}", _LATE_HINT)
        return DeadlineError(f"`{self._shown}` did not answer within {seconds}", _LATE_HINT)

    def _no_answer(self) -> PeerError:
        if self._state is LinkState.GREETING:
            return PeerError(f"`{self._shown}` is silent", "see whether a worker or manager of HyPS runs there")
        hint = "start one there with `hyps-worker PLAN --bind ADDRESS`"
        return PeerError(f"no worker answers at `{self._shown}`", hint)

    def _move(self, trigger: LinkTrigger) -> None:
        after = LINK_TRANSITIONS.get((self._state, trigger))
        if after is None:
            raise InternalError(f"the connection was {self._state.value} and then {trigger.value}")
        self._state = after

    def _advance(self, request: _Request, trigger: StageTrigger) -> None:
        after = STAGE_TRANSITIONS.get((request.stage, trigger))
        if after is None:
            raise InternalError(f"request {request.number} was {request.stage.value} and then {trigger.value}")
        request.stage = after


_SPARE = 64
_LATE_HINT = "give it longer, or see with `hypsc status` what keeps it"


def _closed() -> UsageError:
    return UsageError("the session was closed and cannot be run any more", "open it again")


def _copy(error: HypsError) -> HypsError:
    """Return an error of its own for each caller: one that is raised twice gathers both callers' tracebacks."""
    return copy.copy(error)
