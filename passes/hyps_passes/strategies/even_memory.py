"""`even-memory`: cuts that leave each device about the same bytes of weights: the fullest holds the least there is.

The rule of the Coral pipeline compiler, which divides a model so that every accelerator holds the same amount of
parameters, and the first step of SEIFER (Parthasarathy and Krishnamachari, 2022). All machines take part, the entry
first, the others in their order. Tied weights count once on each device.
"""

import numpy as np

from hyps.formats.quantities import format_nbytes
from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_bytes
from hyps_passes.strategies.judging import judged, no_server, servers
from hyps_passes.strategies.ranking import Ranked, candidates_of
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the pipeline whose fullest device holds least; of equal ones that with the earliest cuts full."""
    machines = (problem.entry, *servers(problem))
    if len(machines) == 1:
        return no_server(problem)
    is_legal = np.isfinite(crossing_bytes(problem))
    sizes = [problem.weight_bytes_of([task]) for task in range(len(problem.tasks))]
    low, high = max(sizes, default=0), problem.weight_bytes
    while low < high:
        middle = (low + high) // 2
        if _fill(problem, is_legal, len(machines), middle) is None:
            low = middle + 1
        else:
            high = middle
    positions = _fill(problem, is_legal, len(machines), high) or ()
    words = f"at most {format_nbytes(high)} of weights on each of {len(positions) + 1} devices"
    (candidate,) = candidates_of(problem, [Ranked(0.0, machines[: len(positions) + 1], positions)], words)
    return judged(problem, objective, candidate)


def _fill(
    problem: Problem, is_legal: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], parts: int, nbytes: int
) -> tuple[int, ...] | None:
    """Return the cuts when each device takes as many layers as `nbytes` hold; None where that needs more devices."""
    positions: list[int] = []
    held: dict[int, int] = {}
    legal: int | None = None
    task = 0
    while task < len(problem.tasks):
        grown = held | dict(problem.tasks[task].weights)
        if sum(grown.values()) <= nbytes:
            held, task = grown, task + 1
            if is_legal[task]:
                legal = task
            continue
        if legal is None or len(positions) == parts - 1:
            return None
        positions.append(legal)
        task, held, legal = legal, {}, None
    return tuple(positions)
