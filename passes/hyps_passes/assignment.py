"""Which task runs in which partition on which machine: placements, how they are made, when they are sound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hyps_passes.problem import REQUEST, Problem


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that run as one partition."""

    machines: tuple[int, ...]
    """Where it runs; of several, each takes the requests that come while the others are busy."""
    tasks: tuple[int, ...]
    """Ascending. None: the stage only passes on what it gets, which takes a run as well, but not at the entry."""

    @property
    def machine(self) -> int:
        """The machine that a request alone in the cluster goes to."""
        return self.machines[0]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which task runs in which partition, on which machine."""

    stages: tuple[Stage, ...]
    """In an order in which they can run."""
    is_pipeline: bool = True
    """Whether each stage hands on to the next all that later stages need, beginning at the entry, so that nothing of
    one request overlaps; else each tensor goes straight to its consumers when its stage ends, and stages that do not
    need each other run side by side."""

    def machine_of(self) -> dict[int, int]:
        """Return the machine of each task."""
        return {task: stage.machine for stage in self.stages for task in stage.tasks}


def pipeline(problem: Problem, machines: Sequence[int], stage_of: Sequence[int]) -> Assignment:
    """Return the assignment that runs each task in stage `stage_of[task]`, on `machines[stage]`; stage 0 at the entry.

    Stages without tasks at the end are left out.
    """
    members: list[list[int]] = [[] for _ in machines]
    for task, stage in enumerate(stage_of):
        members[stage].append(task)
    while len(members) > 1 and not members[-1]:
        members.pop()
    assert machines[0] == problem.entry, "a pipeline begins at the entry"
    return Assignment(tuple(Stage((m,), tuple(tasks)) for m, tasks in zip(machines, members, strict=False)))


def single(problem: Problem, machine: int) -> Assignment:
    """Return the assignment that runs everything on one machine."""
    everything = Stage((machine,), tuple(range(len(problem.tasks))))
    return Assignment((everything,) if machine == problem.entry else (Stage((problem.entry,), ()), everything))


def stages_by_level(problem: Problem, machine_of: Sequence[int]) -> tuple[Stage, ...]:
    """Return the fewest stages: a new one only where the way to a task has left its machine."""
    level = [0] * len(problem.tasks)
    for task in range(len(problem.tasks)):
        for index in problem.used_by.get(task, ()):
            producer = problem.flows[index].producer
            if producer != REQUEST:
                level[task] = max(level[task], level[producer] + (machine_of[producer] != machine_of[task]))
    keys = sorted({(level[task], machine_of[task]) for task in range(len(problem.tasks))})
    members: dict[tuple[int, int], list[int]] = {key: [] for key in keys}
    for task in range(len(problem.tasks)):
        members[level[task], machine_of[task]].append(task)
    return tuple(Stage((machine,), tuple(members[level_, machine])) for level_, machine in keys)


def stages_by_export(problem: Problem, machine_of: Sequence[int]) -> tuple[Stage, ...]:
    """Return stages of consecutive tasks of a machine that receive only at their beginning, send only at their end."""
    sends = {
        f.producer for f in problem.flows for c in f.consumers if f.producer >= 0 and _differ(machine_of, f.producer, c)
    }
    receives = {c for f in problem.flows for c in f.consumers if f.producer >= 0 and _differ(machine_of, f.producer, c)}
    runs: dict[int, list[list[int]]] = {}
    for task, machine in enumerate(machine_of):
        own = runs.setdefault(machine, [])
        if not own or task in receives or own[-1][-1] in sends:
            own.append([])
        own[-1].append(task)
    stages = [Stage((machine,), tuple(run)) for machine, own in runs.items() for run in own]
    return tuple(sorted(stages, key=lambda stage: stage.tasks[0]))


def _differ(machine_of: Sequence[int], producer: int, consumer: int) -> bool:
    return machine_of[producer] != machine_of[consumer]


def is_sound(problem: Problem, assignment: Assignment) -> bool:
    """Return whether each task stands in one stage on machines that may run it, behind the stages that it needs."""
    stage_of = {task: index for index, stage in enumerate(assignment.stages) for task in stage.tasks}
    if sorted(stage_of) != list(range(len(problem.tasks))) or sum(len(s.tasks) for s in assignment.stages) != len(
        stage_of
    ):
        return False
    if any(
        math.isinf(problem.seconds[task][machine])
        for stage in assignment.stages
        for machine in stage.machines
        for task in stage.tasks
    ):
        return False
    for flow in problem.flows:
        first = stage_of[flow.producer] if flow.producer != REQUEST else -1
        stages = {stage_of[consumer] for consumer in flow.consumers}
        if any(stage < first for stage in stages):
            return False
        if not flow.can_cross and first >= 0 and stages - {first}:
            return False
    return True


def tasks_on(assignment: Assignment, machine: int) -> list[int]:
    """Return what runs on a machine, stage by stage."""
    return [task for stage in assignment.stages if machine in stage.machines for task in stage.tasks]


def stage_name(problem: Problem, stage: Stage) -> str:
    """Return how a stage is called: `conv1 .. pool3`."""
    if not stage.tasks:
        return "relay"
    first, last = problem.tasks[stage.tasks[0]].name, problem.tasks[stage.tasks[-1]].name
    return first if first == last else f"{first} .. {last}"


def crossing_flows(problem: Problem, assignment: Assignment) -> list[list[int]]:
    """Return the flows that each stage of a pipeline hands to the next."""
    stage_of = {task: index for index, stage in enumerate(assignment.stages) for task in stage.tasks}
    crossing: list[list[int]] = [[] for _ in assignment.stages]
    for index, flow in enumerate(problem.flows):
        first = stage_of.get(flow.producer, 0)
        last = max((stage_of[consumer] for consumer in flow.consumers), default=first)
        for hop in range(first, last):
            crossing[hop].append(index)
    return crossing
