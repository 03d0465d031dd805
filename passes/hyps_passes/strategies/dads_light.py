"""`dads-light`: the cut of the graph between the device and one server with the least latency.

Hu et al. (DADS, INFOCOM 2019; survey, section 3.1): under light load the latency of one request is a sum over layers
and over the tensors that cross, each paid once, so that a minimum s-t cut of the graph is the optimum, branches
included. No cut and full offloading are among the cuts. With several servers each is tried. Early exits are not known.
"""

from hyps_passes.assignment import Assignment, single
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.exact import cut_machines
from hyps_passes.strategies.judging import (
    Candidate,
    first_allowed,
    latency_of,
    no_server,
    servers,
    spell_cut,
    without_exits,
)
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the minimum cut, whichever server it leads to."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    known = without_exits(problem)
    offers: list[Assignment] = [single(problem, machine) for machine in (problem.entry, *others)]
    for server in others:
        cut = cut_machines(known, OBJECTIVES["latency"], (problem.entry, server))
        if cut is not None:
            offers.append(cut.assignment)
    offers.sort(key=lambda assignment: latency_of(known, assignment))
    candidates = (Candidate(offer, f"minimum cut for latency, {spell_cut(problem, offer)}") for offer in offers)
    return first_allowed(problem, objective, candidates)
