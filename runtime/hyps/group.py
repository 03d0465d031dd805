"""A group: to the manager above it is a node, to the nodes below it is their manager; one process, one thread, one hub.

The thread that calls `run` owns the links, both state machines and the tensors; another one finds and fetches files.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from hyps.adapters import executor as doing
from hyps.adapters.executor import Completion, Executor
from hyps.adapters.file_cache import FileCache, partition_digest
from hyps.adapters.frames import Buffer, check_frames
from hyps.adapters.links import Heard, LinkEvent, Links, Lost, Opened, Taken
from hyps.adapters.planner import Planner
from hyps.adapters.sessions import Sessions
from hyps.below import Below, BelowOptions
from hyps.core.group_events import Abandon, Begin, Bring, GroupEvent, GroupInstruction, Made, Rebuild, StandsBelow
from hyps.core.group_state import WAKE, GroupState
from hyps.core.group_view import filled
from hyps.core.manager_events import Added, Dropped, Ended, PassOn, Relayed
from hyps.core.manager_options import NewSecret
from hyps.core.node_events import (
    AllowedToLeave,
    Delivered,
    Forget,
    Keep,
    Leave,
    ManagerFound,
    ManagerLost,
    NeighbourBack,
    NeighbourLost,
    Obtain,
    Retired,
    Send,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
)
from hyps.errors import HypsError, InternalError, PeerError, PlanError, printable
from hyps.formats.messages import Failed, TensorHeader
from hyps.formats.node_messages import (
    HUB,
    NODE_PROTOCOL_VERSION,
    Beat,
    Drain,
    Echo,
    Echoed,
    Finished,
    Goodbye,
    Greet,
    GroupReport,
    ItemFailed,
    Join,
    Joined,
    Piece,
    Retire,
    Setup,
    Spans,
    Tensor,
    decode_from_manager,
    decode_from_node,
    encode_node_message,
)
from hyps.formats.plan import NamedTensor, Plan, plan_problems
from hyps.formats.status import encode_report
from hyps.neighbours import Neighbours
from hyps.node import set_up_of
from hyps.node_files import NodeFiles
from hyps.node_records import NodeRecords
from hyps.upstream import Upstream

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_MOST_EVENTS = 64
"""Taken from the links before the clock is looked at again."""

_ALONE_S = 5.0
"""A group without nodes leaves the manager above after so long."""

_NOTICE_S = 1.0
"""After which somebody is told that the manager above is not there."""

_REPORT_BEATS = 4
_LINGER_S = 2.0

Stored = tuple[TensorHeader, Buffer]
_WOKEN: Stored = (TensorHeader(WAKE, "uint8", (0,), 0), b"")


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """What a group is."""

    manager: str
    """The address of the manager above."""
    device: str
    """What it is called there."""
    token: str = ""
    """What the manager above wants to know."""
    endpoints: tuple[str, ...] = ()
    """Where other nodes of the manager above reach it, the best first; empty: its tensors go over the hub."""
    host: str = ""
    """The same for nodes that share a machine and its network."""
    below: BelowOptions = field(default_factory=lambda: BelowOptions(""))


@dataclass(frozen=True, slots=True)
class _Sent:
    step: Send
    nbytes: int
    behind_nbytes: int
    start_s: float


class Group:
    """Runs until the manager above lets it go, or it was told to leave and nothing is left to do."""

    def __init__(
        self,
        links: Links,
        options: GroupOptions,
        cache: FileCache,
        planner: Planner,
        new_secret: NewSecret,
        on_notice: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Prepare; nothing is connected before the first node is here.

        Args:
            links: those of this process; what listens has been told already.
            options: what the group is.
            cache: where files are looked for and kept.
            planner: searches for placements on the nodes below.
            new_secret: makes what two nodes know of each other.
            on_notice: is called with what people should know.
        """
        self._links, self._options, self._on_notice = links, options, on_notice
        self._state = GroupState()
        self._completions: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._executor = Executor(Sessions(1), None, self._on_completion)
        self._neighbours = Neighbours(links, options.device, self._on_neighbour)
        self._upstream = Upstream(links, options.manager, self._joining)
        self._files = NodeFiles(cache, self._executor, self._upstream.say, self._handle)
        self._records = NodeRecords()
        self._strangers: dict[int, None] = {}
        """Links that came to us and have said nothing yet."""
        self._plan: Plan | None = None
        self._digests: dict[str, str] = {}
        self._below = Below(links, options.below, planner, new_secret, self)
        self._store: dict[tuple[int, int], dict[str, Stored]] = {}
        self._happened: deque[tuple[GroupEvent, Stored | None]] = deque()
        """Events, the first of which is being handled, and the tensor that they bring."""
        self._came: Stored | None = None
        self._sent: dict[int, _Sent] = {}
        self._unsent: dict[str, list[Send]] = {}
        """What waits for a link to a device that is not open yet."""
        self._stands: StandsBelow | None = None
        """What was told of the nodes below last."""
        self._beats = 0
        self._echo = b""
        self._told_to_leave = 0
        self._was_told = False
        self._is_over = False
        self._is_noticed = False

    @property
    def held_nbytes(self) -> int:
        """The bytes of the tensors that are stored; those on links not counted."""
        return sum(len(frame) for held in self._store.values() for _, frame in held.values())

    def leave(self) -> None:
        """Finish what there is and go; told twice, stop at once. For any thread or signal handler."""
        self._told_to_leave += 1
        self._links.wake()

    def run(self) -> bool:
        """Work until the group may leave; return whether it left in order.

        Raises:
            PeerError: the manager above refuses the group.
        """
        try:
            while not self._is_over and self._told_to_leave < 2:
                self._take_events()
                self._take_completions()
                self._on_time()
        finally:
            self._executor.close()
        if self._is_over:
            self._below.leave()
            self._neighbours.drop_all()
            self._links.close(_LINGER_S)
        return self._is_over

    # Time.

    def _take_events(self) -> None:
        event = self._links.receive(self._timeout_s())
        for _ in range(_MOST_EVENTS):
            if event is None:
                return
            self._on_link(event)
            event = self._links.receive(0.0)
        if event is not None:
            self._on_link(event)

    def _timeout_s(self) -> float:
        due_s = min(
            self._below.manager.wake_at_s, self._neighbours.next_s, self._upstream.next_s, self._state.next_tick_s
        )
        return max(0.0, min(_POLL_S, due_s - time.monotonic()))

    def _on_time(self) -> None:
        now_s = time.monotonic()
        if self._told_to_leave and not self._was_told:
            self._was_told = True
            self._handle(ToldToDrain())
        if self._is_over:
            return
        self._look_below(now_s)
        if now_s >= self._state.next_tick_s:
            self._handle(Ticked())
        if now_s >= self._neighbours.next_s:
            self._neighbours.on_time(now_s)
        if now_s >= self._upstream.next_s:
            self._upstream.on_time()

    def _look_below(self, now_s: float) -> None:
        """Follow how the nodes fare; be with the manager above only while there are some."""
        self._below.manager.look()
        stands, alone_s = self._below.stands(now_s), self._below.alone_s(now_s)
        if stands.facts is not None and not alone_s and not self._upstream.is_wanted:
            self._upstream.begin()
        elif alone_s > _ALONE_S and self._upstream.is_wanted:
            self._on_notice("no worker is left: leaving the manager until one is here")
            self._upstream.say(Goodbye())
            self._upstream.end()
            self._lose_manager()
        if not self._is_noticed and self._upstream.waited_s > _NOTICE_S:
            self._is_noticed = True
            self._on_notice(f"waiting for the manager at {self._options.manager}")
        if stands != self._stands:
            self._stands = stands
            self._handle(stands)

    # Links.

    def _on_link(self, event: LinkEvent) -> None:
        """Give an event to the half that it is for; of who came to us the first message tells."""
        link = event.link
        if link == self._upstream.link:
            self._on_upstream(event)
        elif isinstance(event, Opened) and event.came_to_us:
            self._strangers[link] = None
        elif link in self._strangers:
            self._on_stranger(event)
        elif isinstance(event, Taken) and isinstance(event.token, int):
            self._on_taken(event.token)
        elif self._neighbours.knows(link):
            self._on_neighbour_event(event)
        else:
            self._below.manager.take(event)

    def _on_stranger(self, event: LinkEvent) -> None:
        del self._strangers[event.link]
        if isinstance(event, Lost):
            return
        if isinstance(event, Heard) and _is_greeting(event.frames[0]):
            self._neighbours.on_opened(time.monotonic(), event.link, came_to_us=True)
            self._on_neighbour_event(event)
            return
        self._below.manager.take(Opened(event.link, came_to_us=True))
        self._below.manager.take(event)

    def _on_neighbour_event(self, event: LinkEvent) -> None:
        now_s = time.monotonic()
        match event:
            case Heard():
                try:
                    self._on_neighbour_said(event)
                except InternalError:
                    raise
                except HypsError as error:
                    logger.warning("a message was refused: %s", error.message)
                    self._neighbours.send_away(event.link)
            case Opened():
                self._neighbours.on_opened(now_s, event.link, came_to_us=event.came_to_us)
            case Lost():
                self._neighbours.on_lost(now_s, event.link)
            case Taken():
                pass  # a greeting

    def _on_neighbour_said(self, event: Heard) -> None:
        message = decode_from_node(memoryview(event.frames[0]))
        if isinstance(message, Greet):
            self._neighbours.on_greet(event.link, message)
        elif isinstance(message, Tensor) and self._neighbours.is_let_in(event.link):
            self._on_tensor(message, event.frames[1:])
        else:
            raise PeerError("a peer that may not says something", code="E_AUTH")

    def _on_neighbour(self, event: NeighbourLost | NeighbourBack) -> None:
        if isinstance(event, NeighbourLost):
            self._unsent.pop(event.device, None)
        self._handle(event)
        if isinstance(event, NeighbourBack) and self._neighbours.link_to(event.device) is not None:
            for step in self._unsent.pop(event.device, []):
                self._send(step)

    # The manager above.

    def _joining(self) -> Join:
        options, below = self._options, self._below
        return Join(
            version=NODE_PROTOCOL_VERSION,
            device=options.device,
            token=options.token,
            facts=below.facts,
            cpu_family=below.cpu_family,
            endpoints=options.endpoints,
            host=options.host,
            is_group=True,
            max_requests=below.max_requests,
        )

    def _on_upstream(self, event: LinkEvent) -> None:
        match event:
            case Opened():
                self._upstream.on_opened()
            case Heard():
                try:
                    self._on_manager_said(event.frames)
                except InternalError:
                    raise
                except HypsError as error:
                    if not self._upstream.is_joined:
                        raise
                    logger.warning("a message was refused: %s", error.message)
            case Taken():
                if isinstance(event.token, int):
                    self._on_taken(event.token)
            case Lost():
                if self._upstream.is_joined:
                    self._on_notice(f"the manager is gone ({printable(event.reason)}): looking for it")
                self._upstream.on_lost()
                self._lose_manager()
            case _:
                assert_never(event)

    def _lose_manager(self) -> None:
        self._files.give_up()
        self._handle(ManagerLost())
        self._neighbours.drop_all()
        self._unsent.clear()
        self._sent.clear()

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
                self._on_notice("the manager left: looking for it")
                self._upstream.on_lost()
                self._lose_manager()
            case _:
                assert_never(message)

    def _on_joined(self, message: Joined) -> None:
        if self._upstream.on_joined(message):
            self._on_notice(f"joined the manager at {self._options.manager} as `{self._options.device}`")
            self._records.wants_spans = message.wants_spans
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
        self._upstream.say(Echoed(message.number), [memoryview(self._echo)[: message.nbytes]])

    def _on_setup(self, setup: Setup) -> None:
        plan = setup.plan
        problems = [] if plan is None else plan_problems(plan)
        ids = set() if plan is None else {part.id for part in plan.partitions}
        problems += [f"course {c.id} has unknown partitions" for c in setup.courses if set(c.partitions) - ids]
        if problems:
            raise PlanError(f"the manager's setup is wrong: {printable('; '.join(problems[:3]), 500)}")
        self._plan = plan
        parts = () if plan is None else plan.partitions
        self._digests = {part.id: partition_digest(part) for part in parts}
        self._neighbours.follow(time.monotonic(), setup)
        self._unsent = {name: steps for name, steps in self._unsent.items() if self._neighbours.is_target(name)}
        self._files.keep_only(parts)
        self._handle(set_up_of(setup))

    # Tensors.

    def _on_tensor(self, message: Tensor, frames: Sequence[Buffer]) -> None:
        header = message.header
        info = None if self._plan is None else self._plan.tensors.get(header.name)
        try:
            if info is not None:
                check_frames([header], frames, [NamedTensor(name=header.name, dtype=info.dtype, shape=info.shape)])
            elif len(frames) != 1 or len(frames[0]) != header.nbytes:
                raise PeerError(f"`{printable(header.name)}` came with other bytes than announced", code="E_PROTOCOL")
        except HypsError as error:
            self._refuse(message, error)
            return
        event = TensorHere(message.request, message.epoch, message.course, header.name, header.nbytes)
        self._handle(event, (header, frames[0]))

    def _refuse(self, message: Tensor, error: HypsError) -> None:
        """Have the request end that a wrong tensor belongs to: no other would come."""
        parts = () if self._plan is None else self._plan.partitions
        readers = [part.id for part in parts if message.header.name in part.inputs]
        if not readers:
            raise error
        failed = ItemFailed(message.request, message.epoch, readers[0], error.code, error.message, error.hint)
        self._upstream.say(failed)

    def _send(self, step: Send) -> None:
        link = self._upstream.link if step.device == HUB else self._neighbours.link_to(step.device)
        stored = self._store.get((step.request, step.epoch), {}).get(step.tensor)
        if stored is None:
            return  # it waited for a link until nobody wanted it any more
        if link is None:
            self._unsent.setdefault(step.device, []).append(step)
            return
        header, frame = stored
        message = Tensor(step.request, step.epoch, step.course, header)
        self._sent[step.sending] = _Sent(step, header.nbytes, self._links.backlog_nbytes(link), time.monotonic())
        self._links.send(link, [encode_node_message(message), frame], step.sending)

    def _on_taken(self, sending: int) -> None:
        sent = self._sent.pop(sending, None)
        if sent is not None:
            step, now_s = sent.step, time.monotonic()
            self._records.note_sent(
                step.request, step.tensor, step.device, sent.nbytes, sent.behind_nbytes, sent.start_s, now_s
            )
        self._handle(Delivered(sending))

    # The state machine.

    def _handle(self, event: GroupEvent, came: Stored | None = None) -> None:
        """Tell the machine what happened and do what it says; `came` is the tensor that the event is about.

        What happens while that is done is told afterwards.
        """
        self._happened.append((event, came))
        if len(self._happened) > 1:
            return
        while self._happened:
            event, self._came = self._happened[0]
            for step in self._state.handle(time.monotonic(), event):
                self._do(step)
            self._happened.popleft()

    def _do(self, step: GroupInstruction) -> None:
        match step:
            case Keep():
                assert self._came is not None, "what is kept has come"
                self._store.setdefault((step.request, step.epoch), {})[step.tensor] = self._came
            case Forget():
                self._forget(step)
            case Obtain():
                self._obtain(step)
            case Send():
                self._send(step)
            case Tell():
                self._tell(step)
            case Leave():
                self._upstream.say(Goodbye())
                self._is_over = True
            case Rebuild():
                self._rebuild(step)
            case Begin():
                self._begin(step)
            case Bring():
                header, frame = self._store[step.request, step.epoch][step.tensor]
                self._below.manager.relay(Added(step.below, step.tensor, step.nbytes), (header,), (frame,))
            case Abandon():
                self._below.manager.relay(Dropped(step.below))
            case _:
                assert_never(step)

    def _forget(self, step: Forget) -> None:
        held = self._store[step.request, step.epoch]
        del held[step.tensor]
        if not held:
            del self._store[step.request, step.epoch]

    def _obtain(self, step: Obtain) -> None:
        assert self._plan is not None, "files are a plan's"
        part = next(part for part in self._plan.partitions if part.id == step.partition)
        self._files.obtain((step.partition, step.digest), self._plan, part)

    def _begin(self, step: Begin) -> None:
        stored = [_WOKEN if name == WAKE else self._store[step.request, step.epoch][name] for name, _ in step.tensors]
        event = Relayed(step.below, step.partitions, step.outputs, step.tensors)
        self._below.manager.relay(event, [header for header, _ in stored], [frame for _, frame in stored])

    def _tell(self, step: Tell) -> None:
        message = step.message
        if isinstance(message, Beat):
            told = filled(message, self._below.state, self._state.above)
            sendings = self._records.take_sendings()
            spans = self._records.take_spans()
            if spans:
                self._upstream.say(Spans(tuple(spans)))
            self._upstream.say(msgspec.structs.replace(told, sendings=sendings, clock_s=time.monotonic()))
            self._beats += 1
            if self._beats % _REPORT_BEATS == 1:
                report = msgspec.structs.replace(self._below.manager.report(), device=self._options.device)
                self._upstream.say(GroupReport(), [encode_report(report)])
            return
        if isinstance(message, Finished):  # of a node whose clock is another one: it has ended just now, here
            now_s = time.monotonic()
            self._records.note_computed(
                message.request, message.partition, message.waited_s, now_s - message.run_s, now_s
            )
        self._upstream.say(message)

    # The manager below.

    def made(self, number: int, header: TensorHeader, frame: Buffer) -> None:
        """See `Above`."""
        self._handle(Made(number, header.name, header.nbytes), (header, frame))

    def told(self, step: PassOn | Ended) -> None:
        """See `Above`."""
        self._handle(step)

    def _rebuild(self, step: Rebuild) -> None:
        folders = {part: self._files.folders[part, digest] for part, digest in self._digests.items()}
        self._below.rebuild(self._plan, step.keep, folders)
        self._stands = None

    # The thread for files.

    def _on_completion(self, completion: Completion) -> None:
        self._completions.put(completion)
        self._links.wake()

    def _take_completions(self) -> None:
        while not self._is_over:
            try:
                completion = self._completions.get_nowait()
            except queue.Empty:
                return
            assert isinstance(completion, doing.Done), "a group computes nothing"
            self._files.on_done(completion)


def _is_greeting(data: Buffer) -> bool:
    try:
        return isinstance(decode_from_node(memoryview(data)), Greet)
    except PeerError:
        return False
