"""What a search returns: a placement, what it costs, and how far from the best it can be."""

import math
from dataclasses import dataclass
from typing import Literal

from hyps_passes.estimate import Assignment, Estimate, estimate, violations
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem

Space = Literal["pipelines", "consecutive pipelines", "placements"]
"""Over what a bound holds: all pipelines from the entry on over different machines; those among them whose stages are
consecutive in the running order; any placement of layers on machines, side by side too."""

TOLERANCE = 1e-6
"""Relative: within it a score counts as the bound."""


@dataclass(frozen=True, slots=True)
class Found:
    """A placement and the proof that goes with it."""

    assignment: Assignment
    estimate: Estimate
    score: float
    """The objective's, smaller is better."""
    bound: float
    """No placement of `space` that keeps the limits scores below; 0 where nothing is known."""
    space: Space
    reason: str
    """Why this one, in a phrase for people."""

    @property
    def gap(self) -> float:
        """By how much the score may be above the best, relative to it."""
        if self.score <= self.bound * (1 + TOLERANCE):
            return 0.0
        return self.score / self.bound - 1 if self.bound > 0 else math.inf

    @property
    def is_proven(self) -> bool:
        """Whether nothing in `space` is better."""
        return self.gap == 0.0


def judge(problem: Problem, objective: Objective, assignment: Assignment) -> tuple[float, Estimate]:
    """Return the score of a placement, infinite where it breaks a limit, and its estimate."""
    told = estimate(problem, assignment)
    return (math.inf if violations(problem, told, assignment) else objective.score(told)), told
