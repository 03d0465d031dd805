"""A request that is begun anew goes on from what the hub has: also with tensors that the node itself would make."""

from hyps.core.node_events import (
    Execute,
    Executed,
    Keep,
    Load,
    Loaded,
    ManagerFound,
    ManagerLost,
    NodeEvent,
    NodeInstruction,
    Obtain,
    Obtained,
    Send,
    SetUp,
    Share,
    TensorHere,
)
from hyps.core.node_state import NodeState
from hyps.core.residency import Task
from hyps.formats.node_messages import HUB, Course, Route

_FIRST, _SECOND = Task("first", ("x",), ("a",)), Task("second", ("a",), ("b",))
_COURSE = Course(7, ("first", "second"), (Route("a", ("other",)), Route("b", (HUB,))))
_SETUP = SetUp(1, (Share(_FIRST), Share(_SECOND)), (_COURSE,), ("x",), ("a", "b"))


def _tell(node: NodeState, *events: NodeEvent) -> list[NodeInstruction]:
    """Tell a node what happens; whatever it obtains or loads is there at once."""
    steps = [step for event in events for step in node.handle(1.0, event)]
    for step in list(steps):
        if isinstance(step, Obtain):
            steps += _tell(node, Obtained(step.partition, step.digest))
        if isinstance(step, Load):
            steps += _tell(node, Loaded(step.partition, step.digest))
    node.check_invariants()
    return steps


def _node() -> NodeState:
    node = NodeState()
    _tell(node, ManagerFound(0.5), _SETUP)
    return node


def _runs(steps: list[NodeInstruction]) -> list[str]:
    return [step.partition for step in steps if isinstance(step, Execute)]


def test_what_the_hub_has_is_computed_with_although_it_is_made_here() -> None:
    node = _node()

    steps = _tell(node, TensorHere(3, 2, 7, "a", 4))

    assert Keep(3, 2, "a") in steps
    assert _runs(steps) == ["second"]


def test_what_came_from_the_hub_is_neither_kept_nor_sent_again_when_it_is_made() -> None:
    node = _node()
    steps = _tell(node, TensorHere(3, 2, 7, "x", 4), TensorHere(3, 2, 7, "a", 4))
    assert _runs(steps) == ["first"]

    steps = _tell(node, Executed(1, (("a", 4),), 0.1))

    assert _runs(steps) == ["second"]
    assert not [step for step in steps if isinstance(step, Keep | Send)]


def test_what_came_before_its_course_was_known_is_computed_with_although_it_is_made_here() -> None:
    node = NodeState()
    _tell(node, ManagerFound(0.5), TensorHere(3, 2, 7, "a", 4))

    assert _runs(_tell(node, _SETUP)) == ["second"]


def test_a_node_is_held_up_while_it_computes_for_a_manager_that_is_gone() -> None:
    node = _node()
    _tell(node, TensorHere(3, 1, 7, "x", 4))
    assert not node.is_held_up, "it computes for the manager that it has"

    _tell(node, ManagerLost())
    assert node.is_held_up

    _tell(node, Executed(1, (("a", 4),), 0.1))
    assert not node.is_held_up
