"""The Pareto front of a model on a cluster, for people and as values."""

import math
from typing import Any

from hyps.errors import InfeasibleError, printable
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import table
from hyps_passes.problem import Problem
from hyps_passes.searches.pareto import Front, Point
from hyps_passes.strategies.judging import cut_tensors

_MOST_ROWS = 60


def require_points(front: Front) -> Front:
    """Return the front.

    Raises:
        InfeasibleError: it has no point, as nothing keeps the constraints.
    """
    if not front.points:
        raise InfeasibleError(
            "no placement was found that keeps the constraints", "`hypsc compare` without --pareto names what binds"
        )
    return front


def front_json(problem: Problem, front: Front) -> dict[str, Any]:
    """Return the front as values."""
    return {
        "complete": front.is_complete,
        "space": front.space,
        "points": [
            {
                "latency_s": point.estimate.latency_s,
                "throughput_rps": _finite(point.estimate.throughput_rps),
                "memory_bytes": point.estimate.worst_peak_bytes,
                "energy_joules": point.estimate.joules,
                "wire_bytes": point.estimate.wire_bytes,
                "devices": _devices(problem, point),
                "cut": list(cut_tensors(problem, point.assignment)),
            }
            for point in front.points
        ],
    }


def show_front(problem: Problem, front: Front) -> str:
    """Return a table by rising latency, 80 columns wide."""
    rows = [
        (
            printable(" > ".join(_devices(problem, point)), 30),
            format_seconds(point.estimate.latency_s),
            "any" if math.isinf(point.estimate.throughput_rps) else f"{point.estimate.throughput_rps:.3g}",
            format_nbytes(point.estimate.worst_peak_bytes),
            f"{point.estimate.joules:.3g} J",
            format_nbytes(point.estimate.wire_bytes),
        )
        for point in front.points[:_MOST_ROWS]
    ]
    shown = table(rows, ("devices", "latency", "requests/s", "memory", "energy", "sends"), "lrrrrr", 80)
    more = len(front.points) - len(rows)
    lines = [shown, *([f"and {more} more; --json has all"] if more > 0 else []), ""]
    what = "All that matter" if front.is_complete else "Those found"
    return "\n".join([*lines, f"{what} of {front.space}: none of them beats another in all five."])


def _devices(problem: Problem, point: Point) -> list[str]:
    return [problem.machines[stage.machine].name for stage in point.assignment.stages if stage.tasks]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
