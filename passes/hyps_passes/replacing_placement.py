"""A placement of partitions as they are: machines for each, what it costs, and what has to be moved for it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hyps_passes.assignment import Assignment, Stage
from hyps_passes.estimate import Estimate, estimate, violations
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem

Placement = tuple[tuple[int, ...], ...]
"""By task the machines that run it; the first is the one that a request alone goes to."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A placement and what it costs."""

    placement: Placement
    score: float
    """The objective's, smaller is better; infinite where it breaks a limit."""
    moved_bytes: int
    """Of weights that machines need and do not hold."""
    estimate: Estimate
    reason: str
    """How it was found, in a phrase for people."""


class Judge:
    """Tells what placements of one problem cost, and remembers what it told."""

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        held: Sequence[Sequence[int]],
        alone: frozenset[int] = frozenset(),
    ) -> None:
        self.alone = alone
        """Machines that are never one of several that run a task."""
        self.problem = problem
        self.objective = objective
        self.held = [dict(key for task in tasks for key in problem.tasks[task].weights) for tasks in held]
        """By machine, what it holds: bytes by the weights' identity."""
        self._seen: dict[Placement, Judged] = {}

    def judged(self, placement: Placement, reason: str = "") -> Judged:
        """Return what a placement costs."""
        if placement not in self._seen:
            assignment = assignment_of(placement)
            told = estimate(self.problem, assignment)
            is_cut_off = math.isinf(told.latency_s)
            is_split = any(len(machines) > 1 and not self.alone.isdisjoint(machines) for machines in placement)
            is_broken = is_cut_off or is_split or bool(violations(self.problem, told, assignment))
            score = math.inf if is_broken else self.objective.score(told)
            self._seen[placement] = Judged(placement, score, self.moved_bytes(placement), told, reason)
        return self._seen[placement]

    def unlimited(self, placement: Placement, reason: str) -> Judged:
        """Return what a placement costs whose devices lack memory: what loading in turn takes is left out."""
        told = estimate(self.problem, assignment_of(placement))
        score = math.inf if math.isinf(told.latency_s) else self.objective.score(told)
        return Judged(placement, score, self.moved_bytes(placement), told, reason)

    def moved_bytes(self, placement: Placement) -> int:
        """Return the bytes of the weights that machines need for a placement and do not hold."""
        needed: list[dict[int, int]] = [{} for _ in self.problem.machines]
        for task, machines in enumerate(placement):
            for machine in machines:
                needed[machine].update(self.problem.tasks[task].weights)
        return sum(
            nbytes
            for machine, weights in enumerate(needed)
            for key, nbytes in weights.items()
            if key not in self.held[machine]
        )


def assignment_of(placement: Placement) -> Assignment:
    """Return the placement as stages: a partition is one, but neighbours that are replicated together run together."""
    stages = []
    for machines, run in itertools.groupby(range(len(placement)), key=placement.__getitem__):
        tasks = tuple(run)
        stages += [Stage(machines, tasks)] if len(machines) > 1 else [Stage(machines, (task,)) for task in tasks]
    return Assignment(tuple(stages), is_pipeline=False)


def placement_of(count: int, stages: Sequence[tuple[tuple[int, ...], int, int]]) -> Placement:
    """Return the placement of so many tasks that consecutive stages make: machines, beginning and end of each."""
    found: list[tuple[int, ...]] = [()] * count
    for machines, start, end in stages:
        found[start:end] = [machines] * (end - start)
    return tuple(found)
