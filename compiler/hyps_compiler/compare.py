"""How far two tensors are apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_TOLERANCES = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-9}


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference between an expected tensor and the one got."""

    tensor: str
    is_identical: bool
    """Bit for bit, NaN equal to the same NaN."""
    largest: float
    """Largest absolute difference; infinite where shapes, dtypes or NaNs do not match."""
    relative: float
    """`largest` over the largest expected magnitude."""
    dtype: str

    @property
    def is_within_tolerance(self) -> bool:
        """Whether it is what another order of accumulation may do: 1e-5 of the largest value for float32."""
        return self.is_identical or self.relative <= _TOLERANCES.get(self.dtype, 0.0)


def compare(tensor: str, expected: Any, actual: Any) -> Difference:
    """Return how far `actual` is from `expected`; sequences and maps are compared as wholes."""
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return _compare_values(tensor, expected, actual)
    dtype = str(expected.dtype)
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return Difference(tensor, False, float("inf"), float("inf"), dtype)
    if expected.dtype == object or expected.dtype.kind in "US":
        same = bool(np.array_equal(expected, actual))
        return Difference(tensor, same, 0.0 if same else float("inf"), 0.0 if same else float("inf"), dtype)
    if expected.tobytes() == actual.tobytes():
        return Difference(tensor, True, 0.0, 0.0, dtype)
    return _compare_numbers(tensor, expected, actual, dtype)


def _compare_values(tensor: str, expected: Any, actual: Any) -> Difference:
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        parts = [compare(tensor, left, right) for left, right in zip(expected, actual, strict=True)]
        worst = max(parts, key=lambda part: part.relative, default=None)
        if worst is None:
            return Difference(tensor, True, 0.0, 0.0, "sequence")
        return Difference(tensor, all(p.is_identical for p in parts), worst.largest, worst.relative, worst.dtype)
    same = type(expected) is type(actual) and bool(np.all(expected == actual))
    return Difference(tensor, same, 0.0 if same else float("inf"), 0.0 if same else float("inf"), "other")


def _compare_numbers(tensor: str, expected: Any, actual: Any, dtype: str) -> Difference:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    left, right = expected.astype(wide), actual.astype(wide)
    strange = ~np.isfinite(left) | ~np.isfinite(right)
    if not np.array_equal(left[strange], right[strange], equal_nan=True):
        return Difference(tensor, False, float("inf"), float("inf"), dtype)
    gaps = np.abs(np.subtract(left, right, where=~strange, out=np.zeros(left.shape, wide)))
    largest = float(gaps.max(initial=0.0))
    scale = float(np.abs(left, where=~strange, out=np.zeros(left.shape)).max(initial=0.0))
    return Difference(
        tensor, False, largest, largest / scale if scale else (0.0 if not largest else float("inf")), dtype
    )
