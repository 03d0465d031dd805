"""What a request takes for each place where the model could be cut between the entry and one other device."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hyps.errors import printable
from hyps.formats.plan import Plan
from hyps_compiler.report.document import Split, Splits, Target
from hyps_compiler.report.partitions import shown
from hyps_passes.assignment import is_sound, pipeline, single
from hyps_passes.estimate import estimate, violations
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import measure_cuts
from hyps_passes.strategies.judging import servers

_MOST_SPLITS = 240
"""Bars in a chart: of more borders the best are shown, and those that the plan uses."""


def splits_of(plan: Plan, problem: Problem) -> Splits:
    """Return the cost of every two-part split, device by device, those first that the plan uses, its cuts marked.

    Args:
        plan: the plan, on the cluster.
        problem: the model's layers on the same cluster, for the plan's batch.
    """
    devices = set(plan.variants[0].placement.values())
    others = sorted(servers(problem), key=lambda server: problem.machines[server].name not in devices)
    targets = tuple(_target(plan, problem, server) for server in others)
    hidden = max((len(problem.tasks) + 1 - len(target.splits) for target in targets), default=0)
    notes = []
    if hidden > 0 and len(problem.tasks) + 1 > _MOST_SPLITS:
        notes.append(f"the {_MOST_SPLITS} best of {len(problem.tasks) + 1} borders are shown")
    elif hidden > 0:
        notes.append(f"{hidden} borders cannot be cut: a layer must not run there, or a tensor must not travel")
    return Splits(
        entry=shown(problem.machines[problem.entry].name),
        targets=targets,
        planned_s=plan.variants[0].prediction.latency_s,
        notes=tuple(notes),
    )


def crossings(plan: Plan, problem: Problem) -> set[int]:
    """Return the positions, in layers from the start, where the plan's first variant goes on on another device."""
    placement = plan.variants[0].placement
    device_of = {layer: placement[part.id] for part in plan.partitions for layer in part.layers}
    devices = [device_of.get(task.name) for task in problem.tasks]
    found = {0} if devices and devices[0] not in (None, problem.machines[problem.entry].name) else set()
    known = [(index, device) for index, device in enumerate(devices) if device is not None]
    found |= {after for (_, one), (after, two) in pairwise(known) if one != two}
    return found if found else {len(devices)}


def _target(plan: Plan, problem: Problem, server: int) -> Target:
    name = problem.machines[server].name
    used = crossings(plan, problem) if name in plan.variants[0].placement.values() else set()
    positions = _worth_showing(problem, server, used)
    splits = [split for position in positions if (split := _split(problem, server, position)) is not None]
    allowed = [index for index, split in enumerate(splits) if not split.broken]
    return Target(
        device=shown(name),
        splits=tuple(splits),
        best=min(allowed, key=lambda index: (splits[index].latency_s, index), default=-1),
        chosen=tuple(index for index, split in enumerate(splits) if split.position in used),
    )


def _worth_showing(problem: Problem, server: int, used: set[int]) -> list[int]:
    count = len(problem.tasks)
    if count + 1 <= _MOST_SPLITS:
        return list(range(count + 1))
    scores = measure_cuts(problem, OBJECTIVES["latency"], (problem.entry, server)).two()
    best = np.argsort(scores, kind="stable")[: _MOST_SPLITS - 2].tolist()
    return sorted({0, count, *used, *best})


def _split(problem: Problem, server: int, position: int) -> Split | None:
    """Return the split behind the first `position` layers; None where it is not allowed, or nothing comes through."""
    count = len(problem.tasks)
    if position == count:
        assignment = single(problem, problem.entry)
    elif position == 0:
        assignment = single(problem, server)
    else:
        stages = [0] * position + [1] * (count - position)
        assignment = pipeline(problem, (problem.entry, server), stages)
    if not is_sound(problem, assignment):
        return None
    told = estimate(problem, assignment)
    if math.isinf(told.latency_s):
        return None
    device_s, server_s = told.busy_s[problem.entry], told.busy_s[server]
    return Split(
        after=shown(problem.tasks[position - 1].name) if position else "",
        position=position,
        wire_bytes=told.wire_bytes,
        device_s=device_s,
        transfer_s=max(0.0, told.latency_s - told.queue_s - device_s - server_s),
        server_s=server_s,
        queue_s=told.queue_s,
        broken=_words(violations(problem, told, assignment)),
    )


def _words(broken: Sequence[str]) -> str:
    return ", ".join(printable(phrase, 60) for phrase in broken[:2])
