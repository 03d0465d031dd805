"""Made-up values of any type that onnxruntime takes: what a model is tried on when nobody gives a request."""

import re
from typing import Any

import ml_dtypes
import numpy as np
from onnxruntime import OrtValue

from hyps.adapters.feeds import as_ort_value
from hyps.errors import ExecutionError

Array = np.ndarray[Any, Any]

_NUMPY_DTYPES = frozenset(
    {"float32", "float64", "float16", "bool", "string"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_FOREIGN_DTYPES = {
    "bfloat16": "bfloat16",
    **{f"float8{kind}": f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")},
    "float8e8m0": "float8_e8m0fnu",
}
_ELEMENT_SHAPE = (3,)
"""Of the tensors of a sequence: onnxruntime does not tell which shape they are to have."""
_MADE_OF = re.compile(r"(tensor|seq|optional|map)\((.*)\)")


def numpy_dtype(ort_type: str) -> str | None:
    """Return numpy's name of an onnxruntime type, or `string`; None for what numpy has no tensors of."""
    if not ort_type.startswith("tensor("):
        return None
    element = ort_type.removeprefix("tensor(").removesuffix(")")
    name = {"float": "float32", "double": "float64"}.get(element, element)
    return name if name in _NUMPY_DTYPES else None


def random_array(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return values that most models take: normal floats, and integers of 0 and 1, which are valid indices."""
    if dtype == "string":
        return np.full(shape, "a", dtype=object)
    kind = np.dtype(dtype)
    return (rng.integers(0, 2, shape) if kind.kind in "iub" else rng.standard_normal(shape)).astype(kind)


def random_value(ort_type: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Return a value of an onnxruntime type: an array, a list of two values, an optional value that is there, a map.

    Args:
        ort_type: such as `tensor(float)`, `seq(tensor(int64))`, `map(string,tensor(float))`.
        shape: of each tensor in it.
        rng: where the numbers come from.

    Raises:
        ExecutionError: onnxruntime takes no values of that type from Python.
    """
    match = _MADE_OF.fullmatch(ort_type)
    kind, inner = match.groups() if match else ("", "")
    if kind == "seq":
        return [random_value(inner, shape or _ELEMENT_SHAPE, rng) for _ in range(2)]
    if kind == "optional":
        return random_value(inner, shape, rng)
    if kind == "map":
        key, _, value = inner.partition(",")
        dtype = numpy_dtype(value)
        if dtype is not None:
            items = random_array(dtype, (2,), rng).tolist()
            return dict(zip(("a", "b") if key == "string" else (0, 1), items, strict=True))
    dtype = numpy_dtype(ort_type)
    if dtype is not None:
        return random_array(dtype, shape, rng)
    if kind == "tensor" and inner in _FOREIGN_DTYPES:
        return _foreign(_FOREIGN_DTYPES[inner], shape, rng)
    raise ExecutionError(f"no values of type `{ort_type}` can be made up")


def _foreign(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> OrtValue:
    positive = 1 + rng.random(shape)  # one of these types has no negative numbers
    return as_ort_value(positive.astype(np.dtype(getattr(ml_dtypes, dtype))))
