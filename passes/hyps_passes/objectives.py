"""What is wanted: for each objective a score of an estimate and, where it is a sum over layers and hops, its terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hyps_passes.estimate import Estimate
from hyps_passes.problem import REQUEST, Problem

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Objective:
    """One thing to make small."""

    name: str
    unit: str
    score: Callable[[Estimate], float]
    """Smaller is better."""
    terms: Callable[[Problem, Sequence[int]], "Terms"] | None = None
    """Of a pipeline over the machines; None where the score is no sum."""


@dataclass(frozen=True, slots=True)
class Terms:
    """An additive score of pipelines over given machines, whose first is the entry."""

    layers: Floats
    """`[task, stage]`: what the task costs in the stage, answers that it sends back included; inf: not allowed."""
    hops: Floats
    """`[flow, hop]`: what it costs to hand the flow from stage `hop` to the next; inf: it cannot cross."""
    fixed: Floats
    """`[stage]`: what is due once stage is the last that has tasks, whatever the cut."""


def latency_terms(problem: Problem, machines: Sequence[int]) -> Terms:
    """Return the seconds of a request that a pipeline takes (`estimate`), term by term.

    `fixed` counts `Machine.run_s` for every stage; the entry's is not due where it has no tasks.
    """
    entry = machines[0]
    layers = np.array([[row[m] for m in machines] for row in problem.seconds], dtype=np.float64)
    layers = layers.reshape(len(problem.tasks), len(machines))
    layers *= np.array([task.reach for task in problem.tasks], dtype=np.float64)[:, None]
    hops = np.zeros((len(problem.flows), len(machines) - 1))
    for index, flow in enumerate(problem.flows):
        if flow.is_output and flow.producer != REQUEST:
            reach = problem.reach(index)
            layers[flow.producer] += [reach * problem.transfer_s(m, entry, flow.nbytes) for m in machines]
        for hop in range(len(machines) - 1):
            hops[index, hop] = hop_s(problem, index, machines[hop], machines[hop + 1])
    latency = [0.0] + [problem.latency_s(a, b) for a, b in pairwise(machines)]
    runs = [problem.machines[m].run_s for m in machines]
    fixed = np.cumsum(latency) + np.cumsum(runs) + [problem.latency_s(m, entry) for m in machines]
    return Terms(layers, hops, fixed)


def energy_terms(problem: Problem, machines: Sequence[int]) -> Terms:
    """Return the joules of a request: what computes is active, all that takes part idles as long as the request lasts.

    Only of pipelines that use all of `machines`: each machine idles whether it is given tasks or not.
    """
    seconds = latency_terms(problem, machines)
    idle = sum(problem.machines[m].idle_w for m in set(machines))
    more = np.array([problem.machines[m].active_w - problem.machines[m].idle_w for m in machines])
    computing = np.array([[row[m] for m in machines] for row in problem.seconds], dtype=np.float64)
    computing *= np.array([task.reach for task in problem.tasks], dtype=np.float64)[:, None]
    layers = _scaled(seconds.layers, idle) + _scaled(computing, more)
    hops = _scaled(seconds.hops, idle)
    for index, flow in enumerate(problem.flows):
        if flow.is_output and flow.producer != REQUEST:
            layers[flow.producer] += [_radio_joules(problem, m, machines[0], flow.nbytes) for m in machines]
        for hop in range(len(machines) - 1):
            source, target = machines[hop], machines[hop + 1]
            hops[index, hop] += _radio_joules(problem, source, target, flow.nbytes)
            if flow.producer != REQUEST:
                hops[index, hop] += more[hop] * problem.export_s[index][source]
                hops[index, hop] += more[hop + 1] * problem.import_s[index][target]
    runs = np.cumsum([problem.machines[m].run_s for m in machines] * more)
    return Terms(layers, hops, seconds.fixed * idle + runs)


def hop_s(problem: Problem, flow: int, source: int, target: int) -> float:
    """Return the seconds that handing a flow from one machine's stage to the next adds; inf where it cannot cross."""
    told = problem.flows[flow]
    if not told.can_cross:
        return float("inf")
    seconds = problem.transfer_s(source, target, told.nbytes) * problem.reach(flow)
    if told.producer == REQUEST:
        return seconds
    return problem.export_s[flow][source] + seconds + problem.import_s[flow][target]


def _scaled(terms: Floats, factor: float | Floats) -> Floats:
    """Return the terms times a factor; what is not allowed stays so, even where it costs nothing."""
    return np.where(np.isinf(terms), np.inf, np.where(np.isinf(terms), 0, terms) * factor)


def _radio_joules(problem: Problem, source: int, target: int, nbytes: int) -> float:
    path = problem.paths.get((source, target), ())
    return sum(problem.machines[problem.channels[c].source].joules_per_byte for c in path) * nbytes


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("latency", "s", lambda e: e.latency_s, latency_terms),
        Objective("throughput", "s", lambda e: 1 / e.throughput_rps if e.throughput_rps else float("inf")),
        Objective("memory", "bytes", lambda e: float(e.worst_peak_bytes)),
        Objective("energy", "J", lambda e: e.joules, energy_terms),
        Objective("bytes", "bytes", lambda e: float(e.wire_bytes)),
    )
}
"""`--objective` chooses among them; throughput is the seconds between two answers, to be made small like the rest."""
