"""`dynamic-split`: the best of the compressive natural bottlenecks, no offloading and full offloading.

Bakhtiarnia et al. (dynamic-split, equations 3 to 6): a cut that carries no fewer bytes than an earlier one cannot be
better where the server is the faster, so only those count that carry fewer bytes than the input and than every
bottleneck before. It minimises latency; early exits are not known. With several servers each is tried.
"""

import numpy as np

from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_bytes, measure_cuts
from hyps_passes.strategies.judging import first_allowed, no_server, servers, without_exits
from hyps_passes.strategies.ranking import candidates_of, rank_cuts, rank_whole
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best place of equation 6."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    places = [0, *(task + 1 for task in compressive(problem))]
    known = without_exits(problem)
    ranked = rank_whole(known, OBJECTIVES["latency"])
    for server in others:
        scores = np.full(len(problem.tasks) + 1, np.inf)
        scores[places] = measure_cuts(known, OBJECTIVES["latency"], (problem.entry, server)).two()[places]
        ranked += rank_cuts((problem.entry, server), scores)
    count = len(places) - 1
    words = f"best of {count} compressive bottleneck{'s' * (count != 1)}, none and full offloading"
    return first_allowed(problem, objective, candidates_of(problem, ranked, words))


def compressive(problem: Problem) -> tuple[int, ...]:
    """Return the last task before each compressive natural bottleneck (equation 3), flattened layers among them."""
    nbytes = crossing_bytes(problem)
    found, smallest = [], nbytes[0]
    for position in range(1, len(problem.tasks)):
        if 0 < nbytes[position] < smallest:
            found.append(position - 1)
            smallest = nbytes[position]
    return tuple(found)
