"""What a node knows of a request: which of its work items are where, and which tensors are here for whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyps.core.holdings import Holdings
from hyps.core.worker_state import TRANSITIONS, TaskState, Trigger
from hyps.errors import InternalError, printable
from hyps.formats.node_messages import Course

ITEM_TRANSITIONS: Mapping[tuple[TaskState, Trigger], TaskState] = {
    **TRANSITIONS,
    (TaskState.READY, Trigger.EXECUTE_FAILED): TaskState.FAILED,
}
"""Every change of a work item's state: a worker's, and that of an item whose partition cannot be had."""


@dataclass(frozen=True, slots=True)
class NodePath:
    """A course as the machine needs it, worked out once."""

    course: Course
    inputs: dict[str, tuple[str, ...]]
    """The different inputs of each partition."""
    consumers: dict[str, tuple[str, ...]]
    """The partitions here that read a tensor."""
    targets: dict[str, tuple[str, ...]]
    """The devices that want a tensor."""

    def uses(self, tensor: str) -> int:
        """Return how many partitions here read a tensor and how many devices get it."""
        return len(self.consumers.get(tensor, ())) + len(self.targets.get(tensor, ()))


@dataclass(slots=True, eq=False)
class NodeRequest:
    """What there is of a request in one epoch."""

    number: int
    epoch: int
    course: int
    since_s: float
    path: NodePath | None = None
    """None: its course is not known yet."""
    states: dict[str, TaskState] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    """Of each tensor that is here: partitions that will read it, and devices that have it to get."""
    held: dict[str, int] = field(default_factory=dict)
    """Bytes of each tensor that is stored."""
    arrived: set[str] = field(default_factory=set)
    """Every tensor that ever was."""
    sendings: set[int] = field(default_factory=set)
    story: list[tuple[str, Trigger]] = field(default_factory=list)

    def move(self, partition: str, trigger: Trigger) -> None:
        """Change a work item's state; the only place where one changes."""
        before = self.states[partition]
        after = ITEM_TRANSITIONS.get((before, trigger))
        self.story.append((partition, trigger))
        if after is None:
            story = printable("; ".join(f"{name}: {what.value}" for name, what in self.story[-20:]), 600)
            raise InternalError(f"a work item of `{printable(partition)}` was {before} and then {trigger} ({story})")
        self.states[partition] = after


def path_of(course: Course, holdings: Holdings) -> NodePath:
    """Return a course of partitions that are held, as the machine needs it."""
    unknown = [partition for partition in course.partitions if partition not in holdings]
    if unknown:
        raise InternalError(f"course {course.id} has partitions that the setup has not: {printable(str(unknown))}")
    tasks = [holdings[partition].share.task for partition in course.partitions]
    inputs = {task.id: tuple(dict.fromkeys(task.inputs)) for task in tasks}
    made = frozenset(name for task in tasks for name in task.outputs)
    consumers: dict[str, list[str]] = {}
    for task in tasks:
        for name in inputs[task.id]:
            consumers.setdefault(name, []).append(task.id)
    return NodePath(
        course=course,
        inputs=inputs,
        consumers={name: tuple(users) for name, users in consumers.items()},
        targets={route.tensor: tuple(dict.fromkeys(route.devices)) for route in course.routes if route.tensor in made},
    )
