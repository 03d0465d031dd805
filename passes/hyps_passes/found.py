"""What a search returns: a placement, what it costs, and how far from the best it can be."""

import math
from dataclasses import dataclass
from typing import Literal

from hyps_passes.assignment import Assignment
from hyps_passes.estimate import Estimate, estimate, violations
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem

Space = Literal["pipelines", "consecutive pipelines", "replicated pipelines", "placements"]
"""Over what a bound holds: all pipelines from the entry on over different machines, some of which may only pass on what
they get; those among them whose stages are consecutive in the running order; the latter, where each stage may run on
several machines; any machine for each task, tensors sent straight to their consumers and what is independent side by
side (`estimate.placed`)."""

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
    """Return the score of a placement, infinite where it breaks a limit or a tensor has no way, and its estimate."""
    told = estimate(problem, assignment)
    is_cut_off = math.isinf(told.latency_s) and not math.isinf(told.queue_s)
    is_broken = is_cut_off or violations(problem, told, assignment)
    return (math.inf if is_broken else objective.score(told)), told
