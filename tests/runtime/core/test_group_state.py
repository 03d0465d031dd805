"""A group's machine, step by step; what happens in any order is in `tests/property/test_group.py`."""

from collections.abc import Callable

import pytest

from cluster_fixtures import CHAIN, NBYTES, ToyCluster, plan_of
from group_fixtures import ToyGroup, join_group
from hyps.core.group_events import Begin, Bring, GroupEvent, GroupInstruction, Made, Rebuild, StandsBelow
from hyps.core.group_state import TRANSITIONS, WAKE, GroupState, RelayState, RelayTrigger
from hyps.core.manager_events import Ended, PassOn
from hyps.core.manager_options import ManagerOptions
from hyps.core.node_events import (
    Delivered,
    Forget,
    Keep,
    Leave,
    ManagerFound,
    ManagerLost,
    NotObtained,
    Obtained,
    Retired,
    Send,
    SetUp,
    Share,
    Tell,
    TensorHere,
    ToldToDrain,
)
from hyps.core.residency import Task
from hyps.core.timings import LEAST_RUNS
from hyps.errors import InternalError
from hyps.formats.node_messages import HUB, Beat, Course, Finished, ItemFailed, Route, Started


def task(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Task:
    return Task(name, inputs, outputs, 0, 0)


class Script:
    """A group's machine that is told one thing after another."""

    def __init__(self) -> None:
        self.state = GroupState()
        self.now_s = 0.0

    def tell(self, event: GroupEvent) -> list[GroupInstruction]:
        self.now_s += 0.01
        steps = self.state.handle(self.now_s, event)
        self.state.check_invariants()
        return [step for step in steps if not (isinstance(step, Tell) and isinstance(step.message, Beat))]

    def beat(self, event: GroupEvent) -> Beat:
        self.now_s += 0.01
        (beat,) = [
            step.message
            for step in self.state.handle(self.now_s, event)
            if isinstance(step, Tell) and isinstance(step.message, Beat)
        ]
        return beat

    def begin(self) -> list[GroupInstruction]:
        """Let it have `p0` and `p2`, between which another device's partition lies."""
        self.tell(ManagerFound(0.5))
        self.tell(SET_UP)
        return [*self.tell(Obtained("p0", "d")), *self.tell(Obtained("p2", "d"))]


PARTS = (task("p0", ("x",), ("a",)), task("p2", ("b",), ("y",)))
ROUTES = (Route("a", ("other",)), Route("y", (HUB,)))
SET_UP = SetUp(1, tuple(Share(part, "d") for part in PARTS), (Course(7, ("p0", "p2"), ROUTES),), ("x", "b"), ("a", "y"))


def here(tensor: str, epoch: int = 1, course: int = 7) -> TensorHere:
    return TensorHere(5, epoch, course, tensor, NBYTES)


def test_the_manager_below_is_made_when_all_files_are_here() -> None:
    script = Script()
    script.tell(ManagerFound(0.5))
    script.tell(SET_UP)
    assert script.tell(Obtained("p0", "d")) == []
    assert script.tell(Obtained("p2", "d")) == [Rebuild(())]
    assert script.beat(StandsBelow(is_ready=True)).loaded == ("p0", "p2")


def test_tensors_are_brought_as_they_come_and_go_up_as_they_are_made() -> None:
    script = Script()
    script.begin()
    kept, begun = Keep(5, 1, "x"), Begin(1, 5, 1, frozenset({"p0", "p2"}), ("a", "y"), ())
    assert script.tell(here("x")) == [begun, kept, Bring(1, 5, 1, "x", NBYTES)]
    assert script.tell(here("x")) == []
    assert script.tell(Made(1, "a", NBYTES)) == [Keep(5, 1, "a"), Send(1, 5, 1, 7, "a", "other")]
    assert script.tell(Made(1, "a", NBYTES)) == []
    assert script.tell(Delivered(1)) == [Forget(5, 1, "a")]
    assert script.tell(here("b")) == [Keep(5, 1, "b"), Bring(1, 5, 1, "b", NBYTES)]
    assert script.tell(Made(1, "y", NBYTES)) == [Keep(5, 1, "y"), Send(2, 5, 1, 7, "y", HUB)]
    assert script.tell(Ended(1)) == [Forget(5, 1, "x"), Forget(5, 1, "b")]
    assert script.tell(Retired(5, 1)) == [Forget(5, 1, "y")]
    assert not len(script.state)
    assert not script.state.held_nbytes


def test_another_manager_below_is_given_what_came_and_nothing_goes_up_twice() -> None:
    script = Script()
    script.begin()
    script.tell(here("x"))
    script.tell(Made(1, "a", NBYTES))
    keep_b = SetUp(2, SET_UP.shares, (Course(7, ("p0", "p2"), ROUTES),), ("x",), ("a", "y"))
    again = Begin(2, 5, 1, frozenset({"p0", "p2"}), ("a", "y"), (("x", NBYTES),))
    assert script.tell(keep_b) == [Rebuild(()), again]
    assert script.tell(Made(2, "a", NBYTES)) == []
    assert script.tell(Ended(1)) == [], "what the one before says does not count"


def test_progress_below_has_the_names_of_above_and_is_told_once() -> None:
    script = Script()
    script.begin()
    script.tell(here("x", epoch=3))
    assert script.tell(PassOn(Started(1, 9, "p0"))) == [Tell(Started(5, 3, "p0"))]
    done = Finished(1, 9, "p0", 0.0, 0.1, NBYTES)
    assert script.tell(PassOn(done)) == [Tell(Finished(5, 3, "p0", 0.0, 0.1, NBYTES))]
    assert script.tell(PassOn(done)) == []
    script.tell(Ended(1))
    late = PassOn(Finished(1, 9, "p2", 0.0, 0.1, NBYTES))
    assert script.tell(late) == [Tell(Finished(5, 3, "p2", 0.0, 0.1, NBYTES))]


def test_a_failure_below_names_the_partition_above() -> None:
    script = Script()
    script.begin()
    script.tell(here("x"))
    assert script.tell(PassOn(ItemFailed(1, 1, "p2", "E_X", "no"))) == []
    told = Tell(ItemFailed(5, 1, "p2", "E_X", "no", "try"))
    assert script.tell(Ended(1, "E_X", "no", "try")) == [told, Forget(5, 1, "x")]


def test_what_comes_before_its_course_is_known_waits() -> None:
    script = Script()
    script.tell(ManagerFound(0.5))
    assert script.tell(here("x")) == [Keep(5, 1, "x")]
    script.tell(SET_UP)
    script.tell(Obtained("p0", "d"))
    steps = script.tell(Obtained("p2", "d"))
    assert steps == [Rebuild(()), Begin(1, 5, 1, frozenset({"p0", "p2"}), ("a", "y"), (("x", NBYTES),))]


def test_an_input_that_the_hub_above_has_although_it_is_made_here_is_taken() -> None:
    script = Script()
    script.tell(ManagerFound(0.5))
    inner = (task("p0", ("x",), ("a",)), task("p1", ("a",), ("y",)))
    shares = tuple(Share(part, "d") for part in inner)
    script.tell(SetUp(1, shares, (Course(7, ("p0", "p1"), (Route("y", (HUB,)),)),), ("x",), ("y",)))
    script.tell(Obtained("p0", "d"))
    script.tell(Obtained("p1", "d"))
    assert Bring(1, 5, 1, "a", NBYTES) in script.tell(here("a"))


def test_a_partition_that_reads_nothing_is_woken_by_any_tensor() -> None:
    script = Script()
    script.tell(ManagerFound(0.5))
    source = Share(task("p0", (), ("a",)), "d")
    script.tell(SetUp(1, (source,), (Course(7, ("p0",), (Route("a", (HUB,)),)),), (), ("a",)))
    script.tell(Obtained("p0", "d"))
    assert script.tell(here("x")) == [Begin(1, 5, 1, frozenset({"p0"}), ("a",), ((WAKE, 0),))]


def test_files_that_cannot_be_had_and_nodes_that_cannot_hold_them_are_refusals() -> None:
    script = Script()
    script.tell(ManagerFound(0.5))
    script.tell(SET_UP)
    script.tell(Obtained("p0", "d"))
    assert script.beat(NotObtained("p2", "tampered", "d")).refused == (("p2", "tampered"),)
    script.tell(ManagerLost())
    script.begin()
    beat = script.beat(StandsBelow(is_ready=False, refusal="too little memory"))
    assert beat.refused == (("p0", "too little memory"), ("p2", "too little memory"))


@pytest.mark.parametrize("begin", [lambda _script: None, Script.begin], ids=["joining", "serving"])
def test_a_group_that_is_told_to_leave_leaves(begin: Callable[[Script], object]) -> None:
    script = Script()
    begin(script)
    steps = script.tell(ToldToDrain())
    if not any(isinstance(step, Leave) for step in steps):
        steps = script.tell(SetUp(9))
    assert Leave() in steps


def test_an_impossible_change_is_a_bug() -> None:
    assert (RelayState.OVER, RelayTrigger.GIVEN) not in TRANSITIONS
    script = Script()
    script.begin()
    script.tell(here("x"))
    with pytest.raises(InternalError, match="was given and then given"):
        script.state._requests[5].move(RelayTrigger.GIVEN)


def started(**fails: tuple[str, str]) -> tuple[ToyCluster, ToyGroup]:
    """Return a manager whose only device is a group, whose first node cannot run some partitions."""
    plan = plan_of(CHAIN, dict.fromkeys(("p0", "p1", "p2"), "g"), outputs=("y",))
    cluster = ToyCluster(plan, ManagerOptions(gather_s=0.5, patience_s=1000.0))
    group = join_group(cluster, "g")
    cluster.wait(3.0)
    for node in group.below.nodes.values():
        node.fails = dict(fails) if node.device == "i0" or "E_X" in str(fails) else {}
    return cluster, group


def test_why_a_partition_fails_below_comes_to_the_client() -> None:
    cluster, group = started(p1=("E_X", "division by zero"))
    cluster.submit(1, "r")
    cluster.run()
    assert (cluster.failures[1, "r"].code, cluster.failures[1, "r"].message) == ("E_X", "division by zero")
    assert not cluster.manager.waiting_again
    cluster.wait(1.0)
    assert not len(group.state)


def test_predicted_and_measured_times_are_the_group_s_above() -> None:
    cluster, _group = started()
    for number in range(LEAST_RUNS):
        cluster.submit(1, f"r{number}")
    cluster.wait(1.0)
    assert len(cluster.answers) == LEAST_RUNS
    watches = cluster.manager.network.watches
    assert all(watch.run.n == LEAST_RUNS for watch in watches.values())
    assert cluster.manager.network.timings.measured_s("p1", "g") == pytest.approx(0.01)
