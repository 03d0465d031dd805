"""`remote`: everything on one other device, whichever is best by the objective; the request's tensors are sent."""

from hyps_passes.assignment import single
from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.judging import Candidate, best_allowed, no_server, servers
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return everything on the best server."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    candidates = [Candidate(single(problem, machine), "only the request is sent") for machine in others]
    return best_allowed(problem, objective, objective.score, candidates)
