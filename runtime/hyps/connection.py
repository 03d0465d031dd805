"""One connection to a worker or manager: a thread that owns the links, and many requests under way.

What is sent when, and how each request ends, is decided by `core.client_state`; here it is carried out.
"""

import contextlib
import copy
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import msgspec

from hyps.adapters.frames import Buffer, check_frames, from_frames
from hyps.adapters.links import Heard, LinkEvent, Links, Lost, Opened, Taken
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
from hyps.core.client_state import ClientState, LinkState, Patience
from hyps.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    HypsError,
    InternalError,
    LostError,
    PeerError,
    PlanError,
    TensorError,
    UsageError,
    printable,
)
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Done,
    Failed,
    FromClient,
    Heartbeat,
    Hello,
    Probe,
    Probed,
    Status,
    Submit,
    TensorHeader,
    Welcome,
    decode_from_worker,
    encode,
)
from hyps.formats.plan import NamedTensor

logger = logging.getLogger(__name__)

_IDLE_S = 60.0
_CLOSE_S = 5.0
_LINGER_S = 0.2
"""For the word that nobody waits any more, where requests are under way at the end."""
_ERRORS: Mapping[str, type[HypsError]] = {
    kind.default_code: kind for kind in (DeadlineError, ExecutionError, PlanError, TensorError)
}

Outcome = dict[str, Any] | HypsError


@dataclass(slots=True, eq=False)
class _Call:
    """A request, and who waits for it."""

    submit: Submit
    frames: Sequence[Buffer]
    wanted: Sequence[NamedTensor]
    future: "Future[dict[str, Any]]"


@dataclass(slots=True, eq=False)
class _Burst:
    """Probes that were sent at once, and who waits for the last answer."""

    names: set[str]
    nbytes_down: int
    future: "Future[tuple[float, Probed]]"
    start_s: float = 0.0


class Connection:
    """Requests to one peer, from any threads; a thread of its own owns the links.

    After the connection was lost, the next request makes a new one, to the same model or not at all.
    """

    def __init__(self, links: Links, address: str, *, most_in_flight: int, patience: Patience | None = None) -> None:
        """Take the links, which are closed with the connection; nothing is connected before `reach`."""
        self._links, self._address, self._shown = links, address, printable(address)
        self._core = ClientState(self._shown, most_in_flight, patience)
        self._numbers = itertools.count(1)
        self._calls: dict[str, _Call] = {}
        self._bursts: dict[str, _Burst] = {}
        self._reaching: list[Future[Welcome]] = []
        self._link: int | None = None
        self._welcome: Welcome | None = None
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        """Guards `_is_over`; re-entrant, since collecting garbage may close a connection at any moment."""
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="hyps-connection", daemon=True)
        self._thread.start()

    # For any thread.

    @property
    def max_nbytes(self) -> int:
        """The most bytes that one tensor for the peer may have, as it said last; 0 before `reach`."""
        return 0 if self._welcome is None else self._welcome.max_nbytes

    def reach(self) -> "Future[Welcome]":
        """Return what the peer says of itself, once there is a connection.

        Raises:
            UsageError: the connection was closed. Through the future also: no address.
            PeerError: through the future: nobody answers, or not in this version of the protocol.
        """
        future: Future[Welcome] = Future()
        self._do(lambda: self._reach(future))
        return future

    def ask(
        self,
        headers: tuple[TensorHeader, ...],
        frames: Sequence[Buffer],
        outputs: Sequence[str],
        wanted: Sequence[NamedTensor],
        timeout_s: float | None,
    ) -> "Future[dict[str, Any]]":
        """Send a request and return the future of its outputs; cancelling that withdraws the request.

        The frames are not copied: they must not change until the future is done.

        Args:
            headers: of its tensors.
            frames: their bytes.
            outputs: the names of the outputs to ask for; empty: all.
            wanted: what these are declared as; the answer is checked against it.
            timeout_s: when it fails for want of an answer.

        Raises:
            UsageError: the connection was closed.
        """
        name = str(next(self._numbers))
        call = _Call(Submit(name, headers, tuple(outputs)), frames, wanted, Future())
        call.future.add_done_callback(partial(self._on_done, name))
        asked = Asked(int(name), timeout_s)
        self._do(lambda: self._ask(name, call, asked))
        return call.future

    def probe(
        self, nbytes_up: int, nbytes_down: int, count: int, wants_seconds: bool
    ) -> "Future[tuple[float, Probed]]":
        """Send `count` probes at once and return the future of the seconds until the last answer, and of that.

        Raises:
            UsageError: the connection was closed.
        """
        names = [str(next(self._numbers)) for _ in range(count)]
        burst = _Burst(set(names), nbytes_down, Future())
        self._do(lambda: self._probe(burst, bytes(nbytes_up), wants_seconds))
        return burst.future

    def close(self) -> None:
        """Fail what is under way, tell the peer that nobody waits for it, and wait until nothing is left open."""
        with contextlib.suppress(UsageError):
            self._do(lambda: self._handle(Closed()))
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def _do(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._is_over:
                raise UsageError("the session was closed and cannot be run any more", "open it again")
            self._todo.put(job)
            self._links.wake()

    def _on_done(self, name: str, future: "Future[dict[str, Any]]") -> None:
        if future.cancelled():
            with contextlib.suppress(UsageError):
                self._do(lambda: self._drop(name))

    # The thread that owns the links.

    def _run(self) -> None:
        try:
            while self._core.state is not LinkState.CLOSED:
                self._step()
        except Exception as error:  # this thread's top: were it to die, every caller would wait for ever
            logger.exception("a connection broke off")
            self._end(InternalError(f"{type(error).__name__}: {error}"))
        else:
            self._end(UsageError("the session was closed and cannot be run any more", "open it again"))

    def _step(self) -> None:
        due_s = self._core.due_s
        wait_s = _IDLE_S if due_s is None else due_s - time.monotonic()
        event = self._links.receive(max(0.0, wait_s))
        if event is not None:  # first: what is asked for next may depend on a link that is lost
            self._on_link(event)
        self._do_todo()
        if self._core.due_s is not None:
            self._handle(Tick())

    def _do_todo(self) -> None:
        while True:
            try:
                job = self._todo.get_nowait()
            except queue.Empty:
                return
            job()

    def _end(self, error: HypsError) -> None:
        """Close everything and let nobody wait."""
        with self._lock:
            self._is_over = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._todo.get_nowait()()
        for name in list(self._calls):
            self._settle(name, copy.copy(error))
        self._fail_bursts(error)
        self._fail_reaching(error)
        self._links.close(_LINGER_S)

    # What callers want.

    def _reach(self, future: "Future[Welcome]") -> None:
        self._reaching.append(future)
        self._handle(Wanted())

    def _ask(self, name: str, call: _Call, asked: Asked) -> None:
        self._calls[name] = call
        self._handle(asked)

    def _drop(self, name: str) -> None:
        if name in self._calls:
            self._handle(GivenUp(int(name)))
            self._settle(name, {})

    def _probe(self, burst: _Burst, payload: bytes, wants_seconds: bool) -> None:
        names = sorted(burst.names)
        self._bursts |= dict.fromkeys(names, burst)
        if self._core.state is not LinkState.READY:
            self._fail_bursts(PeerError(f"the connection to `{self._shown}` was lost", "try again"))
            return
        burst.start_s = time.perf_counter()
        for name in names:
            self._tell(Probe(name, burst.nbytes_down, wants_seconds), [payload])

    # What the links tell.

    def _on_link(self, event: LinkEvent) -> None:
        if event.link != self._link:
            return  # of a link that we have left
        match event:
            case Opened():
                self._handle(LinkOpened())
            case Lost():
                self._link = None
                self._handle(LinkLost(event.reason))
            case Heard():
                self._on_heard(event.frames)
            case Taken():
                if isinstance(event.token, int):
                    self._handle(Arrived(event.token))
            case _:
                assert_never(event)

    def _on_heard(self, frames: Sequence[Buffer]) -> None:
        try:
            message = decode_from_worker(memoryview(frames[0]))
        except PeerError as error:
            self._handle(Unfit(error))
            return
        match message:
            case Welcome():
                self._on_welcome(message)
            case Accepted():
                if message.request in self._calls:
                    self._handle(Kept(int(message.request)))
            case Done():
                self._on_done_message(message, frames[1:])
            case Failed():
                self._on_failed(message)
            case Probed():
                self._on_probed(message, frames[1:])
            case Heartbeat() | Status():
                pass  # nobody asked for these here
            case _:
                assert_never(message)

    def _on_welcome(self, message: Welcome) -> None:
        known = self._welcome
        if message.version != PROTOCOL_VERSION:
            text = f"`{self._shown}` speaks version {message.version} of the protocol and we {PROTOCOL_VERSION}"
            self._handle(Unfit(PeerError(text, "use the same version of hyps on both sides", "E_VERSION")))
        elif known is not None and known.sha256 != message.sha256:
            text = f"the worker at `{self._shown}` serves another model now"
            self._handle(Unfit(PeerError(text, "open a new session")))
        else:
            self._welcome = message
            self._handle(Greeted())

    def _on_done_message(self, message: Done, frames: Sequence[Buffer]) -> None:
        call = self._calls.get(message.request)
        if call is not None:
            self._handle(Ended(int(message.request)), self._checked(call, message, frames))

    def _checked(self, call: _Call, message: Done, frames: Sequence[Buffer]) -> Outcome:
        try:
            check_frames(message.tensors, frames, call.wanted, "output")
            return from_frames(message.tensors, frames)
        except (TensorError, PeerError) as error:
            return PeerError(f"`{self._shown}` answered wrongly: {error.message}", code="E_PROTOCOL")

    def _on_failed(self, message: Failed) -> None:
        error = _refusal(message)
        burst = self._bursts.get(message.request)
        if burst is not None:
            self._end_burst(burst, error)
        elif not message.request:
            self._handle(Unfit(error))
        elif message.request not in self._calls:
            return
        elif isinstance(error, BusyError):
            self._handle(Refused(int(message.request), error.retry_after_s, error.message, error.hint))
        else:
            self._handle(Ended(int(message.request)), error)

    def _on_probed(self, message: Probed, frames: Sequence[Buffer]) -> None:
        burst = self._bursts.pop(message.request, None)
        if burst is None:
            return
        burst.names.discard(message.request)
        if [len(frame) for frame in frames] != [burst.nbytes_down]:
            self._end_burst(burst, PeerError(f"`{self._shown}` answered a probe wrongly", code="E_PROTOCOL"))
        elif not burst.names:
            self._end_burst(burst, (time.perf_counter() - burst.start_s, message))

    # What is to be done.

    def _handle(self, event: ClientEvent, outcome: Outcome | None = None) -> None:
        """Tell the core and do what it says; `outcome` is what it may have delivered."""
        if self._is_over:
            return
        for instruction in self._core.handle(time.monotonic(), event):
            self._carry_out(instruction, outcome)

    def _carry_out(self, instruction: ClientInstruction, outcome: Outcome | None) -> None:
        match instruction:
            case Connect():
                self._connect()
            case Disconnect():
                self._disconnect()
            case Greet():
                self._tell(Hello(PROTOCOL_VERSION))
            case Send():
                call = self._calls[str(instruction.request)]
                submit = msgspec.structs.replace(call.submit, timeout_s=instruction.timeout_s)
                self._tell(submit, call.frames, token=instruction.request)
            case Withdraw():
                self._tell(Cancel(str(instruction.request)))
            case Beat():
                self._beat()
            case Deliver():
                self._settle(str(instruction.request), outcome or {})
            case Fail():
                self._settle(str(instruction.request), instruction.error)
            case Reached():
                self._answer_reaching()
            case Unreachable():
                self._fail_reaching(instruction.error)
            case _:
                assert_never(instruction)

    def _connect(self) -> None:
        try:
            self._link = self._links.connect(self._address)
        except HypsError as error:
            unfit = Unfit(error)
            self._do(lambda: self._handle(unfit))

    def _disconnect(self) -> None:
        if self._link is not None:
            self._links.close_link(self._link)
            self._link = None
        self._fail_bursts(LostError(f"the connection to `{self._shown}` was lost", "see whether the worker still runs"))

    def _tell(self, message: FromClient, frames: Sequence[Buffer] = (), token: int | None = None) -> None:
        if self._link is not None:
            self._links.send(self._link, [encode(message), *frames], token)

    def _beat(self) -> None:
        if self._link is not None:
            self._links.send(self._link, [encode(Heartbeat())], is_urgent=True)

    def _settle(self, name: str, outcome: Outcome) -> None:
        call = self._calls.pop(name, None)
        if call is None or not call.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, HypsError):
            call.future.set_exception(outcome)
        else:
            call.future.set_result(outcome)

    def _answer_reaching(self) -> None:
        futures, self._reaching = self._reaching, []
        for future in futures:
            if self._welcome is not None and future.set_running_or_notify_cancel():
                future.set_result(self._welcome)

    def _fail_reaching(self, error: HypsError) -> None:
        futures, self._reaching = self._reaching, []
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(copy.copy(error))

    def _end_burst(self, burst: _Burst, outcome: tuple[float, Probed] | HypsError) -> None:
        for name in burst.names:
            self._bursts.pop(name, None)
        if not burst.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, HypsError):
            burst.future.set_exception(outcome)
        else:
            burst.future.set_result(outcome)

    def _fail_bursts(self, error: HypsError) -> None:
        while self._bursts:
            self._end_burst(next(iter(self._bursts.values())), copy.copy(error))


def _refusal(message: Failed) -> HypsError:
    text, hint = printable(message.message, 1000), printable(message.hint, 1000)
    if message.code == BusyError.default_code:
        return BusyError(text, hint, retry_after_s=message.retry_after_s or 0.0)
    return _ERRORS.get(message.code, PeerError)(text, hint, printable(message.code))
