"""`dads-heavy`: the cut of the graph between the device and one server whose busiest resource is least busy.

Hu et al. (DADS, INFOCOM 2019) show that under heavy load, where the slower of device, link and server sets the
throughput, the best cut is NP-hard, and cut minimally for a weighted sum of the three, as the sum of three loads is at
most three times the largest. Here the weights are then raised on what is busiest and the graph is cut again
(multiplicative weights): every cut is a candidate, and the least weighted sum of any round is a bound for all cuts.
With several servers each is tried. Early exits are not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyps.formats.quantities import format_seconds
from hyps_passes.assignment import Assignment, pipeline, single
from hyps_passes.estimate import estimate
from hyps_passes.found import Found
from hyps_passes.objectives import Floats, Objective
from hyps_passes.problem import REQUEST, Problem, channel_name
from hyps_passes.searches.min_cut import Flows, tier_cut
from hyps_passes.strategies.judging import Candidate, best_allowed, no_server, servers, spell_cut, without_exits
from hyps_passes.strategies.strategy import Refusal, Settings

_ROUNDS = 48
_STEP = 0.6


@dataclass(frozen=True, slots=True)
class _Loads:
    """Seconds of one request that each resource is busy, term by term."""

    names: tuple[str, ...]
    """Device, server, then channels."""
    tasks: Floats
    """`[task, tier, resource]`; inf where the task must not run."""
    flows: Floats
    """`[flow, resource]`, where the flow crosses; inf where it must not."""
    runs: tuple[float, float]
    """What having tasks costs device and server."""


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best cut seen, whichever server it leads to."""
    others = servers(problem)
    if not others:
        return no_server(problem)
    known = without_exits(problem)
    offers = [single(problem, machine) for machine in (problem.entry, *others)]
    bound = float("inf")
    for server in others:
        cuts, least_s = _cuts(known, server)
        offers += cuts
        bound = min(bound, least_s)
    words = f"no two-device cut is below {format_seconds(bound)} on the busiest"
    candidates = [Candidate(offer, f"{spell_cut(problem, offer)}, {words}") for offer in dict.fromkeys(offers)]
    return best_allowed(problem, objective, lambda told: 1 / told.throughput_rps, candidates)


def _cuts(problem: Problem, server: int) -> tuple[list[Assignment], float]:
    """Return the minimum cut of each round of weights, and what none of all cuts is below on its busiest resource."""
    loads = _loads(problem, server)
    weights = np.full(len(loads.names), 1 / len(loads.names))
    found, bound = [], 0.0
    for _ in range(_ROUNDS):
        cut = _minimum(problem, loads, weights)
        if cut is None:
            break
        tiers, least = cut
        bound = max(bound, least)
        assignment = pipeline(problem, (problem.entry, server), tiers)
        found.append(assignment)
        busy = _busy(problem, assignment, loads.names)
        if busy.max() <= bound * (1 + 1e-9) or busy.max() == 0:
            break
        weights = weights * np.exp(_STEP * busy / busy.max())
        weights /= weights.sum()
    return found, bound


def _minimum(problem: Problem, loads: _Loads, weights: Floats) -> tuple[list[int], float] | None:
    """Return the tiers of the least weighted sum of loads, and that sum.

    Two tasks are added that cost what having tasks costs: one before all others, on the server's side only if
    everything is, and one behind all others, on the device's side only if everything is.
    """
    count = len(problem.tasks)
    costs = np.zeros((count + 2, 2))
    costs[1:-1] = np.where(np.isinf(loads.tasks[:, :, 0]), np.inf, loads.tasks @ weights)
    costs[0, 0] = loads.runs[0] * weights[0]
    costs[-1, 1] = loads.runs[1] * weights[1]
    every = list(range(1, count + 1))
    made = [flow.producer + 1 if flow.producer != REQUEST else REQUEST for flow in problem.flows]
    flows = Flows.of(
        [*made, 0, *every],
        [*([c + 1 for c in flow.consumers] for flow in problem.flows), every, *[[count + 1]] * count],
        np.append(np.where(np.isinf(loads.flows[:, 0]), np.inf, loads.flows @ weights), np.zeros(count + 1))[:, None],
    )
    cut = tier_cut(costs, flows)
    return None if cut is None else ([int(tier) for tier in cut.tiers[1:-1]], cut.bound)


def _loads(problem: Problem, server: int) -> _Loads:
    device = problem.entry
    up, back = problem.paths[device, server], problem.paths[server, device]
    channels = tuple(dict.fromkeys((*up, *back)))
    names = [channel_name(problem, problem.channels[c].source, problem.channels[c].target) for c in channels]
    machines = (device, server)
    tasks = np.zeros((len(problem.tasks), 2, 2 + len(channels)))
    for task in range(len(problem.tasks)):
        for tier, machine in enumerate(machines):
            seconds = problem.seconds[task][machine]
            tasks[task, tier, tier if np.isfinite(seconds) else slice(None)] = seconds
    flows = np.zeros((len(problem.flows), 2 + len(channels)))
    for index, flow in enumerate(problem.flows):
        if flow.producer != REQUEST:
            flows[index, :2] = problem.export_s[index][device], problem.import_s[index][server]
            if flow.is_output:
                tasks[flow.producer, 1, 2:] += _sending(problem, channels, back, flow.nbytes)
        flows[index, 2:] = _sending(problem, channels, up, flow.nbytes)
        if not flow.can_cross:
            flows[index] = np.inf
    runs = (problem.machines[device].run_s, problem.machines[server].run_s)
    return _Loads((problem.machines[device].name, problem.machines[server].name, *names), tasks, flows, runs)


def _sending(problem: Problem, channels: Sequence[int], path: Sequence[int], nbytes: int) -> Floats:
    """Return how long a tensor on its way occupies each channel."""
    return np.array([problem.channels[c].seconds(nbytes) if c in path else 0.0 for c in channels])


def _busy(problem: Problem, assignment: Assignment, names: Sequence[str]) -> Floats:
    """Return how long one request occupies each resource."""
    busy = dict.fromkeys(names, 0.0)
    for span in estimate(problem, assignment).spans:
        busy[span.resource] += span.end_s - span.start_s
    return np.array([busy[name] for name in names])
