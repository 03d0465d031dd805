"""What a search makes small and what it keeps below a limit, told alike: an amount that a placement needs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, assert_never

from hyps_passes.assignment import Assignment
from hyps_passes.estimate import Estimate
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem, channel_name

Kind = Literal["latency", "throughput", "memory", "energy", "bytes", "memory of", "share of", "bytes of"]

SLACK = 1 + 1e-9
"""By how much a limit may be passed, as `estimate.violations` has it: floats do not add up to the last digit."""


_SOLVER_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class Goal:
    """An amount of a placement; smaller is better."""

    kind: Kind
    """The first five are the objectives: seconds, seconds between answers, bytes on the fullest machine, joules,
    bytes through all channels. Then the bytes in use on one machine, the bytes of weights that it holds, and the bytes
    that go through one channel."""
    index: int = 0
    """Of the machine or channel; 0 for the others."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit: the most that a placement may need of something."""

    goal: Goal
    most: float

    def allows(self, amount: float) -> bool:
        """Return whether the amount keeps the limit."""
        return amount <= self.most * SLACK


def goal_of(objective: Objective) -> Goal:
    """Return what an objective makes small.

    Raises:
        ValueError: the objective is none that the searches know.
    """
    goals: dict[str, Goal] = {
        "latency": Goal("latency"),
        "throughput": Goal("throughput"),
        "memory": Goal("memory"),
        "energy": Goal("energy"),
        "bytes": Goal("bytes"),
    }
    if objective.name not in goals:
        raise ValueError(f"no search knows the objective `{objective.name}`")
    return goals[objective.name]


def caps_of(problem: Problem) -> tuple[Cap, ...]:
    """Return all limits of a problem; of several on one amount the tightest."""
    limits = problem.limits
    told = [
        (Goal("latency"), limits.deadline_s),
        (Goal("energy"), limits.joules),
        (Goal("bytes"), limits.wire_bytes),
        (Goal("throughput"), 1 / limits.throughput_rps if limits.throughput_rps else None),
    ]
    for index, machine in enumerate(problem.machines):
        told += [(Goal("memory of", index), most) for most in (machine.memory_bytes, limits.peak_bytes)]
        if machine.max_share < 1:
            told.append((Goal("share of", index), machine.max_share * problem.weight_bytes))
    told += [(Goal("bytes of", index), channel.max_bytes) for index, channel in enumerate(problem.channels)]
    tightest: dict[Goal, float] = {}
    for goal, most in told:
        if most is not None:
            tightest[goal] = min(most, tightest.get(goal, math.inf))
    return tuple(Cap(goal, most) for goal, most in tightest.items())


def amount(problem: Problem, goal: Goal, told: Estimate, assignment: Assignment) -> float:
    """Return how much of it a placement needs, by its estimate."""
    match goal.kind:
        case "latency":
            return told.latency_s
        case "throughput":
            return 1 / told.throughput_rps if told.throughput_rps else math.inf
        case "memory":
            return float(told.worst_peak_bytes)
        case "energy":
            return told.joules
        case "bytes":
            return float(told.wire_bytes)
        case "memory of":
            return float(told.peak_bytes[goal.index])
        case "share of":
            return float(held_bytes(problem, assignment, goal.index))
        case "bytes of":
            return float(told.channel_bytes[goal.index])
        case _:
            assert_never(goal.kind)


def safe_bound(goal: Goal, bound: float) -> float:
    """Return what a solver has surely proven of an amount: its bound less its tolerance, bytes rounded up."""
    safe = max(0.0, bound - _SOLVER_TOLERANCE * abs(bound)) if math.isfinite(bound) else max(0.0, bound)
    return safe if goal.kind in ("latency", "throughput", "energy") or math.isinf(safe) else float(math.ceil(safe))


def keeps(problem: Problem, caps: Iterable[Cap], told: Estimate, assignment: Assignment) -> bool:
    """Return whether a placement keeps the limits, and all its machines reach each other."""
    if math.isinf(told.latency_s) and not math.isinf(told.queue_s):
        return False
    return all(cap.allows(amount(problem, cap.goal, told, assignment)) for cap in caps)


def held_bytes(problem: Problem, assignment: Assignment, machine: int) -> int:
    """Return the bytes of the weights that a machine holds."""
    return problem.weight_bytes_of(t for stage in assignment.stages if machine in stage.machines for t in stage.tasks)


def goal_name(problem: Problem, goal: Goal) -> str:
    """Return what an amount is called in messages."""
    match goal.kind:
        case "memory of" | "share of":
            return f"{goal.kind} {problem.machines[goal.index].name}"
        case "bytes of":
            channel = problem.channels[goal.index]
            return f"{goal.kind} {channel_name(problem, channel.source, channel.target)}"
        case "latency":
            return "deadline"
        case _:
            return goal.kind
