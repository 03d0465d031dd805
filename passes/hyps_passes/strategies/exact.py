"""`exact`: the default. Not a published strategy but what they are measured against (`searches.exact`)."""

from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.exact import exact
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best placement, or that there is none."""
    found = exact(problem, objective, time_limit_s=settings.time_limit_s, general=settings.general)
    return Refusal("no placement keeps the limits") if found is None else found
