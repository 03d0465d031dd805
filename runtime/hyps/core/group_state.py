"""A group's state machine: to the manager above it is a node, to the nodes below it has a manager of its own.

Tensors pass through it one by one. What the manager above gives of a request is brought to the manager below as it
comes, and what is made below goes up as it is made: partitions of other devices may lie between those of the group. A
node that is lost below, and even another manager below, shows above only as time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from hyps.core.group_events import Abandon, Begin, Bring, GroupEvent, GroupInstruction, Made, Rebuild, StandsBelow
from hyps.core.manager_events import Ended, PassOn
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
    NotObtained,
    Obtain,
    Obtained,
    Retired,
    Send,
    SetUp,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
)
from hyps.core.node_life import NODE_TRANSITIONS, NodeLife, NodeTrigger
from hyps.core.node_state import EARLY_NBYTES, EARLY_REQUESTS, EARLY_S, REMEMBERED
from hyps.errors import InternalError, printable
from hyps.formats.node_messages import Beat, Course, Drain, Finished, ItemFailed, Started

WAKE = "hyps.wake"
"""An input without bytes that stands first in the plan below where a partition reads nothing: it tells of a request."""


class RelayState(Enum):
    """Where a request of the manager above is in its life here."""

    EARLY = "early"
    """Its course is not known yet."""
    WAITING = "waiting"
    """There is no manager below for its partitions yet."""
    GIVEN = "given"
    """The manager below has it."""
    OVER = "over"
    """Nothing more is computed of it; what was made may still be on its way."""


class RelayTrigger(Enum):
    """What moves it on."""

    COURSE_KNOWN = "course known"
    GIVEN = "given"
    BELOW_REPLACED = "manager below replaced"
    ENDED = "ended below"


TRANSITIONS: Mapping[tuple[RelayState, RelayTrigger], RelayState] = {
    (RelayState.EARLY, RelayTrigger.COURSE_KNOWN): RelayState.WAITING,
    (RelayState.WAITING, RelayTrigger.GIVEN): RelayState.GIVEN,
    (RelayState.GIVEN, RelayTrigger.BELOW_REPLACED): RelayState.WAITING,
    (RelayState.GIVEN, RelayTrigger.ENDED): RelayState.OVER,
}
"""Every change of a request's state; what is not in here cannot happen."""


@dataclass(frozen=True, slots=True)
class _Path:
    """A course as the machine needs it, worked out once."""

    partitions: tuple[str, ...]
    reads: frozenset[str]
    """Tensors that its partitions read: also one that is made here may come, which the hub above has already."""
    targets: Mapping[str, tuple[str, ...]]
    """The devices that want a tensor."""


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    epoch: int
    course: int
    since_s: float
    state: RelayState = RelayState.EARLY
    path: _Path | None = None
    below: int = 0
    """What it is called below; 0: it never was there."""
    inputs: dict[str, int] = field(default_factory=dict)
    """Bytes of what has come for it; stored until it is over."""
    outgoing: dict[str, int] = field(default_factory=dict)
    """Devices that have a made tensor to get; stored until they have."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of these."""
    emitted: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    failed: str = ""
    """The partition that failed."""
    sendings: set[int] = field(default_factory=set)

    def move(self, trigger: RelayTrigger) -> None:
        """Change its state; the only place where it changes."""
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"relayed request {self.number} was {self.state.value} and then {trigger.value}")
        self.state = after

    @property
    def stored(self) -> dict[str, int]:
        """Bytes of what is stored of it."""
        return {**self.inputs, **self.sizes}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the manager below is made for."""

    shares: tuple[tuple[str, str], ...] = ()
    """Partitions and their digests."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()


_Handler = Callable[..., list[GroupInstruction]]


class GroupState:
    """What a group does for the manager above it, from joining to leaving.

    `handle` takes what happened and returns what to do, in order. Each tensor that is wanted above goes up once per
    request and epoch, however often the work is begun anew below. Repeated events, and those of epochs that are over,
    are harmless.

    Attributes:
        life: where the group is in its life, as a node.
    """

    def __init__(self, beat_s: float = 0.5) -> None:
        self.life = NodeLife.JOINING
        self._beat_s = beat_s
        self._setup = 0
        self._paths: dict[int, _Path] = {}
        self._wanted = _Shape()
        self._built = _Shape()
        """What the manager below is for."""
        self._has_sources = False
        """Whether a partition reads nothing."""
        self._obtained: set[tuple[str, str]] = set()
        self._refused: dict[tuple[str, str], str] = {}
        self._stands = StandsBelow(is_ready=False)
        self._requests: dict[int, _Request] = {}
        self._early: dict[int, None] = {}
        self._early_nbytes = 0
        self._by_below: dict[int, _Request] = {}
        self._last_below = 0
        self._retired: dict[int, int] = {}
        """Epochs of ended requests, the latest last."""
        self._sendings: dict[int, tuple[_Request, Send]] = {}
        self._last_sending = 0
        self._lost: set[str] = set()
        self._has_changed = False
        self._told_s = 0.0
        self._handlers: dict[type, _Handler] = {
            ManagerFound: self._on_manager_found,
            ManagerLost: self._on_manager_lost,
            SetUp: self._on_set_up,
            TensorHere: self._on_tensor,
            Obtained: self._on_obtained,
            NotObtained: self._on_not_obtained,
            Delivered: self._on_delivered,
            Retired: self._on_retired,
            NeighbourLost: self._on_neighbour_lost,
            NeighbourBack: self._on_neighbour_back,
            ToldToDrain: self._on_told_to_drain,
            AllowedToLeave: self._on_allowed_to_leave,
            Ticked: self._on_ticked,
            Made: self._on_made,
            PassOn: self._on_passed,
            Ended: self._on_ended,
            StandsBelow: self._on_stands,
        }

    def handle(self, now_s: float, event: GroupEvent) -> list[GroupInstruction]:
        """Take what happened at `now_s`, on a clock that never goes back, and return what to do.

        Raises:
            InternalError: the event cannot happen in this state.
        """
        if self.life is NodeLife.GONE:
            return []
        steps = self._handlers[type(event)](now_s, event)
        return steps + self._settle() + self._beat_when_due(now_s)

    @property
    def next_tick_s(self) -> float:
        """When to tell the machine the time, if nothing happens before; infinite: it need not be told."""
        return math.inf if self.life in (NodeLife.JOINING, NodeLife.GONE) else self._told_s + self._beat_s

    def above(self, below: int) -> tuple[int, int] | None:
        """Return number and epoch above of a request below; None: it is not wanted above any more."""
        request = self._by_below.get(below)
        return None if request is None else (request.number, request.epoch)

    def __len__(self) -> int:
        """How many requests it has something of."""
        return len(self._requests)

    @property
    def held_nbytes(self) -> int:
        """The bytes of all tensors that are stored."""
        return sum(sum(request.stored.values()) for request in self._requests.values())

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        early = {number for number, request in self._requests.items() if request.state is RelayState.EARLY}
        _require(early == set(self._early), "a request is early and not noted as such")
        nbytes = sum(sum(self._requests[number].inputs.values()) for number in early)
        _require(nbytes == self._early_nbytes, "the bytes of early tensors are miscounted")
        for number, request in self._by_below.items():
            _require(self._requests.get(request.number) is request, "something is below of a request that is over")
            _require(request.below == number, "a request has two numbers below")
        for number, (request, send) in self._sendings.items():
            _require(self._requests.get(request.number) is request, "something is sent of a request that is over")
            _require(number in request.sendings and send.tensor in request.outgoing, "a sending is lost")
        for request in self._requests.values():
            self._check_request(request)
        _require(self.life is not NodeLife.JOINING or not self._requests, "requests without a manager")

    def _check_request(self, request: _Request) -> None:
        _require(request.epoch > self._retired.get(request.number, 0), "a request is over and still here")
        _require((request.path is None) == (request.state is RelayState.EARLY), "a request without a course")
        _require(request.state is not RelayState.OVER or not request.inputs, "what is over keeps its inputs")
        _require(request.state is not RelayState.GIVEN or request.below in self._by_below, "a request is lost below")
        _require(all(count > 0 for count in request.outgoing.values()), "a tensor is stored that nobody needs")
        _require(set(request.outgoing) == set(request.sizes), "the tensors on their way are miscounted")

    # The manager above.

    def _on_manager_found(self, now_s: float, event: ManagerFound) -> list[GroupInstruction]:
        steps = [] if self.life is NodeLife.JOINING else self._on_manager_lost(now_s, ManagerLost())
        if self.life is NodeLife.JOINING:
            self._move(NodeTrigger.MANAGER_FOUND)
        self._beat_s, self._has_changed = event.beat_s, True
        return steps

    def _on_manager_lost(self, _now_s: float, _event: ManagerLost) -> list[GroupInstruction]:
        steps = [step for request in list(self._requests.values()) for step in self._drop(request)]
        self._retired.clear()
        self._paths.clear()
        self._refused.clear()
        self._setup = 0
        is_draining = self.life is NodeLife.DRAINING
        self._move(NodeTrigger.MANAGER_LOST)
        return [*steps, Leave()] if is_draining else steps

    def _on_set_up(self, now_s: float, event: SetUp) -> list[GroupInstruction]:
        if self.life is NodeLife.JOINING:
            return []
        self._has_changed = True  # the manager wants to hear that the group follows it
        if event.number <= self._setup:
            return []
        self._setup = event.number
        self._move(NodeTrigger.SET_UP)
        before = dict(self._wanted.shares)
        self._wanted = _shape_of(event)
        self._has_sources = any(not share.task.inputs for share in event.shares)
        self._paths = {course.id: _path_of(course, event) for course in event.courses}
        after = dict(self._wanted.shares)
        altered = {part for part, digest in before.items() if after.get(part, digest) != digest}
        steps: list[GroupInstruction] = []
        for request in list(self._requests.values()):
            if request.path is not None and (
                request.course not in self._paths or not altered.isdisjoint(request.path.partitions)
            ):
                steps += self._drop(request)
        steps += self._obtain()
        for number in [n for n in self._early if self._requests[n].course in self._paths]:
            steps += self._adopt(self._requests[number])
        return steps + self._follow()

    def _obtain(self) -> list[GroupInstruction]:
        current = set(self._wanted.shares)
        self._obtained &= current
        self._refused = {key: why for key, why in self._refused.items() if key in current}
        return [Obtain(*key) for key in self._wanted.shares if key not in self._obtained and key not in self._refused]

    def _follow(self) -> list[GroupInstruction]:
        """Replace the manager below once the files are here that another one needs, and give it what waits."""
        if self._wanted == self._built or not self._obtained.issuperset(self._wanted.shares):
            return self._give_all()
        self._built = self._wanted
        self._stands = StandsBelow(is_ready=False, facts=self._stands.facts, max_requests=self._stands.max_requests)
        for request in self._requests.values():
            if request.state is RelayState.GIVEN:
                request.move(RelayTrigger.BELOW_REPLACED)
                del self._by_below[request.below]
        return [Rebuild(tuple(sorted(self._built.keep))), *self._give_all()]

    def _on_told_to_drain(self, _now_s: float, _event: ToldToDrain) -> list[GroupInstruction]:
        was_joining = self.life is NodeLife.JOINING
        self._move(NodeTrigger.TOLD_TO_DRAIN)
        return [Leave()] if was_joining else [Tell(Drain())]

    def _on_allowed_to_leave(self, _now_s: float, _event: AllowedToLeave) -> list[GroupInstruction]:
        if self.life is NodeLife.JOINING:
            return []
        self._move(NodeTrigger.WORK_IS_OVER)
        return [Leave()]

    def _on_retired(self, _now_s: float, event: Retired) -> list[GroupInstruction]:
        before = self._retired.pop(event.request, 0)
        self._retired[event.request] = max(before, event.epoch)
        if len(self._retired) > REMEMBERED:
            del self._retired[next(iter(self._retired))]
        request = self._requests.get(event.request)
        return self._drop(request) if request is not None and request.epoch <= event.epoch else []

    def _on_ticked(self, now_s: float, _event: Ticked) -> list[GroupInstruction]:
        steps: list[GroupInstruction] = []
        for number in list(self._early):
            if now_s - self._requests[number].since_s < EARLY_S:
                break
            steps += self._drop(self._requests[number])
        return steps

    def _on_obtained(self, _now_s: float, event: Obtained) -> list[GroupInstruction]:
        if (event.partition, event.digest) not in self._wanted.shares:
            return []
        self._obtained.add((event.partition, event.digest))
        return self._follow()

    def _on_not_obtained(self, _now_s: float, event: NotObtained) -> list[GroupInstruction]:
        if (event.partition, event.digest) in self._wanted.shares:
            self._refused[event.partition, event.digest] = event.reason
            self._has_changed = True
        return []

    # What comes from above.

    def _on_tensor(self, now_s: float, event: TensorHere) -> list[GroupInstruction]:
        if self.life is NodeLife.JOINING or event.epoch <= self._retired.get(event.request, 0):
            return []
        request = self._requests.get(event.request)
        steps: list[GroupInstruction] = []
        if request is not None and request.epoch < event.epoch:
            steps, request = self._drop(request), None
        if request is None:
            if event.course not in self._paths and len(self._early) >= EARLY_REQUESTS:
                return steps
            request, more = self._begin(now_s, event)
            steps += more
        if request.epoch > event.epoch or request.course != event.course or event.tensor in request.inputs:
            return steps
        return steps + self._take(request, event.tensor, event.nbytes)

    def _begin(self, now_s: float, event: TensorHere) -> tuple[_Request, list[GroupInstruction]]:
        """Note a request; what is known to have no course here yet waits for it."""
        request = _Request(event.request, event.epoch, event.course, now_s)
        self._requests[request.number] = request
        self._early[request.number] = None
        return request, self._adopt(request) if request.course in self._paths else []

    def _take(self, request: _Request, tensor: str, nbytes: int) -> list[GroupInstruction]:
        keep = Keep(request.number, request.epoch, tensor)
        if request.path is None:
            if self._early_nbytes + nbytes > EARLY_NBYTES:
                return []
            self._early_nbytes += nbytes
            request.inputs[tensor] = nbytes
            return [keep]
        is_known = tensor not in request.path.reads or tensor in request.emitted
        if is_known or request.state is RelayState.OVER:
            return []
        request.inputs[tensor] = nbytes
        if request.state is not RelayState.GIVEN:
            return [keep]
        return [keep, Bring(request.below, request.number, request.epoch, tensor, nbytes)]

    def _adopt(self, request: _Request) -> list[GroupInstruction]:
        """Take up a request whose course is known."""
        del self._early[request.number]
        self._early_nbytes -= sum(request.inputs.values())
        path = request.path = self._paths[request.course]
        request.move(RelayTrigger.COURSE_KNOWN)
        strange = [name for name in request.inputs if name not in path.reads]
        for name in strange:
            del request.inputs[name]
        return [*(Forget(request.number, request.epoch, name) for name in strange), *self._give(request)]

    def _give_all(self) -> list[GroupInstruction]:
        return [step for number in sorted(self._requests) for step in self._give(self._requests[number])]

    def _give(self, request: _Request) -> list[GroupInstruction]:
        """Have the manager below begin a request, if there is one for its partitions."""
        path = request.path
        if request.state is not RelayState.WAITING or path is None:
            return []
        if not {part for part, _ in self._built.shares}.issuperset(path.partitions):
            return []
        request.move(RelayTrigger.GIVEN)
        self._last_below += 1
        request.below = self._last_below
        self._by_below[request.below] = request
        tensors = tuple(request.inputs.items())
        return [
            Begin(
                request.below,
                request.number,
                request.epoch,
                frozenset(path.partitions),
                tuple(path.targets),
                ((WAKE, 0), *tensors) if self._has_sources else tensors,
            )
        ]

    def _drop(self, request: _Request) -> list[GroupInstruction]:
        """Forget a request: nothing of it is kept."""
        del self._requests[request.number]
        if request.state is RelayState.EARLY:
            del self._early[request.number]
            self._early_nbytes -= sum(request.inputs.values())
        for number in request.sendings:
            del self._sendings[number]
        self._by_below.pop(request.below, None)
        steps: list[GroupInstruction] = [Abandon(request.below)] if request.state is RelayState.GIVEN else []
        return steps + [Forget(request.number, request.epoch, name) for name in request.stored]

    # What comes from below.

    def _on_stands(self, _now_s: float, event: StandsBelow) -> list[GroupInstruction]:
        self._has_changed |= event != self._stands
        self._stands = event
        return []

    def _on_made(self, _now_s: float, event: Made) -> list[GroupInstruction]:
        request = self._by_below.get(event.below)
        if request is None or request.path is None or event.tensor in request.emitted or event.tensor in request.inputs:
            return []
        devices = request.path.targets.get(event.tensor, ())
        if not devices:
            return []
        request.emitted.add(event.tensor)
        request.outgoing[event.tensor], request.sizes[event.tensor] = len(devices), event.nbytes
        steps: list[GroupInstruction] = [Keep(request.number, request.epoch, event.tensor)]
        for device in devices:
            self._last_sending += 1
            send = Send(self._last_sending, request.number, request.epoch, request.course, event.tensor, device)
            self._sendings[send.sending] = (request, send)
            request.sendings.add(send.sending)
            if device not in self._lost:
                steps.append(send)
        return steps

    def _on_passed(self, _now_s: float, event: PassOn) -> list[GroupInstruction]:
        message = event.message
        request = self._by_below.get(message.request)
        if request is None or message.partition in request.finished:
            return []
        match message:
            case ItemFailed():
                request.failed = message.partition
                return []  # its end follows
            case Finished():
                request.finished.add(message.partition)
            case Started():
                pass
        return [Tell(replace(message, request=request.number, epoch=request.epoch))]

    def _on_ended(self, _now_s: float, event: Ended) -> list[GroupInstruction]:
        request = self._by_below.get(event.number)
        if request is None or request.state is not RelayState.GIVEN or request.path is None:
            return []
        request.move(RelayTrigger.ENDED)
        steps: list[GroupInstruction] = []
        if event.code:
            left = [part for part in request.path.partitions if part not in request.finished]
            part = request.failed or (left or request.path.partitions)[0]
            failed = ItemFailed(request.number, request.epoch, part, event.code, event.message, event.hint)
            steps.append(Tell(failed))
        inputs, request.inputs = request.inputs, {}
        return [*steps, *(Forget(request.number, request.epoch, name) for name in inputs)]

    # Sending.

    def _on_delivered(self, _now_s: float, event: Delivered) -> list[GroupInstruction]:
        request, send = self._sendings.pop(event.sending, (None, None))
        if request is None or send is None:
            return []
        request.sendings.remove(event.sending)
        request.outgoing[send.tensor] -= 1
        if request.outgoing[send.tensor]:
            return []
        del request.outgoing[send.tensor], request.sizes[send.tensor]
        return [Forget(request.number, request.epoch, send.tensor)]

    def _on_neighbour_lost(self, _now_s: float, event: NeighbourLost) -> list[GroupInstruction]:
        self._has_changed |= event.device not in self._lost
        self._lost.add(event.device)
        return []

    def _on_neighbour_back(self, _now_s: float, event: NeighbourBack) -> list[GroupInstruction]:
        if event.device not in self._lost:
            return []
        self._lost.remove(event.device)
        self._has_changed = True
        return [send for _, send in self._sendings.values() if send.device == event.device]

    # How it is.

    def _settle(self) -> list[GroupInstruction]:
        is_settled = self._built == self._wanted and (self._stands.is_ready or not self._wanted.shares)
        if self.life is NodeLife.LOADING and self._setup and is_settled:
            self._move(NodeTrigger.ALL_SETTLED)
        is_idle = not self._paths and not self._requests
        if self.life is NodeLife.DRAINING and self._setup and is_idle:
            self._move(NodeTrigger.WORK_IS_OVER)
            return [Leave()]
        return []

    def _beat_when_due(self, now_s: float) -> list[GroupInstruction]:
        if self.life in (NodeLife.JOINING, NodeLife.GONE):
            return []
        if not self._has_changed and now_s - self._told_s < self._beat_s:
            return []
        self._has_changed, self._told_s = False, now_s
        return [Tell(self._beat())]

    def _beat(self) -> Beat:
        targets = {device for path in self._paths.values() for devices in path.targets.values() for device in devices}
        is_loaded = self._setup and self._built == self._wanted and self._stands.is_ready
        return Beat(
            setup=self._setup,
            loaded=tuple(part for part, _ in self._built.shares) if is_loaded else (),
            refused=self._refusals() if self._setup else (),
            held_nbytes=self.held_nbytes,
            unreachable=tuple(sorted(self._lost & targets)),
            facts=self._stands.facts,
            max_requests=self._stands.max_requests,
        )

    def _refusals(self) -> tuple[tuple[str, str], ...]:
        missing = tuple((part, printable(why, 500)) for (part, _), why in self._refused.items())
        if missing or not self._stands.refusal or self._built != self._wanted:
            return missing
        return tuple((part, printable(self._stands.refusal, 500)) for part, _ in self._built.shares)

    def _move(self, trigger: NodeTrigger) -> None:
        after = NODE_TRANSITIONS.get((self.life, trigger))
        if after is None:
            raise InternalError(f"the group was {self.life.value} and then {trigger.value}")
        self.life = after


def _shape_of(event: SetUp) -> _Shape:
    routed = {route.tensor for course in event.courses for route in course.routes}
    shares = tuple((share.task.id, share.digest) for share in event.shares)
    return _Shape(shares, event.inputs, event.outputs, frozenset(routed.difference(event.outputs)))


def _path_of(course: Course, event: SetUp) -> _Path:
    tasks = [share.task for share in event.shares if share.task.id in course.partitions]
    made = {name for task in tasks for name in task.outputs}
    return _Path(
        partitions=course.partitions,
        reads=frozenset(name for task in tasks for name in task.inputs),
        targets={
            route.tensor: tuple(dict.fromkeys(route.devices))
            for route in course.routes
            if route.tensor in made and route.devices
        },
    )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
