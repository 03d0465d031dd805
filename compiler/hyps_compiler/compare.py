"""How far two values are apart: tensors bit for bit and as numbers, sequences, maps and optionals by their parts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyps.formats.quantities import counted

_TOLERANCES = {"bfloat16": 8e-2, "float16": 1e-2, "float32": 1e-5, "float64": 1e-9}

_MOST_SPREAD = 1e-3
"""How far, relative, the layers behind an H-partition may carry what it did to the last bits."""

_CHUNK_ELEMENTS = 2**20
"""As many elements are widened to float64 at a time."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference between an expected tensor and the one got."""

    tensor: str
    is_identical: bool
    """Bit for bit; a NaN is identical to one with the same bits only."""
    largest: float
    """Largest absolute difference; infinite where `problem` says why there is no number."""
    relative: float
    """`largest` over the largest finite expected magnitude."""
    dtype: str
    shape: tuple[int, ...] | None = None
    """Of what was expected; None where that is no tensor."""
    different: int = 0
    """Elements whose bits differ; 0 where the two cannot be laid side by side."""
    problem: str = ""
    """Why the difference is no number, as the end of a sentence: `has the shape 2 x 3 instead of 2 x 4`."""
    request: int = 0
    """Which of the compared requests it is of, counted from 0."""

    @property
    def is_within_tolerance(self) -> bool:
        """Whether it is what another order of accumulation may do: 1e-5 of the largest value for float32."""
        return self.is_identical or self.relative <= self.tolerance

    @property
    def tolerance(self) -> float:
        """The relative difference that another order of accumulation may make in this element type."""
        return _TOLERANCES.get(self.dtype, 0.0)

    @property
    def is_within_spread(self) -> bool:
        """Whether it is what a deep model may make of another order of accumulation in a layer before."""
        return not self.is_unlike and self.relative <= min(100 * self.tolerance, _MOST_SPREAD)

    @property
    def is_unlike(self) -> bool:
        """Whether the two cannot be laid side by side: one is missing, or has another kind, type or shape."""
        return bool(self.problem) and not self.different

    @property
    def elements(self) -> int | None:
        """How many elements were expected; None where it is no tensor."""
        return None if self.shape is None else math.prod(self.shape)

    def beside(self, largest_of_whole: float) -> "Difference":
        """Return the difference of a part as one of the tensor that it is a part of.

        A part may hold small values alone, though sums as large as elsewhere went into them.
        """
        if self.problem or not 0.0 < largest_of_whole < math.inf:
            return self
        return replace(self, relative=min(self.relative, self.largest / largest_of_whole))

    def __str__(self) -> str:
        """Return the difference as the end of a sentence that begins with the tensor."""
        if self.problem:
            return self.problem
        if self.largest and self.relative == math.inf:
            return f"differs by {self.largest:.2g} where the model has only zeros"
        return f"differs by {self.relative:.2g} of its largest value"


def compare(tensor: str, expected: Any, actual: Any) -> Difference:
    """Return how far `actual` is from `expected`.

    Of a sequence or map the worst part counts. An optional without a value, None, is identical to another one only.
    """
    if isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray):
        return _compare_arrays(tensor, expected, actual)
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
        return _compare_sequences(tensor, list(expected), list(actual))
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _compare_maps(tensor, expected, actual)
    if expected is None and actual is None:
        return Difference(tensor, True, 0.0, 0.0, "optional")
    if _is_scalar(expected) and _is_scalar(actual):
        return _compare_arrays(tensor, _as_array(expected), _as_array(actual))
    shape = expected.shape if isinstance(expected, np.ndarray) else None
    problem = "is missing" if actual is None else f"is {_kind(actual)} instead of {_kind(expected)}"
    return _unlike(tensor, _dtype(expected), problem, shape)


def _compare_arrays(tensor: str, expected: Array, actual: Array) -> Difference:
    dtype = _dtype(expected)
    if dtype != _dtype(actual):
        return _unlike(tensor, dtype, f"is {_dtype(actual)} instead of {dtype}", expected.shape)
    if expected.shape != actual.shape:
        problem = f"has the shape {_times(actual.shape)} instead of {_times(expected.shape)}"
        return _unlike(tensor, dtype, problem, expected.shape)
    if dtype == "string":
        return _compare_strings(tensor, expected, actual)
    if all(left.tobytes() == right.tobytes() for left, right in _chunks(expected, actual)):
        return Difference(tensor, True, 0.0, 0.0, dtype, expected.shape)
    tally = _Tally()
    for left, right in _chunks(expected, actual):
        tally.add(left, right)
    return tally.difference(tensor, dtype, expected.shape)


def _compare_strings(tensor: str, expected: Array, actual: Array) -> Difference:
    pairs = zip(expected.reshape(-1).tolist(), actual.reshape(-1).tolist(), strict=True)
    different = sum(_text(left) != _text(right) for left, right in pairs)
    if not different:
        return Difference(tensor, True, 0.0, 0.0, "string", expected.shape)
    found = _unlike(tensor, "string", f"has another text in {different} of {expected.size} elements", expected.shape)
    return replace(found, different=different)


def _compare_sequences(tensor: str, expected: list[Any], actual: list[Any]) -> Difference:
    if len(expected) != len(actual):
        return _unlike(tensor, "sequence", f"has {len(actual)} parts instead of {len(expected)}")
    parts = [compare(tensor, left, right) for left, right in zip(expected, actual, strict=True)]
    return _worst_part(tensor, "sequence", parts, [f"part {index}" for index in range(len(parts))])


def _compare_maps(tensor: str, expected: dict[Any, Any], actual: dict[Any, Any]) -> Difference:
    if expected.keys() != actual.keys():
        return _unlike(tensor, "map", "has other keys")
    parts = [compare(tensor, value, actual[key]) for key, value in expected.items()]
    return _worst_part(tensor, "map", parts, [f"key {str(key)[:40]!r}" for key in expected])


def _worst_part(tensor: str, kind: str, parts: list[Difference], names: list[str]) -> Difference:
    """Return what the parts come to: one that is beyond its tolerance is worse than any that is not."""
    if not parts:
        return Difference(tensor, True, 0.0, 0.0, kind)
    index = max(
        range(len(parts)), key=lambda i: (not parts[i].is_within_tolerance, parts[i].relative, parts[i].different)
    )
    worst = parts[index]
    return Difference(
        tensor,
        all(part.is_identical for part in parts),
        worst.largest,
        worst.relative,
        worst.dtype,
        different=sum(part.different for part in parts),
        problem=f"{names[index]} {worst.problem}" if worst.problem else "",
    )


class _Tally:
    """Counts differences over the pieces of two arrays of one shape and type."""

    def __init__(self) -> None:
        self.different = 0
        self.largest = self.scale = 0.0
        self.new_nans = self.lost_nans = self.other_infinities = 0

    def add(self, left: Array, right: Array) -> None:
        """Count a piece; both one-dimensional and contiguous."""
        if left.dtype.kind in "iu" and left.dtype.itemsize == 8:
            self.scale = max(self.scale, float(_magnitudes(left).max(initial=0)))
        else:
            wide = np.complex128 if left.dtype.kind == "c" else np.float64
            self.scale = max(self.scale, float(_finite(left.astype(wide)).max(initial=0.0)))
        if left.tobytes() == right.tobytes():
            return
        raw = (left.size, left.dtype.itemsize)
        self.different += int((left.view(np.uint8).reshape(raw) != right.view(np.uint8).reshape(raw)).any(1).sum())
        if left.dtype.kind in "iu" and left.dtype.itemsize == 8:  # float64 would round the difference away
            unsigned = left.astype(np.uint64), right.astype(np.uint64)
            gaps = np.where(left > right, unsigned[0] - unsigned[1], unsigned[1] - unsigned[0])
            self.largest = max(self.largest, float(gaps.max()))
        else:
            self._add_floats(left.astype(wide), right.astype(wide))

    def _add_floats(self, left: Array, right: Array) -> None:
        finite = np.isfinite(left) & np.isfinite(right)
        nan_left, nan_right = np.isnan(left), np.isnan(right)
        self.new_nans += int((nan_right & ~nan_left).sum())
        self.lost_nans += int((nan_left & ~nan_right).sum())
        with np.errstate(all="ignore"):  # comparing and subtracting infinities, differences beyond float64
            self.other_infinities += int((~finite & ~nan_left & ~nan_right & (left != right)).sum())
            gaps = np.abs(left - right)
        self.largest = max(self.largest, float(gaps[finite].max(initial=0.0)))

    def difference(self, tensor: str, dtype: str, shape: tuple[int, ...]) -> Difference:
        """Return what all pieces come to."""
        problem = self._problem()
        largest = math.inf if problem else self.largest
        relative = 0.0 if not largest else largest / self.scale if self.scale else math.inf
        return Difference(
            tensor, not self.different, largest, relative, dtype, shape, different=self.different, problem=problem
        )

    def _problem(self) -> str:
        found = [
            (self.new_nans, "has NaN in {} where the model has none"),
            (self.lost_nans, "has no NaN in {} where the model has it"),
            (self.other_infinities, "is infinite in {} where the model is not, or the other way round"),
        ]
        return " and ".join(text.format(counted(count, "element")) for count, text in found if count)


def _chunks(expected: Array, actual: Array) -> Iterator[tuple[Array, Array]]:
    left, right = (np.ascontiguousarray(array).reshape(-1) for array in (expected, actual))
    for start in range(0, left.size, _CHUNK_ELEMENTS):
        yield left[start : start + _CHUNK_ELEMENTS], right[start : start + _CHUNK_ELEMENTS]


def _magnitudes(values: Array) -> Array:
    """Return the absolute values of 64-bit integers, exactly."""
    unsigned = values.astype(np.uint64)
    return np.where(values < 0, np.uint64(0) - unsigned, unsigned)


def _finite(values: Array) -> Array:
    """Return the magnitudes of the finite values."""
    with np.errstate(all="ignore"):
        return np.abs(values[np.isfinite(values)])


def _unlike(tensor: str, dtype: str, problem: str, shape: tuple[int, ...] | None = None) -> Difference:
    return Difference(tensor, False, math.inf, math.inf, dtype, shape, problem=problem)


def _dtype(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return _kind(value).removeprefix("a ").removeprefix("no value") or "optional"
    return "string" if value.dtype.kind in "OUS" else str(value.dtype)


def _kind(value: Any) -> str:
    if value is None:
        return "no value"
    if isinstance(value, np.ndarray):
        return "a tensor"
    names = ((list, "a sequence"), (tuple, "a sequence"), (dict, "a map"))
    return next((name for kind, name in names if isinstance(value, kind)), "a scalar")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | bytes | np.generic)


def _as_array(value: Any) -> Array:
    """Return a scalar as a tensor; onnxruntime gives the float32 values of maps as Python's floats."""
    array = np.asarray(value)
    with np.errstate(all="ignore"):
        narrow = array.astype(np.float32) if isinstance(value, float) else array
    return narrow if array.tobytes() == narrow.astype(array.dtype).tobytes() else array


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
