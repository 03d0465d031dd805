"""What is resident while one request runs, device by device, as the runtime decides it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from hyps.core.residency import (
    Residency,
    Task,
    decide_residency,
    decide_with_read_ahead,
    live_activations,
    loaded_nbytes,
    tasks_of,
)
from hyps.engine import GENEROUS_NBYTES
from hyps.errors import InfeasibleError
from hyps.formats.cluster import Cluster
from hyps.formats.plan import Plan
from hyps_compiler.partition import BASE_BYTES, NODE_BASE_BYTES
from hyps_compiler.report.document import DeviceMemory, Memory, Moment
from hyps_compiler.report.partitions import shown
from hyps_compiler.report.trial import Trial, Turn
from hyps_compiler.simulation_memory import hosts_of, only_used_within

LOAD_BYTES_PER_S = 100e6
"""How fast partitions that are not kept are read where that was not measured: as `hypsc simulate` takes it to be."""


def memory_of(
    plan: Plan, cluster: Cluster | None, seconds: Mapping[str, float], measured: Trial | None
) -> Memory | None:
    """Return what each device has resident in the course of one request; None where a tensor's size is unknown.

    Args:
        plan: the plan, placed as in its first variant.
        cluster: whose devices' memory is the budget; None: the plan's own.
        seconds: of each partition; where one is missing all count as equally long.
        measured: of a run of the plan here; its times and peaks are shown instead.

    Raises:
        InfeasibleError: a device cannot hold one of its partitions.
    """
    if any(info.nbytes is None for info in plan.tensors.values()):
        return None
    is_timed = measured is not None or all(part.id in seconds for part in plan.partitions)
    variant = plan.variants[0]
    names = list(dict.fromkeys(variant.placement[part.id] for part in plan.partitions))
    devices = []
    for name in names:
        ids = {part.id for part in plan.partitions if name in hosts_of(variant, part.id)}
        tasks = [task for task in tasks_of(plan) if task.id in ids]
        budget = _budget(plan, cluster, name)
        devices.append(_device(plan, name, tasks, budget, seconds if is_timed else {}, measured))
    has_loads = any(moment.what == "load" for device in devices for moment in device.moments)
    return Memory(
        devices=tuple(devices),
        unit="s" if is_timed else "steps",
        load_bytes_per_s=LOAD_BYTES_PER_S if has_loads and measured is None else None,
    )


def _budget(plan: Plan, cluster: Cluster | None, device: str) -> int | None:
    known = {one.name: one.memory_bytes for one in cluster.devices} if cluster else {}
    return known.get(device, plan.memory_bytes)


def _device(
    plan: Plan,
    name: str,
    tasks: Sequence[Task],
    budget: int | None,
    seconds: Mapping[str, float],
    measured: Trial | None,
) -> DeviceMemory:
    """Return one device's course.

    Raises:
        InfeasibleError: one partition alone exceeds the budget.
    """
    sizes = {tensor: info.nbytes or 0 for tensor, info in plan.tensors.items()}
    live = _live(plan, tasks, sizes)
    base = measured.base_bytes if measured else BASE_BYTES if plan.entry is None else NODE_BASE_BYTES
    try:
        residency = _decide(plan, tasks, live, budget, base)
    except InfeasibleError:  # the runtime runs it all the same where no more than this is missing
        base -= GENEROUS_NBYTES
        residency = _decide(plan, tasks, live, budget, base)
    kept_nbytes = loaded_nbytes(task for task in tasks if task.id in residency.kept)
    moments = _moments(tasks, live, sizes, residency, seconds, measured)
    held = [base + kept_nbytes + moment.weight_bytes + moment.tensor_bytes for moment in moments]
    peak_at = max(range(len(held)), key=lambda index: (held[index], -index))
    return DeviceMemory(
        device=shown(name),
        budget_bytes=budget,
        base_bytes=base,
        kept_bytes=kept_nbytes,
        kept=len(residency.kept),
        swapped=len(tasks) - len(residency.kept),
        moments=tuple(moments),
        peak_bytes=held[peak_at],
        peak_at=peak_at,
    )


def _decide(plan: Plan, tasks: Sequence[Task], live: Mapping[str, int], budget: int | None, base: int) -> Residency:
    can_read = len(tasks) == len(plan.partitions) and all(part.form is not None for part in plan.partitions)
    return (decide_with_read_ahead if can_read else decide_residency)(tasks, live, budget, base)


def _live(plan: Plan, tasks: Sequence[Task], sizes: Mapping[str, int]) -> dict[str, int]:
    made = {name for task in tasks for name in task.outputs}
    used = {name for task in tasks for name in task.inputs}
    return live_activations(tasks, sorted(used - made), sorted(made - only_used_within(plan, tasks)), sizes)


def _moments(
    tasks: Sequence[Task],
    live: Mapping[str, int],
    sizes: Mapping[str, int],
    residency: Residency,
    seconds: Mapping[str, float],
    measured: Trial | None,
) -> list[Moment]:
    turns: dict[str, Turn] = {turn.id: turn for turn in measured.turns} if measured else {}
    moments: list[Moment] = []
    now = 0.0
    for task in tasks:
        is_kept = task.id in residency.kept
        turn = turns.get(task.id)
        weights = 0 if is_kept else task.weight_nbytes
        before = max(0, live[task.id] - sum(sizes[name] for name in task.outputs))
        load_s = turn.wait_s if turn else weights / LOAD_BYTES_PER_S
        run_s = turn.compute_s if turn else seconds.get(task.id, 1.0)
        if not is_kept and (seconds or turn):
            moments.append(_moment(task, "load", now, load_s, weights, before, None))
            now += load_s
        peak = turn.peak_bytes if turn else None
        moments.append(_moment(task, "run", now, run_s, weights, live[task.id] + task.scratch_nbytes, peak))
        now += run_s
    return moments


def _moment(
    task: Task,
    what: Literal["load", "run"],
    start: float,
    length: float,
    weights: int,
    tensors: int,
    measured: int | None,
) -> Moment:
    return Moment(
        partition=shown(task.id),
        what=what,
        start=start,
        end=start + length,
        weight_bytes=weights,
        tensor_bytes=tensors,
        measured_bytes=measured,
    )
