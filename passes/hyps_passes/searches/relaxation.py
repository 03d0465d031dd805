"""Constraints that cannot be met: which one is in the way, and by how little it would have to give.

One limit after another is left out, and what it limits made as small as the others allow. Where no single one is
enough, a smallest set is looked for whose limits must give way together.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyps.errors import printable
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps_passes.estimate import estimate
from hyps_passes.objectives import Objective
from hyps_passes.problem import REQUEST, Flow, Problem
from hyps_passes.searches.goals import Cap, Goal, caps_of, goal_name
from hyps_passes.searches.pipeline_dp import search
from hyps_passes.searches.pipeline_mip import Best, search_pipelines

_ROUND_UP = 1 + 5e-3
"""What numbers in a message are more than needed at most, so that three digits of them are enough."""


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What would have to be allowed."""

    message: str
    """One sentence that names what is in the way."""
    hint: str
    """What to do about it."""
    gives: tuple[Cap, ...] = ()
    """The least new limits, together, with which there is a placement; empty where no limit is in the way."""
    alternatives: tuple[Cap, ...] = ()
    """Other single limits that would do instead."""
    is_proven: bool = True
    """Whether anything tighter is impossible; else it is the least that was found in time."""

    def relaxed(self, problem: Problem) -> Problem:
        """Return the problem with the new limits."""
        for cap in self.gives:
            problem = with_cap(problem, cap)
        return problem


def relaxations(problem: Problem, objective: Objective, *, time_limit_s: float = 30.0) -> Relaxation | None:
    """Return why no pipeline keeps the constraints, and the smallest relaxation; None where one does.

    Args:
        problem: what cannot be placed.
        objective: what was to be made small: among relaxations, one that the objective itself limits comes first.
        time_limit_s: when to stop; what is told then is what was found so far.
    """
    end = time.monotonic() + time_limit_s
    if problem.arrival_rps:
        quiet = replace(problem, arrival_rps=0.0)
        return relaxations(quiet, objective, time_limit_s=time_limit_s) or _too_many(problem, quiet, end)
    caps = caps_of(problem)
    if _least(problem, Goal("bytes"), caps, end).assignment is not None:
        return None
    stuck = _stuck(problem)
    if stuck is not None:
        return stuck
    if _least(problem, Goal("bytes"), (), end).assignment is None:
        return _unordered()
    singles = [(cap, best) for cap in caps if (best := _least(problem, cap.goal, _without(caps, cap), end)).assignment]
    if singles:
        return _single(problem, objective, singles)
    return _together(problem, caps, end)


def with_cap(problem: Problem, cap: Cap) -> Problem:
    """Return the problem with another limit on the same amount."""
    limits, index = problem.limits, cap.goal.index
    machines, channels = list(problem.machines), list(problem.channels)
    match cap.goal.kind:
        case "latency":
            limits = replace(limits, deadline_s=cap.most)
        case "energy":
            limits = replace(limits, joules=cap.most)
        case "bytes":
            limits = replace(limits, wire_bytes=math.floor(cap.most))
        case "throughput":
            limits = replace(limits, throughput_rps=1 / cap.most if cap.most else math.inf)
        case "memory":
            limits = replace(limits, peak_bytes=math.floor(cap.most))
        case "memory of":
            for own, machine in enumerate(machines):  # a limit on all machines becomes one on each
                tightest = min(
                    (most for most in (machine.memory_bytes, limits.peak_bytes) if most is not None), default=None
                )
                machines[own] = replace(machine, memory_bytes=math.floor(cap.most) if own == index else tightest)
            limits = replace(limits, peak_bytes=None)
        case "share of":
            machines[index] = replace(machines[index], max_share=min(1.0, cap.most / problem.weight_bytes))
        case "bytes of":
            channels[index] = replace(channels[index], max_bytes=math.floor(cap.most))
    return replace(problem, limits=limits, machines=tuple(machines), channels=tuple(channels))


def _without(caps: Sequence[Cap], left_out: Cap) -> tuple[Cap, ...]:
    return tuple(cap for cap in caps if cap is not left_out)


def _least(problem: Problem, goal: Goal, caps: Sequence[Cap], end: float) -> Best:
    """Return the pipeline that needs the least of something under limits."""
    consecutive = search(problem, goal, caps)
    warm = None if consecutive is None else consecutive.assignment
    return search_pipelines(problem, goal, caps, warm=warm, time_limit_s=max(0.0, end - time.monotonic()))


def _too_many(problem: Problem, quiet: Problem, end: float) -> Relaxation:
    """Tell of arrivals that nothing can keep up with, or that make requests wait too long."""
    most = _least(quiet, Goal("throughput"), caps_of(quiet), end)
    assert most.assignment is not None, "something keeps the limits where nothing arrives"
    sustained = estimate(quiet, most.assignment).throughput_rps
    shown = f"{problem.arrival_rps:.4g} requests/s arrive"
    if sustained <= problem.arrival_rps:
        found = "" if _is_proven(most) else " found"
        message = f"{shown}: the most{found} that can be sustained is {sustained:.4g} requests/s"
    else:
        message = f"{shown}: while requests wait for each other, no placement that was found keeps the limits"
    return Relaxation(message, "lower `arrival`, or raise the limits", is_proven=False)


def _single(problem: Problem, objective: Objective, singles: Sequence[tuple[Cap, Best]]) -> Relaxation:
    """Tell of the limit that must give the least, relative to itself; of equals, of what the objective is about."""

    def order(option: tuple[Cap, Best]) -> tuple[float, bool]:
        cap, best = option
        return (best.score / cap.most if cap.most > 0 else math.inf, cap.goal.kind != objective.name)

    ordered = sorted(singles, key=order)
    (cap, best), *others = ordered
    found = "" if _is_proven(best) else " found"
    message = f"{_limit_text(problem, cap)}: {_least_text(problem, cap.goal, best.score, found)}"
    gives = Cap(cap.goal, best.score)
    alternatives = tuple(Cap(other.goal, offer.score) for other, offer in others)
    hint = " or ".join(_advice(problem, told) for told in (gives, *alternatives[:2]))
    return Relaxation(message, hint, (gives,), alternatives, _is_proven(best))


def _together(problem: Problem, caps: Sequence[Cap], end: float) -> Relaxation:
    """Tell of a set of limits that must give way together: with any of them as it is, the rest of them is not enough.

    Limits are kept as long as something keeps them all; then what is left is made small, one after another.
    """
    kept: list[Cap] = []
    for cap in caps:
        if _least(problem, Goal("bytes"), [*kept, cap], end).assignment is not None:
            kept.append(cap)
    gives: list[Cap] = []
    is_proven = True
    for cap in caps:
        if cap not in kept:
            best = _least(problem, cap.goal, [*kept, *gives], end)
            is_proven = is_proven and _is_proven(best)
            gives.append(Cap(cap.goal, max(best.score, cap.most)))
    binding = " and ".join(_limit_text(problem, cap) for cap in caps if cap not in kept)
    needed = ", ".join(f"{printable(goal_name(problem, cap.goal))} {_shown(problem, cap)}" for cap in gives)
    message = f"{binding} cannot be kept, and giving up one is not enough: together it takes {needed}"
    hint = " and ".join(_advice(problem, cap) for cap in gives)
    return Relaxation(message, hint, tuple(gives), (), is_proven)


def _is_proven(best: Best) -> bool:
    return best.score <= best.bound * (1 + 1e-6)


def _limit_text(problem: Problem, cap: Cap) -> str:
    return f"{printable(goal_name(problem, cap.goal))} {_figure(problem, cap.goal, cap.most)}"


def _least_text(problem: Problem, goal: Goal, score: float, found: str) -> str:
    figure = _shown(problem, Cap(goal, score))
    match goal.kind:
        case "latency":
            return f"the fastest placement{found} takes {figure}"
        case "throughput":
            return f"the most{found} is {figure}"
        case _:
            return f"the least{found} is {figure}"


def _advice(problem: Problem, cap: Cap) -> str:
    verb = "lower" if cap.goal.kind == "throughput" else "raise"
    return f"{verb} {printable(goal_name(problem, cap.goal))} to {_shown(problem, cap)}"


def _shown(problem: Problem, cap: Cap) -> str:
    """Return the figure of a new limit, rounded so that it is enough."""
    is_rate = cap.goal.kind == "throughput"
    for factor in (1.0, 1.001, 1.002, 1.003, 1.004, _ROUND_UP):
        figure = _figure(problem, cap.goal, cap.most * factor)
        if _enough(figure, cap, problem):
            return figure
    return f"{1 / cap.most!r} requests/s" if is_rate else _exactly(cap)


def _exactly(cap: Cap) -> str:
    unit = {"latency": "s", "energy": "J"}.get(cap.goal.kind, "B")
    return f"{cap.most!r} {unit}" if unit != "B" else f"{math.ceil(cap.most)} B"


def _enough(figure: str, cap: Cap, problem: Problem) -> bool:
    """Return whether what the figure says, read back, is not below what is needed."""
    number, unit = figure.split(" ")[:2]
    factor = {"ms": 1e-3, "µs": 1e-6, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "%": problem.weight_bytes / 100}
    amount = float(number) * factor.get(unit, 1.0)
    if cap.goal.kind == "throughput":
        return amount > 0 and 1 / amount >= cap.most
    return amount >= cap.most


def _figure(problem: Problem, goal: Goal, most: float) -> str:
    match goal.kind:
        case "latency":
            return format_seconds(most)
        case "energy":
            return f"{most:.4g} J"
        case "throughput":
            return f"{1 / most if most else math.inf:.4g} requests/s"
        case "share of":
            return f"{100 * most / problem.weight_bytes if problem.weight_bytes else 0:.4g} % of the weights"
        case _:
            return format_nbytes(most)


def _unordered() -> Relaxation:
    return Relaxation(
        "no order of devices lets every layer run behind those it needs: some may only run on a device that is already"
        " behind them",
        "allow more layers on more devices, or placements that come back to a device",
    )


def _stuck(problem: Problem) -> Relaxation | None:
    """Return what leaves a layer nowhere to run whatever the limits are."""
    for index, task in enumerate(problem.tasks):
        allowed = problem.allowed(index)
        name = printable(task.name)
        if not allowed:
            text = f"layer `{name}` may run on no device: it is banned from, or kept from, every one"
            return Relaxation(text, "pin fewer layers, or trust a device with it")
        if not any(_is_reachable(problem, machine) for machine in allowed):
            where = ", ".join(printable(problem.machines[machine].name) for machine in allowed)
            entry = printable(problem.machines[problem.entry].name)
            text = f"layer `{name}` may only run on {where}, and there is no way from {entry} to there and back"
            return Relaxation(text, f"add links between {entry} and {where} in both directions")
    return _torn(problem) or _behind(problem)


def _is_reachable(problem: Problem, machine: int) -> bool:
    entry = problem.entry
    return machine == entry or ((entry, machine) in problem.paths and (machine, entry) in problem.paths)


def _torn(problem: Problem) -> Relaxation | None:
    """Return layers that a tensor which cannot cross holds together, and that no device may run together."""
    allowed = [set(problem.allowed(task)) for task in range(len(problem.tasks))]
    group = list(range(len(problem.tasks)))
    for flow in problem.flows:
        if flow.can_cross or not flow.consumers:
            continue
        members = _held_together(flow)
        joint = set.intersection(*(allowed[group[task]] for task in members))
        if flow.producer == REQUEST:
            joint &= {problem.entry}
        if not joint:
            names = " and ".join(f"`{printable(problem.tasks[task].name)}`" for task in (members[0], members[-1]))
            text = f"tensor `{printable(flow.name)}` cannot travel between devices, and no device may run {names}"
            return Relaxation(text, "allow them all on one device")
        groups = {group[task] for task in members}
        first = min(groups)
        group = [first if own in groups else own for own in group]
        allowed[first] = joint
    return None


def _held_together(flow: Flow) -> list[int]:
    return [*([] if flow.producer == REQUEST else [flow.producer]), *flow.consumers]


def _behind(problem: Problem) -> Relaxation | None:
    """Return a layer that may only run at the entry, behind one that may not: pipelines do not come back."""
    left_by: dict[int, int] = {}
    for task in range(len(problem.tasks)):
        flows = (problem.flows[index].producer for index in problem.used_by.get(task, ()))
        leavers = [left_by[producer] for producer in flows if producer in left_by]
        allowed = problem.allowed(task)
        if leavers and allowed == (problem.entry,):
            entry = printable(problem.machines[problem.entry].name)
            before, name = printable(problem.tasks[leavers[0]].name), printable(problem.tasks[task].name)
            text = f"layer `{name}` may only run on {entry}, behind `{before}`, which may not run there"
            return Relaxation(text, f"allow `{name}` on another device, or `{before}` on {entry}")
        if leavers:
            left_by[task] = leavers[0]
        elif problem.entry not in allowed:
            left_by[task] = task
    return None
