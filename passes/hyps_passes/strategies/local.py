"""`local`: nothing leaves the device at which requests arise."""

from hyps_passes.assignment import single
from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.judging import Candidate, judged
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return everything at the entry."""
    return judged(problem, objective, Candidate(single(problem, problem.entry), "nothing is sent"))
