"""Brute force over placements, and limits that some of them keep: what searches are held against."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from hyps_passes.assignment import Assignment, Stage, is_sound
from hyps_passes.estimate import estimate, placed
from hyps_passes.found import judge
from hyps_passes.objectives import Objective
from hyps_passes.problem import Limits, Problem
from problem_fixtures import all_pipelines


def all_consecutive(problem: Problem) -> Iterator[Assignment]:
    """Yield every pipeline of consecutive stages over different machines."""
    for assignment in all_pipelines(problem):
        tasks = [task for stage in assignment.stages for task in stage.tasks]
        if tasks == sorted(tasks):
            yield assignment


def all_replicated(problem: Problem) -> Iterator[Assignment]:
    """Yield every pipeline of consecutive stages that each run on any machines which no other stage runs on."""
    machines = range(len(problem.machines))
    groups = [g for n in range(1, len(machines) + 1) for g in itertools.permutations(machines, n) if _rises(g[1:])]
    for assignment in _sequences(problem, groups):
        used = [m for index, stage in enumerate(assignment.stages) if index or stage.tasks for m in stage.machines]
        if len(used) == len(set(used)) and is_sound(problem, assignment):
            yield assignment


def _rises(machines: tuple[int, ...]) -> bool:
    return list(machines) == sorted(machines)


def _sequences(problem: Problem, groups: list[tuple[int, ...]]) -> Iterator[Assignment]:
    count = len(problem.tasks)
    for stages in range(1, len(problem.machines) + 2):
        for cuts in itertools.combinations_with_replacement(range(count), stages - 1):
            members = [tuple(range(a, b)) for a, b in itertools.pairwise((0, *cuts, count))]
            for chosen in itertools.product(groups, repeat=stages):
                body = tuple(Stage(g, tasks) for g, tasks in zip(chosen, members, strict=True))
                if problem.entry == chosen[0][0]:
                    yield Assignment(body)
                elif members[0] and all(problem.entry != group[0] for group in chosen):
                    yield Assignment((Stage((problem.entry,), ()), *body))


def all_placements(problem: Problem) -> Iterator[Assignment]:
    """Yield the placement that `placed` makes of every choice of a machine for each task."""
    choices = [problem.allowed(task) for task in range(len(problem.tasks))]
    for machine_of in itertools.product(*choices):
        assignment = placed(problem, machine_of)
        if is_sound(problem, assignment):
            yield assignment


def least_score(problem: Problem, objective: Objective, assignments: Iterable[Assignment]) -> float:
    """Return the best score of any of them; infinite where none keeps the limits."""
    return min((judge(problem, objective, assignment)[0] for assignment in assignments), default=math.inf)


def with_random_limits(
    rng: np.random.Generator, problem: Problem, examples: list[Assignment], *, share: float = 0.35
) -> Problem:
    """Return the problem with limits near what some of the placements need, on that share of what can be limited.

    Some bind, some cannot be kept together.
    """
    if not examples:
        return problem
    told = [estimate(problem, examples[int(i)]) for i in rng.integers(len(examples), size=6)]
    told = [e for e in told if math.isfinite(e.latency_s)]
    if not told:
        return problem

    def of(amounts: list[float]) -> float | None:
        return float(rng.choice(amounts)) if rng.random() < share else None

    deadline, joules, wire = (of([getattr(e, name) for e in told]) for name in ("latency_s", "joules", "wire_bytes"))
    throughput = of([e.throughput_rps for e in told])
    machines = []
    for index, machine in enumerate(problem.machines):
        memory = of([e.peak_bytes[index] for e in told])
        share = float(rng.random()) if rng.random() < 0.15 else 1.0
        base = int(rng.integers(0, 300))
        machines.append(
            replace(
                machine, memory_bytes=None if memory is None else int(memory) + base, max_share=share, base_bytes=base
            )
        )
    channels = []
    for index, channel in enumerate(problem.channels):
        most = of([e.channel_bytes[index] for e in told]) if rng.random() < 0.3 else None
        channels.append(replace(channel, max_bytes=None if most is None else int(most)))
    limits = Limits(
        deadline_s=deadline,
        joules=joules,
        wire_bytes=None if wire is None else int(wire),
        throughput_rps=throughput,
        peak_bytes=None,
    )
    return replace(problem, machines=tuple(machines), channels=tuple(channels), limits=limits)
