"""A node's memory: whatever is loaded for its turn, one request fits by itself, and more in the room told of."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.core.node_events import (
    Delivered,
    Execute,
    Executed,
    Forget,
    Keep,
    Load,
    Loaded,
    ManagerFound,
    NodeEvent,
    NodeInstruction,
    Obtain,
    Obtained,
    Retired,
    Send,
    SetUp,
    Share,
    Tell,
    TensorHere,
    Unload,
)
from hyps.core.node_state import NodeState
from hyps.core.residency import Task, live_activations, residency_for_many, tensor_room_nbytes
from hyps.formats.node_messages import HUB, Course, ItemFailed, Route

BASE_NBYTES = 1000


@dataclass
class Device:
    """Carries out what a node wants and counts the bytes that it has by that."""

    tasks: tuple[Task, ...]
    sizes: dict[str, int]
    spare_nbytes: int = 0
    """Beside what one request needs."""
    opened: list[str] = field(default_factory=list)
    stored: dict[tuple[int, str], int] = field(default_factory=dict)
    running: str = ""
    todo: deque[NodeInstruction] = field(default_factory=deque)
    log: list[NodeInstruction] = field(default_factory=list)
    peak_nbytes: int = 0

    def __post_init__(self) -> None:
        names = ("t0",), (f"t{len(self.tasks)}",)
        live = live_activations(self.tasks, *names, self.sizes)
        needs = [task.weight_nbytes + task.scratch_nbytes + live[task.id] for task in self.tasks]
        self.limit_nbytes = max(needs) + self.spare_nbytes
        budget = BASE_NBYTES + self.limit_nbytes
        crossing = sum(self.sizes[name] for name in (*names[0], *names[1]))
        residency = residency_for_many(self.tasks, live, crossing, budget, BASE_NBYTES)
        self.room_nbytes = tensor_room_nbytes(self.tasks, residency) or 0
        self.node = NodeState(budget, BASE_NBYTES)
        way = Course(1, tuple(task.id for task in self.tasks), (Route(names[1][0], (HUB,)),))
        self.tell(ManagerFound(0.5))
        self.tell(SetUp(1, tuple(Share(task) for task in self.tasks), (way,), *names, self.sizes))
        self.work()
        assert self.node.residency.kept == residency.kept, "who gives the node its work knows what it keeps"
        assert self.node.residency.limit_nbytes == self.limit_nbytes

    def tell(self, event: NodeEvent) -> None:
        for step in self.node.handle(0.0, event):
            self.log.append(step)
            self._do(step)
        self._measure()
        self.node.check_invariants()

    def ask(self, request: int) -> None:
        self.tell(TensorHere(request, 1, 1, "t0", self.sizes["t0"]))

    def work(self) -> None:
        """Do all that takes time."""
        while self.todo:
            self.work_once()

    def work_once(self) -> None:
        match self.todo.popleft():
            case Obtain(partition, digest):
                self.tell(Obtained(partition, digest))
            case Load(partition, digest):
                self.tell(Loaded(partition, digest))
            case Execute(run, _, _, partition):
                self.running = ""
                made = self._task(partition).outputs
                self.tell(Executed(run, tuple((name, self.sizes[name]) for name in made), 0.1))
            case Send(sending, request):
                self.tell(Delivered(sending))
                self.tell(Retired(request, 1))
            case step:
                raise AssertionError(step)

    def count(self, kind: type) -> int:
        return sum(isinstance(step, kind) for step in self.log)

    def _do(self, step: NodeInstruction) -> None:
        match step:
            case Keep(request, _, tensor):
                self.stored[request, tensor] = self.sizes[tensor]
            case Forget(request, _, tensor):
                del self.stored[request, tensor]
            case Unload(partition):
                self.opened.remove(partition)
            case Load(partition):
                self.opened.append(partition)
            case Execute(partition=partition):
                self.running = partition
            case Tell(ItemFailed()):
                raise AssertionError(step)
            case _:
                pass
        if isinstance(step, Obtain | Load | Execute | Send):
            self.todo.append(step)

    def _measure(self) -> None:
        weights = sum(self._task(name).weight_nbytes for name in self.opened)
        tensors = sum(self.stored.values())
        run = 0
        if self.running:
            task = self._task(self.running)
            run = task.scratch_nbytes + sum(self.sizes[name] for name in task.outputs)
        self.peak_nbytes = max(self.peak_nbytes, weights + tensors + run)

    def _task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.id == name)


def chain(*parts: tuple[int, int], sizes: tuple[int, ...]) -> tuple[tuple[Task, ...], dict[str, int]]:
    """Return partitions of so many bytes of weights and scratch, one behind the other, and the tensors' sizes."""
    tasks = tuple(
        Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight, scratch) for i, (weight, scratch) in enumerate(parts)
    )
    return tasks, {f"t{i}": nbytes for i, nbytes in enumerate(sizes)}


def test_what_is_loaded_for_its_turn_makes_way_for_what_a_kept_partition_needs() -> None:
    # p0 needs 110, p1 beside its 10 of weights 110: either fits in 130, and not both.
    device = Device(*chain((100, 0), (10, 100), sizes=(5, 5, 5)), spare_nbytes=10)
    assert device.node.residency.kept == {"p1"}
    for request in (1, 2):
        device.ask(request)
        device.work()
    assert device.peak_nbytes <= device.limit_nbytes
    assert device.count(Execute) == 4


def test_what_waits_for_the_partition_in_turn_runs_before_what_it_would_make_way_for() -> None:
    device = Device(*chain((100, 0), (10, 100), sizes=(5, 5, 5)), spare_nbytes=10)
    loads = device.count(Load)
    device.ask(1)
    device.ask(2)
    device.work()
    ran = [(step.request, step.partition) for step in device.log if isinstance(step, Execute)]
    assert ran == [(1, "p0"), (2, "p0"), (1, "p1"), (2, "p1")]
    assert device.count(Load) == loads, "it was loaded already, and both ran in one turn"


@settings(max_examples=300)
@given(
    parts=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), min_size=1, max_size=5),
    sizes=st.lists(st.integers(0, 60), min_size=6, max_size=6),
    spare=st.integers(0, 300),
    steps=st.lists(st.integers(0, 3), max_size=40),
)
def test_memory_stays_within_the_budget_whatever_is_loaded(
    parts: list[tuple[int, int]], sizes: list[int], spare: int, steps: list[int]
) -> None:
    device = Device(*chain(*parts, sizes=tuple(sizes[: len(parts) + 1])), spare_nbytes=spare)
    total = sum(device.sizes.values())
    asked = 0
    for step in steps:
        out = len(device.node)
        is_in_room = (out + 1) * total <= device.room_nbytes
        if step == 0 and (is_in_room or not out):
            asked += 1
            device.ask(asked)
        elif device.todo:
            device.work_once()
    device.work()
    assert device.peak_nbytes <= device.limit_nbytes
    assert device.count(Execute) == asked * len(parts)
    assert not device.stored


SWAPPED = chain((100, 7), (10, 30), sizes=(5, 6, 5))


@pytest.mark.parametrize(
    ("budget", "kept", "room"),
    [(None, {"p0", "p1"}, None), (1161, {"p0", "p1"}, 21), (1160, {"p1"}, 20), (1120, set(), -10)],
)
def test_the_room_for_tensors_leaves_out_what_can_be_in_memory_beside_them(
    budget: int | None, kept: set[str], room: int | None
) -> None:
    tasks, sizes = SWAPPED
    live = live_activations(tasks, ["t0"], ["t2"], sizes)
    residency = residency_for_many(tasks, live, 10, budget, 1000)
    assert residency.kept == kept
    assert residency.limit_nbytes == (None if budget is None else budget - 1000)
    assert tensor_room_nbytes(tasks, residency) == room
