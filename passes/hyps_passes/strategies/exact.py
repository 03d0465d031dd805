"""`exact`: the default. Not a published strategy but what they are measured against (`searches.exact`)."""

from dataclasses import replace

from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.exact import exact
from hyps_passes.strategies.judging import cut_tensors, spell_cut, spell_latency
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best placement, or that there is none."""
    found = exact(problem, objective, time_limit_s=settings.time_limit_s, general=settings.general)
    if found is None:
        return Refusal("no placement keeps the limits")
    if not found.assignment.is_pipeline or not cut_tensors(problem, found.assignment):
        return found
    words = "best cut" if found.is_proven else "best cut found"
    times = spell_latency(problem, found.estimate)
    return replace(found, reason=f"{words}, {spell_cut(problem, found.assignment)}: {times}")
