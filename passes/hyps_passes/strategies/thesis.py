"""`hyps`: the hybrid partitioning of the thesis, sections 3.2.5, 3.2.6 and 4.3.2.

1. A layer that some device cannot hold by itself has mandatory split points before and behind it (Algorithm 1;
   slicing it into H-partitions is a rewrite that has been made before).
2. Behind pooling layers there are optional split points (Algorithm 2).
3. V-partitions go to devices in order, the entry first, consecutive ones together where there are fewer devices
   (tables 4.1 and 4.3).

For each number of devices the points are taken that the fewest bytes cross; of equal ones the later, as the thesis
favours what is close to the output. Then the number of devices is taken that has the least latency, as table 4.2 does.
"""

import itertools
from collections.abc import Iterator

from hyps_passes.estimate import estimate, violations
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_bytes
from hyps_passes.strategies.judging import Candidate, best_allowed, judged, servers, spell_cut
from hyps_passes.strategies.ranking import Ranked
from hyps_passes.strategies.strategy import Refusal, Settings

_POOLING = frozenset(("pooling", "global pooling"))
_MOST_TRIED = 3000
"""Combinations of split points for one number of devices."""


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the best number of devices, each with V-partitions between split points."""
    points = split_points(problem)
    candidates = [_fewest_bytes(problem, points, count) for count in range(len(servers(problem)) + 1)]
    offers = [candidate for candidate in candidates if candidate is not None]
    if not offers:
        alone = judged(problem, objective, Candidate(Ranked(0.0, (problem.entry,), ()).assignment(problem), ""))
        told = alone.reason if isinstance(alone, Refusal) else ""
        return Refusal(f"no choice of its {len(points)} split points keeps the limits; of no cut, {told}")
    return best_allowed(problem, objective, OBJECTIVES["latency"].score, offers)


def split_points(problem: Problem) -> dict[int, str]:
    """Return how many tasks stand before each split point, and whether it is mandatory or optional."""
    nbytes = crossing_bytes(problem)
    points = {}
    for index, task in enumerate(problem.tasks):
        if task.downsampling in _POOLING:
            points[index + 1] = "pooling"
        if _is_complex(problem, index):
            points.update({index: "mandatory", index + 1: "mandatory"})
    return {p: points[p] for p in sorted(points) if 0 < p < len(problem.tasks) and nbytes[p] < float("inf")}


def _is_complex(problem: Problem, task: int) -> bool:
    """Return whether some device cannot hold the task even alone, with what comes in and goes out."""
    flows = {*problem.used_by.get(task, ()), *problem.made_by.get(task, ())}
    needed = problem.tasks[task].weight_bytes + problem.tasks[task].work_bytes
    needed += sum(problem.flows[flow].nbytes for flow in flows)
    return any(m.memory_bytes is not None and m.base_bytes + needed > m.memory_bytes for m in problem.machines)


def _fewest_bytes(problem: Problem, points: dict[int, str], cuts: int) -> Candidate | None:
    """Return the choice of so many split points that keeps the limits and that the fewest bytes cross."""
    machines = (problem.entry, *servers(problem)[:cuts])
    for positions in itertools.islice(_by_bytes(problem, points, cuts), _MOST_TRIED):
        assignment = Ranked(0.0, machines, positions).assignment(problem)
        is_banned = any(
            problem.seconds[task][stage.machine] == float("inf") for stage in assignment.stages for task in stage.tasks
        )
        if not is_banned and not violations(problem, estimate(problem, assignment), assignment):
            kinds = " and ".join(sorted({points[p] for p in positions})) or "no"
            words = f"{kinds} split point{'s' * (cuts > 1)}, {spell_cut(problem, assignment)}"
            return Candidate(assignment, words)
    return None


def _by_bytes(problem: Problem, points: dict[int, str], cuts: int) -> Iterator[tuple[int, ...]]:
    nbytes = crossing_bytes(problem)
    chosen = itertools.islice(itertools.combinations(sorted(points, reverse=True), cuts), _MOST_TRIED)
    ordered = sorted(chosen, key=lambda positions: sum(nbytes[p] for p in positions))
    yield from (tuple(sorted(positions)) for positions in ordered)
