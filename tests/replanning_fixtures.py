"""Questions about placements, small ones drawn at random, and brute force over what they can be answered with."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from hyps.formats.replanning import (
    HUB,
    Aim,
    Answer,
    DeviceFacts,
    LinkFacts,
    PartitionFacts,
    Question,
    Timing,
    Weight,
)
from hyps_passes.assignment import Assignment, Stage
from hyps_passes.estimate import estimate, violations
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.replacing_problem import HubProblem, pose

Stages = tuple[tuple[tuple[int, ...], int, int], ...]


def chain(
    works: tuple[float, ...],
    speeds: dict[str, float],
    *,
    aim: Aim = "latency",
    memory_bytes: int | None = None,
    tensor_nbytes: int = 10_000,
    bytes_per_s: float = 12.5e6,
    current: dict[str, tuple[str, ...]] | None = None,
) -> Question:
    """Return partitions in a row with so many seconds of work, on devices so many times as fast; 10 MB of weights each.

    Everything is measured and every link known. The time limit is too short for a mixed-integer program.
    """
    count = len(works)
    names = [f"p{index}" for index in range(count)]
    ends = [HUB, *speeds]
    return Question(
        number=1,
        partitions=tuple(
            PartitionFacts(
                id=name, inputs=(f"t{index}",), outputs=(f"t{index + 1}",), weights=(Weight(key=name, nbytes=10**7),)
            )
            for index, name in enumerate(names)
        ),
        tensor_bytes={f"t{index}": tensor_nbytes for index in range(count + 1)},
        model_inputs=("t0",),
        model_outputs=(f"t{count}",),
        devices=tuple(DeviceFacts(name=name, memory_bytes=memory_bytes, base_bytes=5 * 10**7) for name in speeds),
        timings=tuple(
            Timing(partition=name, device=device, seconds=work / speed, is_measured=True)
            for name, work in zip(names, works, strict=True)
            for device, speed in speeds.items()
        ),
        links=tuple(
            LinkFacts(source=a, target=b, bytes_per_s=bytes_per_s, latency_s=0.001)
            for a, b in itertools.permutations(ends, 2)
        ),
        aim=aim,
        allow_replicas=False,
        keep_within=0.0,
        time_limit_s=0.15,
        current=current or {},
    )


def random_question(rng: np.random.Generator, *, partitions: int, devices: int, aim: Aim, is_chain: bool) -> Question:
    """Return a question with tied weights, measured times, links that differ, and perhaps too little memory."""
    names = [f"p{index}" for index in range(partitions)]
    ends = [HUB, *(f"d{index}" for index in range(devices))]
    has_limits = bool(rng.random() < 0.6)
    return Question(
        number=int(rng.integers(1000)),
        partitions=tuple(
            PartitionFacts(
                id=name,
                inputs=_inputs(rng, index, is_chain=is_chain),
                outputs=(f"t{index + 1}",),
                weights=(Weight(key=f"w{rng.integers(partitions + 2)}", nbytes=1000),),
                work_bytes=int(rng.integers(500)),
            )
            for index, name in enumerate(names)
        ),
        tensor_bytes={f"t{index}": int(rng.integers(1, 3000)) for index in range(partitions + 1)},
        model_inputs=("t0",),
        model_outputs=(f"t{partitions}",),
        devices=tuple(
            DeviceFacts(
                name=name,
                memory_bytes=int(rng.integers(1500, 9000)) if has_limits else None,
                base_bytes=int(rng.integers(300)),
                refused=tuple(part for part in names if rng.random() < 0.05),
                active_w=float(rng.integers(2, 6)),
            )
            for name in ends[1:]
        ),
        timings=tuple(
            Timing(partition=part, device=device, seconds=float(rng.integers(1, 100)) / 1000, is_measured=True)
            for part in names
            for device in ends[1:]
        ),
        links=tuple(
            LinkFacts(
                source=a,
                target=b,
                bytes_per_s=float(rng.integers(1, 50)) * 1e5,
                latency_s=float(rng.integers(9)) / 1000,
                message_s=float(rng.integers(2)) / 1000,
                is_open=HUB in (a, b) or bool(rng.random() < 0.8),
            )
            for a, b in itertools.permutations(ends, 2)
        ),
        aim=aim,
        keep_within=0.0,
        time_limit_s=0.15,
    )


def without(question: Question, *gone: str) -> Question:
    """Return the question once devices have left."""
    return replace(question, devices=tuple(device for device in question.devices if device.name not in gone))


def best_by_force(question: Question) -> float:
    """Return the best score of all rows of stages over different devices, infinite where none keeps the limits."""
    problem = pose(question).problem
    has_groups = question.allow_replicas and question.aim == "throughput"
    rows = all_rows(problem, has_groups=has_groups)
    return min((score_of(problem, question.aim, row) for row in rows), default=math.inf)


def all_rows(problem: HubProblem, *, has_groups: bool) -> Iterator[Stages]:
    """Yield consecutive stages over different machines, the hub left out, with any group on each where wanted."""
    tasks, machines = len(problem.tasks), range(1, len(problem.machines))
    for count in range(1, min(tasks, len(machines)) + 1):
        for cuts in itertools.combinations(range(1, tasks), count - 1):
            ends = list(itertools.pairwise((0, *cuts, tasks)))
            for groups in _groups(machines, count, has_groups=has_groups):
                yield tuple((group, start, end) for group, (start, end) in zip(groups, ends, strict=True))


def score_of(problem: HubProblem, aim: Aim, stages: Stages) -> float:
    """Return what consecutive stages score, handing on from each to the next; infinite where they break a limit."""
    body = tuple(Stage(group, tuple(range(start, end))) for group, start, end in stages)
    assignment = Assignment((Stage((problem.entry,), ()), *body))
    told = estimate(problem, assignment)
    is_broken = math.isinf(told.latency_s) or violations(problem, told, assignment)
    return math.inf if is_broken else OBJECTIVES[aim].score(told)


def score_of_answer(question: Question, answer: Answer) -> float:
    """Return what an answer is predicted to score."""
    told = answer.prediction
    assert told.latency_s is not None
    assert told.throughput_rps is not None
    scores: dict[Aim, float] = {
        "latency": told.latency_s,
        "throughput": 1 / told.throughput_rps,
        "memory": max(told.memory_bytes.values()),
        "energy": told.energy_joules or 0.0,
    }
    return scores[question.aim]


def _inputs(rng: np.random.Generator, index: int, *, is_chain: bool) -> tuple[str, ...]:
    if is_chain or not index:
        return (f"t{index}",)
    return tuple({f"t{index}": None, f"t{int(rng.integers(index + 1))}": None})


def _groups(machines: range, count: int, *, has_groups: bool) -> Iterator[tuple[tuple[int, ...], ...]]:
    if not has_groups:
        yield from (tuple((machine,) for machine in order) for order in itertools.permutations(machines, count))
        return
    chosen = [g for n in range(1, len(machines) + 1) for g in itertools.permutations(machines, n) if _rises(g[1:])]
    for groups in itertools.product(chosen, repeat=count):
        used = [machine for group in groups for machine in group]
        if len(used) == len(set(used)):
            yield groups


def _rises(members: tuple[int, ...]) -> bool:
    return list(members) == sorted(members)
