"""`defer`: an equal number of layers on each device, one after another.

Parthasarathy and Krishnamachari (DEFER, 2022) cut a model into as many parts as there are compute nodes, each with the
same number of layers, and send requests through them as a pipeline. All machines of the problem take part, the entry
first, the others in their order. A cut where a tensor must not travel moves to the nearest place where all may.
"""

from itertools import pairwise

import numpy as np

from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_bytes
from hyps_passes.strategies.judging import judged, no_server, servers
from hyps_passes.strategies.ranking import Ranked, candidates_of
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the pipeline of equal parts over all machines."""
    machines = (problem.entry, *servers(problem))
    if len(machines) == 1:
        return no_server(problem)
    if len(problem.tasks) < len(machines):
        return Refusal(f"there are {len(machines)} devices and only {len(problem.tasks)} layers")
    positions = _equal_positions(problem, len(machines))
    if len(set(positions)) < len(positions):
        return Refusal(f"there are too few places to cut for {len(machines)} devices")
    words = f"{_counts(problem, positions)} layers on {len(machines)} devices"
    (candidate,) = candidates_of(problem, [Ranked(0.0, machines, positions)], words)
    return judged(problem, objective, candidate)


def _equal_positions(problem: Problem, parts: int) -> tuple[int, ...]:
    count = len(problem.tasks)
    legal = np.flatnonzero(np.isfinite(crossing_bytes(problem)[:-1]))
    legal = legal[legal > 0]
    wanted = [round(count * part / parts) for part in range(1, parts)]
    return tuple(min(map(int, legal), key=lambda p: (abs(p - want), p), default=want) for want in wanted)


def _counts(problem: Problem, positions: tuple[int, ...]) -> str:
    ends = (0, *positions, len(problem.tasks))
    counts = sorted({last - first for first, last in pairwise(ends)})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
