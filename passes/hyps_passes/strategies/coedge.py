"""`coedge`: every layer on the device that makes the way through layers and devices shortest.

L. Hu et al. (CoEdge, IEEE Access 2020; survey, section 3.1) allocate the layers of a model over edge devices and cloud
for the least latency and show that this takes polynomial time: it is a shortest path in a graph with a node per layer
and device. A device may be visited again. The running order is one chain here: what later layers need of earlier ones
is handed on at every change of device.
"""

from itertools import groupby

import numpy as np

from hyps_passes.assignment import Assignment, Stage
from hyps_passes.found import Found
from hyps_passes.objectives import Floats, Objective, hop_s
from hyps_passes.problem import REQUEST, Problem
from hyps_passes.strategies.consecutive import crossing_costs
from hyps_passes.strategies.judging import Candidate, judged, no_server, servers, spell_cut
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the allocation of the least latency."""
    if not servers(problem):
        return no_server(problem)
    machine_of = shortest_way(problem)
    if machine_of is None:
        return Refusal("what devices must not run, and tensors that must not travel, leave no way through the layers")
    assignment = visits(problem, machine_of)
    words = f"shortest way through layers and devices, {spell_cut(problem, assignment)}"
    return judged(problem, objective, Candidate(assignment, words))


def visits(problem: Problem, machine_of: list[int]) -> Assignment:
    """Return the pipeline that runs consecutive tasks of one machine as a stage."""
    stages = []
    for machine, run in groupby(enumerate(machine_of), key=lambda pair: pair[1]):
        stages.append(Stage((machine,), tuple(task for task, _ in run)))
    if machine_of[0] != problem.entry:
        stages.insert(0, Stage((problem.entry,), ()))
    return Assignment(tuple(stages))


def shortest_way(problem: Problem) -> list[int] | None:
    """Return the machine of each task on the way of the least latency; None where there is no way."""
    machines = [problem.entry, *servers(problem)]
    seconds, hops = _task_costs(problem, machines), _hop_costs(problem, machines)
    runs = np.array([problem.machines[m].run_s for m in machines])
    best = hops[0, 0] + np.where(np.arange(len(machines)) == 0, 0.0, runs)
    best[0] = runs[0]
    best = best + seconds[0]
    came_from = []
    for task in range(1, len(problem.tasks)):
        offers = best[:, None] + hops[task] + runs[None, :]
        np.fill_diagonal(offers, best)
        came_from.append(offers.argmin(axis=0))
        best = offers.min(axis=0) + seconds[task]
    best = best + [problem.latency_s(m, problem.entry) for m in machines]
    if not np.isfinite(best.min()):
        return None
    way = [int(best.argmin())]
    for choice in reversed(came_from):
        way.append(int(choice[way[-1]]))
    return [machines[index] for index in reversed(way)]


def _task_costs(problem: Problem, machines: list[int]) -> Floats:
    """Return `[task, machine]`: running it there, and sending the answers that it makes."""
    seconds: Floats = np.array([[row[m] for m in machines] for row in problem.seconds], dtype=np.float64)
    seconds = seconds * np.array([[task.reach] for task in problem.tasks])
    for index, flow in enumerate(problem.flows):
        if flow.is_output and flow.producer != REQUEST:
            ways = [problem.transfer_s(m, problem.entry, flow.nbytes) for m in machines]
            seconds[flow.producer] += problem.reach(index) * np.array(ways)
    return seconds


def _hop_costs(problem: Problem, machines: list[int]) -> Floats:
    """Return `[task, machine, machine]`: handing on what crosses before the task; nothing within a machine."""
    count = len(machines)
    each = np.zeros((len(problem.flows), count, count))
    for index in range(len(problem.flows)):
        for a, source in enumerate(machines):
            for b, target in enumerate(machines):
                each[index, a, b] = 0.0 if a == b else hop_s(problem, index, source, target)
    costs = crossing_costs(problem, each.reshape(len(problem.flows), -1)).reshape(-1, count, count)
    costs += np.array([[problem.latency_s(source, target) for target in machines] for source in machines])
    return costs
