"""Cuts in the order of their scores, and the placements that they stand for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.objectives import Floats, Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import measure_cuts
from hyps_passes.strategies.judging import Candidate, spell_cut

_MOST_RANKED = 1000
"""Of one order of machines; more are never looked at."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A way to cut the running order, and what its strategy thinks it costs."""

    score: float
    machines: tuple[int, ...]
    """In order, the entry first."""
    positions: tuple[int, ...]
    """How many tasks stand before each cut, one for each machine after the first."""

    def assignment(self, problem: Problem) -> Assignment:
        """Return the pipeline that it stands for."""
        tasks = range(len(problem.tasks))
        return pipeline(problem, self.machines, [sum(p <= task for p in self.positions) for task in tasks])


def rank_cuts(machines: tuple[int, ...], scores: Floats) -> list[Ranked]:
    """Return the finite scores, the smallest first and of equal ones the earliest cut; indices are cut positions."""
    flat = scores.ravel()
    order = np.argsort(flat, kind="stable")[:_MOST_RANKED]
    finite = [int(index) for index in order if np.isfinite(flat[index])]
    return [
        Ranked(float(flat[index]), machines, tuple(int(p) for p in np.unravel_index(index, scores.shape)))
        for index in finite
    ]


def rank_whole(problem: Problem, objective: Objective) -> list[Ranked]:
    """Return everything at the entry, where that is allowed."""
    score = measure_cuts(problem, objective, (problem.entry,)).none()
    return [Ranked(score, (problem.entry,), ())] if np.isfinite(score) else []


def candidates_of(problem: Problem, ranked: Iterable[Ranked], words: str) -> Iterator[Candidate]:
    """Yield the placements of cuts, the best first; `words` says of what they are the best."""
    for cut in sorted(ranked, key=lambda cut: (cut.score, len(cut.machines), cut.machines, cut.positions)):
        assignment = cut.assignment(problem)
        yield Candidate(assignment, f"{words}, {spell_cut(problem, assignment)}")
