"""What all strategies share: the best of their candidates by the one cost model, and the words for it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hyps.formats.quantities import format_nbytes, format_seconds
from hyps_passes.assignment import Assignment, crossing_flows, is_sound
from hyps_passes.estimate import Estimate, estimate, excesses
from hyps_passes.found import Found, Space, judge
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.strategy import Refusal


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement that a strategy considers."""

    assignment: Assignment
    rule: str
    """What makes it a candidate, in a phrase."""


def first_allowed(
    problem: Problem, objective: Objective, candidates: Iterable[Candidate], most: int = 1000
) -> Found | Refusal:
    """Return the first candidate that keeps the limits, or what is in the way of the first of all.

    Limits are the user's, not the paper's: a strategy that looks at many cuts leaves out those that break one, and a
    strategy that knows one cut alone is refused with it.

    Args:
        problem: what is to be placed.
        objective: what the placement is scored by.
        candidates: the strategy's favourite first.
        most: how many are looked at.
    """
    refusal = Refusal("it finds no placement for this cluster")
    for index, candidate in enumerate(candidates):
        if index == most:
            return Refusal(f"none of its {most} best keeps the limits; of the first, {refusal.reason}")
        found = judged(problem, objective, candidate)
        if isinstance(found, Found):
            return found
        if index == 0:
            refusal = found
    return refusal


def best_allowed(
    problem: Problem, objective: Objective, rule: Callable[[Estimate], float], candidates: Iterable[Candidate]
) -> Found | Refusal:
    """Return the candidate that is best by the strategy's own `rule` among those that keep the limits."""
    founds = [judged(problem, objective, candidate) for candidate in candidates]
    allowed = [found for found in founds if isinstance(found, Found)]
    if allowed:
        return min(allowed, key=lambda found: rule(found.estimate))
    return founds[0] if founds else Refusal("it finds no placement for this cluster")


def judged(problem: Problem, objective: Objective, candidate: Candidate) -> Found | Refusal:
    """Return a candidate with its score, or why it is none; nothing is claimed of what else there is."""
    assignment = candidate.assignment
    if not is_sound(problem, assignment):
        return Refusal(_unsound(problem, assignment))
    score, told = judge(problem, objective, assignment)
    if score < math.inf:
        reason = f"{candidate.rule}: {spell_latency(problem, told)}"
        return Found(assignment, told, score, 0.0, space_of(assignment), reason)
    broken = [(name, need, limit) for name, need, limit in excesses(problem, told, assignment) if need > limit]
    if not broken:
        return Refusal("its devices cannot reach each other")
    return Refusal("; ".join(_spell_excess(*excess) for excess in broken[:2]))


def space_of(assignment: Assignment) -> Space:
    """Return the narrowest space of placements that it surely is in: a pipeline visits no machine twice."""
    machines = [stage.machine for stage in assignment.stages]
    return "pipelines" if assignment.is_pipeline and len(set(machines)) == len(machines) else "placements"


def spell_latency(problem: Problem, told: Estimate) -> str:
    """Return where the time of one request goes: `camera 3.2 ms + links 5.1 ms + server 1.1 ms`."""
    parts = [f"{m.name} {format_seconds(s)}" for m, s in zip(problem.machines, told.busy_s, strict=True) if s]
    links = told.latency_s - told.queue_s - sum(told.busy_s)
    if told.wire_bytes and links > 0:
        parts.append(f"links {format_seconds(links)}")
    if told.queue_s:
        parts.append(f"waiting {format_seconds(told.queue_s)}")
    return " + ".join(parts)


def spell_cut(problem: Problem, assignment: Assignment) -> str:
    """Return where a pipeline is cut: `25.1 kB before fc1`, several joined by `, `; of no cut, where all of it runs."""
    crossing = crossing_flows(problem, assignment)
    cuts = []
    for hop, stage in enumerate(assignment.stages[1:]):
        nbytes = format_nbytes(sum(problem.flows[flow].nbytes for flow in crossing[hop]))
        relays = f"through {problem.machines[stage.machine].name}"
        cuts.append(f"{nbytes} before {problem.tasks[stage.tasks[0]].name}" if stage.tasks else f"{nbytes} {relays}")
    return ", ".join(cuts) if cuts else f"all on {problem.machines[assignment.stages[0].machine].name}"


def cut_tensors(problem: Problem, assignment: Assignment) -> list[str]:
    """Return the names of what travels between machines for one request, answers left out."""
    if assignment.is_pipeline:
        crossing = {flow for flows in crossing_flows(problem, assignment) for flow in flows}
        return [flow.name for index, flow in enumerate(problem.flows) if index in crossing]
    machine_of = assignment.machine_of()
    return [
        flow.name
        for flow in problem.flows
        if any(machine_of[consumer] != machine_of.get(flow.producer, problem.entry) for consumer in flow.consumers)
    ]


def without_exits(problem: Problem) -> Problem:
    """Return the problem as strategies see it that know no early exits: every request goes the whole way."""
    if all(task.reach == 1 for task in problem.tasks):
        return problem
    return replace(problem, tasks=tuple(replace(task, reach=1.0) for task in problem.tasks))


def servers(problem: Problem) -> list[int]:
    """Return the machines that a two-device strategy may send to: those that can be reached and answer."""
    return [
        machine
        for machine in range(len(problem.machines))
        if (problem.entry, machine) in problem.paths and (machine, problem.entry) in problem.paths
    ]


def no_server(problem: Problem) -> Refusal:
    """Return the refusal of a strategy that sends to another machine where there is none."""
    return Refusal(f"there is no second device that `{problem.machines[problem.entry].name}` can reach")


def latency_of(problem: Problem, assignment: Assignment) -> float:
    """Return the latency of a placement, whatever limits it breaks."""
    return estimate(problem, assignment).latency_s


def _unsound(problem: Problem, assignment: Assignment) -> str:
    for stage in assignment.stages:
        for task in stage.tasks:
            if math.isinf(problem.seconds[task][stage.machine]):
                layer, machine = problem.tasks[task].name, problem.machines[stage.machine].name
                return f"its cut puts `{layer}` on `{machine}`, which must not run it"
    return "its cut crosses a tensor that must not travel"


def _spell_excess(name: str, need: float, limit: float) -> str:
    what = name.split(" of ")[0]
    if what == "deadline":
        return f"its latency is {format_seconds(need)}, the deadline {format_seconds(limit)}"
    if what == "energy":
        return f"it takes {need:.3g} J of {limit:.3g} J"
    if what == "throughput":
        return f"it sustains {limit:.3g} requests/s of {need:.3g}"
    return f"{name}: {format_nbytes(need)} of {format_nbytes(limit)}"
