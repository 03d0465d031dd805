"""`branchy`: the best cut for the expected latency of a model with early exits.

Pacheco and Couto (ISCC 2020; survey, section 3.2) weigh each layer behind a side branch, and what crosses a cut there,
by the probability that a request comes so far, and find the best cut between a device and a server as a shortest path.
Edgent (Li et al., IEEE Transactions on Wireless Communications 2020) chooses exit and cut together under a deadline.
The probabilities are `Task.reach`. Any number of tensors may cross; with several servers each is tried.
"""

from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import measure_cuts
from hyps_passes.strategies.judging import first_allowed, no_server, servers
from hyps_passes.strategies.ranking import candidates_of, rank_cuts, rank_whole
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the cut of the least expected latency."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    ranked = rank_whole(problem, OBJECTIVES["latency"])
    for server in others:
        machines = (problem.entry, server)
        ranked += rank_cuts(machines, measure_cuts(problem, OBJECTIVES["latency"], machines).two())
    least = min((task.reach for task in problem.tasks), default=1.0)
    words = "best cut, no early exit in the model" if least == 1 else f"best cut, {least:.0%} of requests reach the end"
    return first_allowed(problem, objective, candidates_of(problem, ranked, words))
