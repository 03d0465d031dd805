"""The best placement there is, with its proof: every search that proves something, and the plain ways beside them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hyps_passes.assignment import Assignment, pipeline, single
from hyps_passes.estimate import Estimate, estimate, violations
from hyps_passes.found import TOLERANCE, Found, judge
from hyps_passes.objectives import OBJECTIVES, Floats, Objective, Terms
from hyps_passes.problem import Limits, Problem
from hyps_passes.searches.min_cut import Flows, tier_cut
from hyps_passes.searches.pipeline_dp import best_consecutive

_MOST_SEQUENCES = 400
"""Orders of machines that are cut one by one: all of up to six machines."""


def exact(problem: Problem, objective: Objective, *, time_limit_s: float = 30.0, general: bool = False) -> Found | None:
    """Return the best placement that keeps the limits; None where nothing does.

    1. Doing everything on one machine, the entry or another, is always a candidate.
    2. Where the objective is a sum, a minimum cut for every order of machines proves the best of all pipelines; without
       limits on memory and the like, and with them if it keeps them.
    3. Else consecutive pipelines are searched by dynamic program, and all pipelines by a mixed-integer program that
       starts from the best so far and tells how far from optimal it may be when the time is up.
    4. `general` also looks for placements in which branches run side by side; it starts from the best pipeline.

    Args:
        problem: layers, machines, limits.
        objective: what to make small.
        time_limit_s: of the searches that may take long, each.
        general: whether stages may run side by side and machines be visited again.
    """
    if problem.arrival_rps:
        return _with_arrivals(problem, objective, time_limit_s=time_limit_s, general=general)
    best = _plain(problem, objective)
    free, is_complete = (None, False) if objective.terms is None else _by_cuts(problem, objective)
    if is_complete and (free is None or not violations(problem, free.estimate, free.assignment)):
        best = _better(best, free)
    else:
        from hyps_passes.searches.placement import best_pipeline  # its solver takes long to load

        best = _better(best, best_consecutive(problem, objective))
        warm = None if best is None else best.assignment
        best = _better(best, best_pipeline(problem, objective, warm=warm, time_limit_s=time_limit_s))
        if best is not None and free is not None and is_complete:
            best = replace(best, bound=max(best.bound, free.bound))
    if general:
        from hyps_passes.searches.placement import best_placement

        warm = None if best is None else best.assignment
        best = _better(best, best_placement(problem, objective, warm=warm, time_limit_s=time_limit_s))
    return best


def plain_placements(problem: Problem) -> list[tuple[Assignment, str]]:
    """Return the ways to run everything on one machine, and how each is called."""
    entry = problem.machines[problem.entry].name
    found = [(single(problem, problem.entry), f"everything on {entry}: nothing is sent")]
    for index, machine in enumerate(problem.machines):
        if index != problem.entry and (problem.entry, index) in problem.paths:
            found.append((single(problem, index), f"everything on {machine.name}: only the request is sent"))
    return found


def cut_machines(problem: Problem, objective: Objective, machines: Sequence[int]) -> Found | None:
    """Return the best pipeline over exactly these machines, in this order, the first the entry; limits are not kept.

    One minimum cut; its bound holds for pipelines whose every stage but the entry's has tasks.
    """
    assert objective.terms is not None
    if not all(way in problem.paths for way in _ways(machines)):
        return None
    terms = objective.terms(problem, machines)
    found: Found | None = None
    for is_entry_empty in (False, True)[: len(machines)]:
        fixed = terms.fixed - (_entry_run(problem, objective, machines) if is_entry_empty else 0.0)
        layers = terms.layers.copy()
        layers[:, 0] = np.inf if is_entry_empty else layers[:, 0]
        for offer in _cuts(problem, objective, machines, Terms(layers, terms.hops, fixed)):
            found = offer if found is None else _both(found, offer)
    return found


def _ways(machines: Sequence[int]) -> list[tuple[int, int]]:
    """Return from where to where a pipeline over the machines must be able to send."""
    back = [(machines[-1], machines[0])] if len(machines) > 1 else []
    return [*itertools.pairwise(machines), *back]


def _cuts(problem: Problem, objective: Objective, machines: Sequence[int], terms: Terms) -> Iterator[Found]:
    """Yield cuts whose least bound holds for all pipelines that use the last machine.

    Usually one. Where the best cut leaves the last machine idle, and only its way back made it look good, a cut for
    each of the tasks that can be the last.
    """
    free = _cut(problem, objective, machines, terms)
    if free is None:
        return
    if len(free.assignment.stages) == len(machines) or free.bound >= free.score * (1 - TOLERANCE):
        yield free
        return
    yield replace(free, bound=math.inf)
    for layers in _with_a_last_task(problem, terms.layers):
        offer = _cut(problem, objective, machines, replace(terms, layers=layers))
        if offer is not None:
            yield offer


def _with_a_last_task(problem: Problem, layers: Floats) -> Iterator[Floats]:
    """Yield the terms with each task that nothing follows held in the last stage."""
    for task in range(len(problem.tasks)):
        if not any(problem.flows[flow].consumers for flow in problem.made_by.get(task, ())):
            held = layers.copy()
            held[task, :-1] = np.inf
            yield held


def _plain(problem: Problem, objective: Objective) -> Found | None:
    found = None
    for assignment, reason in plain_placements(problem):
        score, told = judge(problem, objective, assignment)
        if score < math.inf and (found is None or score < found.score):
            found = Found(assignment, told, score, 0.0, "pipelines", reason)
    return found


def _with_arrivals(problem: Problem, objective: Objective, *, time_limit_s: float, general: bool) -> Found | None:
    """Return the best where requests wait for each other that is known.

    Of consecutive pipelines the best; of all, what is best for a request alone, and what has most room. Waiting only
    adds: what is proven for a request alone bounds this as well, so that a gap may stay open.
    """
    quiet = replace(problem, arrival_rps=0.0)
    alone = exact(quiet, objective, time_limit_s=time_limit_s, general=general)
    roomy = exact(quiet, OBJECTIVES["throughput"], time_limit_s=time_limit_s, general=general)
    if alone is None or roomy is None:
        return None
    best = _better(_plain(problem, objective), best_consecutive(problem, objective))
    for found in (alone, roomy):
        score, told = judge(problem, objective, found.assignment)
        if score < math.inf and (best is None or score < best.score):
            best = Found(found.assignment, told, score, alone.bound, alone.space, found.reason)
    return None if best is None else replace(best, bound=min(alone.bound, best.score), space=alone.space)


def is_free(problem: Problem) -> bool:
    """Return whether nothing but single layers is restricted, and requests do not wait for each other."""
    machines = all(m.memory_bytes is None and m.max_share >= 1 for m in problem.machines)
    channels = all(channel.max_bytes is None for channel in problem.channels)
    return machines and channels and problem.limits == Limits() and not problem.arrival_rps


def _by_cuts(problem: Problem, objective: Objective) -> tuple[Found | None, bool]:
    """Return the best of all pipelines, limits left aside: a cut for every order of machines, and whether it is all.

    Where the orders are too many, those of the tiers are cut.
    """
    sequences = list(itertools.islice(_sequences(problem), _MOST_SEQUENCES + 1))
    is_complete = len(sequences) <= _MOST_SEQUENCES
    if not is_complete:
        sequences = list(_tier_sequences(problem))
    found: Found | None = None
    for sequence in sequences:
        offer = cut_machines(problem, objective, (problem.entry, *sequence))
        if offer is not None:
            found = offer if found is None else _both(found, offer)
    return found, is_complete


def _sequences(problem: Problem) -> Iterator[tuple[int, ...]]:
    others = [m for m in range(len(problem.machines)) if m != problem.entry]
    for count in range(len(others) + 1):
        yield from itertools.permutations(others, count)


def _tier_sequences(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Yield the subsets of machines in the order of their tiers, at most `_MOST_SEQUENCES`, the small ones first."""
    others = sorted(
        (m for m in range(len(problem.machines)) if m != problem.entry), key=lambda m: (problem.machines[m].tier, m)
    )
    subsets = (subset for count in range(len(others) + 1) for subset in itertools.combinations(others, count))
    yield from itertools.islice(subsets, _MOST_SEQUENCES)


def _cut(problem: Problem, objective: Objective, machines: Sequence[int], terms: Terms) -> Found | None:
    flows = Flows.of([f.producer for f in problem.flows], [f.consumers for f in problem.flows], terms.hops)
    cut = tier_cut(terms.layers, flows)
    if cut is None:
        return None
    assignment = pipeline(problem, machines, [int(tier) for tier in cut.tiers])
    told = estimate(problem, assignment)
    score = objective.score(told)  # limits are left aside, those of machines too: another cut must not win by them
    bound = cut.bound + float(terms.fixed[-1])
    return Found(assignment, told, score, bound, "pipelines", _reason(problem, assignment, told))


def _entry_run(problem: Problem, objective: Objective, machines: Sequence[int]) -> float:
    """Return what running a partition at the entry adds to the score, which is not due where it has no tasks."""
    assert objective.terms is not None
    quiet = [replace(m, run_s=0.0) if i == problem.entry else m for i, m in enumerate(problem.machines)]
    without = objective.terms(replace(problem, machines=tuple(quiet)), machines)
    return float(objective.terms(problem, machines).fixed[-1] - without.fixed[-1])


def _both(first: Found, second: Found) -> Found:
    """Return the better of two that each are the best of their own: the bound of both is the smaller one's."""
    better = min((first, second), key=lambda found: found.score)
    return replace(better, bound=min(first.bound, second.bound, better.score))


def _better(first: Found | None, second: Found | None) -> Found | None:
    """Return the better placement with the stronger statement on what there is: that of the later, wider search."""
    if first is None or second is None:
        return first or second
    better = first if first.score <= second.score else second
    return replace(better, bound=min(second.bound, better.score), space=second.space)


def _reason(problem: Problem, assignment: Assignment, told: Estimate) -> str:
    parts = [f"{m.name} {s * 1e3:.3g} ms" for m, s in zip(problem.machines, told.busy_s, strict=True) if s]
    links = told.latency_s - sum(told.busy_s)
    return " + ".join([*parts, *([f"links {links * 1e3:.3g} ms"] if links > 1e-9 else [])])
