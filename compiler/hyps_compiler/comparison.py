"""All strategies side by side on one problem: what each predicts, why it cuts there, how far it is from the best."""

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hyps.errors import InfeasibleError, printable
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import table
from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.judging import cut_tensors
from hyps_passes.strategies.strategy import Refusal, Settings

_EXACT = "exact"
_WIDTH = 80
_REASON_CHARS = 400


@dataclass(frozen=True, slots=True)
class Row:
    """What one strategy makes of the problem."""

    strategy: str
    result: Found | Refusal
    cut: tuple[str, ...]
    """Tensors that travel between devices for one request, answers left out."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All strategies on one problem."""

    objective: Objective
    rows: tuple[Row, ...]
    """The best first, those without a placement last; of equals the first in the table of strategies."""
    exact: Found | None
    """What `exact` found and proved; None where nothing keeps the limits."""

    def gap(self, found: Found) -> float | None:
        """Return by how much a score is above the proven bound, relative to it; None where nothing is proven.

        Below zero: the placement is of a kind that the bound does not speak of.
        """
        bound = self.exact.bound if self.exact else 0.0
        if bound <= 0:
            return 0.0 if self.exact is not None and found.score <= bound else None
        gap = found.score / bound - 1
        return 0.0 if abs(gap) < 1e-6 else gap


def compare(
    problem: Problem, objective: Objective, settings: Settings, step: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Return what every strategy makes of a problem.

    Args:
        problem: layers, devices, limits.
        objective: what placements are scored by.
        settings: what strategies are told.
        step: called with the name of each before it is tried.
    """
    rows = []
    for name, strategy in STRATEGIES.items():
        step(f"strategy {name}")
        result = strategy.place(problem, objective, settings)
        cut = tuple(cut_tensors(problem, result.assignment)) if isinstance(result, Found) else ()
        rows.append(Row(name, result, cut))
    exact = next(row.result for row in rows if row.strategy == _EXACT)
    ordered = sorted(rows, key=lambda row: row.result.score if isinstance(row.result, Found) else math.inf)
    return Comparison(objective, tuple(ordered), exact if isinstance(exact, Found) else None)


def require_possible(problem: Problem, comparison: Comparison, *, time_limit_s: float = 30.0) -> None:
    """Refuse a problem for which no strategy has a placement.

    Raises:
        InfeasibleError: names the constraint that binds and the smallest relaxation.
    """
    if any(isinstance(row.result, Found) for row in comparison.rows):
        return
    from hyps_passes.searches.relaxation import relaxations  # rarely needed, and its solver takes long to load

    told = relaxations(problem, comparison.objective, time_limit_s=time_limit_s)
    if told is None:
        raise InfeasibleError("no strategy finds a placement that keeps the constraints")
    raise InfeasibleError(told.message, told.hint)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as values; null where a strategy has no placement, or nothing is known."""
    exact = comparison.exact
    return {
        "objective": comparison.objective.name,
        "proven": exact is not None and exact.is_proven,
        "space": exact.space if exact else None,
        "strategies": [_row_json(comparison, row) for row in comparison.rows],
    }


def show_comparison(comparison: Comparison) -> str:
    """Return a table, the reason of each cut below its row, 80 columns wide; `*` marks the best."""
    headers, align = ["", "strategy", "latency", "requests/s", "sends", "gap"], "llrrrr"
    unit = comparison.objective.unit
    if unit != "s":
        headers, align = [*headers[:-1], comparison.objective.name, "gap"], align + "r"
    cells = [_cells(comparison, row, is_best=index == 0) for index, row in enumerate(comparison.rows)]
    head, *lines = table(cells, headers, align, _WIDTH).splitlines()
    shown = [head]
    for line, row in zip(lines, comparison.rows, strict=True):
        reason = row.result.reason if isinstance(row.result, Found) else f"not here: {row.result.reason}"
        indent = "     "
        shown += [
            line,
            *textwrap.wrap(printable(reason, _REASON_CHARS), _WIDTH, initial_indent=indent, subsequent_indent=indent),
        ]
    return "\n".join([*shown, "", *textwrap.wrap(_proof(comparison), _WIDTH)])


def _row_json(comparison: Comparison, row: Row) -> dict[str, Any]:
    found = row.result
    if isinstance(found, Refusal):
        empty = dict.fromkeys(("latency_s", "throughput_rps", "lower_bound_s", "gap", "cut"))
        return {"strategy": row.strategy, **empty, "reason": found.reason}
    bound = comparison.exact.bound if comparison.exact else 0.0
    rps = found.estimate.throughput_rps
    return {
        "strategy": row.strategy,
        "latency_s": found.estimate.latency_s,
        "throughput_rps": rps if math.isfinite(rps) else None,
        "lower_bound_s": bound if comparison.objective.unit == "s" and bound > 0 else None,
        "gap": comparison.gap(found),
        "cut": list(row.cut),
        "reason": found.reason,
    }


def _cells(comparison: Comparison, row: Row, *, is_best: bool) -> list[str]:
    found = row.result
    is_scored = comparison.objective.unit != "s"
    if isinstance(found, Refusal):
        return ["", row.strategy, *["-"] * (4 + is_scored)]
    rps, gap = found.estimate.throughput_rps, comparison.gap(found)
    return [
        "*" if is_best else "",
        row.strategy,
        format_seconds(found.estimate.latency_s),
        f"{rps:.3g}" if math.isfinite(rps) else "any",
        format_nbytes(found.estimate.wire_bytes),
        *([_score(comparison.objective, found.score)] if is_scored else []),
        "?" if gap is None else f"{gap:.1%}",
    ]


def _score(objective: Objective, score: float) -> str:
    if objective.unit == "s":
        return format_seconds(score)
    return format_nbytes(score) if objective.unit == "bytes" else f"{score:.3g} {objective.unit}"


def _proof(comparison: Comparison) -> str:
    exact, name = comparison.exact, comparison.objective.name
    if exact is None:
        return "No placement is known that keeps the constraints."
    if exact.bound <= 0 < exact.score:
        return f"Nothing is proven of the best {name}; gaps are not known."
    bound = _score(comparison.objective, exact.bound)
    if exact.is_proven:
        text = f"Gaps are to the best {name} of all {exact.space}, which is proven: {bound}."
    else:
        text = f"Gaps are to {bound}, which the {name} of no {exact.space} is below; `exact` is within {exact.gap:.1%}."
    first = comparison.rows[0].result
    if isinstance(first, Found) and (comparison.gap(first) or 0.0) < 0:
        text += f" `{comparison.rows[0].strategy}` is below, as its placement is none of these."
    return text
