"""The model of time: seconds of a layer from its operator, its multiply-accumulates and the bytes it moves.

It is fitted to layers that were measured, without negative coefficients, and stands in for those that were not.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyps.formats.profiles import KindModel, TimeModel

Matrix = NDArray[np.float64]

_FEWEST_OF_A_KIND = 4
"""Measured layers of one kind below which it is told by the model of all kinds together."""
_FOLDS = 5
_LEAST_S = 2e-6
"""Seconds below which a measured figure is mostly noise."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a layer does, and the seconds it was seen to take."""

    kind: str
    """Its operators, joined by `+`."""
    macs: float
    nbytes: float
    """Activations in and out, and weights."""
    seconds: float = 0.0


def fit_time_model(
    works: Sequence[Work],
    exports: Sequence[tuple[float, float]] = (),
    imports: Sequence[tuple[float, float]] = (),
) -> TimeModel:
    """Return the model that tells the seconds of measured layers best, each relative to its own, and its error.

    Args:
        works: of measured layers.
        exports: bytes that cross a border, and the seconds they cost the producing side.
        imports: likewise, on the consuming side.
    """
    return TimeModel(
        kinds=_fit(works),
        export_s_per_byte=_rate(exports),
        import_s_per_byte=_rate(imports),
        error=_cross_validated(works),
    )


def modelled_s(kinds: dict[str, KindModel], work: Work) -> float:
    """Return the seconds that the coefficients tell for a layer."""
    fitted = kinds.get(main_operator(work.kind), kinds[""])
    return fitted.fixed_s + fitted.per_mac_s * work.macs + fitted.per_byte_s * work.nbytes


def main_operator(kind: str) -> str:
    """Return the operator that tells what a layer costs: its first.

    >>> main_operator("Conv+Relu")
    'Conv'
    """
    return kind.partition("+")[0]


def least_squares(rows: Matrix, wanted: Matrix) -> Matrix:
    """Return the coefficients, none below zero, by which few columns come closest to what is wanted.

    Every set of columns is solved without that limit; the best whose solution keeps it is the best of all.
    """
    best, best_error = np.zeros(rows.shape[1]), float(wanted @ wanted)
    scale = np.maximum(np.abs(rows).max(axis=0, initial=0.0), 1e-300)
    for count in range(1, rows.shape[1] + 1):
        for columns in itertools.combinations(range(rows.shape[1]), count):
            chosen = list(columns)
            solved, *_ = np.linalg.lstsq(rows[:, chosen] / scale[chosen], wanted, rcond=None)
            if (solved < 0).any():
                continue
            rest = wanted - (rows[:, chosen] / scale[chosen]) @ solved
            if float(rest @ rest) < best_error * (1 - 1e-9):
                best, best_error = np.zeros(rows.shape[1]), float(rest @ rest)
                best[chosen] = solved / scale[chosen]
    return best


def _fit(works: Sequence[Work]) -> dict[str, KindModel]:
    by_kind: dict[str, list[Work]] = {}
    for work in works:
        by_kind.setdefault(main_operator(work.kind), []).append(work)
    kinds = {"": _fit_kind(works)}
    kinds.update((kind, _fit_kind(own)) for kind, own in sorted(by_kind.items()) if len(own) >= _FEWEST_OF_A_KIND)
    return kinds


def _fit_kind(works: Sequence[Work]) -> KindModel:
    if not works:
        return KindModel(fixed_s=0.0, per_mac_s=0.0, per_byte_s=0.0, layers=0)
    seconds = np.array([max(work.seconds, _LEAST_S) for work in works])
    rows = np.array([[1.0, work.macs, work.nbytes] for work in works])
    fixed_s, per_mac_s, per_byte_s = least_squares(rows / seconds[:, None], np.ones(len(works)))
    return KindModel(
        fixed_s=float(fixed_s), per_mac_s=float(per_mac_s), per_byte_s=float(per_byte_s), layers=len(works)
    )


def _cross_validated(works: Sequence[Work]) -> float | None:
    """Return the median relative error on layers that were left out of the fit, a fifth at a time."""
    if len(works) < 2 * _FOLDS:
        return None
    errors = []
    for fold in range(_FOLDS):
        kinds = _fit([work for index, work in enumerate(works) if index % _FOLDS != fold])
        left_out = [work for index, work in enumerate(works) if index % _FOLDS == fold and work.seconds > _LEAST_S]
        errors += [abs(modelled_s(kinds, work) / work.seconds - 1) for work in left_out]
    return statistics.median(errors) if errors else None


def _rate(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the seconds per byte of all together; 0 without any."""
    nbytes = sum(size for size, _ in pairs)
    return sum(seconds for _, seconds in pairs) / nbytes if nbytes else 0.0
