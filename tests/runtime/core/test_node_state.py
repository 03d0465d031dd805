"""The node's state machine: each work item once, each tensor to each that wants it, nothing left, in any order."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hyps.core.holdings import PARTITION_TRANSITIONS, Holding, PartitionState, PartitionTrigger
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
    Share,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
    Unload,
)
from hyps.core.node_life import NODE_TRANSITIONS, NodeLife, NodeTrigger
from hyps.core.node_state import (
    EARLY_NBYTES,
    EARLY_REQUESTS,
    EARLY_S,
    MOST_REQUESTS,
    REMEMBERED,
    NodeState,
)
from hyps.core.residency import Task
from hyps.errors import InternalError
from hyps.formats.node_messages import HUB, Beat, Course, Drain, Finished, ItemFailed, Route, Started

NBYTES = 10

_MOST_STEPS = 20_000
"""Far more than all that these tests ask of a node brings about."""


@dataclass
class Bench:
    """Carries a node's instructions out, at once or when told to, and watches what must hold."""

    node: NodeState
    failing: frozenset[str] = frozenset()
    repeats: bool = False
    """Whether every event is told twice."""
    now_s: float = 0.0
    log: list[NodeInstruction] = field(default_factory=list)
    stored: set[tuple[int, int, str]] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    pending: deque[NodeInstruction] = field(default_factory=deque)
    """What takes time and is not done yet."""
    ran: list[tuple[int, int, str]] = field(default_factory=list)
    sent: list[tuple[int, int, str, str]] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)

    def tell(self, *events: NodeEvent) -> list[NodeInstruction]:
        """Tell the node what happened; what takes time waits in `pending`."""
        steps: list[NodeInstruction] = []
        for event in events:
            if isinstance(event, SetUp):
                self.tasks.update({share.task.id: share.task for share in event.shares})
            steps += self._tell(event)
            if self.repeats:
                again = self._tell(event)
                assert not [step for step in again if isinstance(step, Execute | Load) or _is_send_of(step, event)]
                steps += again
        return steps

    def _tell(self, event: NodeEvent) -> list[NodeInstruction]:
        self.now_s += 0.001
        steps = self.node.handle(self.now_s, event)
        self.node.check_invariants()
        for step in steps:
            self._note(step)
        assert len(self.stored) == sum(len(request.held) for request in self.node._requests.values())
        return steps

    def _note(self, step: NodeInstruction) -> None:
        self.log.append(step)
        match step:
            case Keep(request, epoch, tensor):
                assert (request, epoch, tensor) not in self.stored, "stored twice"
                self.stored.add((request, epoch, tensor))
            case Forget(request, epoch, tensor):
                self.stored.remove((request, epoch, tensor))
            case Unload(partition):
                self.loaded.remove(partition)
            case Execute(_, request, epoch, partition):
                assert partition in self.loaded, "executed without being loaded"
                assert (request, epoch, partition) not in self.ran, "executed twice"
                self.ran.append((request, epoch, partition))
                absent = [n for n in self.tasks[partition].inputs if (request, epoch, n) not in self.stored]
                assert not absent, f"executed without {absent}"
                self.pending.append(step)
            case Send(_, request, epoch, _, tensor, device):
                assert (request, epoch, tensor) in self.stored, "sent without being stored"
                self.sent.append((request, epoch, tensor, device))
                self.pending.append(step)
            case Load(partition):
                self.pending.append(step)
                assert not [s for s in self.pending if isinstance(s, Load) and s is not step], "two are being loaded"
                self._check_budget(partition)
            case Obtain():
                self.pending.append(step)
            case _:
                pass

    def _check_budget(self, loading: str) -> None:
        budget = self.node._holdings._budget_nbytes
        if budget is not None and not self.node._runs:
            weights = sum(self.tasks[name].weight_nbytes for name in (*self.loaded, loading))
            assert weights <= budget, f"{weights} bytes of weights under a budget of {budget}"

    def finish(self, step: NodeInstruction) -> None:
        """Tell the node that what it asked for is done."""
        match step:
            case Obtain(partition, digest):
                is_bad = f"obtain {partition}" in self.failing
                self.tell(NotObtained(partition, "no file", digest) if is_bad else Obtained(partition, digest))
            case Load(partition, digest):
                if f"load {partition}" in self.failing:
                    self.tell(LoadFailed(partition, "no model", digest))
                else:
                    self.loaded.add(partition)
                    self.tell(Loaded(partition, digest))
            case Execute(run, request, _, partition):
                if f"{request}@{partition}" in self.failing:
                    self.tell(ExecuteFailed(run, "E_EXECUTION", "bad node"))
                else:
                    self.tell(Executed(run, tuple((name, NBYTES) for name in self.tasks[partition].outputs), 0.5))
            case Send(sending):
                self.tell(Delivered(sending))
            case _:
                raise AssertionError(step)

    def finish_all(self) -> None:
        """Finish all that is pending, in order, and what comes of it."""
        begun = len(self.log)
        while self.pending:
            assert len(self.log) < begun + _MOST_STEPS, f"it never ends: {self.log[-8:]}"
            self.finish(self.pending.popleft())

    def finish_where(self, kind: type) -> None:
        """Finish all of one kind that is pending, and what comes of it."""
        while found := [step for step in self.pending if isinstance(step, kind)]:
            self.pending.remove(found[0])
            self.finish(found[0])

    def told(self, kind: type) -> list[object]:
        """Return what the node told its manager, of one kind."""
        return [step.message for step in self.log if isinstance(step, Tell) and isinstance(step.message, kind)]

    def order(self) -> list[str]:
        """Return what was executed, such as `1 p0`."""
        return [f"{request} {partition}" for request, _, partition in self.ran]


def _is_send_of(step: NodeInstruction, event: NodeEvent) -> bool:
    return isinstance(step, Send) and not isinstance(event, NeighbourBack)


def chain_setup(number: int, *weights: int, course: int = 1, device: str = "next", digest: str = "") -> SetUp:
    """Return a setup of a chain t0 -> p0 -> t1 -> p1 -> ..., whose last tensor goes to `device`."""
    tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight) for i, weight in enumerate(weights)]
    last = f"t{len(weights)}"
    way = Course(course, tuple(task.id for task in tasks), (Route(last, (device,)),))
    sizes = {f"t{i}": NBYTES for i in range(len(weights) + 1)}
    return SetUp(number, tuple(Share(task, digest) for task in tasks), (way,), ("t0",), (last,), sizes)


def bench_for(setup: SetUp, budget: int | None = None, max_executing: int = 1, **more: object) -> Bench:
    """Return a node that has been set up and is ready."""
    bench = Bench(NodeState(budget, 0, max_executing), **more)  # type: ignore[arg-type]  # the fields of Bench
    bench.tell(ManagerFound(0.5), setup)
    bench.finish_all()
    return bench


def here(request: int, tensor: str = "t0", epoch: int = 1, course: int = 1) -> TensorHere:
    return TensorHere(request, epoch, course, tensor, NBYTES)


def test_a_request_passes_through_and_its_result_is_sent() -> None:
    bench = bench_for(chain_setup(1, 5, 5))
    assert bench.node.life is NodeLife.SERVING
    bench.tell(here(1))
    bench.finish_all()
    assert bench.order() == ["1 p0", "1 p1"]
    assert bench.sent == [(1, 1, "t2", "next")]
    assert not bench.stored
    started, finished = bench.told(Started), bench.told(Finished)
    assert started == [Started(1, 1, "p0"), Started(1, 1, "p1")]
    assert [(f.partition, f.run_s, f.nbytes) for f in finished if isinstance(f, Finished)] == [
        ("p0", 0.5, NBYTES),
        ("p1", 0.5, NBYTES),
    ]


def test_the_next_computing_begins_before_anything_is_sent() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), here(2))
    steps = bench.tell(Executed(1, (("t1", NBYTES),), 0.1))
    assert [type(step) for step in steps[:3]] == [Keep, Execute, Send]


def test_the_time_waited_is_from_the_last_input_on() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), here(2))
    bench.now_s += 3.0
    bench.finish_all()
    waits = [told.waited_s for told in bench.told(Finished) if isinstance(told, Finished)]
    assert waits[0] == 0.0
    assert waits[1] == pytest.approx(3.0, abs=0.1)


def test_the_oldest_request_goes_first_while_all_is_kept() -> None:
    bench = bench_for(chain_setup(1, 5, 5))
    bench.tell(here(3), here(2), here(1))
    bench.finish_all()
    assert bench.order() == ["3 p0", "1 p0", "1 p1", "2 p0", "2 p1", "3 p1"]


def test_a_partition_that_is_loaded_for_its_turn_runs_its_whole_queue() -> None:
    bench = bench_for(chain_setup(1, 100, 100, 100), budget=199)
    before = len(bench.log)
    bench.tell(here(1), here(2), here(3))
    bench.finish_all()
    assert bench.order() == [f"{request} p{index}" for index in range(3) for request in (1, 2, 3)]
    assert [step.partition for step in bench.log[before:] if isinstance(step, Load)] == ["p0", "p1", "p2"]


def test_newer_requests_do_not_keep_a_partition_from_its_turn() -> None:
    bench = bench_for(chain_setup(1, 100, 100), budget=199)
    bench.tell(here(1))
    for number in range(2, 12):
        bench.finish_where(Load)
        bench.tell(here(number))
        found = [step for step in bench.pending if isinstance(step, Execute)]
        bench.pending.remove(found[0])
        bench.finish(found[0])
    assert "1 p1" in bench.order()[:4]


def test_branches_that_take_turns_run_all_that_waits_for_them() -> None:
    tasks = [Task(f"p{index}", ("t0",), (f"y{index}",), 100) for index in range(2)]
    way = Course(1, ("p0", "p1"), (Route("y0", ("next",)), Route("y1", ("next",))))
    sizes = dict.fromkeys(("t0", "y0", "y1"), NBYTES)
    setup = SetUp(1, tuple(Share(task, "") for task in tasks), (way,), ("t0",), ("y0", "y1"), sizes)
    bench = bench_for(setup, budget=199)
    before = len(bench.log)
    bench.tell(here(1), here(2), here(3))
    bench.finish_all()
    assert sorted(bench.order()) == [f"{request} p{index}" for request in (1, 2, 3) for index in range(2)]
    assert len([step for step in bench.log[before:] if isinstance(step, Load)]) == 2


def test_what_comes_after_a_turn_is_not_held_up() -> None:
    bench = bench_for(chain_setup(1, 100, 100, 100), budget=320)
    assert len(bench.node.residency.kept) == 1
    for number in (1, 2, 3):
        bench.tell(here(number))
        bench.finish_all()
        assert bench.sent[-1] == (number, 1, "t3", "next")


def test_nothing_begins_to_run_while_a_partition_is_loaded_for_its_turn() -> None:
    bench = bench_for(chain_setup(1, 100, 100, 100), budget=320)
    (kept,) = bench.node.residency.kept
    assert kept == "p0"
    bench.tell(here(2))
    bench.finish_where(Execute)
    assert [step for step in bench.pending if isinstance(step, Load)]
    bench.tell(here(1))
    assert bench.order() == ["2 p0"]
    bench.finish_all()
    assert sorted(bench.order()) == sorted(f"{number} p{index}" for number in (1, 2) for index in range(3))


def test_what_was_kept_makes_way_when_its_run_is_over() -> None:
    bench = bench_for(chain_setup(1, 50, 100, 100), budget=190)
    assert bench.node.residency.kept == {"p0"}
    assert bench.loaded == {"p0", "p2"}
    bench.tell(here(1), chain_setup(2, 50, 100, 100, 140))
    assert bench.node.residency.kept == frozenset()
    assert "p0" in bench.loaded, "it runs"
    bench.finish_where(Execute)
    assert "p0" not in bench.loaded
    bench.finish_all()
    assert len(bench.loaded) == 1


def test_partitions_that_are_not_kept_are_tried_before_they_are_called_ready() -> None:
    bench = bench_for(chain_setup(1, 100, 100), budget=199, failing=frozenset({"load p1"}))
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert beat.loaded == ("p0",)
    assert beat.refused == (("p1", "no model"),)
    assert bench.node.life is NodeLife.SERVING


def test_a_partition_larger_than_the_budget_is_refused_by_name() -> None:
    bench = bench_for(chain_setup(1, 100, 500), budget=300)
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert beat.loaded == ("p0",)
    assert beat.refused[0][0] == "p1"
    assert "budget of 300" in beat.refused[0][1]


def test_what_waits_for_a_partition_that_cannot_be_had_fails() -> None:
    bench = bench_for(chain_setup(1, 5, 5), failing=frozenset({"obtain p1"}))
    bench.tell(here(1))
    bench.finish_all()
    assert bench.told(ItemFailed) == [ItemFailed(1, 1, "p1", "E_MISSING", "no file", "place it on another device")]
    assert not bench.stored


def test_more_than_there_is_room_for_is_sent_back_and_not_stored() -> None:
    bench = Bench(NodeState(125, bounds_tensors=True))
    bench.tell(ManagerFound(0.5), chain_setup(1, 100))
    bench.finish_all()
    for number in (1, 2, 3):
        bench.tell(here(number))
    failed = bench.told(ItemFailed)
    assert [(told.request, told.code) for told in failed if isinstance(told, ItemFailed)] == [(3, "E_MEMORY")]
    bench.tell(here(3))
    assert len(bench.stored) == 2, "it was told already"
    bench.finish_all()
    bench.tell(here(3, epoch=2))
    bench.finish_all()
    assert bench.order() == ["1 p0", "2 p0", "3 p0"]


def test_one_request_alone_is_taken_however_large_it_is() -> None:
    bench = Bench(NodeState(125, bounds_tensors=True))
    bench.tell(ManagerFound(0.5), chain_setup(1, 100))
    bench.finish_all()
    bench.tell(TensorHere(1, 1, 1, "t0", 1000))
    bench.finish_all()
    assert bench.order() == ["1 p0"]


def test_requests_that_somebody_invents_are_bounded() -> None:
    bench = bench_for(chain_setup(1, 100))
    joint = Course(1, ("p0", "p1"), ())
    tasks = (Task("p0", ("t0", "u"), ("t1",), 1), Task("p1", ("t1",), ("t2",), 1))
    bench.tell(SetUp(2, tuple(Share(task, "") for task in tasks), (joint,), ("t0", "u"), ("t2",), {}))
    for number in range(MOST_REQUESTS + 5):
        bench.node.handle(1.0, TensorHere(number, 1, 1, "t0", 0))
    assert len(bench.node) == MOST_REQUESTS


def test_a_failed_run_is_told_and_its_inputs_are_forgotten() -> None:
    bench = bench_for(chain_setup(1, 5, 5), failing=frozenset({"1@p0"}))
    bench.tell(here(1), here(2))
    bench.finish_all()
    assert bench.told(ItemFailed) == [ItemFailed(1, 1, "p0", "E_EXECUTION", "bad node", "")]
    assert bench.sent == [(2, 1, "t2", "next")]
    assert not bench.stored


def test_duplicates_are_ignored() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), here(1))
    bench.finish_all()
    bench.tell(here(1))
    bench.finish_all()
    assert bench.order() == ["1 p0"]


def test_a_higher_epoch_begins_anew_and_a_lower_one_is_refused() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), here(1, epoch=2), here(1, epoch=1))
    assert bench.stored == {(1, 2, "t0")}
    bench.finish_all()
    assert bench.ran == [(1, 1, "p0"), (1, 2, "p0")]
    assert bench.sent == [(1, 2, "t1", "next")]


def test_a_retired_request_leaves_nothing_even_while_it_runs() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), here(2), Retired(1, 1), Retired(2, 1))
    assert not bench.stored
    bench.finish_all()
    assert bench.sent == []
    bench.tell(here(1), here(2))
    assert not bench.stored
    assert not bench.node._requests


def test_the_memory_of_retired_requests_is_bounded() -> None:
    bench = bench_for(chain_setup(1, 5))
    for number in range(1, REMEMBERED + 10):
        bench.node.handle(1.0, Retired(number, 1))
    assert len(bench.node._retired) == REMEMBERED


def test_tensors_that_nobody_here_reads_are_not_stored() -> None:
    bench = bench_for(chain_setup(1, 5, 5))
    bench.tell(here(1, "other"), here(1, "t2"))
    assert not bench.stored


def test_a_tensor_is_kept_until_all_have_it() -> None:
    task, reader = Task("p", ("x",), ("y",)), Task("q", ("y",), ("z",))
    course = Course(1, ("p", "q"), (Route("y", ("a", "b")), Route("z", (HUB,))))
    bench = bench_for(SetUp(1, (Share(task), Share(reader)), (course,), ("x",), ("y", "z")))
    bench.tell(here(1, "x"))
    bench.finish_where(Execute)
    assert bench.sent == [(1, 1, "y", "a"), (1, 1, "y", "b"), (1, 1, "z", HUB)]
    assert (1, 1, "y") in bench.stored
    sends = [step for step in bench.pending if isinstance(step, Send)]
    bench.finish(sends[0])
    assert (1, 1, "y") in bench.stored
    bench.finish(sends[1])
    assert (1, 1, "y") not in bench.stored


def test_what_is_not_delivered_to_a_lost_neighbour_is_sent_again_when_it_is_back() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1))
    bench.finish_where(Execute)
    bench.pending.clear()  # the link breaks: what was sent is not delivered
    bench.tell(NeighbourLost("next"), here(2))
    bench.finish_all()
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert beat.unreachable == ("next",)
    assert bench.sent == [(1, 1, "t1", "next")]
    bench.tell(NeighbourBack("next"))
    assert bench.sent[1:] == [(1, 1, "t1", "next"), (2, 1, "t1", "next")]
    bench.finish_all()
    assert not bench.stored


def test_tensors_of_a_course_that_is_not_known_yet_wait_for_its_setup() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1, course=2), here(1, "nonsense", course=2))
    assert len(bench.stored) == 2
    both = replace(chain_setup(2, 5), courses=(*chain_setup(2, 5).courses, *chain_setup(2, 5, course=2).courses))
    bench.tell(both)
    bench.finish_all()
    assert bench.order() == ["1 p0"]
    assert not bench.stored


def test_tensors_of_unknown_courses_are_bounded_and_forgotten_in_time() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(TensorHere(1, 1, 9, "a", EARLY_NBYTES), TensorHere(2, 1, 9, "a", 1))
    assert bench.stored == {(1, 1, "a")}
    for number in range(3, EARLY_REQUESTS + 10):
        bench.node.handle(bench.now_s, TensorHere(number, 1, 9, "a", 1))
    assert len(bench.node._requests) == EARLY_REQUESTS
    bench.now_s += EARLY_S + 1
    bench.tell(Ticked())
    assert not bench.node._requests
    assert not bench.stored


def test_a_lost_manager_leaves_loaded_partitions_and_nothing_else() -> None:
    bench = bench_for(chain_setup(7, 5))
    bench.tell(here(1), here(2))
    bench.finish_where(Execute)
    bench.tell(here(3), Retired(1, 1), ManagerLost())
    assert not bench.stored
    assert bench.loaded == {"p0"}
    bench.tell(ManagerFound(0.5), chain_setup(1, 5))
    assert bench.node.life is NodeLife.SERVING, "nothing had to be loaded"
    bench.ran.clear()  # another manager's request 1 is another request
    bench.tell(here(1))
    bench.finish_all()
    assert bench.order() == ["1 p0"]
    assert bench.sent[-1] == (1, 1, "t1", "next")


def test_results_begun_for_a_lost_manager_are_not_taken_for_those_of_the_next() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), ManagerLost(), ManagerFound(0.5), chain_setup(1, 5))
    stale = bench.pending.popleft()
    bench.ran.clear()
    bench.tell(here(1))
    assert bench.order() == [], "the thread is not free yet"
    bench.now_s += 1.0
    bench.tell(Ticked())
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert beat.running == (), "this manager knows nothing of what runs"
    bench.finish(stale)
    assert bench.sent == []
    bench.finish_all()
    assert bench.sent == [(1, 1, "t1", "next")]


def test_a_changed_setup_loads_the_new_while_the_old_goes_on_and_unloads_what_no_course_has() -> None:
    bench = bench_for(chain_setup(1, 5))
    old = chain_setup(1, 5)
    other = Task("q", ("t0",), ("t1",))
    both = SetUp(
        2, (*old.shares, Share(other)), (*old.courses, Course(2, ("q",), (Route("t1", ("x",)),))), ("t0",), ("t1",)
    )
    bench.tell(here(1))
    bench.tell(both)
    assert bench.node.life is NodeLife.LOADING
    bench.tell(here(2))
    bench.finish_all()
    assert bench.order() == ["1 p0", "2 p0"]
    bench.tell(Retired(1, 1), Retired(2, 1), replace(both, number=3, shares=both.shares[1:], courses=both.courses[1:]))
    assert bench.loaded == {"q"}
    bench.tell(here(3, course=2))
    bench.finish_all()
    assert bench.sent[-1] == (3, 1, "t1", "x")


def test_a_setup_with_a_lower_number_changes_nothing_and_an_equal_one_is_confirmed() -> None:
    bench = bench_for(chain_setup(2, 5))
    bench.log.clear()
    bench.tell(chain_setup(1, 5, 5), chain_setup(2, 5))
    beats = bench.told(Beat)
    assert [beat.setup for beat in beats if isinstance(beat, Beat)] == [2, 2]
    assert all(isinstance(step, Tell) for step in bench.log)


def test_a_partition_of_the_same_name_with_other_bytes_is_another_partition() -> None:
    bench = bench_for(chain_setup(1, 5, digest="a"))
    steps = bench.tell(chain_setup(2, 5, digest="b"))
    assert Unload("p0", "a") in steps
    assert Obtain("p0", "b") in steps
    bench.tell(Obtained("p0", "a"))
    assert not [step for step in bench.pending if isinstance(step, Load)]
    bench.finish_all()
    assert bench.node.life is NodeLife.SERVING


def test_a_partition_taken_away_while_it_is_loaded_is_unloaded_afterwards() -> None:
    bench = Bench(NodeState())
    bench.tell(ManagerFound(0.5), chain_setup(1, 5))
    bench.finish_where(Obtain)
    bench.tell(SetUp(2))
    assert bench.node.life is NodeLife.SERVING
    bench.finish_all()
    assert not bench.loaded


def test_the_manager_says_how_often_it_wants_to_hear_of_the_node() -> None:
    bench = Bench(NodeState(beat_s=0.5))
    bench.tell(ManagerFound(0.1))
    bench.log.clear()
    bench.now_s += 0.2
    bench.tell(Ticked())
    assert len(bench.told(Beat)) == 1


def test_only_devices_that_are_sent_to_are_called_unreachable() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(NeighbourLost("somebody"), NeighbourLost("next"))
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert beat.unreachable == ("next",)


def test_beats_come_when_due_and_when_something_changes() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.log.clear()
    bench.tell(Ticked())
    assert not bench.told(Beat)
    bench.now_s += 0.6
    bench.tell(Ticked(), Ticked())
    assert len(bench.told(Beat)) == 1
    bench.tell(here(1))
    bench.now_s += 0.6
    bench.tell(Ticked())
    beat = bench.told(Beat)[-1]
    assert isinstance(beat, Beat)
    assert [(item.request, item.partition) for item in beat.running] == [(1, "p0")]
    assert beat.running[0].elapsed_s == pytest.approx(0.6, abs=0.1)
    assert beat.held_nbytes == NBYTES
    bench.tell(NeighbourLost("next"))
    assert len(bench.told(Beat)) == 3


def test_a_draining_node_finishes_and_leaves_when_nothing_is_left() -> None:
    bench = bench_for(chain_setup(1, 5))
    steps = bench.tell(here(1), ToldToDrain())
    assert Tell(Drain()) in steps
    bench.finish_all()
    assert bench.sent == [(1, 1, "t1", "next")]
    assert Leave() not in bench.log
    assert Leave() in bench.tell(Retired(1, 1), SetUp(2))
    assert bench.node.life is NodeLife.GONE
    assert bench.tell(here(2)) == []


def test_a_draining_node_waits_for_what_it_computes_though_nobody_wants_it() -> None:
    bench = bench_for(chain_setup(1, 5))
    bench.tell(here(1), Retired(1, 1), ToldToDrain(), SetUp(2))
    assert Leave() not in bench.log
    bench.finish_all()
    assert Leave() in bench.log


def test_a_draining_node_leaves_when_the_manager_says_so_or_is_lost() -> None:
    for event in (AllowedToLeave(), ManagerLost()):
        bench = bench_for(chain_setup(1, 5))
        bench.tell(here(1), ToldToDrain())
        assert Leave() in bench.tell(event)


def test_a_node_without_a_manager_leaves_at_once() -> None:
    assert NodeState().handle(0.0, ToldToDrain()) == [Leave()]


def test_a_group_computes_several_items_at_once() -> None:
    bench = bench_for(chain_setup(1, 5), max_executing=3)
    bench.tell(*(here(number) for number in range(1, 6)))
    assert bench.order() == ["1 p0", "2 p0", "3 p0"]
    bench.finish_all()
    assert len(bench.sent) == 5


def test_partitions_without_inputs_run_once_their_request_is_heard_of() -> None:
    tasks = (Task("constant", (), ("c",)), Task("p", ("x", "c"), ("y",)))
    course = Course(1, ("constant", "p"), (Route("y", (HUB,)),))
    bench = bench_for(SetUp(1, tuple(Share(task) for task in tasks), (course,), ("x",), ("y",)))
    bench.tell(here(1, "x"))
    bench.finish_all()
    assert bench.sent == [(1, 1, "y", HUB)]


def test_impossible_changes_of_state_are_told_with_their_story() -> None:
    with pytest.raises(InternalError, match="`p` was placed and then loaded"):
        Holding(Share(Task("p", (), ())), 0).move(PartitionTrigger.LOADED)
    bench = bench_for(chain_setup(1, 5))
    with pytest.raises(InternalError, match="serving and then manager found"):
        bench.node._move(NodeTrigger.MANAGER_FOUND)


def test_every_state_can_be_reached_and_left_but_the_last() -> None:
    assert {before for before, _ in NODE_TRANSITIONS} == set(NodeLife) - {NodeLife.GONE}
    assert set(NODE_TRANSITIONS.values()) == set(NodeLife)
    assert {before for before, _ in PARTITION_TRANSITIONS} == set(PartitionState)
    assert set(PARTITION_TRANSITIONS.values()) == set(PartitionState)


# Whatever the order.


@dataclass
class Scene:
    """Partitions on one node, and what others send it."""

    setup: SetUp
    inputs: tuple[str, ...]

    def wants(self) -> set[tuple[str, str]]:
        """Return what is to be sent for each request: a tensor and a device."""
        return {(route.tensor, device) for route in self.setup.courses[0].routes for device in route.devices}


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    inputs = tuple(f"x{i}" for i in range(draw(st.integers(1, 3))))
    known, tasks = list(inputs), []
    for index in range(draw(st.integers(1, 5))):
        reads = draw(st.lists(st.sampled_from(known), unique=True, min_size=1, max_size=3))
        makes = tuple(f"t{index}_{i}" for i in range(draw(st.integers(1, 2))))
        tasks.append(Task(f"p{index}", tuple(reads), makes, draw(st.integers(0, 100)), draw(st.integers(0, 20))))
        known += makes
    made = [name for task in tasks for name in task.outputs]
    chosen = draw(st.lists(st.sampled_from(made), unique=True, min_size=1, max_size=4))
    devices = st.lists(st.sampled_from([HUB, "a", "b"]), unique=True, min_size=1)
    routes = tuple(Route(name, tuple(draw(devices))) for name in chosen)
    course = Course(1, tuple(task.id for task in tasks), routes)
    sizes = dict.fromkeys(known, NBYTES)
    read = tuple(name for name in inputs if any(name in task.inputs for task in tasks))
    setup = SetUp(1, tuple(Share(task) for task in tasks), (course,), read, tuple(chosen), sizes)
    return Scene(setup, read)


def smallest_budget(setup: SetUp) -> int:
    tensors = len(setup.nbytes) * NBYTES
    return max(share.task.weight_nbytes + share.task.scratch_nbytes for share in setup.shares) + tensors


def finish_in_any_order(bench: Bench, data: st.DataObject, events: Iterable[NodeEvent]) -> None:
    """Tell `events` in any order, mixed with what comes of them in any order."""
    waiting = list(data.draw(st.permutations(list(events))))
    while waiting or bench.pending:
        if waiting and (not bench.pending or data.draw(st.booleans())):
            bench.tell(waiting.pop())
        else:
            index = data.draw(st.integers(0, len(bench.pending) - 1))
            step = bench.pending[index]
            del bench.pending[index]
            bench.finish(step)


@given(scene=scenes(), spare=st.none() | st.integers(0, 300), data=st.data(), repeats=st.booleans())
@settings(deadline=None)
def test_any_order_and_any_duplicate_runs_each_item_once_and_sends_each_tensor_once_to_each(
    scene: Scene, spare: int | None, data: st.DataObject, repeats: bool
) -> None:
    budget = None if spare is None else smallest_budget(scene.setup) + spare
    bench = Bench(NodeState(budget, 0, data.draw(st.integers(1, 3))), repeats=repeats)
    bench.tell(ManagerFound(0.5))
    requests = range(1, data.draw(st.integers(1, 4)) + 1)
    arrivals: list[NodeEvent] = [here(number, name) for number in requests for name in scene.inputs]
    finish_in_any_order(bench, data, [scene.setup, *arrivals])
    reads = [task.id for share in scene.setup.shares for task in [share.task]]
    assert sorted(bench.ran) == sorted((number, 1, partition) for number in requests for partition in reads)
    expected = [(number, 1, *want) for number in requests for want in scene.wants()]
    assert sorted(bench.sent) == sorted(expected)
    assert not bench.stored
    assert not bench.node._sendings
    bench.tell(*(Retired(number, 1) for number in requests))
    assert not bench.node._requests
    assert bench.node.held_nbytes == 0


@given(scene=scenes(), spare=st.none() | st.integers(0, 200), data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_fails_and_whenever_a_request_is_retired_nothing_is_left(
    scene: Scene, spare: int | None, data: st.DataObject
) -> None:
    budget = None if spare is None else smallest_budget(scene.setup) + spare
    ids = [share.task.id for share in scene.setup.shares]
    causes = [f"{what} {i}" for i in ids for what in ("load", "obtain")] + [f"{n}@{i}" for n in (1, 2) for i in ids]
    bench = Bench(NodeState(budget), failing=data.draw(st.frozensets(st.sampled_from(causes), max_size=3)))
    bench.tell(ManagerFound(0.5))
    numbers = (1, 2, 3)
    events: list[NodeEvent] = [here(n, name, epoch) for n in numbers for name in scene.inputs for epoch in (1, 2)]
    events += [Retired(n, 1) for n in numbers] + [NeighbourLost("a"), replace(scene.setup, number=2)]
    finish_in_any_order(bench, data, [scene.setup, *events])
    bench.tell(NeighbourBack("a"), *(Retired(n, 2) for n in numbers))
    bench.finish_all()
    assert not bench.stored
    assert not bench.node._requests
    assert not bench.node._sendings
    assert not len(bench.node._queue)
    assert bench.node.held_nbytes == 0


def _setups(scene: Scene, numbers: Sequence[int]) -> list[SetUp]:
    first = scene.setup
    half = first.shares[: max(1, len(first.shares) // 2)]
    ids = tuple(share.task.id for share in half)
    kinds = [
        first,
        replace(first, shares=half, courses=(Course(2, ids, first.courses[0].routes),)),
        SetUp(1),
        replace(first, shares=tuple(replace(share, digest="other") for share in first.shares)),
    ]
    return [replace(kinds[number % len(kinds)], number=number) for number in numbers]


@given(scene=scenes(), spare=st.none() | st.integers(0, 200), data=st.data())
@settings(max_examples=60, deadline=None)
def test_setups_may_change_and_managers_come_and_go_at_any_moment(
    scene: Scene, spare: int | None, data: st.DataObject
) -> None:
    budget = None if spare is None else smallest_budget(scene.setup) + spare
    bench = Bench(NodeState(budget))
    bench.tell(ManagerFound(0.5))
    events: list[NodeEvent] = [*_setups(scene, range(1, 7)), ManagerLost(), ManagerFound(0.1)]
    events += [here(n, name, 1, course) for n, course in ((1, 1), (2, 2), (3, 1)) for name in scene.inputs]
    bench.ran = _Forgetful()
    finish_in_any_order(bench, data, events)
    bench.tell(ManagerLost(), ManagerFound(0.1), replace(scene.setup, number=100))
    bench.finish_all()
    assert bench.node.life is NodeLife.SERVING
    assert bench.loaded >= bench.node.residency.kept
    bench.tell(*(here(50, name) for name in scene.inputs))
    bench.finish_all()
    assert {(tensor, device) for number, _, tensor, device in bench.sent if number == 50} == scene.wants()
    assert not [entry for entry in bench.stored if entry[0] == 50]


class _Forgetful(list[tuple[int, int, str]]):
    """Managers that come and go count their requests anew: what ran before is not held against the node."""

    def __contains__(self, _item: object) -> bool:
        return False


def test_a_node_that_has_no_manager_need_not_be_told_the_time() -> None:
    bench = Bench(NodeState())
    assert bench.node.next_tick_s == math.inf

    bench.tell(ManagerFound(0.5))
    assert bench.node.next_tick_s == pytest.approx(bench.now_s + 0.5)

    bench.tell(ManagerLost())
    assert bench.node.next_tick_s == math.inf


class LivingNode(RuleBasedStateMachine):
    """Requests come, go on, begin anew and end while the node's budget, neighbours and manager try it."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, int] = {}
        """Of every request that has not ended."""
        self.arrivals: list[TensorHere] = []
        self.last = 0

    @initialize(scene=scenes(), spare=st.none() | st.integers(0, 120), max_executing=st.integers(1, 2))
    def begin(self, scene: Scene, spare: int | None, max_executing: int) -> None:
        budget = None if spare is None else smallest_budget(scene.setup) + spare
        self.scene = scene
        self.bench = Bench(NodeState(budget, 0, max_executing))
        self.bench.tell(ManagerFound(0.5), scene.setup)
        self.bench.finish_all()

    @rule(count=st.integers(1, 3))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.epochs[self.last] = 1
            self.arrivals += [here(self.last, name) for name in self.scene.inputs]

    @precondition(lambda self: self.arrivals)
    @rule(data=st.data(), twice=st.booleans())
    def arrive(self, data: st.DataObject, twice: bool) -> None:
        event = self.arrivals.pop(data.draw(st.integers(0, len(self.arrivals) - 1)))
        self.bench.tell(*[event] * (1 + twice))

    @precondition(lambda self: self.bench.pending)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.bench.pending) - 1))
        step = self.bench.pending[index]
        del self.bench.pending[index]
        self.bench.finish(step)

    @precondition(lambda self: self.epochs)
    @rule(data=st.data(), again=st.booleans())
    def end(self, data: st.DataObject, again: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.epochs)))
        epoch = self.epochs.pop(number)
        self.bench.tell(Retired(number, epoch))
        if again:
            self.epochs[number] = epoch + 1
            self.arrivals += [here(number, name, epoch + 1) for name in self.scene.inputs]

    @rule(device=st.sampled_from("ab"), is_back=st.booleans())
    def lose(self, device: str, is_back: bool) -> None:
        self.bench.tell(NeighbourBack(device) if is_back else NeighbourLost(device))

    @rule(is_wanted=st.booleans())
    def look_ahead(self, is_wanted: bool) -> None:
        self.bench.node.look_ahead(is_wanted)

    @rule()
    def set_up_again(self) -> None:
        number = self.bench.node._setup + 1
        self.bench.tell(replace(self.scene.setup, number=number))

    @rule()
    def lose_the_manager(self) -> None:
        self.bench.tell(ManagerLost(), ManagerFound(0.5), self.scene.setup)
        self.epochs.clear()
        self.arrivals.clear()

    def teardown(self) -> None:
        """Whatever happened, what was not ended comes to its end."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        bench.tell(*self.arrivals, NeighbourBack("a"), NeighbourBack("b"))
        bench.finish_all()
        ids = {share.task.id for share in self.scene.setup.shares}
        for number, epoch in self.epochs.items():
            assert {partition for *item, partition in bench.ran if item == [number, epoch]} == ids
            assert {
                (name, device) for *item, name, device in bench.sent if item == [number, epoch]
            } == self.scene.wants()
        assert not bench.stored
        bench.tell(*(Retired(number, epoch) for number, epoch in self.epochs.items()))
        assert not bench.node._requests
        assert not bench.node._sendings
        assert not bench.node._runs
        assert not len(bench.node._queue)


TestLivingNode = LivingNode.TestCase
TestLivingNode.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
