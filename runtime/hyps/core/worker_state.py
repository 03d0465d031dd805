"""The worker's state machine: which partition is loaded and run next, for which request, and what is dropped when."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from hyps.core.events import (
    Cancelled,
    Drop,
    Event,
    Execute,
    Executed,
    ExecuteFailed,
    Fail,
    Instruction,
    Load,
    Loaded,
    LoadFailed,
    ReadAhead,
    Reply,
    Submitted,
    TensorArrived,
    Unload,
)
from hyps.core.residency import Residency, Task, live_activations, loaded_nbytes
from hyps.core.spilling import Forecast
from hyps.errors import InternalError, printable


class TaskState(Enum):
    """Where one request is in one partition."""

    WAITING = "waiting"
    READY = "ready"
    EXECUTING = "executing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Trigger(Enum):
    """What moves a task on."""

    INPUTS_COMPLETE = "inputs complete"
    STARTED = "started"
    EXECUTED = "executed"
    EXECUTE_FAILED = "execute failed"
    REQUEST_ENDED = "request ended"


TRANSITIONS: Mapping[tuple[TaskState, Trigger], TaskState] = {
    (TaskState.WAITING, Trigger.INPUTS_COMPLETE): TaskState.READY,
    (TaskState.READY, Trigger.STARTED): TaskState.EXECUTING,
    (TaskState.EXECUTING, Trigger.EXECUTED): TaskState.DONE,
    (TaskState.EXECUTING, Trigger.EXECUTE_FAILED): TaskState.FAILED,
    (TaskState.WAITING, Trigger.REQUEST_ENDED): TaskState.CANCELLED,
    (TaskState.READY, Trigger.REQUEST_ENDED): TaskState.CANCELLED,
    (TaskState.EXECUTING, Trigger.REQUEST_ENDED): TaskState.CANCELLED,
    (TaskState.DONE, Trigger.REQUEST_ENDED): TaskState.DONE,
    (TaskState.FAILED, Trigger.REQUEST_ENDED): TaskState.FAILED,
}
"""Every change of a task's state; what is not in here cannot happen."""


@dataclass(slots=True)
class _Request:
    name: str
    order: int
    """When it was queued, among all."""
    states: list[TaskState | None]
    """Per partition, in the plan's order; None for one that the request does not need."""
    missing: list[int]
    """Per partition, the inputs that are not here yet."""
    uses: dict[str, int]
    """Per tensor, how many partitions and replies still need it."""
    held: dict[str, int] = field(default_factory=dict)
    """Bytes per tensor that is here."""
    arrived: set[str] = field(default_factory=set)
    unfinished: int = 0
    awaited: set[str] = field(default_factory=set)
    """Wanted outputs that are not here yet."""
    absent: set[str] = field(default_factory=set)
    """What the request brings and has not brought yet; it is queued when all is here."""
    story: list[str] = field(default_factory=list)
    input_nbytes: int = 0
    is_foreseen: bool = True
    """Whether the bytes of all its tensors are known before it runs: it is no larger than one that was seen."""


class WorkerState:
    """Requests on their way through the partitions of one device.

    `handle` takes what happened and returns what to do, in order; one `Load` or `Execute` is out at a time. Requests
    are admitted in chunks whose activations fit the budget. While every partition is kept loaded, work is ordered by
    request; otherwise by partition, so that a chunk passes through a partition before the next one is loaded. That one
    is read ahead where the budget has room for it beside all that runs until its turn.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        residency: Residency,
        inputs: Sequence[str],
        outputs: Sequence[str],
        nbytes: Mapping[str, int],
        spills: Forecast | None = None,
    ) -> None:
        """Take the partitions in an order in which they can run, and the bytes of the tensors whose size is known.

        `spills` tells what is not in memory while a partition is loaded and run; None: everything is.
        """
        self._tasks = tuple(tasks)
        self._index = {task.id: index for index, task in enumerate(tasks)}
        self._residency = residency
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._nbytes = dict(nbytes)
        self._spills = spills
        self._consumers: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            for name in dict.fromkeys(task.inputs):
                self._consumers.setdefault(name, []).append(index)
        kept = [task for task in tasks if task.id in residency.kept]
        self._kept_nbytes = loaded_nbytes(kept)
        self._kept_shared = frozenset(name for task in kept for name, _ in task.shared)
        self._by_partition = len(residency.kept) < len(tasks)
        self._requests: dict[str, _Request] = {}
        self._queued: deque[str] = deque()
        self._admitted: dict[str, None] = {}
        self._ready: list[tuple[int, int, str]] = []
        self._loaded: set[str] = set()
        self._loading: str | None = None
        self._ahead: str | None = None
        """What is read ahead, and not asked for yet."""
        self._live: dict[str, int] = {}
        """Per partition, the bytes of one admitted request's tensors that are alive while it runs."""
        self._executing: tuple[str, str] | None = None
        self._queued_ever = 0
        self._foreseen_nbytes = -1
        self._foresee(sum(self._nbytes.get(name, 0) for name in inputs))
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Submitted: self._on_submitted,
            TensorArrived: self._on_tensor,
            Loaded: self._on_loaded,
            LoadFailed: self._on_load_failed,
            Executed: self._on_executed,
            ExecuteFailed: self._on_execute_failed,
            Cancelled: self._on_cancelled,
        }

    def handle(self, *events: Event) -> list[Instruction]:
        """Take `events`, which happened together, and return what to do.

        Events of finished requests and repeated events are harmless. Requests that come together start together.

        Raises:
            InternalError: an event cannot happen in this state.
        """
        steps = [step for event in events for step in self._handlers[type(event)](event)]
        return steps + self._next_work()

    @property
    def is_idle(self) -> bool:
        """Whether no request is known."""
        return not self._requests

    def held_nbytes(self) -> int:
        """Return the bytes of all tensors of admitted requests that are here."""
        return sum(sum(self._requests[name].held.values()) for name in self._admitted)

    def resident_nbytes(self) -> int:
        """Return the bytes in memory: loaded weights, admitted requests' tensors, what a running partition needs."""
        passing = {one for one in (self._loading, self._ahead) if one is not None}
        weights = self._weight_nbytes(self._loaded | passing)
        running = 0
        if self._executing is not None:
            task = self._tasks[self._index[self._executing[1]]]
            running = task.scratch_nbytes + self._made_nbytes(task)
        return weights + running + self._present_nbytes()

    def _weight_nbytes(self, present: set[str]) -> int:
        """Return the bytes of the weights of these partitions; those of all that are kept are worked out only once."""
        if not present >= self._residency.kept:
            return loaded_nbytes(task for task in self._tasks if task.id in present)
        shared, nbytes = set(self._kept_shared), self._kept_nbytes
        for partition in sorted(present - self._residency.kept):
            task = self._tasks[self._index[partition]]
            nbytes += task.weight_nbytes - sum(n for name, n in task.shared if name in shared)
            shared.update(name for name, _ in task.shared)
        return nbytes

    def room_nbytes(self) -> int | None:
        """Return the bytes of the budget that nothing needs as long as what was said last is done; None: no budget."""
        limit = self._residency.limit_nbytes
        if limit is None:
            return None
        return max(0, limit - self.resident_nbytes()) if self._is_foreseeable else 0

    @property
    def _is_foreseeable(self) -> bool:
        """Whether all bytes are known: not while tensors come and go by the scratch file, which takes what is free."""
        return self._spills is None and all(self._requests[name].is_foreseen for name in self._admitted)

    def _present_nbytes(self) -> int:
        """Return the bytes of all tensors that are in memory, not in the scratch file."""
        current = self._loading if self._executing is None else self._executing[1]
        if self._spills is None or current is None:
            return self.held_nbytes()
        task = self._tasks[self._index[current]]
        return min(self.held_nbytes(), self._spills.live_nbytes[current] - self._made_nbytes(task))

    def _made_nbytes(self, task: Task) -> int:
        return sum(self._nbytes.get(name, 0) for name in task.outputs)

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        transient = self._loaded - self._residency.kept
        _require(len(transient) + (self._loading in self._transient_ids()) <= 1, "two partitions are loaded in passing")
        if self._ahead is not None:
            there = {*self._loaded, *self._residency.kept, self._loading}
            _require(self._ahead not in there and bool(self._admitted), "read ahead what is there, or for nobody")
        _require(self._loading is None or self._executing is None, "loading while executing")
        _require(self._executing is None or self._executing[1] in self._loaded, "executing what is not loaded")
        whole = {name for name, request in self._requests.items() if not request.absent}
        _require({*self._queued, *self._admitted} == whole, "a request is lost")
        _require(len(self._queued) + len(self._admitted) == len(whole), "a request is queued and admitted")
        for request in self._requests.values():
            self._check_request(request)
        limit = self._residency.limit_nbytes
        if limit is not None and all(self._requests[name].is_foreseen for name in self._admitted):
            _require(self.resident_nbytes() <= limit, f"{self.resident_nbytes()} bytes are resident, {limit} allowed")

    def _transient_ids(self) -> set[str]:
        return {task.id for task in self._tasks} - self._residency.kept

    def _check_request(self, request: _Request) -> None:
        for index, (state, missing) in enumerate(zip(request.states, request.missing, strict=True)):
            absent = [name for name in dict.fromkeys(self._tasks[index].inputs) if name not in request.held]
            if state is TaskState.WAITING:
                _require(missing == len(absent), "a task's missing inputs are miscounted")
                _require(missing > 0 or request.name not in self._admitted, "a task waits for nothing")
            if state in (TaskState.READY, TaskState.EXECUTING):
                _require(not absent, f"a task of `{request.name}` is ready without `{absent}`")
        _require(all(request.uses.get(name, 0) > 0 for name in request.held), "a tensor is held that nobody needs")
        _require(bool(request.awaited) or request.unfinished > 0, f"`{request.name}` is finished and still here")

    # What happens, event by event.

    def _on_submitted(self, event: Submitted) -> list[Instruction]:
        if event.request in self._requests:
            return []
        outputs = frozenset(self._outputs if event.outputs is None else event.outputs)
        needed = set(range(len(self._tasks))) if event.outputs is None else self._needed(outputs)
        uses = {name: sum(index in needed for index in users) for name, users in self._consumers.items()}
        for name in outputs:
            uses[name] = uses.get(name, 0) + 1
        request = _Request(
            name=event.request,
            order=0,
            states=[TaskState.WAITING if index in needed else None for index in range(len(self._tasks))],
            missing=[len(set(task.inputs)) for task in self._tasks],
            uses=uses,
            unfinished=len(needed),
            awaited=set(outputs),
            absent={name for name in self._inputs if uses.get(name)},
        )
        self._requests[request.name] = request
        self._queue_if_whole(request)
        return self._reply_if_complete(request)

    def _on_tensor(self, event: TensorArrived) -> list[Instruction]:
        request = self._requests.get(event.request)
        if request is None:
            return [Drop(event.request, event.tensor)]
        if event.tensor in request.arrived:
            return [] if event.tensor in request.held else [Drop(event.request, event.tensor)]
        if event.tensor in request.absent:
            request.absent.remove(event.tensor)
            self._queue_if_whole(request)
        return self._take(request, event.tensor, event.nbytes)

    def _queue_if_whole(self, request: _Request) -> None:
        """Queue a request that has brought everything: run in part before, it could not follow the plan's order."""
        if not request.absent:
            request.order = self._queued_ever
            self._queued_ever += 1
            self._queued.append(request.name)

    def _on_loaded(self, event: Loaded) -> list[Instruction]:
        if event.partition == self._loading:
            self._loading = None
            self._loaded.add(event.partition)
        elif event.partition in self._residency.kept:
            self._loaded.add(event.partition)  # loaded before the first request, without being asked
        return []

    def _on_load_failed(self, event: LoadFailed) -> list[Instruction]:
        if event.partition != self._loading:
            return []
        self._loading = None
        index = self._index[event.partition]
        over = (None, TaskState.DONE)
        needing = [self._requests[name] for name in self._admitted if self._requests[name].states[index] not in over]
        return [step for request in needing for step in self._end(request, Fail(request.name, event.reason))]

    def _on_executed(self, event: Executed) -> list[Instruction]:
        if self._executing != (event.request, event.partition):
            return []
        self._executing = None
        request = self._requests.get(event.request)
        if request is None:
            return [Drop(event.request, name) for name, _ in event.tensors]
        task = self._tasks[self._index[event.partition]]
        self._move(request, self._index[event.partition], Trigger.EXECUTED)
        request.unfinished -= 1
        steps: list[Instruction] = []
        for name, nbytes in event.tensors:
            steps += self._take(request, name, nbytes, is_last=False)
        for name in dict.fromkeys(task.inputs):
            steps += self._release(request, name)
        return steps + self._reply_if_complete(request)

    def _on_execute_failed(self, event: ExecuteFailed) -> list[Instruction]:
        if self._executing != (event.request, event.partition):
            return []
        self._executing = None
        request = self._requests.get(event.request)
        if request is None:
            return []
        self._move(request, self._index[event.partition], Trigger.EXECUTE_FAILED)
        return self._end(request, Fail(request.name, event.reason))

    def _on_cancelled(self, event: Cancelled) -> list[Instruction]:
        request = self._requests.get(event.request)
        return [] if request is None else self._end(request, Fail(request.name, "cancelled"))

    # Tensors.

    def _take(self, request: _Request, name: str, nbytes: int, *, is_last: bool = True) -> list[Instruction]:
        """Note that a tensor is here, and what it makes ready."""
        self._nbytes[name] = max(self._nbytes.get(name, 0), nbytes)
        request.input_nbytes += nbytes if name in self._inputs else 0
        request.arrived.add(name)
        request.awaited.discard(name)
        if not request.uses.get(name):
            return [Drop(request.name, name), *(self._reply_if_complete(request) if is_last else [])]
        request.held[name] = nbytes
        for index in self._consumers.get(name, ()):
            if request.states[index] is not None:
                request.missing[index] -= 1
                if request.name in self._admitted:
                    self._make_ready(request, index)
        return self._reply_if_complete(request) if is_last else []

    def _release(self, request: _Request, name: str) -> list[Instruction]:
        request.uses[name] -= 1
        if request.uses[name] or name not in request.held:
            return []
        del request.held[name]
        return [Drop(request.name, name)]

    def _reply_if_complete(self, request: _Request) -> list[Instruction]:
        if request.awaited or request.unfinished:
            return []
        self._foresee(request.input_nbytes)
        return self._end(request, Reply(request.name))

    def _end(self, request: _Request, last: Reply | Fail) -> list[Instruction]:
        """Retire the request: nothing of it is kept."""
        for index, state in enumerate(request.states):
            if state is not None:
                self._move(request, index, Trigger.REQUEST_ENDED)
        del self._requests[request.name]
        self._admitted.pop(request.name, None)
        if request.name in self._queued:
            self._queued.remove(request.name)
        return [last, *(Drop(request.name, name) for name in request.held)]

    def _needed(self, outputs: Iterable[str]) -> set[int]:
        wanted, needed = set(outputs), set()
        for index in range(len(self._tasks) - 1, -1, -1):
            if wanted.intersection(self._tasks[index].outputs):
                needed.add(index)
                wanted.update(self._tasks[index].inputs)
        return needed

    # What is next.

    def _next_work(self) -> list[Instruction]:
        if self._executing is not None or self._loading is not None:
            return []
        self._admit()
        found = self._pop_ready()
        if found is None:
            return self._unload_transient(None) if not self._admitted else []
        request, index = found
        partition = self._tasks[index].id
        steps = self._unload_transient(partition)
        if partition not in self._loaded:
            self._loading = partition
            if partition == self._ahead:
                self._ahead = None
            self._push_ready(request, index)
            return [*steps, Load(partition)]
        self._executing = (request.name, partition)
        self._move(request, index, Trigger.STARTED)
        return [*steps, *self._read_ahead(index), Execute(request.name, partition)]

    def _unload_transient(self, wanted: str | None) -> list[Instruction]:
        leaving = self._loaded - self._residency.kept - {wanted}
        self._loaded -= leaving
        if self._ahead is not None and (wanted is None or self._index[self._ahead] < self._index[wanted]):
            leaving.add(self._ahead)  # the requests that needed it have failed
            self._ahead = None
        return [Unload(partition) for partition in sorted(leaving)]

    def _read_ahead(self, index: int) -> list[Instruction]:
        """Return what to read while partition `index` runs: the next that is not kept, if it fits until its turn."""
        limit = self._residency.limit_nbytes
        if limit is None or self._ahead is not None or not self._by_partition or not self._is_foreseeable:
            return []
        following = self._next_transient(index)
        if following is None:
            return []
        until = self._tasks[index:following]
        weights = self._weight_nbytes({*self._loaded, *self._residency.kept, self._tasks[following].id})
        tensors = len(self._admitted) * max(self._live[task.id] for task in until)
        if weights + tensors + max(task.scratch_nbytes for task in until) > limit:
            return []
        self._ahead = self._tasks[following].id
        return [ReadAhead(self._ahead)]

    def _next_transient(self, index: int) -> int | None:
        """Return the first partition behind `index` that is not kept and that an admitted request still needs."""
        todo = (TaskState.WAITING, TaskState.READY)
        for later in range(index + 1, len(self._tasks)):
            is_needed = any(self._requests[name].states[later] in todo for name in self._admitted)
            if is_needed and self._tasks[later].id not in self._residency.kept:
                return later
        return None

    def _admit(self) -> None:
        """Let the next chunk in: at once while all is kept loaded, else when the chunk before it is through.

        A request larger than any before it goes alone: nobody knows yet what it needs.
        """
        if not self._queued or (self._by_partition and self._admitted):
            return
        room = self._room()
        while self._queued and (not self._admitted or len(self._admitted) < room):
            request = self._requests[self._queued[0]]
            request.is_foreseen = request.input_nbytes <= self._foreseen_nbytes or self._residency.limit_nbytes is None
            if self._admitted and not request.is_foreseen:
                return
            self._admitted[self._queued.popleft()] = None
            for index in range(len(self._tasks)):
                self._make_ready(request, index)
            if not request.is_foreseen:
                break
        if self._by_partition:
            self._live = live_activations(self._tasks, self._inputs, self._outputs, self._nbytes)

    def _room(self) -> float:
        """Return how many foreseen requests' activations fit at once."""
        spare = self._residency.spare_nbytes
        if spare is None:
            return float("inf")
        each = max(live_activations(self._tasks, self._inputs, self._outputs, self._nbytes).values(), default=0)
        return 1 + spare // max(each, 1)

    def _foresee(self, input_nbytes: int) -> None:
        """Note that requests with inputs of up to `input_nbytes` hold no surprise, if every tensor's size is known."""
        if all(name in self._nbytes for task in self._tasks for name in (*task.inputs, *task.outputs)):
            self._foreseen_nbytes = max(self._foreseen_nbytes, input_nbytes)

    def _make_ready(self, request: _Request, index: int) -> None:
        if request.missing[index] == 0 and request.states[index] is TaskState.WAITING:
            self._move(request, index, Trigger.INPUTS_COMPLETE)
            self._push_ready(request, index)

    def _push_ready(self, request: _Request, index: int) -> None:
        key = (index, request.order) if self._by_partition else (request.order, index)
        heapq.heappush(self._ready, (*key, request.name))

    def _pop_ready(self) -> tuple[_Request, int] | None:
        while self._ready:
            first, second, name = heapq.heappop(self._ready)
            request, index = self._requests.get(name), first if self._by_partition else second
            if request is not None and request.states[index] is TaskState.READY:
                return request, index
        return None

    def _move(self, request: _Request, index: int, trigger: Trigger) -> None:
        """Change a task's state; the only place where one changes."""
        before = request.states[index]
        after = None if before is None else TRANSITIONS.get((before, trigger))
        request.story.append(f"{self._tasks[index].id}: {trigger.value}")
        if after is None:
            story = printable("; ".join(request.story[-20:]), 600)
            raise InternalError(f"task of `{printable(request.name)}` was {before} and then {trigger.value} ({story})")
        request.states[index] = after


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
