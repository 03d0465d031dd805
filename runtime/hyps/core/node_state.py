"""A node's state machine: what it obtains, loads, runs, sends and forgets, for which request and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from hyps.core.holdings import Holding, Holdings, PartitionState
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
    SetUp,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
    Unload,
)
from hyps.core.node_items import NodePath, NodeRequest, path_of
from hyps.core.node_life import NODE_TRANSITIONS, NodeLife, NodeTrigger
from hyps.core.residency import Residency
from hyps.core.work_queue import WorkQueue
from hyps.core.worker_state import TaskState, Trigger
from hyps.errors import InternalError, printable
from hyps.formats.node_messages import Beat, Drain, Finished, ItemFailed, Running, Started

EARLY_NBYTES = 64 * 2**20
"""Of tensors of courses that the node does not know (yet); more are not stored."""

EARLY_REQUESTS = 1024
"""With such tensors; those of others are not stored."""

EARLY_S = 60.0
"""How long such tensors are stored."""

MOST_REQUESTS = 16384
"""That it has something of: no manager has so many under way, and another node could invent them."""

REMEMBERED = 16384
"""Ended requests whose late tensors are told from those of new ones."""


_Handler = Callable[..., list[NodeInstruction]]


@dataclass(slots=True)
class _Run:
    """Something that is being computed."""

    request: NodeRequest
    holding: Holding
    start_s: float
    waited_s: float
    is_foreign: bool = False
    """Whether it was begun for a manager that is gone."""


class NodeState:
    """What a node does for its manager, from joining to leaving.

    `handle` takes what happened and returns what to do, in an order in which the next computing begins first.
    A work item is (request, epoch, partition) and runs at most once. Repeated events, and those of epochs that are
    over, are harmless. While all partitions are kept loaded the oldest request goes first; otherwise a partition that
    was loaded for its turn runs what waited for it then, or when the next one began to wait, and then makes way.

    Attributes:
        life: where the node is in its life.
    """

    def __init__(
        self,
        budget_nbytes: int | None = None,
        base_nbytes: int = 0,
        max_executing: int = 1,
        beat_s: float = 0.5,
        *,
        bounds_tensors: bool = False,
    ) -> None:
        """Take the node's means.

        Args:
            budget_nbytes: the most that the process may have resident; None: as much as there is.
            base_nbytes: what it has resident without any partition.
            max_executing: how many work items may run at once.
            beat_s: how often to tell how it is, until the manager says.
            bounds_tensors: whether what would not fit the budget is sent back; else all who send are trusted to
                send no more than fits.
        """
        self._bounds_tensors = bounds_tensors
        self._holdings = Holdings(budget_nbytes, base_nbytes)
        self._max_executing, self._beat_s = max_executing, beat_s
        self._at_once = max_executing
        self.life = NodeLife.JOINING
        self._setup = 0
        self._paths: dict[int, NodePath] = {}
        self._requests: dict[int, NodeRequest] = {}
        self._early: dict[int, None] = {}
        """Requests whose course is not known, the oldest first."""
        self._retired: dict[int, int] = {}
        """Epochs of ended requests, the latest last."""
        self._queue = WorkQueue(self._holdings)
        self._runs: dict[int, _Run] = {}
        self._last_run = 0
        self._sendings: dict[int, tuple[NodeRequest, Send]] = {}
        self._last_sending = 0
        self._lost: set[str] = set()
        self._held_nbytes = 0
        self._early_nbytes = 0
        self._has_changed = False
        self._is_settled = True
        self._told_s = 0.0
        self._handlers: dict[type, _Handler] = {
            ManagerFound: self._on_manager_found,
            ManagerLost: self._on_manager_lost,
            SetUp: self._on_set_up,
            TensorHere: self._on_tensor,
            Obtained: self._on_obtained,
            NotObtained: self._on_not_obtained,
            Loaded: self._on_loaded,
            LoadFailed: self._on_load_failed,
            Executed: self._on_executed,
            ExecuteFailed: self._on_execute_failed,
            Delivered: self._on_delivered,
            Retired: self._on_retired,
            NeighbourLost: self._on_neighbour_lost,
            NeighbourBack: self._on_neighbour_back,
            ToldToDrain: self._on_told_to_drain,
            AllowedToLeave: self._on_allowed_to_leave,
            Ticked: self._on_ticked,
        }

    def handle(self, now_s: float, event: NodeEvent) -> list[NodeInstruction]:
        """Take what happened at `now_s`, on a clock that never goes back, and return what to do.

        Raises:
            InternalError: the event cannot happen in this state.
        """
        if self.life is NodeLife.GONE:
            return []
        steps = self._handlers[type(event)](now_s, event)
        steps += self._next_work(now_s)
        steps += self._settle()
        steps += self._beat_when_due(now_s)
        if len(steps) > 1:
            steps.sort(key=_rank)
        return steps

    @property
    def residency(self) -> Residency:
        """Which partitions stay loaded, by the latest setup."""
        return self._holdings.residency

    @property
    def has_room_for_speed(self) -> bool:
        """Whether partitions can be laid out for speed, by the latest setup."""
        return self._holdings.has_room_for_speed

    @property
    def next_tick_s(self) -> float:
        """When to tell the machine the time, if nothing happens before; infinite: it need not be told."""
        return math.inf if self.life in (NodeLife.JOINING, NodeLife.GONE) else self._told_s + self._beat_s

    def look_ahead(self, is_wanted: bool) -> None:
        """Have one more work item given to who computes, or not: with short ones it would wait for the next in vain."""
        self._max_executing = self._at_once + is_wanted

    @property
    def held_nbytes(self) -> int:
        """The bytes of all tensors that are stored."""
        return self._held_nbytes

    @property
    def is_held_up(self) -> bool:
        """Whether all that may run at once is taken by what a manager that is gone wanted: nothing could begin."""
        return sum(run.is_foreign for run in self._runs.values()) >= self._max_executing

    def __len__(self) -> int:
        """How many requests it has something of, or waits for something of."""
        return len(self._requests)

    def is_known(self, partition: str, digest: str) -> bool:
        """Return whether a partition is still one of the node's."""
        return self._holdings.is_current(partition, digest)

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        self._holdings.check_invariants()
        _require(len(self._runs) <= self._at_once + 1, "too much is executing")
        _require(not (self._runs and self._holdings.is_loading_in_turn), "something executes while a turn is prepared")
        held = sum(sum(request.held.values()) for request in self._requests.values())
        _require(held == self._held_nbytes, "the stored bytes are miscounted")
        ready = sum(
            state is TaskState.READY for request in self._requests.values() for state in request.states.values()
        )
        _require(ready == len(self._queue), "the ready work items are miscounted")
        early = {number for number, request in self._requests.items() if request.path is None}
        _require(early == set(self._early), "a request is early and not noted as such")
        for number, (request, _) in self._sendings.items():
            _require(self._requests.get(request.number) is request, "something is sent of a request that is over")
            _require(number in request.sendings, "a sending is lost")
        for run in self._runs.values():
            _require(run.holding.runs > 0, "a run is not counted")
        for request in self._requests.values():
            self._check_request(request)
        if self.life is not NodeLife.JOINING:
            return
        _require(not self._requests, "requests without a manager")

    def _check_request(self, request: NodeRequest) -> None:
        _require(request.epoch > self._retired.get(request.number, 0), "a request is over and still here")
        if request.path is None:
            return
        for partition, state in request.states.items():
            absent = [name for name in request.path.inputs[partition] if name not in request.held]
            if state is TaskState.WAITING:
                _require(request.missing[partition] > 0, "a work item waits for nothing")
            if state in (TaskState.READY, TaskState.EXECUTING):
                _require(not absent, f"a work item of `{partition}` is ready without {absent}")
            if state is TaskState.READY:
                _require((request.number, partition) in self._queue, "a work item is ready and not queued")
        _require(all(request.uses.get(name, 0) > 0 for name in request.held), "a tensor is stored that nobody needs")

    # The manager.

    def _on_manager_found(self, _now_s: float, event: ManagerFound) -> list[NodeInstruction]:
        steps = [] if self.life is NodeLife.JOINING else self._on_manager_lost(_now_s, ManagerLost())
        if self.life is NodeLife.JOINING:
            self._move(NodeTrigger.MANAGER_FOUND)
        self._beat_s, self._has_changed = event.beat_s, True
        return steps

    def _on_manager_lost(self, _now_s: float, _event: ManagerLost) -> list[NodeInstruction]:
        steps = [step for request in list(self._requests.values()) for step in self._drop(request)]
        self._retired.clear()
        self._paths.clear()
        self._queue.clear()
        self._setup = 0
        for run in self._runs.values():
            run.is_foreign = True
        is_draining = self.life is NodeLife.DRAINING
        self._move(NodeTrigger.MANAGER_LOST)
        return [*steps, Leave()] if is_draining else steps

    def _on_set_up(self, now_s: float, event: SetUp) -> list[NodeInstruction]:
        if self.life is NodeLife.JOINING:
            return []
        self._has_changed = True  # the manager wants to hear that the node follows it
        if event.number <= self._setup:
            return []
        self._setup, self._is_settled = event.number, False
        steps, changed = self._holdings.place(event)
        paths = {course.id: path_of(course, self._holdings) for course in event.courses}
        for number, request in list(self._requests.items()):
            was_known = request.path is not None
            if was_known and (request.course not in paths or not request.states.keys().isdisjoint(changed)):
                steps += self._drop(self._requests[number])
        self._paths = paths
        self._queue.sort_anew()
        for number in list(self._early):
            if self._requests[number].course in self._paths:
                steps += self._adopt(now_s, self._requests[number])
        self._move(NodeTrigger.SET_UP)
        return steps

    def _on_told_to_drain(self, _now_s: float, _event: ToldToDrain) -> list[NodeInstruction]:
        was_joining = self.life is NodeLife.JOINING
        self._move(NodeTrigger.TOLD_TO_DRAIN)
        return [Leave()] if was_joining else [Tell(Drain())]

    def _on_allowed_to_leave(self, _now_s: float, _event: AllowedToLeave) -> list[NodeInstruction]:
        if self.life is NodeLife.JOINING:
            return []
        self._move(NodeTrigger.WORK_IS_OVER)
        return [Leave()]

    def _on_retired(self, _now_s: float, event: Retired) -> list[NodeInstruction]:
        return self._end(event.request, event.epoch)

    def _end(self, number: int, epoch: int) -> list[NodeInstruction]:
        """Forget a request up to an epoch, and take no more of it."""
        before = self._retired.pop(number, 0)
        self._retired[number] = max(before, epoch)
        if len(self._retired) > REMEMBERED:
            del self._retired[next(iter(self._retired))]
        request = self._requests.get(number)
        return self._drop(request) if request is not None and request.epoch <= epoch else []

    def _on_ticked(self, now_s: float, _event: Ticked) -> list[NodeInstruction]:
        steps: list[NodeInstruction] = []
        for number in list(self._early):
            if now_s - self._requests[number].since_s < EARLY_S:
                break
            steps += self._drop(self._requests[number])
        return steps

    # Tensors.

    def _on_tensor(self, now_s: float, event: TensorHere) -> list[NodeInstruction]:
        if self.life is NodeLife.JOINING or event.epoch <= self._retired.get(event.request, 0):
            return []
        request = self._requests.get(event.request)
        steps: list[NodeInstruction] = []
        if request is not None and request.epoch < event.epoch:
            steps, request = self._drop(request), None
        if request is None and event.course not in self._paths and len(self._early) >= EARLY_REQUESTS:
            return steps
        if request is None:
            request = self._begin(now_s, event)
        if request.epoch > event.epoch or request.course != event.course or event.tensor in request.arrived:
            return steps
        if request.path is None:
            return steps + self._take_early(request, event)
        if self._has_no_room(event.nbytes):
            return steps + self._refuse(request, request.path, event.tensor)
        return steps + self._take(now_s, request, event.tensor, event.nbytes)

    def _has_no_room(self, nbytes: int) -> bool:
        """Return whether one more tensor would take the process over its budget; what belongs to one request may."""
        room_nbytes = self._holdings.room_nbytes if self._bounds_tensors else None
        is_over = room_nbytes is not None and self._held_nbytes + nbytes > room_nbytes
        return len(self._requests) > (1 if is_over else MOST_REQUESTS)

    def _refuse(self, request: NodeRequest, path: NodePath, tensor: str) -> list[NodeInstruction]:
        """Have a request begin anew, here or elsewhere, for which there is no room: more came than was agreed on."""
        consumers = path.consumers.get(tensor, ())
        if not consumers:
            return []
        steps = self._end(request.number, request.epoch)
        text = f"there is no room for `{printable(tensor, 60)}` beside {self._held_nbytes} bytes of other requests"
        failed = ItemFailed(request.number, request.epoch, consumers[0], "E_MEMORY", text, "give it more memory")
        return [*steps, Tell(failed)]

    def _begin(self, now_s: float, event: TensorHere) -> NodeRequest:
        request = NodeRequest(event.request, event.epoch, event.course, now_s)
        self._requests[event.request] = request
        self._queue.note_request(event.request)
        if event.course in self._paths:
            self._follow(now_s, request, self._paths[event.course])
        else:
            self._early[event.request] = None
        return request

    def _follow(self, now_s: float, request: NodeRequest, path: NodePath) -> None:
        request.path = path
        request.states = dict.fromkeys(path.course.partitions, TaskState.WAITING)
        request.missing = {partition: len(names) for partition, names in path.inputs.items()}
        for partition, count in request.missing.items():
            if not count:
                self._make_ready(now_s, request, partition)

    def _take_early(self, request: NodeRequest, event: TensorHere) -> list[NodeInstruction]:
        if self._early_nbytes + event.nbytes > EARLY_NBYTES:
            return []
        self._early_nbytes += event.nbytes
        self._held_nbytes += event.nbytes
        request.held[event.tensor] = event.nbytes
        request.arrived.add(event.tensor)
        return [Keep(request.number, request.epoch, event.tensor)]

    def _adopt(self, now_s: float, request: NodeRequest) -> list[NodeInstruction]:
        """Take up a request whose course has become known."""
        early, request.held = request.held, {}
        del self._early[request.number]
        self._early_nbytes -= sum(early.values())
        self._held_nbytes -= sum(early.values())
        path = self._paths[request.course]
        self._follow(now_s, request, path)
        steps: list[NodeInstruction] = []
        for name, nbytes in early.items():
            if name in path.consumers:
                self._take(now_s, request, name, nbytes)  # it is stored already
            else:
                steps.append(Forget(request.number, request.epoch, name))
        return steps

    def _take(
        self, now_s: float, request: NodeRequest, name: str, nbytes: int, *, is_made: bool = False
    ) -> list[NodeInstruction]:
        """Note that a tensor is here, and what it makes ready; who gave it to us has given it to all that want it."""
        path = request.path
        assert path is not None, "only early requests have none, and theirs are kept elsewhere"
        uses = path.uses(name) if is_made else len(path.consumers.get(name, ()))
        if is_made or uses:
            request.arrived.add(name)
        if not uses:
            return []
        request.uses[name], request.held[name] = uses, nbytes
        self._held_nbytes += nbytes
        for partition in path.consumers.get(name, ()):
            request.missing[partition] -= 1
            if not request.missing[partition]:
                self._make_ready(now_s, request, partition)
        return [Keep(request.number, request.epoch, name)]

    def _release(self, request: NodeRequest, name: str) -> list[NodeInstruction]:
        request.uses[name] -= 1
        if request.uses[name]:
            return []
        del request.uses[name]
        self._held_nbytes -= request.held.pop(name)
        return [Forget(request.number, request.epoch, name)]

    def _drop(self, request: NodeRequest) -> list[NodeInstruction]:
        """Forget a request: nothing of it is kept but what is being computed, whose result nobody wants."""
        del self._requests[request.number]
        if request.number in self._early:
            del self._early[request.number]
            self._early_nbytes -= sum(request.held.values())
        for partition, state in request.states.items():
            if state is TaskState.READY:
                self._queue.discard(request.number, partition)
            request.move(partition, Trigger.REQUEST_ENDED)
        for number in request.sendings:
            del self._sendings[number]
        self._held_nbytes -= sum(request.held.values())
        return [Forget(request.number, request.epoch, name) for name in request.held]

    # Sending.

    def _send(self, request: NodeRequest, name: str) -> list[NodeInstruction]:
        path = request.path
        assert path is not None, "what was computed has a course"
        steps: list[NodeInstruction] = []
        for device in path.targets.get(name, ()):
            self._last_sending += 1
            send = Send(self._last_sending, request.number, request.epoch, request.course, name, device)
            self._sendings[send.sending] = (request, send)
            request.sendings.add(send.sending)
            if device not in self._lost:
                steps.append(send)
        return steps

    def _on_delivered(self, _now_s: float, event: Delivered) -> list[NodeInstruction]:
        request, send = self._sendings.pop(event.sending, (None, None))
        if request is None or send is None:
            return []
        request.sendings.remove(event.sending)
        return self._release(request, send.tensor)

    def _on_neighbour_lost(self, _now_s: float, event: NeighbourLost) -> list[NodeInstruction]:
        self._has_changed |= event.device not in self._lost
        self._lost.add(event.device)
        return []

    def _on_neighbour_back(self, _now_s: float, event: NeighbourBack) -> list[NodeInstruction]:
        if event.device not in self._lost:
            return []
        self._lost.remove(event.device)
        self._has_changed = True
        return [send for _, send in self._sendings.values() if send.device == event.device]

    # Partitions.

    def _on_obtained(self, _now_s: float, event: Obtained) -> list[NodeInstruction]:
        if self._holdings.is_current(event.partition, event.digest):
            self._holdings.note_obtained(event.partition)
        return []

    def _on_not_obtained(self, _now_s: float, event: NotObtained) -> list[NodeInstruction]:
        if not self._holdings.is_current(event.partition, event.digest):
            return []
        if not self._holdings.note_not_obtained(event.partition, event.code, event.reason):
            return []
        return self._fail_waiting(event.partition)

    def _on_loaded(self, _now_s: float, event: Loaded) -> list[NodeInstruction]:
        steps = self._holdings.note_loaded(event.partition, event.digest)
        if not self._holdings.is_current(event.partition, event.digest):
            return steps
        self._has_changed = True
        held = self._holdings[event.partition]
        if held.is_kept and held.is_runnable:
            self._queue.on_loaded(held)
        return steps

    def _on_load_failed(self, _now_s: float, event: LoadFailed) -> list[NodeInstruction]:
        if not self._holdings.note_load_failed(event.partition, event.digest, event.code, event.reason):
            return []
        return self._fail_waiting(event.partition)

    def _fail_waiting(self, partition: str) -> list[NodeInstruction]:
        self._has_changed = True
        held, hint = self._holdings[partition], "place it on another device"
        requests = [self._requests[number] for number in self._queue.take_all_of(partition)]
        return [step for request in requests for step in self._fail(request, partition, held.code, held.reason, hint)]

    def _fail(self, request: NodeRequest, partition: str, code: str, reason: str, hint: str) -> list[NodeInstruction]:
        request.move(partition, Trigger.EXECUTE_FAILED)
        assert request.path is not None, "what was ready has a course"
        forgets = [step for name in request.path.inputs[partition] for step in self._release(request, name)]
        return [*forgets, Tell(ItemFailed(request.number, request.epoch, partition, code, reason, hint))]

    # Computing.

    def _make_ready(self, now_s: float, request: NodeRequest, partition: str) -> None:
        request.move(partition, Trigger.INPUTS_COMPLETE)
        request.ready_s[partition] = now_s
        self._queue.add(request.number, partition)

    def _next_work(self, now_s: float) -> list[NodeInstruction]:
        steps = self._fail_what_waits_in_vain()
        while len(self._runs) < self._max_executing and not self._holdings.is_loading_in_turn:
            item = self._queue.take(self._held_nbytes)
            if item is None:
                break
            steps += self._holdings.make_way(self._held_nbytes, item[1])
            steps += self._execute(now_s, self._requests[item[0]], item[1])
        if not self._is_settled:
            steps += self._holdings.load_kept()
        if not self._is_settled or self._queue.waiting_partitions():
            steps += self._queue.load_next(bool(self._runs))
        turn = self._holdings.in_turn
        if turn is not None and not self._queue.is_waiting_for(turn.id):
            steps += self._holdings.make_way(self._held_nbytes)
        return steps

    def _fail_what_waits_in_vain(self) -> list[NodeInstruction]:
        waiting = self._queue.waiting_partitions()
        refused = [name for name in waiting if self._holdings[name].state is PartitionState.REFUSED]
        return [step for name in refused for step in self._fail_waiting(name)]

    def _execute(self, now_s: float, request: NodeRequest, partition: str) -> list[NodeInstruction]:
        request.move(partition, Trigger.STARTED)
        self._last_run += 1
        held = self._holdings[partition]
        held.begin_run()
        self._runs[self._last_run] = _Run(request, held, now_s, now_s - request.ready_s[partition])
        return [
            Execute(self._last_run, request.number, request.epoch, partition),
            Tell(Started(request.number, request.epoch, partition)),
        ]

    def _on_executed(self, now_s: float, event: Executed) -> list[NodeInstruction]:
        run = self._runs.pop(event.run, None)
        if run is None:
            return []
        steps = self._holdings.end_run(run.holding)
        request, partition = run.request, run.holding.id
        if self._requests.get(request.number) is not request:
            return steps
        request.move(partition, Trigger.EXECUTED)
        assert request.path is not None, "what was computed has a course"
        for name, nbytes in event.tensors:
            if name not in request.arrived:  # the hub may have had it from an earlier attempt
                steps += self._take(now_s, request, name, nbytes, is_made=True)
                steps += self._send(request, name)
        for name in request.path.inputs[partition]:
            steps += self._release(request, name)
        nbytes = sum(nbytes for _, nbytes in event.tensors)
        done = Finished(request.number, request.epoch, partition, run.waited_s, event.seconds, nbytes)
        return [*steps, Tell(done)]

    def _on_execute_failed(self, _now_s: float, event: ExecuteFailed) -> list[NodeInstruction]:
        run = self._runs.pop(event.run, None)
        if run is None:
            return []
        steps = self._holdings.end_run(run.holding)
        if self._requests.get(run.request.number) is not run.request:
            return steps
        return steps + self._fail(run.request, run.holding.id, event.code, event.reason, event.hint)

    # How it is.

    def _settle(self) -> list[NodeInstruction]:
        if not self._is_settled and self._holdings.are_settled():
            self._is_settled = True
        if self.life is NodeLife.LOADING and self._setup and self._is_settled:
            self._move(NodeTrigger.ALL_SETTLED)
        is_over = self.life is NodeLife.DRAINING and self._setup and not self._paths
        if is_over and not self._requests and not self._runs:
            self._move(NodeTrigger.WORK_IS_OVER)
            return [Leave()]
        return []

    def _beat_when_due(self, now_s: float) -> list[NodeInstruction]:
        if self.life in (NodeLife.JOINING, NodeLife.GONE):
            return []
        if not self._has_changed and now_s - self._told_s < self._beat_s:
            return []
        self._has_changed, self._told_s = False, now_s
        return [Tell(self._beat(now_s))]

    def _beat(self, now_s: float) -> Beat:
        targets = {device for path in self._paths.values() for devices in path.targets.values() for device in devices}
        own = [run for run in self._runs.values() if not run.is_foreign]
        return Beat(
            setup=self._setup,
            loaded=self._holdings.ready_ids() if self._setup else (),
            refused=self._holdings.refusals() if self._setup else (),
            running=tuple(
                Running(run.request.number, run.request.epoch, run.holding.id, now_s - run.start_s) for run in own
            ),
            waiting=len(self._queue),
            held_nbytes=self._held_nbytes,
            unreachable=tuple(sorted(self._lost & targets)),
        )

    def _move(self, trigger: NodeTrigger) -> None:
        """Change the node's state; the only place where it changes."""
        after = NODE_TRANSITIONS.get((self.life, trigger))
        if after is None:
            raise InternalError(f"the node was {self.life.value} and then {trigger.value}")
        self.life = after


_ORDER: dict[type, int] = {
    Keep: 0,
    Unload: 1,
    Execute: 2,
    Load: 3,
    Obtain: 4,
    Send: 5,
    Forget: 6,
    Tell: 7,
    Leave: 8,
}
"""What is stored can be computed with and sent; computing comes before what would delay it, and behind what makes room
for it."""


def _rank(step: NodeInstruction) -> int:
    return _ORDER[type(step)]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
