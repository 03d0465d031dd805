"""`neurosurgeon`: the best cut that a single tensor crosses, between the device and one server.

Kang et al. (ASPLOS 2017) predict the time of each layer of a chain on the device and on the server, and the transfer
of each layer's output, and take the best of all cuts, the raw input and no cut among them. They minimise latency or
the device's energy. On a graph with branches only the places count where one tensor crosses. Early exits are not
known.
"""

import numpy as np

from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_counts, measure_cuts
from hyps_passes.strategies.judging import first_allowed, no_server, servers, without_exits
from hyps_passes.strategies.ranking import candidates_of, rank_cuts, rank_whole
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best single-tensor cut, whichever server it leads to."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    known = without_exits(problem)
    is_single = crossing_counts(problem) == 1
    is_single[0] = True
    ranked = rank_whole(known, objective)
    for server in others:
        machines = (problem.entry, server)
        scores = np.where(is_single, measure_cuts(known, objective, machines).two(), np.inf)
        ranked += rank_cuts(machines, scores)
    words = f"best of {int(is_single[1:].sum())} one-tensor cuts"
    return first_allowed(problem, objective, candidates_of(problem, ranked, words))
