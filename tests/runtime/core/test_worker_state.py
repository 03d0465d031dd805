"""The worker's state machine: each output once, within the budget, whatever the order and however often."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from hyps.core.residency import Residency, Task, decide_residency, decide_with_read_ahead, live_activations
from hyps.core.worker_state import TRANSITIONS, TaskState, Trigger, WorkerState
from hyps.errors import InternalError

NBYTES = 10


@dataclass
class Flow:
    """A dataflow to test with: partitions, what the request brings and what it wants."""

    tasks: list[Task]
    inputs: list[str]
    outputs: list[str]
    reads_ahead: bool = False
    """Whether less is kept so that more can be read ahead."""

    def sizes(self) -> dict[str, int]:
        names = {*self.inputs, *(name for task in self.tasks for name in (*task.inputs, *task.outputs))}
        return dict.fromkeys(sorted(names), NBYTES)

    def live(self) -> dict[str, int]:
        return live_activations(self.tasks, self.inputs, self.outputs, self.sizes())

    def smallest_budget(self) -> int:
        live = self.live()
        return max(task.weight_nbytes + live[task.id] + task.scratch_nbytes for task in self.tasks)

    def residency(self, budget: int | None) -> Residency:
        decide = decide_with_read_ahead if self.reads_ahead else decide_residency
        return decide(self.tasks, self.live(), budget, 0)

    def machine(self, budget: int | None, sizes: dict[str, int] | None = None) -> WorkerState:
        known = self.sizes() if sizes is None else sizes
        return WorkerState(self.tasks, self.residency(budget), self.inputs, self.outputs, known)


@dataclass
class Device:
    """Carries instructions out without doing anything, and watches what must hold."""

    flow: Flow
    state: WorkerState
    budget: int | None = None
    failing: frozenset[str] = frozenset()
    repeat: bool = False
    log: list[Instruction] = field(default_factory=list)
    held: dict[tuple[str, str], int] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    ahead: set[str] = field(default_factory=set)
    replies: dict[str, set[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def submit(self, request: str, outputs: tuple[str, ...] | None = None) -> None:
        self.tell(Submitted(request, outputs))
        for name in self.flow.inputs:
            self.arrive(request, name)

    def arrive(self, request: str, name: str) -> None:
        self.held[request, name] = NBYTES
        self.tell(TensorArrived(request, name, NBYTES))

    def tell(self, event: Event) -> None:
        self.follow(self.state.handle(event), event)

    def follow(self, steps: Sequence[Instruction], current: Event) -> None:
        """Carry `steps` out, and those that come of them."""
        queue = deque([(current, steps)])
        while queue:
            current, steps = queue.popleft()
            for step in steps:
                self.log.append(step)
                queue += [(event, self.state.handle(event)) for event in self.carry_out(step)]
            self.state.check_invariants()
            if self.repeat and not isinstance(current, Submitted):
                assert not [s for s in self.state.handle(current) if isinstance(s, Reply | Execute | Load)]
                self.state.check_invariants()
            self.check_budget()

    def carry_out(self, step: Instruction) -> Sequence[Event]:
        match step:
            case Load(partition):
                self.ahead.discard(partition)
                if partition in self.failing:
                    return [LoadFailed(partition, "no such file")]
                assert partition not in self.loaded
                self.loaded.add(partition)
                return [Loaded(partition)]
            case ReadAhead(partition):
                assert partition not in self.loaded
                self.ahead.add(partition)
            case Unload(partition):
                assert (partition in self.loaded) != (partition in self.ahead)
                self.loaded.discard(partition)
                self.ahead.discard(partition)
            case Execute(request, partition):
                return self.execute(request, partition)
            case Drop(request, tensor):
                self.held.pop((request, tensor), None)
            case Reply(request):
                assert request not in self.replies, "answered twice"
                self.replies[request] = {name for owner, name in self.held if owner == request}
            case Fail(request, reason):
                assert request not in self.failures, "failed twice"
                self.failures[request] = reason
        return []

    def execute(self, request: str, partition: str) -> Sequence[Event]:
        task = next(task for task in self.flow.tasks if task.id == partition)
        assert partition in self.loaded
        assert all((request, name) in self.held for name in task.inputs), "an input was dropped too early"
        if f"{request}@{partition}" in self.failing:
            return [ExecuteFailed(request, partition, "bad node")]
        made = tuple((name, NBYTES) for name in task.outputs)
        self.held.update({(request, name): nbytes for name, nbytes in made})
        self.check_budget(task.scratch_nbytes)
        return [Executed(request, partition, made)]

    def check_budget(self, scratch: int = 0) -> None:
        if self.budget is not None:
            there = [task for task in self.flow.tasks if task.id in self.loaded | self.ahead]
            shared = {name: nbytes for task in there for name, nbytes in task.shared}
            own = sum(task.weight_nbytes - sum(nbytes for _, nbytes in task.shared) for task in there)
            weights = own + sum(shared.values())
            held = sum(NBYTES for request, _ in self.held if request in self.state._admitted)
            assert weights + scratch + held <= self.budget

    def ran(self) -> list[str]:
        return [f"{step.request}{step.partition}" for step in self.log if isinstance(step, Execute)]

    def loads(self) -> list[str]:
        return [step.partition for step in self.log if isinstance(step, Load)]


def chain_flow(*weights: int) -> Flow:
    tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight) for i, weight in enumerate(weights)]
    return Flow(tasks, ["t0"], [f"t{len(weights)}"])


def device_for(flow: Flow, budget: int | None = None, **more: object) -> Device:
    return Device(flow, flow.machine(budget), budget, **more)  # type: ignore[arg-type]  # the fields of Device


def in_passing(flow: Flow, limit: int, *kept: str) -> Device:
    """Return a device that keeps nothing but `kept`."""
    state = WorkerState(flow.tasks, Residency(frozenset(kept), 0, limit), flow.inputs, flow.outputs, flow.sizes())
    return Device(flow, state, limit)


def busy_device(flow: Flow, budget: int, requests: Sequence[str], sizes: dict[str, int] | None = None) -> Device:
    """Return a device after `requests`, which came together."""
    device = Device(flow, flow.machine(budget, sizes), budget)
    events: list[Event] = []
    for request in requests:
        device.held.update({(request, name): NBYTES for name in flow.inputs})
        events += [Submitted(request), *(TensorArrived(request, name, NBYTES) for name in flow.inputs)]
    device.follow(device.state.handle(*events), events[0])
    return device


def test_a_chunk_passes_through_a_partition_before_the_next_is_loaded() -> None:
    flow = chain_flow(100, 100, 100)
    device = busy_device(flow, 199 + 20, ["a", "b", "c"])
    assert device.ran() == ["ap0", "bp0", "cp0", "ap1", "bp1", "cp1", "ap2", "bp2", "cp2"]
    assert device.loads() == ["p0", "p1", "p2"]
    assert set(device.replies) == {"a", "b", "c"}


def test_work_is_ordered_by_request_while_all_is_kept() -> None:
    flow = chain_flow(100, 100)
    device = busy_device(flow, 100_000, ["a", "b"])
    assert device.ran() == ["ap0", "ap1", "bp0", "bp1"]
    assert device.loads() == ["p0", "p1"]


def test_a_chunk_is_no_larger_than_its_activations_allow() -> None:
    flow = chain_flow(100, 100)
    device = busy_device(flow, 100 + 2 * 20, ["a", "b", "c"])
    assert device.ran() == ["ap0", "bp0", "ap1", "bp1", "cp0", "cp1"]


def test_without_known_sizes_the_first_request_goes_alone() -> None:
    device = busy_device(chain_flow(100, 100), 160, ["a", "b", "c", "d"], sizes={})
    assert device.ran() == ["ap0", "ap1", "bp0", "cp0", "dp0", "bp1", "cp1", "dp1"]


def test_a_larger_request_than_any_before_goes_alone() -> None:
    flow = chain_flow(100, 100)
    state = flow.machine(200)
    sizes = {"a": NBYTES, "b": NBYTES, "large": 3 * NBYTES}
    state.handle(*(Submitted(name) for name in sizes), *(TensorArrived(name, "t0", n) for name, n in sizes.items()))
    assert list(state._admitted) == ["a", "b"]
    assert list(state._queued) == ["large"]


def test_what_is_kept_is_loaded_once() -> None:
    flow = chain_flow(100, 5, 100)
    device = device_for(flow, 100 + 5 + 20)
    device.submit("a")
    device.submit("b")
    assert device.loads() == ["p0", "p1", "p2", "p0", "p2"]
    assert device.loaded == {"p1"}


def test_a_model_output_that_is_a_model_input_is_answered() -> None:
    flow = Flow([Task("p", ("x",), ("y",))], ["x", "z"], ["y", "x", "z"])
    device = device_for(flow)
    device.submit("a")
    assert device.replies["a"] == {"x", "y", "z"}
    assert not device.held


def test_unused_tensors_are_dropped_at_once() -> None:
    flow = Flow([Task("p", ("x",), ("y", "unused"))], ["x", "idle"], ["y"])
    device = device_for(flow)
    device.submit("a")
    assert device.replies == {"a": {"y"}}
    assert Drop("a", "unused") in device.log
    assert Drop("a", "idle") in device.log


def test_partitions_without_inputs_run() -> None:
    flow = Flow([Task("constant", (), ("c",)), Task("p", ("x", "c"), ("y",))], ["x"], ["y"])
    device = device_for(flow)
    device.submit("a")
    assert device.replies == {"a": {"y"}}


def test_a_request_without_any_tensor_is_answered() -> None:
    device = device_for(Flow([Task("constant", (), ("c",))], [], ["c"]))
    device.submit("a")
    assert device.replies == {"a": {"c"}}


def test_a_model_without_partitions_passes_its_input_on() -> None:
    device = device_for(Flow([], ["x"], ["x"]))
    device.submit("a")
    assert device.replies == {"a": {"x"}}


def test_only_the_partitions_that_wanted_outputs_need_are_run() -> None:
    flow = Flow([Task("p", ("x",), ("s",)), Task("q", ("s",), ("y",)), Task("r", ("s",), ("z",))], ["x"], ["y", "z"])
    device = device_for(flow)
    device.submit("a", ("z",))
    assert device.ran() == ["ap", "ar"]
    assert device.replies == {"a": {"z"}}


def test_shards_share_an_input_and_meet_in_their_merge() -> None:
    shards = [Task(f"fc{i}", ("s",), (f"rows{i}",), 50) for i in range(3)]
    flow = Flow([Task("p", ("x",), ("s",)), *shards, Task("merge", ("rows0", "rows1", "rows2"), ("y",))], ["x"], ["y"])
    device = device_for(flow, 50 + 50)
    device.submit("a")
    assert device.ran() == ["ap", "afc0", "afc1", "afc2", "amerge"]
    dropped = [step.tensor for step in device.log if isinstance(step, Drop)]
    assert dropped == ["x", "s", "rows0", "rows1", "rows2", "y"]


def test_what_is_loaded_next_is_read_while_its_predecessor_runs() -> None:
    device = in_passing(chain_flow(100, 100, 100), 2 * 100 + 20)
    device.submit("a")
    assert [step for step in device.log if isinstance(step, Load | Unload | ReadAhead | Execute)] == [
        Load("p0"),
        ReadAhead("p1"),
        Execute("a", "p0"),
        Unload("p0"),
        Load("p1"),
        ReadAhead("p2"),
        Execute("a", "p1"),
        Unload("p1"),
        Load("p2"),
        Execute("a", "p2"),
        Unload("p2"),
    ]


def test_nothing_is_read_ahead_without_room_for_both() -> None:
    device = in_passing(chain_flow(100, 100, 100), 2 * 100 + 19)
    device.submit("a")
    assert not [step for step in device.log if isinstance(step, ReadAhead)]


def test_what_is_read_ahead_has_room_until_its_turn() -> None:
    """The second partition, which is kept, needs the room in which the third would be read while the first runs."""
    flow = chain_flow(100, 60, 100)
    for scratch, expected in ((41, "p1"), (40, "p0")):
        flow.tasks[1] = Task("p1", ("t1",), ("t2",), 60, scratch)
        device = in_passing(flow, 320, "p1")
        device.submit("a")
        told = device.log.index(ReadAhead("p2"))
        assert next(step for step in device.log[told:] if isinstance(step, Execute)) == Execute("a", expected)


def test_nothing_is_read_ahead_for_a_request_larger_than_any_before() -> None:
    flow = chain_flow(100, 100)
    device = in_passing(flow, 2 * 100 + 60)
    device.budget = None  # nobody knows what it needs
    device.tell(Submitted("large"))
    device.held["large", "t0"] = 30
    device.tell(TensorArrived("large", "t0", 30))
    assert device.replies
    assert not [step for step in device.log if isinstance(step, ReadAhead)]


def test_what_is_read_ahead_for_a_request_that_failed_is_let_go() -> None:
    flow = chain_flow(100, 100)
    device = in_passing(flow, 2 * 100 + 20)
    device.failing = frozenset({"a@p0"})
    device.submit("a")
    assert [step.partition for step in device.log if isinstance(step, ReadAhead | Unload)] == ["p1", "p0", "p1"]
    assert device.state.is_idle


def test_tiles_are_read_ahead_in_no_room_of_their_own() -> None:
    flow = chain_flow(100, 100)
    flow.tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), 100, 0, (("w", 100),)) for i in range(2)]
    device = in_passing(flow, 120)
    device.submit("a")
    assert [step.partition for step in device.log if isinstance(step, ReadAhead)] == ["p1"]


def test_what_nothing_needs_of_the_budget_is_told() -> None:
    flow = chain_flow(100, 100)
    state = flow.machine(150)
    assert state.room_nbytes() == 150
    state.handle(Submitted("a"), TensorArrived("a", "t0", NBYTES))
    assert state.room_nbytes() == 150 - 100 - NBYTES
    state.handle(Loaded("p0"))
    assert state.room_nbytes() == 150 - 100 - 2 * NBYTES
    assert flow.machine(None).room_nbytes() is None


def test_a_failed_partition_fails_its_request_only() -> None:
    device = device_for(chain_flow(1, 1), failing=frozenset({"a@p1"}))
    device.submit("a")
    device.submit("b")
    assert device.failures == {"a": "bad node"}
    assert set(device.replies) == {"b"}
    assert not device.held


def test_a_failed_load_fails_those_who_need_the_partition() -> None:
    flow = Flow([Task("p", ("x",), ("y",)), Task("q", ("x",), ("z",))], ["x"], ["y", "z"])
    device = device_for(flow, failing=frozenset({"q"}))
    device.submit("a", ("y",))
    device.submit("b")
    device.submit("c", ("y",))
    assert set(device.failures) == {"b"}
    assert set(device.replies) == {"a", "c"}
    assert device.state.is_idle


def test_a_cancelled_request_is_forgotten_even_while_it_executes() -> None:
    state = chain_flow(1, 1).machine(None)
    state.handle(Submitted("a"))
    assert state.handle(TensorArrived("a", "t0", NBYTES)) == [Load("p0")]
    assert state.handle(Loaded("p0")) == [Execute("a", "p0")]
    assert state.handle(Cancelled("a")) == [Fail("a", "cancelled"), Drop("a", "t0")]
    assert state.is_idle
    state.check_invariants()
    assert state.handle(Executed("a", "p0", (("t1", NBYTES),))) == [Drop("a", "t1")]


def test_events_of_finished_requests_are_ignored() -> None:
    device = device_for(chain_flow(1))
    device.submit("a")
    before = len(device.log)
    device.tell(Executed("a", "p0", (("t1", NBYTES),)))
    device.tell(ExecuteFailed("a", "p0", "late"))
    device.tell(Cancelled("a"))
    assert device.log[before:] == []
    assert device.state.handle(TensorArrived("a", "t0", NBYTES)) == [Drop("a", "t0")]


def test_nothing_is_kept_of_a_finished_request() -> None:
    device = device_for(chain_flow(1, 1))
    for number in range(50):
        device.submit(f"r{number}")
    state = device.state
    assert state.is_idle
    assert not device.held
    assert state.held_nbytes() == 0
    assert not state._ready
    assert not state._queued
    assert not state._admitted


def test_an_impossible_event_tells_the_tasks_story() -> None:
    state = chain_flow(1).machine(None)
    state.handle(Submitted("a"))
    request = state._requests["a"]
    with pytest.raises(InternalError, match="p0: executed"):
        state._move(request, 0, Trigger.EXECUTED)


def test_ended_states_are_left_by_nothing() -> None:
    left = {state for (state, _), after in TRANSITIONS.items() if after is not state}
    assert left == {TaskState.WAITING, TaskState.READY, TaskState.EXECUTING}


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    inputs = [f"x{i}" for i in range(draw(st.integers(0, 3)))]
    known = list(inputs)
    tasks = []
    for index in range(draw(st.integers(1, 7))):
        reads = draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if known else []
        makes = [f"t{index}_{i}" for i in range(draw(st.integers(1, 2)))]
        sizes = st.integers(0, 100)
        shared = tuple(sorted(draw(st.sets(st.sampled_from([("w0", 20), ("w1", 50)])))))
        weight_nbytes = draw(sizes) + sum(nbytes for _, nbytes in shared)
        tasks.append(Task(f"p{index}", tuple(reads), tuple(makes), weight_nbytes, draw(sizes), shared))
        known += makes
    outputs = draw(st.lists(st.sampled_from(known), unique=True, min_size=1, max_size=3))
    return Flow(tasks, inputs, outputs, draw(st.booleans()))


@given(flow=flows(), spare=st.none() | st.integers(0, 400), data=st.data(), repeat=st.booleans())
def test_any_order_and_any_duplicate_gives_each_output_once_within_the_budget(
    flow: Flow, spare: int | None, data: st.DataObject, repeat: bool
) -> None:
    budget = None if spare is None else flow.smallest_budget() + spare
    device = device_for(flow, budget, repeat=repeat)
    requests = [f"r{i}" for i in range(data.draw(st.integers(1, 4)))]
    wanted = {
        request: data.draw(st.none() | st.lists(st.sampled_from(flow.outputs), unique=True, min_size=1))
        for request in requests
    }
    for request in requests:
        device.tell(Submitted(request, None if wanted[request] is None else tuple(wanted[request] or ())))
    arrivals = data.draw(st.permutations([(request, name) for request in requests for name in flow.inputs]))
    for request, name in arrivals:
        device.arrive(request, name)
    for request in requests:
        assert device.replies[request] == set(wanted[request] or flow.outputs)
    assert not device.failures
    assert not device.held
    assert device.state.is_idle
    assert device.loaded <= flow.residency(budget).kept


@given(flow=flows(), data=st.data())
def test_every_request_ends_once_whatever_fails(flow: Flow, data: st.DataObject) -> None:
    places = [task.id for task in flow.tasks]
    runs = [f"r{i}@{place}" for i in range(3) for place in places]
    failing = data.draw(st.frozensets(st.sampled_from([*places, *runs]), max_size=3))
    device = device_for(flow, flow.smallest_budget() + 50, failing=failing)
    for request in ("r0", "r1", "r2"):
        device.submit(request)
        if data.draw(st.booleans()):
            device.tell(Cancelled(request))
    assert set(device.replies) | set(device.failures) == {"r0", "r1", "r2"}
    assert not set(device.replies) & set(device.failures)
    assert device.state.is_idle
    assert not device.held
