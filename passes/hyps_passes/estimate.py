"""The one cost model: what a placement costs, for searches, simulation and reports alike."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hyps_passes.assignment import Assignment, stages_by_export, stages_by_level, tasks_on
from hyps_passes.problem import Problem, channel_name
from hyps_passes.request_run import Run, Span, stage_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a placement is predicted to cost."""

    latency_s: float
    """From a request's arrival at the entry to its answer there; waiting for others included where requests arrive."""
    throughput_rps: float
    """What it sustains with many requests under way."""
    bottleneck: str
    """The machine or channel that is busiest."""
    peak_bytes: tuple[int, ...]
    """Per machine; 0 where nothing runs."""
    channel_bytes: tuple[int, ...]
    """Per channel, of one request."""
    joules: float
    """Of one request alone: computing, waiting, sending, on every machine that takes part."""
    busy_s: tuple[float, ...]
    """Per machine, of one request."""
    queue_s: float = 0.0
    """The part of the latency that is waiting for other requests."""
    spans: tuple[Span, ...] = ()

    @property
    def wire_bytes(self) -> int:
        """Bytes through all channels."""
        return sum(self.channel_bytes)

    @property
    def worst_peak_bytes(self) -> int:
        """The largest peak of any machine."""
        return max(self.peak_bytes, default=0)


def estimate(problem: Problem, assignment: Assignment) -> Estimate:
    """Return what the assignment costs.

    One request: stages as long as their tasks take, `Machine.run_s`, and what their borders cost; transfers one after
    another through each channel, then its latency. Throughput: the busiest machine or channel sets it. Peak memory:
    base, weights, all that comes in and, of what is made, what is still needed. Waiting: that of a queue with random
    arrivals and fixed service (M/D/1) at every machine and channel.
    """
    run = Run(problem, assignment)
    latency = run.pipelined() if assignment.is_pipeline else run.overlapped()
    loads = {**run.machine_load, **run.channel_load}
    bottleneck = max(loads, key=lambda resource: (loads[resource], resource), default="")
    slowest = loads.get(bottleneck, 0.0)
    queue = sum(_wait_s(problem.arrival_rps, load) for load in loads.values())
    return Estimate(
        latency_s=latency + queue,
        throughput_rps=1 / slowest if slowest else math.inf,
        bottleneck=bottleneck,
        peak_bytes=tuple(peak_bytes(problem, assignment, machine) for machine in range(len(problem.machines))),
        channel_bytes=tuple(run.channel_bytes),
        joules=run.joules(latency),
        busy_s=tuple(run.busy_s),
        queue_s=queue,
        spans=tuple(run.spans),
    )


def placed(problem: Problem, machine_of: Sequence[int]) -> Assignment:
    """Return the better way to run each task on `machine_of[task]`: in few partitions, or in such that send early."""
    few = Assignment(stages_by_level(problem, machine_of), is_pipeline=False)
    early = Assignment(stages_by_export(problem, machine_of), is_pipeline=False)
    return min((few, early), key=lambda assignment: estimate(problem, assignment).latency_s)


def partition_seconds(problem: Problem, assignment: Assignment) -> tuple[float, ...]:
    """Return the seconds of each stage on its machine as a partition of its own, what its borders cost there included.

    In a pipeline that relays nothing these are what `estimate` adds up.
    """
    run = Run(problem, assignment)
    return tuple(
        stage_s(problem, stage, stage.machine) + (run.borders_s(index) if stage.tasks else 0.0)
        for index, stage in enumerate(assignment.stages)
    )


def violations(problem: Problem, found: Estimate, assignment: Assignment) -> list[str]:
    """Return which limits the placement breaks, one phrase each; empty when it keeps all."""
    return [phrase for phrase, amount, limit in excesses(problem, found, assignment) if amount > limit * (1 + 1e-9)]


def excesses(problem: Problem, found: Estimate, assignment: Assignment) -> Iterator[tuple[str, float, float]]:
    """Yield each limit's name, what the placement needs of it, and the limit."""
    limits = problem.limits
    if limits.deadline_s is not None:
        yield "deadline", found.latency_s, limits.deadline_s
    if limits.joules is not None:
        yield "energy", found.joules, limits.joules
    if limits.wire_bytes is not None:
        yield "bytes", found.wire_bytes, limits.wire_bytes
    if limits.throughput_rps is not None:
        yield "throughput", limits.throughput_rps, found.throughput_rps
    for index, machine in enumerate(problem.machines):
        if machine.memory_bytes is not None:
            yield f"memory of {machine.name}", found.peak_bytes[index], machine.memory_bytes
        if limits.peak_bytes is not None:
            yield f"memory of {machine.name}", found.peak_bytes[index], limits.peak_bytes
        if machine.max_share < 1:
            held = problem.weight_bytes_of(tasks_on(assignment, index))
            yield f"share of {machine.name}", held, machine.max_share * problem.weight_bytes
    for channel, nbytes in zip(problem.channels, found.channel_bytes, strict=True):
        if channel.max_bytes is not None:
            yield f"bytes of {channel_name(problem, channel.source, channel.target)}", nbytes, channel.max_bytes


def peak_bytes(problem: Problem, assignment: Assignment, machine: int) -> int:
    """Return the most memory that a machine has in use, its base included; 0 where it runs nothing.

    What comes into a machine stays until the end; what is made there stays until its last consumer has run, and if it
    leaves the machine, or is part of the answer, until the end.
    """
    own = set(tasks_on(assignment, machine))
    if not own:
        return 0
    incoming = sum(f.nbytes for f in problem.flows if f.producer not in own and own.intersection(f.consumers))
    change = [0] * (len(problem.tasks) + 1)
    for task in own:
        for index in problem.made_by.get(task, ()):
            flow = problem.flows[index]
            stays = flow.is_output or any(consumer not in own for consumer in flow.consumers)
            last = len(problem.tasks) - 1 if stays else max((task, *flow.consumers))
            change[task] += flow.nbytes
            change[last + 1] -= flow.nbytes
    alive = most = 0
    for task, delta in enumerate(change[:-1]):
        alive += delta
        most = max(most, alive + (problem.tasks[task].work_bytes if task in own else 0))
    return problem.machines[machine].base_bytes + problem.weight_bytes_of(own) + incoming + most


def _wait_s(arrival_rps: float, load_s: float) -> float:
    """Return the mean wait of an M/D/1 queue."""
    if not arrival_rps or not load_s:
        return 0.0
    busy = arrival_rps * load_s
    return math.inf if busy >= 1 else busy * load_s / (2 * (1 - busy))
