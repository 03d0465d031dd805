"""A mixed-integer program, built row by row and solved by HiGHS inside ortools, with its bound.

Variables must be such that their factors in a row are not far apart. Where they were, by three digits and more, HiGHS
1.12 and SCIP 10 took worse solutions of small placements for the optimum, and so proved bounds that do not hold:
tests/passes/searches/test_placement.py keeps these. SCIP is also several times slower on the large ones.
"""

import datetime
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hyps.errors import InternalError
from hyps_passes.searches.solver import require_solver

CONSTANT = -1
"""Stands for the number 1 among the variables of a sum."""

Terms = list[tuple[int, float]]
"""A sum of variables times factors; a variable may stand in it several times."""

_RELATIVE_GAP = 1e-8


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver says about a program."""

    values: tuple[float, ...] | None
    """Of the variables, in a solution; None where it found none."""
    bound: float
    """No solution has a smaller objective; infinite where there is none at all."""


class Mip:
    """Variables, rows, and one sum to make small."""

    def __init__(self) -> None:
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._is_integer: list[bool] = []
        self._rows: list[dict[int, float]] = []
        self._row_lower: list[float] = []
        self._row_upper: list[float] = []

    def variable(self, upper: float = math.inf, *, is_integer: bool = False) -> int:
        """Return a new variable from 0 to `upper`."""
        self._lower.append(0.0)
        self._upper.append(upper)
        self._is_integer.append(is_integer)
        return len(self._lower) - 1

    def at_most(self, terms: Iterable[tuple[int, float]], most: float = 0.0) -> None:
        """Ask that a sum is at most a number."""
        self._row(terms, -math.inf, most)

    def equal(self, terms: Iterable[tuple[int, float]], amount: float = 0.0) -> None:
        """Ask that a sum is a number."""
        self._row(terms, amount, amount)

    def _row(self, terms: Iterable[tuple[int, float]], lower: float, upper: float) -> None:
        """Add a row, scaled so that its largest factor is 1: the solver's tolerances are absolute."""
        sums, constant = collected(terms)
        largest = max((abs(factor) for factor in sums.values()), default=0.0)
        if not largest:
            if lower - constant > 1e-9 * abs(constant) or constant - upper > 1e-9 * abs(constant):
                self._rows.append({})
                self._row_lower.append(1.0)
                self._row_upper.append(1.0)
            return
        self._rows.append({index: factor / largest for index, factor in sums.items() if abs(factor) > 1e-9 * largest})
        self._row_lower.append((lower - constant) / largest)
        self._row_upper.append((upper - constant) / largest)

    def solve(self, objective: Terms, *, time_limit_s: float, is_relaxed: bool = False) -> Solved:
        """Return a solution with the least objective that was found in time.

        Args:
            objective: what to make small.
            time_limit_s: when to stop.
            is_relaxed: whether integers may be fractions; solves much faster, and bounds.

        Raises:
            DependencyError: ortools is missing.
            InternalError: the solver failed.
        """
        require_solver()
        from ortools.math_opt.python import mathopt

        sums, constant = collected(objective)
        scale = max((abs(factor) for factor in sums.values()), default=1.0) or 1.0
        model = mathopt.Model.from_model_proto(self._proto({i: f / scale for i, f in sums.items()}, is_relaxed))
        parameters = mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=max(time_limit_s, 0.01)),
            relative_gap_tolerance=_RELATIVE_GAP,
            absolute_gap_tolerance=0.0,
        )
        with _no_output():
            kind = mathopt.SolverType.GLOP if is_relaxed else mathopt.SolverType.HIGHS
            result = mathopt.solve(model, kind, params=parameters)
        return self._read(mathopt, model, result, scale, constant)

    def _read(self, mathopt: Any, model: Any, result: Any, scale: float, constant: float) -> Solved:
        reason, reasons = result.termination.reason, mathopt.TerminationReason
        if reason in (reasons.INFEASIBLE, reasons.INFEASIBLE_OR_UNBOUNDED):  # all objectives are bounded from below
            return Solved(None, math.inf)
        if reason not in (reasons.OPTIMAL, reasons.FEASIBLE, reasons.NO_SOLUTION_FOUND):
            raise InternalError(f"the solver gave up on a placement: {result.termination.detail or reason.name}")
        bound = result.termination.objective_bounds.dual_bound
        bound = bound * scale + constant if math.isfinite(bound) else -math.inf
        values = result.variable_values() if result.has_primal_feasible_solution() else None
        if values is None:
            return Solved(None, bound)
        return Solved(tuple(values[variable] for variable in model.variables()), bound)

    def _proto(self, objective: Mapping[int, float], is_relaxed: bool) -> Any:
        from ortools.math_opt import model_pb2

        proto = model_pb2.ModelProto()
        proto.variables.ids.extend(range(len(self._lower)))
        proto.variables.lower_bounds.extend(self._lower)
        proto.variables.upper_bounds.extend(self._upper)
        proto.variables.integers.extend([is_integer and not is_relaxed for is_integer in self._is_integer])
        proto.linear_constraints.ids.extend(range(len(self._rows)))
        proto.linear_constraints.lower_bounds.extend(self._row_lower)
        proto.linear_constraints.upper_bounds.extend(self._row_upper)
        for row, factors in enumerate(self._rows):
            columns = sorted(factors)
            proto.linear_constraint_matrix.row_ids.extend([row] * len(columns))
            proto.linear_constraint_matrix.column_ids.extend(columns)
            proto.linear_constraint_matrix.coefficients.extend(factors[column] for column in columns)
        columns = sorted(index for index, factor in objective.items() if factor)
        proto.objective.linear_coefficients.ids.extend(columns)
        proto.objective.linear_coefficients.values.extend(objective[column] for column in columns)
        return proto


@contextmanager
def _no_output() -> Iterator[None]:
    """Keep what HiGHS writes to the process's standard output out of the results that others write there.

    It writes a line where it repairs a solution that its presolve has spoiled, however quiet it is told to be.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def collected(terms: Iterable[tuple[int, float]]) -> tuple[dict[int, float], float]:
    """Return the factor of each variable of a sum, and its constant."""
    sums: dict[int, float] = {}
    constant = 0.0
    for index, factor in terms:
        if index == CONSTANT:
            constant += factor
        else:
            sums[index] = sums.get(index, 0.0) + factor
    return sums, constant


def scaled(terms: Iterable[tuple[int, float]], factor: float) -> Terms:
    """Return a sum times a number."""
    return [(index, factor * own) for index, own in terms] if factor else []


def value_of(terms: Iterable[tuple[int, float]], values: tuple[float, ...]) -> float:
    """Return what a sum is in a solution."""
    return sum(factor * (1.0 if index == CONSTANT else values[index]) for index, factor in terms)
