"""Serves a plan: one thread moves messages, another computes."""

import contextlib
import dataclasses
import itertools
import logging
import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from hyps.adapters.frames import Buffer, check_frames, from_frames, to_frames
from hyps.adapters.plan_files import read_plan
from hyps.adapters.signals import leaving_on_signals
from hyps.adapters.transport import MAX_PARTS, Delivery, Departure, Server, ZmqServer
from hyps.core.admission import Admission, ServiceState, Verdict
from hyps.engine import Engine, Options, Outcome, Request, open_engine
from hyps.errors import BusyError, DeadlineError, HypsError, InfeasibleError, InternalError, PeerError, printable
from hyps.formats.messages import (
    MAX_HEADER_NBYTES,
    PROTOCOL_VERSION,
    Accepted,
    AskStatus,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Heartbeat,
    Hello,
    MachineFacts,
    PartitionSeconds,
    Probe,
    Probed,
    Status,
    Submit,
    Welcome,
    decode_from_client,
    encode,
)
from hyps.formats.plan import NamedTensor, Plan
from hyps.formats.signature import check_outputs
from hyps.formats.status import Report, encode_report
from hyps.watching import ServiceWatch

if TYPE_CHECKING:
    from hyps.adapters.metrics import MetricsServer

logger = logging.getLogger(__name__)

MAX_REQUESTS = 64
"""Accepted and not answered yet, of all clients together."""

_UNBOUNDED_QUEUE_NBYTES = 256 * 2**20
_POLL_S = 1.0
_DRAIN_LINGER_S = 2.0
_RESTART_S = 2.0
_HEARD_S = 0.2
"""What a client is given to take its answer: what it has not taken is lost to it when the connection ends."""


@dataclass(slots=True, eq=False)
class _Job:
    """An accepted request on its way."""

    key: str
    peer: bytes
    name: str
    request: Request
    accepted_s: float
    timeout_s: float
    """From then; infinite: as long as it takes."""
    is_cancelled: bool = False
    """Whether nobody waits for it any more."""
    is_late: bool = False
    """Whether that is because its time was over."""

    @property
    def due_s(self) -> float:
        """When it must have ended."""
        return self.accepted_s + self.timeout_s


@dataclass(frozen=True, slots=True)
class _Ended:
    job: _Job
    outcome: Outcome
    seconds: float


class StuckError(DeadlineError):
    """A request went on and on although its time was over.

    Attributes:
        address: where the worker served.
    """

    def __init__(self, address: str) -> None:
        super().__init__("a request cannot be ended, so that this process can serve no more", "start the worker anew")
        self.address = address


class Service:
    """A plan behind a server: `run` returns when it was told to leave and all that it had accepted is answered.

    The thread that calls `run` owns the server; a second one runs the engine, one batch after another.
    """

    def __init__(self, engine: Engine, server: Server, admission: Admission, device: str, max_nbytes: int) -> None:
        """Take what it serves with; `max_nbytes` is what the server lets through per tensor."""
        self._engine, self._server, self._admission = engine, server, admission
        self._device, self._max_nbytes = device, max_nbytes
        self._model = engine.plan.model
        self._jobs: dict[tuple[bytes, str], _Job] = {}
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._is_told_to_leave = False
        self._is_stopped = False
        self._batch: dict[int, _Job] = {}
        """What is being computed and not done yet, by its index in the batch."""
        self._stuck: _Job | None = None
        self._answered_s = -math.inf
        self._echo = b""
        self._facts: MachineFacts | None = None
        self._watch = ServiceWatch(engine, admission, device)
        self._begun_s = 0.0
        """When what is being computed was begun."""
        self.metrics: MetricsServer | None = None
        """Who asks for reports beside the clients."""
        engine.call_when_stuck(self._note_stuck)

    @property
    def is_stuck(self) -> bool:
        """Whether a request could not be ended, so that nothing can be computed in this process any more."""
        return self._stuck is not None

    def leave(self) -> None:
        """Accept nothing more, finish what was accepted; told twice, stop at once. For any thread or signal handler."""
        self._is_stopped, self._is_told_to_leave = self._is_told_to_leave, True
        self._server.wake()

    def wake(self) -> None:
        """Have the server's thread look whether metrics are wanted; for any thread."""
        self._server.wake()

    def wait_until_heard(self) -> None:
        """Wait, if need be, until the clients have had time to take the latest answers."""
        time.sleep(max(0.0, self._answered_s + _HEARD_S - time.monotonic()))

    def run(self) -> bool:
        """Serve until told to leave; return whether everything accepted was answered."""
        computer = threading.Thread(target=self._compute, name="compute", daemon=True)
        computer.start()
        while self._admission.state is not ServiceState.GONE and not self._is_stopped:
            if self._stuck is not None:
                self._give_up(self._stuck)
                return False
            event = self._server.receive(self._poll_s())
            if isinstance(event, Delivery):
                self._on_delivery(event)
            elif isinstance(event, Departure):
                self._on_departure(event.peer)
            self._answer_ended()
            self._fail_what_is_late()
            if self.metrics is not None and self.metrics.is_asked():
                self.metrics.tell(self._report())
            if self._is_told_to_leave and self._admission.state is ServiceState.SERVING:
                logger.info("leaving after %d accepted requests", len(self._admission))
                self._admission.drain()
        self._todo.put(None)
        if not self._is_stopped:
            computer.join()
        return not self._is_stopped

    # The thread of the server.

    def _poll_s(self) -> float:
        due_s = min((job.due_s for job in self._jobs.values()), default=math.inf)
        return max(0.0, min(_POLL_S, due_s - time.monotonic()))

    def _on_departure(self, peer: bytes) -> None:
        """Give up what a client that is gone waits for; what is being computed goes on."""
        for job in [job for job in self._jobs.values() if job.peer == peer]:
            self._forget(job)

    def _fail_what_is_late(self) -> None:
        """Tell clients of requests that have no answer in the time given; what is being computed goes on."""
        now_s = time.monotonic()
        for job in [job for job in self._jobs.values() if job.due_s <= now_s]:
            job.is_late = True
            self._forget(job)
            text = f"the request has no answer after {now_s - job.accepted_s:.3g} s, more than it was given"
            self._say(job.peer, _failed(job.name, DeadlineError(text, "give it more time, or send fewer at once")))

    def _forget(self, job: _Job) -> None:
        """Nobody waits for a request any more: its client may use its name for another one."""
        job.is_cancelled = True
        del self._jobs[job.peer, job.name]

    def _on_delivery(self, delivery: Delivery) -> None:
        """Do what a peer asks; whatever it sends, the service and its other peers go on."""
        try:
            self._on_message(delivery.peer, delivery.parts)
        except HypsError as error:
            logger.debug("refused a message: %s", error.message)
            self._say(delivery.peer, _failed("", error))

    def _on_message(self, peer: bytes, parts: Sequence[Buffer]) -> None:
        if not parts or len(parts) > MAX_PARTS:
            raise PeerError(f"a message of {len(parts)} parts", code="E_PROTOCOL")
        message = decode_from_client(memoryview(parts[0]))
        match message:
            case Hello():
                self._on_hello(peer, message)
            case Submit():
                self._on_submit(peer, message, parts[1:])
            case Cancel():
                job = self._jobs.get((peer, message.request))
                if job is not None:
                    self._forget(job)
            case Heartbeat():
                self._say(peer, message)
            case Probe():
                self._on_probe(peer, message)
            case AskStatus():
                self._say(peer, Status(message.request), [encode_report(self._report())])
            case _:
                assert_never(message)

    def _on_hello(self, peer: bytes, message: Hello) -> None:
        if message.version != PROTOCOL_VERSION:
            text = f"the worker speaks version {PROTOCOL_VERSION} of the protocol and the client {message.version}"
            raise PeerError(text, "use the same version of hyps on both sides", "E_VERSION")
        model = self._model
        welcome = Welcome(
            version=PROTOCOL_VERSION,
            device=self._device,
            model=model.name,
            sha256=model.sha256,
            inputs=model.inputs,
            outputs=model.outputs,
            max_nbytes=self._max_nbytes,
            producer=self._engine.plan.producer,
        )
        self._say(peer, welcome)

    def _on_submit(self, peer: bytes, message: Submit, frames: Sequence[Buffer]) -> None:
        if (peer, message.request) in self._jobs:
            return  # it is answered when the first of that name is
        try:
            check_frames(message.tensors, frames, self._model.inputs)
            check_outputs(self._model.outputs, message.outputs)
            job = self._job(peer, message, frames)
            verdict = self._admission.offer(job.key, sum(header.nbytes for header in message.tensors))
        except HypsError as error:
            self._say(peer, _failed(message.request, error))
            return
        if verdict is Verdict.ACCEPTED:
            self._watch.requests.accept(job.accepted_s)
            self._jobs[peer, message.request] = job
            self._say(peer, Accepted(message.request))
            self._todo.put(job)
        else:
            self._watch.requests.refuse()
            self._say(peer, self._refusal(message.request, verdict))

    def _report(self) -> Report:
        computing = len(self._batch)
        return self._watch.report(computing, time.monotonic() - self._begun_s if computing else 0.0)

    def _on_probe(self, peer: bytes, message: Probe) -> None:
        """Send back what a client asks for who measures the way here; not while there is work, which comes first."""
        if len(self._admission):
            self._say(peer, self._refusal(message.request, Verdict.BUSY))
            return
        if self._admission.state is not ServiceState.SERVING:
            self._say(peer, self._refusal(message.request, Verdict.LEAVING))
            return
        if message.nbytes > self._max_nbytes:
            text = f"a probe wants {message.nbytes} bytes back and messages here have at most {self._max_nbytes}"
            raise PeerError(text, "ask for less", "E_PROTOCOL")
        if len(self._echo) < message.nbytes:
            self._echo = bytes(message.nbytes)  # one buffer for all: sending it takes no memory of its own
        answer = Probed(message.request)
        if message.wants_seconds:
            answer = Probed(message.request, _partition_seconds(self._engine), self._machine())
        self._say(peer, answer, [memoryview(self._echo)[: message.nbytes]])

    def _machine(self) -> MachineFacts:
        """Measured once, when somebody asks first: while there is no work."""
        if self._facts is None:
            engine = self._engine
            self._facts = MachineFacts(engine.memory_bytes, engine.threads, engine.measure_speed())
        return self._facts

    def _job(self, peer: bytes, message: Submit, frames: Sequence[Buffer]) -> _Job:
        request = Request(from_frames(message.tensors, frames), message.outputs or None)
        timeout_s = math.inf if message.timeout_s is None else message.timeout_s
        return _Job(str(next(self._numbers)), peer, message.request, request, time.monotonic(), timeout_s)

    def _refusal(self, request: str, verdict: Verdict) -> Failed:
        if verdict is Verdict.LEAVING:
            return Failed(request, "E_LEAVING", "the worker is leaving", "send the request to another worker")
        wait_s = self._admission.retry_after_s
        text = f"the worker has {len(self._admission)} requests and takes no more"
        return Failed(request, "E_BUSY", text, f"send it again in {wait_s:.2g} s", wait_s)

    def _answer_ended(self) -> None:
        while True:
            try:
                ended = self._ended.get_nowait()
            except queue.Empty:
                return
            job = ended.job
            self._count(ended)
            if not job.is_cancelled:
                del self._jobs[job.peer, job.name]
                self._answer(job, ended.outcome)
            self._admission.end(job.key, ended.seconds)

    def _count(self, ended: _Ended) -> None:
        now_s, watch = time.monotonic(), self._watch
        latency_s = now_s - ended.job.accepted_s
        watch.work.finish(now_s, ended.seconds, max(0.0, latency_s - ended.seconds), 0)
        if ended.job.is_late:
            watch.requests.fail(now_s, DeadlineError.default_code)
        elif ended.job.is_cancelled:
            watch.requests.cancel()
        elif isinstance(ended.outcome, HypsError):
            watch.requests.fail(now_s, ended.outcome.code)
        else:
            watch.requests.finish(now_s, latency_s)

    def _answer(self, job: _Job, outcome: Outcome) -> None:
        if not isinstance(outcome, HypsError):
            try:
                headers, frames = to_frames(outcome)
            except HypsError as error:
                outcome = error
            else:
                self._say(job.peer, Done(job.name, headers), frames)
                return
        self._say(job.peer, _failed(job.name, outcome))

    def _say(self, peer: bytes, message: FromWorker, frames: Sequence[Buffer] = ()) -> None:
        self._answered_s = time.monotonic()
        if not self._server.send(peer, [encode(message), *frames]):
            logger.info("a client left before its answer, or does not read")

    def _give_up(self, stuck: _Job) -> None:
        """Answer all that was accepted: one request did not end, the others may be sent again."""
        logger.info("a request does not end; %d others are sent back", len(self._jobs) - 1)
        hint = "it is in an operator or a loop that does not end: do not send it again"
        late = DeadlineError("the request took longer than the worker's --timeout, and could not be ended", hint)
        again = BusyError("the worker starts anew", "send the request again", retry_after_s=_RESTART_S)
        for job in self._jobs.values():
            self._say(job.peer, _failed(job.name, late if job is stuck else again))

    # The thread that computes, and the one that watches it.

    def _note_stuck(self, index: int) -> None:
        self._stuck = self._batch.get(index)
        self._server.wake()

    def _compute(self) -> None:
        is_last = False
        while not is_last:
            jobs: list[_Job] = []
            is_last = not self._collect(jobs)
            # Side by side where partitions take turns in memory; else each is looked at when it is about to begin.
            for batch in [jobs] if self._engine.swapped else [[job] for job in jobs]:
                self._run_jobs([job for job in batch if self._is_wanted(job)])

    def _is_wanted(self, job: _Job) -> bool:
        """Whether somebody still waits for a request that is to be computed now; else it has ended."""
        is_wanted = time.monotonic() < job.due_s and not job.is_cancelled
        if not is_wanted:
            self._end(_Ended(job, DeadlineError("the request's time was over before it was computed"), 0.0))
        return is_wanted

    def _collect(self, jobs: list[_Job]) -> bool:
        """Wait for a job and take all that are there; return whether more can come."""
        job = self._todo.get()
        while job is not None:
            jobs.append(job)
            try:
                job = self._todo.get_nowait()
            except queue.Empty:
                return True
        return False

    def _run_jobs(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        self._batch = unfinished = dict(enumerate(jobs))
        self._begun_s = start_s = time.monotonic()

        def on_done(index: int, outcome: Outcome) -> None:
            nonlocal start_s
            now_s = time.monotonic()
            self._end(_Ended(unfinished.pop(index), outcome, now_s - start_s))
            self._begun_s = start_s = now_s

        try:
            self._engine.run_each([job.request for job in jobs], on_done)
        except Exception as error:  # this thread's top: were it to die, every later request would wait for ever
            logger.exception("a batch broke off")
            broken = list(unfinished.values())
            unfinished.clear()
            for job in broken:
                self._end(_Ended(job, InternalError(f"{type(error).__name__}: {error}"), 0.0))

    def _end(self, ended: _Ended) -> None:
        self._ended.put(ended)
        self._server.wake()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a worker takes on."""

    queue_nbytes: int
    """Of all accepted requests together."""
    max_nbytes: int
    """Of one part of a message."""
    reserved_nbytes: int
    """What the queue takes of the budget."""


def bounds_for(plan: Plan, memory_bytes: int | None, *, is_tight: bool = False) -> Bounds:
    """Return the bounds for a plan under a budget: room for a few requests, a small part of the budget.

    With `is_tight` there is room for one request of the size that the plan was made for: the partitions need the rest.
    """
    sizes = [_fixed_nbytes(plan, tensor) for tensor in plan.model.inputs]
    request = sum(size for size in sizes if size is not None)
    if memory_bytes is None:
        queue_nbytes = max(_UNBOUNDED_QUEUE_NBYTES, 4 * request)
    elif is_tight:
        made_for = [plan.tensors[tensor.name] for tensor in plan.model.inputs if tensor.name in plan.tensors]
        queue_nbytes = max(request, sum(info.nbytes or 0 for info in made_for))
    else:
        queue_nbytes = max(2 * request, min(memory_bytes // 8, 4 * request))
        if None in sizes:
            queue_nbytes = max(queue_nbytes, memory_bytes // 16)
    largest = max((size for size in sizes if size is not None), default=0)
    if None in sizes:
        largest = max(largest, queue_nbytes)
    return Bounds(queue_nbytes, max(largest, MAX_HEADER_NBYTES), 0 if memory_bytes is None else queue_nbytes)


def serve(
    folder: str | Path,
    bind: str,
    *,
    options: Options,
    device: str = "",
    allow_remote: bool = False,
    on_ready: Callable[[Engine, str], None] = lambda _engine, _address: None,
    metrics_address: str = "",
) -> bool:
    """Serve the plan in `folder` on `bind` until SIGTERM or SIGINT; return whether all that was accepted is answered.

    `on_ready` is called with the engine and the address once clients can connect; metrics are served at
    `metrics_address`, HOST:PORT, where that is not empty.

    Raises:
        StuckError: a request cannot be ended; all have been answered, and only a new process can serve on.
        UsageError: `bind` is no address, or one that other machines reach.
        PeerError: the address is taken.
        PlanError, InfeasibleError: see `open_engine`.
    """
    plan = read_plan(folder)
    memory_bytes = plan.memory_bytes if options.memory_bytes is None else options.memory_bytes
    with contextlib.ExitStack() as stack:
        try:
            bounds = bounds_for(plan, memory_bytes)
            server, engine = _opened(stack, folder, bind, options, plan, bounds, allow_remote=allow_remote)
        except InfeasibleError:
            bounds = bounds_for(plan, memory_bytes, is_tight=True)
            server, engine = _opened(stack, folder, bind, options, plan, bounds, allow_remote=allow_remote)
        admission = Admission(MAX_REQUESTS, bounds.queue_nbytes)
        service = Service(engine, server, admission, device, bounds.max_nbytes)
        with leaving_on_signals(service.leave):
            with _metrics_of(service, metrics_address, allow_remote):  # which wakes the server, so that it ends before
                on_ready(engine, server.address)
                is_whole = service.run()
            if is_whole or service.is_stuck:
                service.wait_until_heard()
            server.close(linger_s=_DRAIN_LINGER_S if is_whole or service.is_stuck else 0.0)
        if service.is_stuck:
            raise StuckError(server.address)
        if is_whole:
            engine.close()
    return is_whole


def _opened(
    stack: contextlib.ExitStack,
    folder: str | Path,
    bind: str,
    options: Options,
    plan: Plan,
    bounds: Bounds,
    *,
    allow_remote: bool,
) -> tuple[ZmqServer, Engine]:
    """Return the server, which `stack` closes, and the engine, opened beside it: both take memory."""
    with contextlib.ExitStack() as attempt:
        server = attempt.enter_context(ZmqServer(bind, max_nbytes=bounds.max_nbytes, allow_remote=allow_remote))
        engine = open_engine(folder, dataclasses.replace(options, reserved_nbytes=bounds.reserved_nbytes), plan)
        stack.push(attempt.pop_all())
    return server, engine


@contextlib.contextmanager
def _metrics_of(service: Service, address: str, allow_remote: bool) -> Iterator[None]:
    if not address:
        yield
        return
    from hyps.adapters.metrics import MetricsServer  # brings the standard library's HTTP server: 4 MB

    with MetricsServer(address, service.wake, allow_remote=allow_remote) as metrics:
        logger.info("metrics at %s", metrics.url)
        service.metrics = metrics
        yield


def _fixed_nbytes(plan: Plan, tensor: NamedTensor) -> int | None:
    """Return the bytes of a tensor whose every dimension is fixed; None when requests choose."""
    info = plan.tensors.get(tensor.name)
    is_fixed = tensor.shape is not None and all(isinstance(dim, int) for dim in tensor.shape)
    return info.nbytes if info is not None and is_fixed else None


def _partition_seconds(engine: Engine) -> tuple[PartitionSeconds, ...]:
    """Return what the partitions took of late; to be called while nothing is computed."""
    told = []
    for partition, timing in sorted(engine.timings.items()):
        ordered = sorted(timing.run_s)
        if ordered:
            late = ordered[math.ceil(0.95 * len(ordered)) - 1]
            told.append(PartitionSeconds(partition, statistics.median(ordered), late, len(ordered)))
    return tuple(told)


def _failed(request: str, error: HypsError) -> Failed:
    retry_s = error.retry_after_s if isinstance(error, BusyError) else None
    return Failed(request, error.code, printable(error.message, 1000), printable(error.hint, 1000), retry_s)
