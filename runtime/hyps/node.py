"""A node: a worker that joins a manager and runs the partitions it is given.

The thread that calls `run` owns the links and the state machine; one thread computes, one finds and opens files.
"""

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from hyps.adapters import executor as doing
from hyps.adapters.executor import Completion, Executor
from hyps.adapters.feeds import nbytes_of
from hyps.adapters.file_cache import FileCache, partition_digest
from hyps.adapters.frames import Buffer, check_frames, from_frames, to_frames
from hyps.adapters.links import Heard, LinkEvent, Links, Lost, Opened, Taken
from hyps.adapters.machine import cpu_family, rss_nbytes
from hyps.adapters.resident import CODE_NBYTES, give_back
from hyps.adapters.sessions import Mode, Sessions
from hyps.adapters.yardstick import macs_per_s
from hyps.core.node_events import (
    AllowedToLeave,
    Delivered,
    Execute,
    Executed,
    ExecuteFailed,
    Forget,
    Keep,
    Leave,
    Load,
    Loaded,
    LoadFailed,
    ManagerFound,
    ManagerLost,
    NeighbourBack,
    NeighbourLost,
    NodeEvent,
    NodeInstruction,
    Obtain,
    Retired,
    Send,
    SetUp,
    Share,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
    Unload,
)
from hyps.core.node_life import NodeLife
from hyps.core.node_state import NodeState
from hyps.core.residency import task_of
from hyps.errors import DeadlineError, HypsError, InternalError, PeerError, PlanError, printable
from hyps.formats.messages import Failed, MachineFacts, TensorHeader
from hyps.formats.node_messages import (
    HUB,
    NODE_PROTOCOL_VERSION,
    Beat,
    Drain,
    Echo,
    Echoed,
    Finished,
    FromNode,
    Goodbye,
    Greet,
    ItemFailed,
    Join,
    Joined,
    Piece,
    Retire,
    Running,
    Setup,
    Spans,
    Started,
    Tensor,
    decode_from_manager,
    decode_from_node,
    encode_node_message,
)
from hyps.formats.plan import NamedTensor, Partition, Plan, plan_problems
from hyps.neighbours import Neighbours
from hyps.node_files import NodeFiles
from hyps.node_records import NodeRecords
from hyps.upstream import Upstream

logger = logging.getLogger(__name__)

_POLL_S = 1.0

_HELD_UP_S = 0.2
"""Between two looks whether what is still computed for a manager that is gone has ended."""

_NOTICE_S = 1.0
"""After which somebody is told that the manager is not there."""

_BEGUN_S = 0.02
"""What a work item may take before it is told that it has begun: a message for each would cost more than short ones."""

_SHORT_S = 0.02
_HELD_BACK_S = 0.004
"""How long it is not told of a short work item that it is done: most are told with others, or with their tensors."""

_LINGER_S = 2.0


class NodeStuckError(DeadlineError):
    """A work item goes on and on although its time is over: only a new process can go on."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is."""

    manager: str
    """The manager's address."""
    device: str
    token: str = ""
    endpoints: tuple[str, ...] = ()
    """Where other nodes reach it, as they are told, the best first; empty: its tensors go over the hub."""
    host: str = ""
    """The same for nodes that share a machine and its network."""
    memory_bytes: int | None = None
    timeout_s: float | None = None
    """Longest that one work item may be computed."""
    connect_timeout_s: float | None = None
    """How long the manager is looked for at first; None: for ever."""


@dataclass(frozen=True, slots=True)
class _Received:
    """A tensor as it came; it becomes an array where it is computed with."""

    header: TensorHeader
    frame: Buffer
    expected: NamedTensor | None
    """What it was compared with; None: nothing tells what it should be, yet."""


@dataclass(frozen=True, slots=True)
class _Sent:
    step: Send
    nbytes: int
    behind_nbytes: int
    start_s: float


class Node:
    """Runs until the manager lets it go, or nothing is left for it to do after it was told to leave."""

    def __init__(
        self,
        links: Links,
        options: NodeOptions,
        opener: Sessions,
        cache: FileCache,
        on_notice: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Measure the machine; nothing is connected yet.

        Args:
            links: those of this process; what listens has been told already.
            options: what the node is.
            opener: opens sessions.
            cache: where files are looked for and kept.
            on_notice: is called with what people should know.
        """
        self._links, self._options, self._on_notice = links, options, on_notice
        base_nbytes = opener.measure_base() + CODE_NBYTES
        self._facts = MachineFacts(options.memory_bytes, opener.threads, macs_per_s(opener))
        opener.shrink()
        give_back()
        self._state = NodeState(options.memory_bytes, base_nbytes, bounds_tensors=True)
        self._completions: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._executor = Executor(opener, options.timeout_s, self._on_completion, options.memory_bytes)
        self._neighbours = Neighbours(links, options.device, self._on_neighbour)
        self._upstream = Upstream(links, options.manager, self._joining)
        self._files = NodeFiles(cache, self._executor, self._say, self._handle)
        self._records = NodeRecords()
        self._told_refusals: tuple[tuple[str, str], ...] = ()
        """Partitions that cannot be loaded here, and why, as the log has it."""
        self._is_noticed = False
        self._store: dict[tuple[int, int], dict[str, Any]] = {}
        self._happened: deque[tuple[NodeEvent, Mapping[str, Any]]] = deque()
        """Events, the first of which is being handled, and the tensors that they bring."""
        self._came: Mapping[str, Any] = {}
        """What the event that is handled brings."""
        self._partitions: dict[str, Partition] = {}
        self._plan: Plan | None = None
        self._digests: dict[str, str] = {}
        self._runs: dict[int, Execute] = {}
        self._begun: dict[tuple[int, int, str], float] = {}
        """Work items of which it was not told that they have begun, and when to; the oldest first."""
        self._ran: dict[tuple[int, int, str], tuple[float, float]] = {}
        """When a run began and ended, until it is told."""
        self._held_back: list[Finished] = []
        self._held_back_until_s = math.inf
        self._is_saying = False
        """Whether something else goes to the manager in this turn of the loop."""
        self._sent: dict[int, _Sent] = {}
        self._unsent: dict[str, list[Send]] = {}
        """What waits for a link to a device that is not open yet."""
        self._echo = b""
        self._told_to_leave = 0
        self._was_told = 0
        self._is_over = False

    def leave(self) -> None:
        """Finish what there is and go; told twice, stop at once. For any thread or signal handler."""
        self._told_to_leave += 1
        self._links.wake()

    def run(self) -> bool:
        """Work until the node may leave; return whether it left in order.

        Raises:
            PeerError: the manager refuses the node, or was not there within the `connect_timeout_s`.
            NodeStuckError: a work item cannot be ended; only a new process can go on.
        """
        self._upstream.begin()
        try:
            while not self._is_over and self._told_to_leave < 2:
                event = self._links.receive(self._timeout_s())
                self._is_saying = False
                if event is not None:
                    self._on_link(event)
                self._take_completions()
                self._on_time()
        finally:
            self._executor.close(_LINGER_S if self._is_over else 0.0)
        if self._is_over:
            self._neighbours.drop_all()
            self._links.close(_LINGER_S)
        return self._is_over

    # Time.

    def _timeout_s(self) -> float:
        now_s = time.monotonic()
        begun_s = next(iter(self._begun.values()), math.inf)
        due_s = min(self._upstream.next_s, self._neighbours.next_s, begun_s, self._held_back_until_s)
        if self._upstream.is_joined:
            due_s = min(due_s, self._state.next_tick_s)
        return max(0.0, min(_POLL_S, due_s - now_s))

    def _on_time(self) -> None:
        now_s = time.monotonic()
        while self._was_told < min(self._told_to_leave, 1):
            self._was_told += 1
            self._handle(ToldToDrain())
        if self._is_over:
            return
        if self._state.life is not NodeLife.JOINING and now_s >= self._state.next_tick_s:
            self._handle(Ticked())
        if self._begun:
            self._tell_what_runs(now_s)
        if now_s >= self._held_back_until_s:
            self._speak()
        if now_s >= self._neighbours.next_s:
            self._neighbours.on_time(now_s)
        if now_s >= self._upstream.next_s:
            self._try_again()
        self._notice()

    def _notice(self) -> None:
        waited_s = self._upstream.waited_s
        if not self._is_noticed and waited_s > _NOTICE_S:
            self._is_noticed = True
            self._on_notice(f"waiting for the manager at {self._options.manager}")
        limit_s = self._options.connect_timeout_s
        if limit_s is not None and waited_s > limit_s:
            text = f"the manager at `{printable(self._options.manager)}` did not answer within {limit_s:g} s"
            raise PeerError(text, "start `hyps-manager` there, or give its address with `--manager`")

    # The manager.

    def _try_again(self) -> None:
        if not self._upstream.link and self._state.is_held_up:
            self._upstream.put_off(_HELD_UP_S)  # by what may never end: a manager would give it work that cannot begin
        else:
            self._upstream.on_time()

    def _on_manager_lost(self, reason: str) -> None:
        if self._upstream.is_joined:
            self._on_notice(f"the manager is gone ({reason}): looking for it")
        self._upstream.on_lost()
        self._files.give_up()
        self._state.look_ahead(False)
        self._handle(ManagerLost())
        self._neighbours.drop_all()
        self._unsent.clear()
        self._sent.clear()
        self._begun.clear()
        self._held_back, self._held_back_until_s = [], math.inf

    def _on_manager_said(self, frames: Sequence[Buffer]) -> None:
        message = decode_from_manager(memoryview(frames[0]))
        match message:
            case Tensor():
                self._on_tensor(message, frames[1:])
            case Retire():
                for request, epoch in message.requests:
                    self._handle(Retired(request, epoch))
            case Setup():
                self._on_setup(message)
            case Piece():
                self._files.on_piece(message, frames[1:])
            case Joined():
                self._on_joined(message)
            case Failed():
                self._on_failed(message)
            case Echo():
                self._on_echo(message)
            case Drain():
                self._handle(AllowedToLeave())
            case Goodbye():
                self._on_manager_lost("it left")
            case _:
                assert_never(message)

    def _on_joined(self, message: Joined) -> None:
        if self._upstream.on_joined(message):
            self._records.wants_spans = message.wants_spans
            self._on_notice(f"joined the manager at {self._options.manager} as `{self._options.device}`")
            self._handle(ManagerFound(message.beat_s))

    def _on_failed(self, message: Failed) -> None:
        if not self._upstream.is_joined:
            self._upstream.on_refused(message)
        elif message.request:
            self._files.on_failed(message)
        else:
            logger.warning("the manager refused something: %s", printable(message.message, 300))

    def _on_echo(self, message: Echo) -> None:
        if len(self._echo) < message.nbytes:
            self._echo = bytes(message.nbytes)  # one buffer for all
        self._say(Echoed(message.number), [memoryview(self._echo)[: message.nbytes]])

    def _on_setup(self, setup: Setup) -> None:
        plan = setup.plan
        problems = [] if plan is None else plan_problems(plan)
        ids = set() if plan is None else {partition.id for partition in plan.partitions}
        problems += [
            f"course {course.id} has unknown partitions" for course in setup.courses if set(course.partitions) - ids
        ]
        if problems:
            raise PlanError(f"the manager's setup is wrong: {printable('; '.join(problems[:3]), 500)}")
        self._plan = plan
        self._partitions = {} if plan is None else {partition.id: partition for partition in plan.partitions}
        self._digests = {name: partition_digest(partition) for name, partition in self._partitions.items()}
        self._neighbours.follow(time.monotonic(), setup)
        self._unsent = {name: steps for name, steps in self._unsent.items() if self._neighbours.is_target(name)}
        self._files.keep_only(tuple(self._partitions.values()))
        self._handle(set_up_of(setup))

    # Links.

    def _on_link(self, event: LinkEvent) -> None:
        """Do what a peer wants; whatever it sends, the node goes on."""
        match event:
            case Heard():
                try:
                    self._on_heard(event)
                except InternalError:
                    raise  # what was to be done is not known any more: a new process can go on, this one cannot
                except HypsError as error:
                    if event.link == self._upstream.link and not self._upstream.is_joined:
                        raise
                    logger.warning("a message was refused: %s", error.message)
                    if self._neighbours.knows(event.link):
                        self._neighbours.send_away(event.link)
            case Taken():
                self._on_taken(event)
            case Opened():
                if event.link == self._upstream.link:
                    self._upstream.on_opened()
                else:
                    self._neighbours.on_opened(time.monotonic(), event.link, came_to_us=event.came_to_us)
            case Lost():
                if event.link == self._upstream.link:
                    self._on_manager_lost(event.reason)
                else:
                    self._neighbours.on_lost(time.monotonic(), event.link)
            case _:
                assert_never(event)

    def _joining(self) -> Join:
        options = self._options
        return Join(
            version=NODE_PROTOCOL_VERSION,
            device=options.device,
            token=options.token,
            facts=self._facts,
            cpu_family=cpu_family(),
            endpoints=options.endpoints,
            host=options.host,
        )

    def _on_heard(self, event: Heard) -> None:
        if event.link == self._upstream.link:
            self._on_manager_said(event.frames)
            return
        message = decode_from_node(memoryview(event.frames[0]))
        if isinstance(message, Greet):
            self._neighbours.on_greet(event.link, message)
        elif isinstance(message, Tensor) and self._neighbours.is_let_in(event.link):
            self._on_tensor(message, event.frames[1:])
        else:
            raise PeerError("a peer that may not says something", code="E_AUTH")

    def _on_taken(self, event: Taken) -> None:
        if not isinstance(event.token, int):
            return
        sent = self._sent.pop(event.token, None)
        if sent is not None:
            step, now_s = sent.step, time.monotonic()
            self._records.note_sent(
                step.request, step.tensor, step.device, sent.nbytes, sent.behind_nbytes, sent.start_s, now_s
            )
        self._handle(Delivered(event.token))

    def _on_neighbour(self, event: NeighbourLost | NeighbourBack) -> None:
        if isinstance(event, NeighbourLost):
            self._unsent.pop(event.device, None)
            self._sent = {number: sent for number, sent in self._sent.items() if sent.step.device != event.device}
        self._handle(event)
        if isinstance(event, NeighbourBack) and self._neighbours.link_to(event.device) is not None:
            for step in self._unsent.pop(event.device, []):
                self._send(step)

    def _say(self, message: FromNode, frames: Sequence[Buffer] = ()) -> None:
        """Tell the manager; what nobody hears is told anew when it is back, or is over."""
        self._speak()
        self._upstream.say(message, frames)

    # Tensors.

    def _on_tensor(self, message: Tensor, frames: Sequence[Buffer]) -> None:
        header = message.header
        info = None if self._plan is None else self._plan.tensors.get(header.name)
        expected = None if info is None else NamedTensor(name=header.name, dtype=info.dtype, shape=info.shape)
        try:
            _check(header, frames, expected)
        except HypsError as error:
            self._refuse(message, error)
            return
        came = {header.name: _Received(header, frames[0], expected)}
        self._handle(TensorHere(message.request, message.epoch, message.course, header.name, header.nbytes), came)

    def _refuse(self, message: Tensor, error: HypsError) -> None:
        """Have the request end that a wrong tensor belongs to: no other would come."""
        readers = [name for name, partition in self._partitions.items() if message.header.name in partition.inputs]
        if not readers:
            raise error
        failed = ItemFailed(message.request, message.epoch, readers[0], error.code, error.message, error.hint)
        self._say(failed)

    def _send(self, step: Send) -> None:
        link = self._upstream.link if step.device == HUB else self._neighbours.link_to(step.device)
        value = self._store.get((step.request, step.epoch), {}).get(step.tensor)
        if value is None:
            return  # it waited for a link until nobody wanted it any more
        if link is None:
            self._unsent.setdefault(step.device, []).append(step)
            return
        try:
            headers, frames = to_frames({step.tensor: value})
        except HypsError as error:
            makers = [name for name, partition in self._partitions.items() if step.tensor in partition.outputs]
            self._say(ItemFailed(step.request, step.epoch, makers[0], error.code, error.message, error.hint))
            return
        if step.device == HUB:
            self._speak()
        message = Tensor(step.request, step.epoch, step.course, headers[0])
        behind_nbytes = self._links.backlog_nbytes(link)
        self._sent[step.sending] = _Sent(step, headers[0].nbytes, behind_nbytes, time.monotonic())
        self._links.send(link, [encode_node_message(message), *frames], step.sending)

    def _forget(self, step: Forget) -> None:
        held = self._store[step.request, step.epoch]
        del held[step.tensor]
        if not held:
            del self._store[step.request, step.epoch]

    # The state machine.

    def _handle(self, event: NodeEvent, came: Mapping[str, Any] | None = None) -> None:
        """Tell the machine what happened and do what it says; `came` are the tensors that the event is about.

        What happens while that is done is told afterwards.

        Raises:
            InternalError: the event cannot happen, or what the machine says cannot be done.
        """
        self._happened.append((event, came or {}))
        if len(self._happened) > 1:
            return
        try:
            while self._happened:
                event, self._came = self._happened[0]
                for step in self._state.handle(time.monotonic(), event):
                    self._do(step)
                self._happened.popleft()
        except InternalError:
            raise
        except HypsError as error:
            raise InternalError(f"what was to be done cannot be: {error.message}") from error

    def _do(self, step: NodeInstruction) -> None:
        match step:
            case Keep():
                self._store.setdefault((step.request, step.epoch), {})[step.tensor] = self._came[step.tensor]
            case Execute():
                self._execute(step)
            case Send():
                self._send(step)
            case Forget():
                self._forget(step)
            case Tell():
                self._tell(step)
            case Obtain():
                if self._plan is not None:
                    self._files.obtain((step.partition, step.digest), self._plan, self._partitions[step.partition])
            case Load():
                self._load(step)
            case Unload():
                self._executor.shut((step.partition, step.digest))
            case Leave():
                self._say(Goodbye())
                self._is_over = True
            case _:
                assert_never(step)

    def _execute(self, step: Execute) -> None:
        self._runs[step.run] = step
        partition = self._partitions[step.partition]
        held = self._store.get((step.request, step.epoch), {})
        given = {name: held[name] for name in partition.inputs}
        key = (step.partition, self._digests[step.partition])
        plan = self._plan  # another thread reads it, perhaps when there is a new one
        needed_nbytes = 0 if plan is None else _nbytes_beyond(plan, partition, given)
        self._executor.run(step.run, key, partition.outputs, lambda: _arrays(given, plan), needed_nbytes)

    def _load(self, step: Load) -> None:
        key = (step.partition, step.digest)
        assert self._plan is not None, "a partition is loaded for a plan"
        partition = self._partitions[step.partition]
        self._executor.open(key, self._files.folders[key], partition, self._mode(partition), self._plan.optimization)

    def _mode(self, partition: Partition) -> Mode:
        """Lay weights out for speed where there is room for all, as an engine does; else read them, or map them."""
        if self._state.has_room_for_speed:
            return Mode.FAST
        return Mode.MAPPED if partition.form is None else Mode.STREAMED

    def _tell(self, step: Tell) -> None:
        message = step.message
        match message:
            case Beat():
                self._log_refusals(message)
                self._say(self._filled(message))
                spans = self._records.take_spans()
                if spans:
                    self._say(Spans(tuple(spans)))
            case Started():
                self._begun[message.request, message.epoch, message.partition] = time.monotonic() + _BEGUN_S
            case Finished() | ItemFailed():
                self._begun.pop((message.request, message.epoch, message.partition), None)
                times = self._ran.pop((message.request, message.epoch, message.partition), None)
                if times is not None and isinstance(message, Finished):
                    self._records.note_computed(message.request, message.partition, message.waited_s, *times)
                if isinstance(message, Finished) and message.run_s < _SHORT_S:
                    self._hold_back(message)
                else:
                    self._say(message)
            case _:
                self._say(message)

    def _tell_what_runs(self, now_s: float) -> None:
        """Say what has begun and is not over soon; of the rest it is enough to say that it is done."""
        running = self._running()
        for key, due_s in list(self._begun.items()):
            if now_s < due_s:
                return
            del self._begun[key]
            if running is None or key == (running.request, running.epoch, running.partition):
                self._say(Started(*key))
            else:  # it was given to who computes, and computes something else
                self._begun[key] = now_s + _BEGUN_S

    def _hold_back(self, message: Finished) -> None:
        """Say it with whatever else there is to say, now or a little later."""
        if self._is_saying:
            self._say(message)
            return
        if not self._held_back:
            self._held_back_until_s = time.monotonic() + _HELD_BACK_S
        self._held_back.append(message)

    def _speak(self) -> None:
        """Say what was held back, since something is said now."""
        self._is_saying = True
        done, self._held_back, self._held_back_until_s = self._held_back, [], math.inf
        for message in done:
            self._say(message)

    def _log_refusals(self, beat: Beat) -> None:
        """Say once why a partition cannot be loaded here: only who looks after this device can mend that."""
        for part, reason in beat.refused if beat.refused != self._told_refusals else ():
            if (part, reason) not in self._told_refusals:
                text = "cannot load partition `%s`: %s"
                logger.warning(text, printable(part), printable(reason, 300), extra={"partition": part})
        self._told_refusals = beat.refused

    def _filled(self, beat: Beat) -> Beat:
        """Add what the state machine cannot know; what is running is as the thread that computes tells."""
        now = self._running()
        running = tuple(
            now
            for item in beat.running
            if now is not None and (item.request, item.epoch, item.partition) == (now.request, now.epoch, now.partition)
        )
        return msgspec.structs.replace(
            beat,
            running=running,
            waiting=beat.waiting + len(beat.running) - len(running),
            resident_nbytes=rss_nbytes() or 0,
            clock_s=time.monotonic(),
            sendings=self._records.take_sendings(),
        )

    def _running(self) -> Running | None:
        """Return what is computed, as the thread that computes tells."""
        now = self._executor.running()
        step = None if now is None else self._runs.get(now[0])
        return None if now is None or step is None else Running(step.request, step.epoch, step.partition, now[1])

    # The other threads.

    def _on_completion(self, completion: Completion) -> None:
        self._completions.put(completion)
        self._links.wake()

    def _take_completions(self) -> None:
        while not self._is_over:
            try:
                completion = self._completions.get_nowait()
            except queue.Empty:
                return
            self._on_completed(completion)

    def _on_completed(self, completion: Completion) -> None:
        match completion:
            case doing.Ran():
                self._on_ran(completion)
            case doing.Opened(key, error):
                if error is None:
                    self._records.note_loaded(key[0], completion.start_s, completion.end_s)
                    seconds = completion.end_s - completion.start_s
                    logger.info("loaded `%s` in %.3g s", printable(key[0]), seconds, extra={"partition": key[0]})
                    self._handle(Loaded(*key))
                else:
                    self._handle(LoadFailed(key[0], error.message, key[1], error.code))
            case doing.Done():
                self._files.on_done(completion)
            case doing.Stuck(run):
                self._on_stuck(run)
            case _:
                assert_never(completion)

    def _on_ran(self, ran: doing.Ran) -> None:
        step = self._runs.pop(ran.run)
        if isinstance(ran.outcome, HypsError):
            error = ran.outcome
            about = {"request": step.request, "epoch": step.epoch, "partition": step.partition, "code": error.code}
            logger.info("`%s` failed: %s", printable(step.partition), error.message, extra=about)
            self._handle(ExecuteFailed(ran.run, error.code, error.message, error.hint))
            return
        self._ran[step.request, step.epoch, step.partition] = (ran.start_s, ran.end_s)
        self._state.look_ahead(ran.end_s - ran.start_s < _SHORT_S)
        tensors = tuple((name, nbytes_of(value)) for name, value in ran.outcome.items())
        self._handle(Executed(ran.run, tensors, ran.end_s - ran.start_s), ran.outcome)
        self._ran.pop((step.request, step.epoch, step.partition), None)

    def _on_stuck(self, run: int) -> None:
        step = self._runs.get(run)
        if step is not None:
            text = (
                f"partition `{printable(step.partition)}` took longer than this node's --timeout, and cannot be ended"
            )
            hint = "it is in an operator or a loop that does not end: do not send it again"
            self._say(ItemFailed(step.request, step.epoch, step.partition, "E_DEADLINE", text, hint))
        self._say(Goodbye())
        self._links.close(_LINGER_S)
        raise NodeStuckError("a work item cannot be ended, so that this process can go on no more", "start it anew")


def set_up_of(setup: Setup) -> SetUp:
    """Return what a checked setup is to the state machine."""
    plan = setup.plan
    if plan is None:
        return SetUp(setup.number, (), setup.courses)
    return SetUp(
        number=setup.number,
        shares=tuple(Share(task_of(plan, part), partition_digest(part)) for part in plan.partitions),
        courses=setup.courses,
        inputs=tuple(tensor.name for tensor in plan.model.inputs),
        outputs=tuple(tensor.name for tensor in plan.model.outputs),
        nbytes={name: info.nbytes for name, info in plan.tensors.items() if info.nbytes is not None},
    )


def _check(header: TensorHeader, frames: Sequence[Buffer], expected: NamedTensor | None) -> None:
    if expected is not None:
        check_frames([header], frames, [expected])
    elif len(frames) != 1 or len(frames[0]) != header.nbytes:
        raise PeerError(f"`{printable(header.name)}` came with other bytes than announced", code="E_PROTOCOL")


def _nbytes_beyond(plan: Plan, partition: Partition, given: Mapping[str, Any]) -> int:
    """Return what computing with `given` is reckoned to take where that is more than the plan was made for, else 0."""
    foreseen = sum(plan.tensors[name].nbytes or 0 for name in partition.inputs)
    nbytes = sum(_nbytes(value) for value in given.values())
    if not foreseen or nbytes <= foreseen:
        return 0
    made = task_of(plan, partition).scratch_nbytes + sum(plan.tensors[name].nbytes or 0 for name in partition.outputs)
    return made * nbytes // foreseen


def _nbytes(value: Any) -> int:
    return memoryview(value.frame).nbytes if isinstance(value, _Received) else nbytes_of(value)


def _arrays(given: Mapping[str, Any], plan: Plan | None) -> dict[str, Any]:
    return {name: _array(value, plan) for name, value in given.items()}


def _array(value: Any, plan: Plan | None) -> Any:
    if not isinstance(value, _Received):
        return value
    header = value.header
    if value.expected is None and plan is not None:
        info = plan.tensors[header.name]
        check_frames([header], [value.frame], [NamedTensor(name=header.name, dtype=info.dtype, shape=info.shape)])
    return from_frames([header], [value.frame])[header.name]
