"""Placements of partitions that are no row of stages: built task by task, and bettered move by move."""

import math
import time
from collections.abc import Iterator

from hyps_passes.assignment import Assignment, Stage
from hyps_passes.estimate import peak_bytes
from hyps_passes.problem import REQUEST, Problem
from hyps_passes.replacing_placement import Judge, Judged, Placement


def listed(problem: Problem) -> Placement | None:
    """Return each task on the machine where it would end first, the most urgent first; None where memory is too little.

    As HEFT (Topcuoglu et al., 2002): urgent is what most work follows.
    """
    urgency = _urgency(problem)
    machine_of: dict[int, int] = {}
    end_s: dict[int, float] = {}
    free_s = [0.0] * len(problem.machines)
    for task in sorted(range(len(problem.tasks)), key=lambda task: (-urgency[task], task)):
        offers = [
            (max(free_s[m], _arrival_s(problem, task, m, machine_of, end_s)) + problem.seconds[task][m], m)
            for m in problem.allowed(task)
            if _fits(problem, machine_of, task, m)
        ]
        if not offers:
            return None
        end_s[task], machine_of[task] = min(offers)
        free_s[machine_of[task]] = end_s[task]
    return tuple((machine_of[task],) for task in range(len(problem.tasks)))


def packed(problem: Problem) -> Placement | None:
    """Return the heaviest tasks first, each where most memory is left; None where even so it is too little."""
    machine_of: dict[int, int] = {}
    for task in sorted(range(len(problem.tasks)), key=lambda task: (-problem.tasks[task].weight_bytes, task)):
        fitting = [m for m in problem.allowed(task) if _fits(problem, machine_of, task, m)]
        if not fitting:
            return None
        machine_of[task] = max(fitting, key=lambda m: (_room(problem, machine_of, m), -m))
    return tuple((machine_of[task],) for task in range(len(problem.tasks)))


def bettered(judge: Judge, start: Judged, *, has_groups: bool, end_s: float) -> Judged:
    """Return what single moves make of a placement, each for the better, until none is or the time is up.

    Args:
        judge: tells what placements cost.
        start: where to begin.
        has_groups: whether partitions may run on several machines.
        end_s: when to stop, on the monotonic clock.
    """
    best, is_moving = start, True
    while is_moving:
        is_moving = False
        for placement in _neighbours(judge.problem, best.placement, has_groups=has_groups):
            if time.monotonic() > end_s:
                return best
            offer = judge.judged(placement, "bettered move by move")
            if offer.score < best.score * (1 - 1e-9):
                best, is_moving = offer, True
                break
    return best


def _neighbours(problem: Problem, placement: Placement, *, has_groups: bool) -> Iterator[Placement]:
    """Yield a placement with one task, one replica, or two machines' parts changed."""
    machines = range(1, len(problem.machines))
    for task, running in enumerate(placement):
        for machine in machines:
            if running != (machine,):
                yield (*placement[:task], (machine,), *placement[task + 1 :])
            if has_groups and machine not in running:
                yield tuple((*at, machine) if at == running else at for at in placement)
    for one in machines:
        for other in range(one + 1, len(problem.machines)):
            swap = {one: other, other: one}
            yield tuple(tuple(swap.get(m, m) for m in running) for running in placement)
    if has_groups:
        for task, running in enumerate(placement):
            if len(running) > 1:
                yield from (
                    (*placement[:task], tuple(m for m in running if m != gone), *placement[task + 1 :])
                    for gone in running
                )


def _urgency(problem: Problem) -> list[float]:
    """Return by task the seconds of the longest way from it to an answer, at each task's mean over machines."""
    urgency = [0.0] * len(problem.tasks)
    for task in reversed(range(len(problem.tasks))):
        seconds = [problem.seconds[task][m] for m in problem.allowed(task)]
        followers = (c for f in problem.made_by.get(task, ()) for c in problem.flows[f].consumers)
        urgency[task] = sum(seconds) / len(seconds) + max((urgency[c] for c in followers), default=0.0)
    return urgency


def _arrival_s(problem: Problem, task: int, machine: int, machine_of: dict[int, int], end_s: dict[int, float]) -> float:
    """Return when the last input of a task could be on a machine, were all ways free."""
    latest = 0.0
    for index in problem.used_by.get(task, ()):
        flow = problem.flows[index]
        source = problem.entry if flow.producer == REQUEST else machine_of[flow.producer]
        made_s = 0.0 if flow.producer == REQUEST else end_s[flow.producer]
        way_s = problem.transfer_s(source, machine, flow.nbytes) + problem.latency_s(source, machine)
        latest = max(latest, made_s + way_s)
    return latest


def _fits(problem: Problem, machine_of: dict[int, int], task: int, machine: int) -> bool:
    told = problem.machines[machine]
    own = [t for t, m in machine_of.items() if m == machine] + [task]
    if told.max_share < 1 and problem.weight_bytes_of(own) > told.max_share * problem.weight_bytes:
        return False
    return told.memory_bytes is None or _peak(problem, own, machine) <= told.memory_bytes


def _room(problem: Problem, machine_of: dict[int, int], machine: int) -> float:
    memory = problem.machines[machine].memory_bytes
    own = [t for t, m in machine_of.items() if m == machine]
    return math.inf if memory is None else memory - _peak(problem, own, machine)


def _peak(problem: Problem, own: list[int], machine: int) -> int:
    stages = tuple(Stage((machine,), (task,)) for task in sorted(own))
    return peak_bytes(problem, Assignment(stages, is_pipeline=False), machine)
