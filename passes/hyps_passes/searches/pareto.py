"""The Pareto front: pipelines among which nothing is better in one respect without being worse in another.

Respects are the objectives: latency, throughput, memory, energy and bytes.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.estimate import Estimate, estimate
from hyps_passes.found import Space
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import REQUEST, Problem
from hyps_passes.searches import pipeline_dp
from hyps_passes.searches.dominance import nondominated
from hyps_passes.searches.goals import Cap, Goal, amount, caps_of, goal_of, keeps
from hyps_passes.searches.pipeline_mip import search_pipelines

_MOST_STEPS = 20_000
"""Of the enumeration of all pipelines, whatever the graph; beyond, they are too many to be estimated one by one."""
_LEVELS = 8
"""Limits that are tried between the extremes of a goal where the front cannot be had whole."""


@dataclass(frozen=True, slots=True)
class Point:
    """A placement that is best at some trade between the goals."""

    assignment: Assignment
    estimate: Estimate
    scores: tuple[float, ...]
    """By objective, in the order of `OBJECTIVES`; smaller is better."""


@dataclass(frozen=True, slots=True)
class Front:
    """Placements, none of which another one of them beats."""

    points: tuple[Point, ...]
    """By rising latency."""
    space: Space
    is_complete: bool
    """Whether nothing in `space` that keeps the limits beats a point, or is at no disadvantage to all of them."""


def front(problem: Problem, *, time_limit_s: float = 30.0) -> Front:
    """Return the front of all pipelines that keep the limits, or as much of it as is found in time.

    1. Few pipelines: all are estimated.
    2. Else all consecutive ones that matter are found by dynamic program; on a chain there are no others. On a graph
       the best pipelines of each goal, and under limits between the goals' extremes, join them.
    3. Too many: the latter alone.
    """
    end = time.monotonic() + time_limit_s
    caps = caps_of(problem)
    every = _pipelines(problem)
    if every is not None:
        return Front(_points(problem, caps, every), "pipelines", True)
    goals = [goal_of(objective) for objective in OBJECTIVES.values()]
    consecutive = pipeline_dp.front(problem, goals, caps)
    if consecutive is not None and _is_chain(problem):
        return Front(_points(problem, caps, consecutive), "pipelines", True)
    sampled = list(_sampled(problem, goals, caps, end))
    points = _points(problem, caps, [*(consecutive or []), *sampled])
    return Front(points, "pipelines" if consecutive is None else "consecutive pipelines", consecutive is not None)


def _points(problem: Problem, caps: Sequence[Cap], assignments: Iterable[Assignment]) -> tuple[Point, ...]:
    goals = [goal_of(objective) for objective in OBJECTIVES.values()]
    found = []
    for assignment in assignments:
        told = estimate(problem, assignment)
        if keeps(problem, caps, told, assignment):
            found.append(Point(assignment, told, tuple(amount(problem, goal, told, assignment) for goal in goals)))
    if not found:
        return ()
    scores = np.array([[_rounded(score) for score in point.scores] for point in found])
    return tuple(sorted((found[row] for row in nondominated(scores)), key=lambda point: point.scores))


def _rounded(score: float) -> float:
    """Return the score without the digits in which sums of floats differ by their order."""
    return float(f"{score:.11e}") if math.isfinite(score) else score


def _is_chain(problem: Problem) -> bool:
    """Whether each task needs the one before it, so that all stages are consecutive."""
    following = {(flow.producer, consumer) for flow in problem.flows for consumer in flow.consumers}
    return all((task - 1, task) in following for task in range(1, len(problem.tasks)))


def _pipelines(problem: Problem) -> list[Assignment] | None:
    """Return every pipeline, those over few machines first; None where they are too many."""
    found: list[Assignment] = []
    steps = itertools.count()
    for groups in pipeline_dp.sequences(problem):
        machines = [group[0] for group in groups]
        pending: list[tuple[int, ...]] = [()]
        while pending:
            if next(steps) > _MOST_STEPS:
                return None
            stages = pending.pop()
            if len(stages) < len(problem.tasks):
                pending.extend((*stages, stage) for stage in _allowed(problem, machines, stages))
            elif len(machines) == 1 or len(machines) - 1 in stages:
                found.append(pipeline(problem, machines, stages))
    return found


def _allowed(problem: Problem, machines: Sequence[int], stages: Sequence[int]) -> list[int]:
    """Return the stages that bans, order and tensors which cannot cross allow the next task."""
    task = len(stages)
    lowest, fixed = _range(problem, stages, task)
    choices = range(lowest, len(machines))
    return [s for s in choices if math.isfinite(problem.seconds[task][machines[s]]) and fixed <= {s}]


def _range(problem: Problem, stages: Sequence[int], task: int) -> tuple[int, set[int]]:
    """Return the lowest stage that a task may be in, and those it must be in because a tensor cannot cross."""
    lowest, fixed = 0, set()
    for index in problem.used_by.get(task, ()):
        flow = problem.flows[index]
        stage = 0 if flow.producer == REQUEST else stages[flow.producer]
        lowest = max(lowest, stage)
        if not flow.can_cross:
            fixed.add(stage)
    return lowest, fixed


def _sampled(problem: Problem, goals: Sequence[Goal], caps: Sequence[Cap], end: float) -> Iterator[Assignment]:
    """Yield the best pipeline of each goal, then the best of each goal at limits on each other."""
    extremes: list[Assignment] = []
    for position, goal in enumerate(goals):
        share = (end - time.monotonic()) / (2 * (len(goals) - position))
        found = _best(problem, goal, caps, share)
        if found is not None:
            extremes.append(found)
    yield from extremes
    told = [(estimate(problem, assignment), assignment) for assignment in extremes]
    for level in _spread(_LEVELS):
        for goal, limited in itertools.permutations(goals, 2):
            amounts = [amount(problem, limited, *pair) for pair in told]
            most = min(amounts) + level * (max(amounts) - min(amounts))
            left = end - time.monotonic()
            if left <= 0:
                return
            found = _best(problem, goal, [*caps, Cap(limited, most)], min(left, left / 10 + 0.5))
            if found is not None:
                yield found


def _spread(count: int) -> list[float]:
    """Return levels between 0 and 1, those far from each other first: time may be up before the last."""
    order = sorted(range(1, count), key=lambda step: (-(step & -step), step))
    return [step / count for step in order]


def _best(problem: Problem, goal: Goal, caps: Sequence[Cap], time_limit_s: float) -> Assignment | None:
    consecutive = pipeline_dp.search(problem, goal, caps)
    warm = None if consecutive is None else consecutive.assignment
    return search_pipelines(problem, goal, caps, warm=warm, time_limit_s=time_limit_s).assignment
