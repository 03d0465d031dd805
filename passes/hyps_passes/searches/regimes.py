"""Two devices: which cut is best at which bandwidth and server load, as a table that holds everywhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.estimate import estimate, violations
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Machine, Problem
from hyps_passes.searches.exact import cut_machines, is_free, plain_placements
from hyps_passes.searches.parametric import Box, CutCost, best_regions

BANDWIDTHS = (1e4, 1.25e9)
"""Bytes per second: 80 kbit/s to 10 Gbit/s."""

LOADS = (0.0, 0.95)

_Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CutRegion:
    """A cut, what it costs at any bandwidth and load, and where it is the best."""

    assignment: Assignment
    cost: CutCost[_Key]
    """x: seconds per byte, of the link from the entry on. y: how much slower the other device is than without load."""
    corners: tuple[tuple[float, float], ...]


def cut_regions(
    problem: Problem,
    *,
    only: Sequence[Assignment] | None = None,
    serialize_s_per_byte: float = 0.0,
    bandwidths: tuple[float, float] = BANDWIDTHS,
    loads: tuple[float, float] = LOADS,
) -> tuple[CutRegion, ...]:
    """Return the best cut for every bandwidth and load of the other device; empty unless there are two devices.

    Of all cuts of the graph where only layers are restricted; where memory or a share of the model is, of those that
    are consecutive in the running order and keep it. A deadline or a limit of energy or bytes is not asked after: what
    they allow depends on the bandwidth. The two directions of the link keep their ratio.

    Args:
        problem: with the other device free of load.
        only: the placements to choose from; None: all cuts.
        serialize_s_per_byte: the part of the link's seconds per byte that does not depend on its bandwidth.
        bandwidths: least and largest, in bytes per second.
        loads: the least and the largest part of the other device's power that others use.
    """
    if len(problem.machines) != 2 or len(problem.channels) != 2:
        return ()
    problem = replace(problem, limits=Limits(), arrival_rps=0.0)
    given = _candidates(problem) if only is None else {_key(problem, assignment): assignment for assignment in only}
    candidates = {key: assignment for key, assignment in given.items() if _is_possible(problem, assignment)}
    if not candidates:
        return ()
    known = dict(candidates)
    costs = {key: _cost(problem, key, assignment) for key, assignment in candidates.items()}
    oracle = _cheapest(costs)
    if only is None and is_free(problem):
        oracle = _cut_oracle(problem, known)
    ends = [1 / bandwidth + serialize_s_per_byte for bandwidth in bandwidths]
    box = Box((ends[1], ends[0]), (1 / (1 - loads[0]), 1 / (1 - loads[1])))
    regions = best_regions(oracle, list(costs.values()), box)
    return tuple(CutRegion(known[region.cost.key], region.cost, region.vertices) for region in regions)


def best_intervals(
    regions: tuple[CutRegion, ...], *, load: float = 0.0, serialize_s_per_byte: float = 0.0
) -> dict[_Key, tuple[float, float | None]]:
    """Return the interval of bandwidth, in bytes per second, in which each cut is best at a load.

    The interval that begins at the least bandwidth is given 0 as its begin, that which ends at the largest no end:
    beyond the bandwidths that were searched nothing is proven.
    """
    level = 1 / (1 - load)
    found: dict[_Key, tuple[float, float]] = {}
    for region in regions:
        crossings = [x - serialize_s_per_byte for x in _at_level(region.corners, level)]
        if crossings and max(crossings) > min(crossings):
            found[region.cost.key] = (min(crossings), max(crossings))
    if not found:
        return {}
    least, most = min(low for low, _ in found.values()), max(high for _, high in found.values())
    return {
        key: (0.0 if high == most else 1 / high, None if low == least else 1 / low)
        for key, (low, high) in found.items()
    }


def _at_level(corners: tuple[tuple[float, float], ...], level: float) -> list[float]:
    """Return the x at which the edges of a polygon meet y = level."""
    found = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if min(y0, y1) <= level <= max(y0, y1):
            found += [x0, x1] if y0 == y1 else [x0 + (x1 - x0) * (level - y0) / (y1 - y0)]
    return found


def _candidates(problem: Problem) -> dict[_Key, Assignment]:
    """Return what is tried whatever the oracle says: all on one device and, under limits, every consecutive cut."""
    plain = [assignment for assignment, _ in plain_placements(problem)]
    other = 1 - problem.entry
    count = len(problem.tasks)
    if not is_free(problem):
        machines = (problem.entry, other)
        legal = (
            first
            for first in range(1, count)
            if all(f.can_cross or not f.consumers or not f.producer < first <= f.consumers[-1] for f in problem.flows)
        )
        plain += [pipeline(problem, machines, [0] * first + [1] * (count - first)) for first in legal]
    return {_key(problem, assignment): assignment for assignment in plain}


def _is_possible(problem: Problem, assignment: Assignment) -> bool:
    told = estimate(problem, assignment)
    return told.latency_s < math.inf and not violations(problem, told, assignment)


def _key(problem: Problem, assignment: Assignment) -> _Key:
    """Return the layers that the other device runs."""
    return tuple(task for stage in assignment.stages if stage.machine != problem.entry for task in stage.tasks)


def _at(problem: Problem, x: float, y: float) -> Problem:
    """Return the problem at x seconds per byte on the way from the entry and a server that is y times slower."""
    reference = next(c.s_per_byte for c in problem.channels if c.source == problem.entry)
    channels = tuple(replace(c, s_per_byte=c.s_per_byte / reference * x) for c in problem.channels)
    other = 1 - problem.entry

    def slowed(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(s * y if m == other else s for m, s in enumerate(row)) for row in rows)

    def slow(index: int, machine: Machine) -> Machine:
        return replace(machine, run_s=machine.run_s * y) if index == other else machine

    return replace(
        problem,
        channels=channels,
        machines=tuple(slow(index, machine) for index, machine in enumerate(problem.machines)),
        seconds=slowed(problem.seconds),
        export_s=slowed(problem.export_s),
        import_s=slowed(problem.import_s),
    )


def _cost(problem: Problem, key: _Key, assignment: Assignment) -> CutCost[_Key]:
    told = estimate(_at(problem, 1.0, 1.0), assignment)
    unsent = estimate(_at(problem, 0.0, 1.0), assignment)
    server = told.busy_s[1 - problem.entry]
    return CutCost(key, unsent.latency_s - server, told.latency_s - unsent.latency_s, server)


def _cheapest(costs: dict[_Key, CutCost[_Key]]) -> Callable[[float, float], CutCost[_Key]]:
    return lambda x, y: min(costs.values(), key=lambda cost: cost.at(x, y))


def _cut_oracle(problem: Problem, known: dict[_Key, Assignment]) -> Callable[[float, float], CutCost[_Key]]:
    """Return what finds the best of all cuts by one minimum cut; the assignments found are kept in `known`."""
    machines = (problem.entry, 1 - problem.entry)
    fallback = {key: _cost(problem, key, assignment) for key, assignment in known.items()}

    def oracle(x: float, y: float) -> CutCost[_Key]:
        found = cut_machines(_at(problem, x, y), OBJECTIVES["latency"], machines)
        if found is None:
            return _cheapest(fallback)(x, y)
        key = _key(problem, found.assignment)
        known[key] = found.assignment
        return _cost(problem, key, found.assignment)

    return oracle
