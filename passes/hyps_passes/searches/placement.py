"""Placements under any limits, by mixed-integer programs with a time limit: the best, and how far off it can be."""

from hyps_passes.assignment import Assignment
from hyps_passes.estimate import estimate
from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.goals import caps_of, goal_of
from hyps_passes.searches.pipeline_mip import search_pipelines
from hyps_passes.searches.placement_mip import search_placements


def best_pipeline(
    problem: Problem, objective: Objective, *, warm: Assignment | None = None, time_limit_s: float = 30.0
) -> Found | None:
    """Return the best pipeline that keeps the limits, or None where none was found.

    Args:
        problem: what to place.
        objective: what to make small.
        warm: a placement to begin from; what is returned is never worse.
        time_limit_s: when to stop; the bound then tells what is left open.
    """
    best = search_pipelines(problem, goal_of(objective), caps_of(problem), warm=warm, time_limit_s=time_limit_s)
    if best.assignment is None:
        return None
    told = estimate(problem, best.assignment)
    reason = f"the best in {len(best.assignment.stages)} stages, by mixed-integer program"
    return Found(best.assignment, told, best.score, best.bound, "pipelines", reason)


def best_placement(
    problem: Problem, objective: Objective, *, warm: Assignment | None = None, time_limit_s: float = 30.0
) -> Found | None:
    """Return the best placement that keeps the limits, branches side by side where that gains, or None: none found.

    Args:
        problem: what to place.
        objective: what to make small.
        warm: a placement to begin from, pipelines too; what is returned is never worse.
        time_limit_s: when to stop; the bound then tells what is left open.
    """
    best = search_placements(problem, goal_of(objective), caps_of(problem), warm=warm, time_limit_s=time_limit_s)
    if best.assignment is None:
        return None
    told = estimate(problem, best.assignment)
    reason = f"the best found in {len(best.assignment.stages)} partitions, by mixed-integer program and moves"
    return Found(best.assignment, told, best.score, best.bound, "placements", reason)
