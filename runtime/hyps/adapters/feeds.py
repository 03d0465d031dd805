"""A request's arrays against the plan's declarations; quick where all is as declared."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyps.errors import TensorError, printable
from hyps.formats.dtypes import ITEM_NBYTES, numpy_name
from hyps.formats.plan import NamedTensor
from hyps.formats.signature import check_names, check_tensor

_ONNX_ELEMENTS = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
    "float8_e8m0fnu": 24,
}
"""Numbers in ONNX of element types that numpy itself lacks and onnxruntime takes as it is told."""


class Feeds:
    """Checks requests against the inputs of one model."""

    def __init__(self, inputs: Sequence[NamedTensor]) -> None:
        self._inputs = tuple(inputs)
        self._names = frozenset(tensor.name for tensor in inputs)
        self._quick = [(tensor.name, numpy_dtype(tensor.dtype), tensor.shape) for tensor in inputs]

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return `feeds` fit for onnxruntime: numpy arrays of the declared element types and shapes.

        Raises:
            TensorError: a name, element type, rank or dimension is not as declared.
        """
        for name, dtype, shape in self._quick:
            array = feeds.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape or dtype is None:
                return self._checked_slowly(feeds)
        return dict(feeds) if len(feeds) == len(self._quick) else self._checked_slowly(feeds)

    def _checked_slowly(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        check_names(self._inputs, feeds)
        dims: dict[str, int] = {}
        return {tensor.name: _checked(tensor, feeds[tensor.name], dims) for tensor in self._inputs}


def numpy_dtype(name: str) -> "np.dtype[Any] | None":
    """Return numpy's element type of that name; None for strings and what numpy does not have."""
    return np.dtype(name) if name in ITEM_NBYTES else None


def dtype_name(array: "np.ndarray[Any, Any]") -> str:
    """Return the plan's name of an array's element type: numpy's own, `string` for text."""
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat)):
        return "string"
    return str(array.dtype.name if array.dtype.isnative else array.dtype.str)


def as_ort_value(array: "np.ndarray[Any, Any]") -> Any:
    """Return an array of an element type that numpy itself lacks (bfloat16, float8) as onnxruntime takes it."""
    import onnxruntime  # a client of a worker, whose requests are checked here too, has no use for it

    contiguous = np.ascontiguousarray(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, _ONNX_ELEMENTS[array.dtype.name])


def _is_ort_value(value: Any) -> bool:
    module = sys.modules.get("onnxruntime")  # without it there are none
    return module is not None and isinstance(value, module.OrtValue)


def nbytes_of(value: Any) -> int:
    """Return the bytes that a value takes; sequences and maps are the sum of what is in them."""
    if isinstance(value, Mapping):
        return sum(nbytes_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(nbytes_of(item) for item in value)
    return int(getattr(value, "nbytes", 0))


def _checked(expected: NamedTensor, value: Any, dims: dict[str, int]) -> Any:
    if _is_ort_value(value):
        if value.is_tensor():
            check_tensor(expected, numpy_name(value.data_type()), value.shape(), dims)
        return value
    if expected.dtype.endswith(")"):
        return value  # a sequence, map or optional value, which onnxruntime checks
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise TensorError(
            f"`{printable(expected.name)}` must be a numpy array and is a {kind}", "wrap it in `numpy.asarray`"
        )
    check_tensor(expected, dtype_name(value), value.shape, dims)
    if expected.dtype in _ONNX_ELEMENTS:
        return as_ort_value(value)
    return value
