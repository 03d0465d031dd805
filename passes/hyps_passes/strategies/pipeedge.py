"""`pipeedge`: the pipeline of consecutive layers with the highest throughput over unlike devices, with their memory.

Hu et al. (PipeEdge, DSD 2022) find it by a dynamic program over the layers done, the devices used and the device that
is next; the stage or transfer that takes longest sets the throughput. The search is `searches.pipeline_dp`.
"""

from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.pipeline_dp import best_consecutive
from hyps_passes.strategies.judging import Candidate, judged, spell_cut
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the pipeline of the highest throughput."""
    found = best_consecutive(problem, OBJECTIVES["throughput"])
    if found is None:
        return Refusal("no pipeline of consecutive layers keeps the limits")
    words = f"{found.estimate.bottleneck} is busiest, {spell_cut(problem, found.assignment)}"
    return judged(problem, objective, Candidate(found.assignment, words))
