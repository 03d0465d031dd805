"""A node of a rehearsal: its state machine as it is, and what its shell does with links, tensors and the executor."""

import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never, cast

from hyps.adapters.links import Buffer, Links, Lost, Opened, Taken
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
    NotObtained,
    Obtain,
    Obtained,
    Retired,
    Send,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
    Unload,
)
from hyps.core.node_state import NodeState
from hyps.formats.messages import Failed, MachineFacts
from hyps.formats.node_messages import (
    HUB,
    NODE_PROTOCOL_VERSION,
    Beat,
    Drain,
    Goodbye,
    Greet,
    Join,
    Joined,
    Piece,
    Retire,
    Setup,
    Tensor,
    decode_from_node,
)
from hyps.formats.plan import Partition, Plan
from hyps.neighbours import Neighbours
from hyps.node import set_up_of
from hyps_compiler.rehearsal.agenda import Agenda, Alarm, Process
from hyps_compiler.rehearsal.client import header_of
from hyps_compiler.rehearsal.network import Arrived, Network, NetworkEvent, VirtualLinks
from hyps_compiler.rehearsal.story import Story, require
from hyps_compiler.rehearsal.values import Value, compute

_BACK_S = 0.2
_NO_VALUES: dict[str, Value] = {}
BASE_NBYTES = 65 * 10**6
"""Of a node's process, as the manager takes it."""

MEMORIES = (None, None, None, *(BASE_NBYTES + nbytes for nbytes in (250_000, 600_000, 10_000_000)))
"""What nodes have."""


@dataclass(slots=True)
class Health:
    """How a node fares; faults change it, and healing makes it anew."""

    slowness: float = 1.0
    """Everything that it computes takes so many times as long."""
    is_hung: bool = False
    """Whether what it computes does not end."""
    refuses: frozenset[str] = frozenset()
    """Partitions that cannot be loaded here."""
    fails: float = 0.0
    """How likely an execution has no result."""


@dataclass(slots=True)
class Executor:
    """The two working threads of a node: one runs partitions, the other opens their sessions, each in turn."""

    runs: deque[tuple[Execute, dict[str, Value]]] = field(default_factory=deque)
    loads: deque[Load] = field(default_factory=deque)
    opened: set[tuple[str, str]] = field(default_factory=set)
    """Partitions and digests whose sessions are open."""


class VirtualNode(Process):
    """Carries out what a node's state machine says."""

    def __init__(
        self, agenda: Agenda, name: str, device: str, plan: Plan, network: Network, rng: random.Random, story: Story,
        on_step: Callable[[Process], None],
    ) -> None:  # fmt: skip
        super().__init__(agenda, name, on_step)
        self.device = device
        """What it calls itself."""
        self._whole_plan, self._network, self._rng, self._story = plan, network, rng, story
        self.memory_bytes: int | None = None
        self.health = Health()
        self.load_s = 0.05
        self.compute_s = 0.02
        self.is_open_to_others = True
        """Whether other nodes can come to it."""
        self.has_left = False
        self.drained_life = 0
        """The life in which it was told to leave; 0: none."""
        self.state: NodeState
        self.store: dict[tuple[int, int], dict[str, Value]] = {}
        """Per request and epoch."""
        self._links: VirtualLinks
        self._clock_s = 0.0
        """Its clock's lead over the agenda's."""

    def start(self) -> None:
        """Come up and know nothing."""
        self.begin()
        self.has_left = self.health.is_hung = False
        self._clock_s = self._rng.choice((0.0, 1e3, 1e6))
        self.store = {}
        self._executor = Executor()
        self._came: Mapping[str, Value] = _NO_VALUES
        self._alarm = Alarm(self, self._on_time)
        self.state = NodeState(self.memory_bytes, BASE_NBYTES)
        self._links = VirtualLinks(self._network, self, self._on_link)
        if self.is_open_to_others:
            self._links.listen(_address(self.name))
        self._neighbours = Neighbours(_framed(self._links), self.device, self._on_neighbour_news)
        self._courses: dict[int, tuple[str, ...]] = {}
        """The partitions of each course that a setup has named."""
        self._told_loaded: set[str] = set()
        """What the manager was told since it took the node in."""
        self._unsent: dict[str, list[Send]] = {}
        """What waits for a link to a device that is not open yet."""
        self._control = self._links.connect("manager")

    def end(self) -> None:
        """Crash."""
        super().end()
        self._links.close()

    def drain(self) -> None:
        """Be told to leave by the operator."""
        self.drained_life = self.life
        self._handle(ToldToDrain())

    @property
    def is_overdue(self) -> bool:
        """Whether it was told to leave and is still there, although it could: it computes nothing any more."""
        is_told = self.is_up and self.drained_life == self.life and not self.has_left
        return is_told and not (self.is_paused or self.health.is_hung or self._executor.runs)

    def held_nbytes(self) -> int:
        """Return the bytes of all stored tensors."""
        tensors = self._whole_plan.tensors
        return sum(
            len(value) * (tensors[name].nbytes or 0) for held in self.store.values() for name, value in held.items()
        )

    def spare_nbytes(self) -> int | None:
        """Return what its memory has left beside its process, open sessions and tensors; None: it has no limit."""
        if self.memory_bytes is None:
            return None
        opened = {partition for partition, _ in self._executor.opened}
        weights = sum(part.weight_bytes for part in self._whole_plan.partitions if part.id in opened)
        return self.memory_bytes - BASE_NBYTES - weights - self.held_nbytes()

    # What comes in.

    def _on_link(self, event: NetworkEvent) -> None:
        match event:
            case Opened():
                self._on_opened(event.link, came_to_us=event.came_to_us)
            case Arrived():
                self._on_message(event.link, event.parcel.message, event.parcel.values)
            case Taken():
                assert isinstance(event.token, int), "tokens are numbers of sendings"
                self._handle(Delivered(event.token))
            case Lost():
                self._on_lost(event.link)
            case _:
                assert_never(event)

    def _on_opened(self, link: int, *, came_to_us: bool) -> None:
        if link == self._control:
            self._links.send(link, self._join(), is_urgent=True)
        else:
            self._neighbours.on_opened(self._now_s(), link, came_to_us=came_to_us)
            self._set_alarm()

    def _join(self) -> Join:
        endpoints = (_address(self.name),) if self.is_open_to_others else ()
        facts = MachineFacts(self.memory_bytes, 1, 1e9)
        return Join(NODE_PROTOCOL_VERSION, self.device, "", facts, "", endpoints)

    def _on_lost(self, link: int) -> None:
        if link != self._control:
            self._neighbours.on_lost(self._now_s(), link)
            self._set_alarm()
            return
        self._control = 0
        self._handle(ManagerLost())
        self._neighbours.drop_all()
        self._unsent.clear()
        if not self.has_left:
            self.later(_BACK_S, self._come_back)

    def _come_back(self) -> None:
        if self.state.is_held_up:
            self.later(_BACK_S, self._come_back)
        else:
            self._control = self._links.connect("manager")

    def _on_message(self, link: int, message: Any, values: tuple[Value, ...]) -> None:
        if link != self._control:
            self._on_neighbour(link, message, values)
            return
        match message:
            case Joined():
                self._told_loaded = set()
                self._courses = {}
                self._handle(ManagerFound(message.beat_s))
            case Setup():
                self._on_setup(message)
            case Tensor():
                self._check_readiness(message.course)
                self._on_tensor(message, values[0])
            case Retire():
                for request, epoch in message.requests:
                    self._handle(Retired(request, epoch))
            case Drain():
                self._handle(AllowedToLeave())
            case Goodbye() | Failed():
                self._links.close_link(self._control)
                self._on_lost(self._control)
            case Piece():
                pass
            case _:
                require(False, f"a node hears {message}")

    def _check_readiness(self, course: int) -> None:
        """Require that work is given only to nodes that have told that they can do it."""
        wanted = self._courses.get(course)
        missing = course if wanted is None else [name for name in wanted if name not in self._told_loaded]
        require(not missing, lambda: f"{self.name} is given work on course {course} and has not loaded {missing}")

    def _on_tensor(self, message: Tensor, value: Value) -> None:
        self._came = {message.header.name: value}
        header = message.header
        self._handle(TensorHere(message.request, message.epoch, message.course, header.name, header.nbytes))

    # Other nodes.

    def _on_setup(self, setup: Setup) -> None:
        self._courses.update({course.id: course.partitions for course in setup.courses})
        self._neighbours.follow(self._now_s(), setup)
        self._unsent = {name: steps for name, steps in self._unsent.items() if self._neighbours.is_target(name)}
        self._handle(set_up_of(setup))

    def _on_neighbour(self, link: int, message: Any, values: tuple[Value, ...]) -> None:
        if isinstance(message, Greet):
            self._neighbours.on_greet(link, message)
        elif isinstance(message, Tensor) and self._neighbours.is_let_in(link):
            self._on_tensor(message, values[0])
        else:
            self._story.tell(self.agenda.now_s, self.name, "node sends away", link)
            self._neighbours.send_away(link)

    def _on_neighbour_news(self, event: NeighbourLost | NeighbourBack) -> None:
        if isinstance(event, NeighbourLost):
            self._unsent.pop(event.device, None)
        self._handle(event)
        if isinstance(event, NeighbourBack) and self._neighbours.link_to(event.device) is not None:
            for step in self._unsent.pop(event.device, []):
                self._send(step)

    def _on_time(self) -> None:
        self._neighbours.on_time(self._now_s())
        self._handle(Ticked())

    def _set_alarm(self) -> None:
        self._alarm.set(min(self.state.next_tick_s, self._neighbours.next_s) - self._clock_s)

    def _now_s(self) -> float:
        return self.agenda.now_s + self._clock_s

    # The state machine.

    def _handle(self, event: NodeEvent) -> None:
        now_s = self.agenda.now_s
        self._story.tell(now_s, self.name, "node event", event)
        steps = self.state.handle(now_s + self._clock_s, event)
        came, self._came = self._came, _NO_VALUES
        for step in steps:
            self._story.tell(now_s, self.name, "node does", step)
            self._do_step(event, step, came)
        self._set_alarm()

    def _do_step(self, event: NodeEvent, step: NodeInstruction, came: Mapping[str, Value]) -> None:
        self.effect()
        match step:
            case Keep():
                if isinstance(event, TensorHere):
                    told = (event.request, event.epoch, event.tensor)
                    require(told == (step.request, step.epoch, step.tensor), f"{event} is stored as {step}")
                self.store.setdefault((step.request, step.epoch), {})[step.tensor] = came[step.tensor]
            case Forget():
                self._forget(step)
            case Obtain():
                self.later(self.load_s * self._rng.random(), lambda: self._on_obtained(step))
            case Load():
                self._open(step)
            case Unload():
                self._executor.opened.discard((step.partition, step.digest))
            case Execute():
                self._run(step)
            case Send():
                self._send(step)
            case Tell():
                if isinstance(step.message, Beat):
                    self._told_loaded.update(step.message.loaded)
                self._links.send(self._control, step.message, is_urgent=True)
            case Leave():
                self._leave()
            case _:
                assert_never(step)

    def _forget(self, step: Forget) -> None:
        held = self.store[step.request, step.epoch]
        del held[step.tensor]
        if not held:
            del self.store[step.request, step.epoch]

    def _send(self, step: Send) -> None:
        value = self.store.get((step.request, step.epoch), {}).get(step.tensor)
        if value is None:
            return  # it waited for a link until nobody wanted it any more
        header = header_of(step.tensor, value, self._whole_plan.tensors[step.tensor])
        link = self._control if step.device == HUB else self._neighbours.link_to(step.device)
        if link is None:
            self._unsent.setdefault(step.device, []).append(step)
            return
        message = Tensor(step.request, step.epoch, step.course, header)
        self._links.send(link, message, (value,), header.nbytes, step.sending)

    def _leave(self) -> None:
        self.has_left = True
        self._links.send(self._control, Goodbye(), is_urgent=True)
        self.later(0.2, self.end)

    def _on_obtained(self, step: Obtain) -> None:
        if step.partition in self.health.refuses:
            self._handle(NotObtained(step.partition, "it is not there", step.digest))
        else:
            self._handle(Obtained(step.partition, step.digest))

    # The executor's threads.

    def _run(self, step: Execute) -> None:
        held = self.store[step.request, step.epoch]
        given = {name: held[name] for name in self._partition(step.partition).inputs}
        self._executor.runs.append((step, given))
        if len(self._executor.runs) == 1:
            self._compute()

    def _compute(self) -> None:
        self.later(self._draw_s(self.compute_s), self._on_computed)

    def _open(self, step: Load) -> None:
        self._executor.loads.append(step)
        if len(self._executor.loads) == 1:
            self._load()

    def _load(self) -> None:
        self.later(self._draw_s(self.load_s), self._on_load_over)

    def _draw_s(self, about_s: float) -> float:
        return about_s * self.health.slowness * (0.5 + self._rng.random())

    def _on_computed(self) -> None:
        if self.health.is_hung:
            return
        step, given = self._executor.runs.popleft()
        if self._executor.runs:
            self._compute()
        event = self._outcome(step, given)
        self._handle(event)

    def _outcome(self, step: Execute, given: Mapping[str, Value]) -> Executed | ExecuteFailed:
        if step.partition not in {partition for partition, _ in self._executor.opened}:
            return ExecuteFailed(step.run, "E_INTERNAL", f"`{step.partition}` is run and not open")
        if self._rng.random() < self.health.fails:
            return ExecuteFailed(step.run, "E_EXECUTION", "it went wrong")
        self._came = compute(self._partition(step.partition), given)
        tensors = self._whole_plan.tensors
        made = tuple((name, len(value) * (tensors[name].nbytes or 0)) for name, value in self._came.items())
        return Executed(step.run, made, self.compute_s * self.health.slowness)

    def _on_load_over(self) -> None:
        step = self._executor.loads.popleft()
        if self._executor.loads:
            self._load()
        if step.partition in self.health.refuses:
            self._handle(LoadFailed(step.partition, "it cannot be loaded", step.digest))
            return
        key = (step.partition, step.digest)
        require(key not in self._executor.opened, f"`{step.partition}` is opened twice")
        self._executor.opened.add(key)
        self._handle(Loaded(step.partition, step.digest))

    def _partition(self, name: str) -> Partition:
        return next(partition for partition in self._whole_plan.partitions if partition.id == name)


def _address(device: str) -> str:
    return f"node/{device}"


class _FramedLinks:
    """Virtual links as `hyps.adapters.links.Links` has them, as far as other nodes are spoken to: with bytes."""

    def __init__(self, links: VirtualLinks) -> None:
        self._links = links

    def connect(self, address: str) -> int:
        return self._links.connect(address)

    def send(
        self, link: int, frames: Sequence[Buffer], token: Hashable | None = None, *, is_urgent: bool = False
    ) -> None:
        self._links.send(link, decode_from_node(bytes(frames[0])), token=token, is_urgent=is_urgent)

    def admit(self, link: int) -> None:
        """Messages here have any size."""

    def close_link(self, link: int) -> None:
        self._links.close_link(link)


def _framed(links: VirtualLinks) -> Links:
    return cast("Links", _FramedLinks(links))
