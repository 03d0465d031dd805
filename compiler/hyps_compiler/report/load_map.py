"""Latency and throughput by batch size and rate of requests, simulated on the cluster."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hyps.formats.plan import Plan
from hyps_compiler.report.document import Cell, LoadMap
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_problem import system_of
from hyps_compiler.simulation_system import Listed, System
from hyps_passes.assignment import Assignment
from hyps_passes.estimate import estimate, placed
from hyps_passes.problem import Problem

BATCHES = (1, 2, 4, 8, 16, 32)
_REQUESTS = 640
"""For a cell: 20 batches of the largest."""
_RATES = 8
_LEAST_LOAD, _MOST_LOAD = 0.1, 1.25
"""Of what the best batch size can sustain."""
_SEED = 7


def load_map_of(plan: Plan, problems: Mapping[int, Problem], step: Callable[[str], None]) -> LoadMap | None:
    """Return the map of the plan's first variant; None where nothing limits the throughput.

    Requests arrive at random moments and wait until their batch is full; it is then computed and sent as one.

    Args:
        plan: says what runs where.
        problems: the same layers on the same cluster, by batch size.
        step: told of every rate.
    """
    placements = {batch: assignment_of(plan, problem) for batch, problem in problems.items()}
    sustained = {
        batch: batch * estimate(problems[batch], assignment).throughput_rps for batch, assignment in placements.items()
    }
    most = max(sustained.values(), default=0.0)
    if not 0 < most < math.inf:
        return None
    batches = tuple(sorted(problems))
    systems = {batch: system_of(problems[batch], placements[batch]) for batch in batches}
    rates = _rates(most)
    cells = []
    for index, rate in enumerate(rates):
        step(f"batch x rate map, {index + 1} of {len(rates)}")
        cells.append(tuple(_cell(systems[batch], batch, rate, sustained[batch]) for batch in batches))
    return LoadMap(batches=batches, rates=rates, cells=tuple(cells), requests=_REQUESTS)


def assignment_of(plan: Plan, problem: Problem) -> Assignment:
    """Return the plan's placement of the problem's layers; one that the plan does not name goes with the one before."""
    placement = plan.variants[0].placement
    device_of = {layer: placement[part.id] for part in plan.partitions for layer in part.layers}
    machines = {machine.name: index for index, machine in enumerate(problem.machines)}
    machine_of: list[int] = []
    for task in problem.tasks:
        before = machine_of[-1] if machine_of else problem.entry
        machine_of.append(machines.get(device_of.get(task.name, ""), before))
    return placed(problem, machine_of)


def _rates(most: float) -> tuple[float, ...]:
    """Return rates at equal ratios, of two digits each."""
    ratio = (_MOST_LOAD / _LEAST_LOAD) ** (1 / (_RATES - 1))
    return tuple(dict.fromkeys(float(f"{most * _LEAST_LOAD * ratio**index:.2g}") for index in range(_RATES)))


def _cell(system: System, batch: int, rate: float, sustained: float) -> Cell:
    arrivals = np.cumsum(np.random.default_rng([_SEED, batch]).exponential(1 / rate, _REQUESTS))
    full = arrivals[batch - 1 :: batch]
    simulated = simulate(system, Listed(tuple(full.tolist())), len(full))
    latencies = _latencies(arrivals, full, batch, simulated.requests, simulated.latencies_s)
    return Cell(
        p95_s=float(np.percentile(latencies, 95, method="inverted_cdf")),
        throughput_rps=min(rate, sustained),
        is_over=rate >= sustained,
    )


def _latencies(
    arrivals: npt.NDArray[np.float64],
    full: npt.NDArray[np.float64],
    batch: int,
    numbers: npt.NDArray[np.int64],
    batch_s: Sequence[float] | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return what every request took: from its own arrival to the end of its batch."""
    ends = full[numbers] + np.asarray(batch_s)
    starts = arrivals[: len(full) * batch].reshape(len(full), batch)[numbers]
    waited: npt.NDArray[np.float64] = (ends[:, None] - starts).reshape(-1)
    return waited
