"""What onnxruntime answers, and how far two answers are apart; nothing of HyPS stands in between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "portable": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "native": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_TOLERANCES = {"float16": 1e-2, "bfloat16": 1e-1, "float32": 1e-5, "float64": 1e-9, "complex64": 1e-5}


def open_session(path: Path, level: str = "none") -> Any:
    """Return a session of one thread, as onnxruntime makes it, at one of LEVELS."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def answer(session: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return all outputs by name; inputs with a default may be left out of `feeds`."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, usable(feeds)), strict=True))


def usable(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return `feeds` with values of types that numpy itself lacks as onnxruntime takes them."""
    return {name: _usable(value) for name, value in feeds.items()}


def _usable(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.name.startswith(("bfloat16", "float8")):
        element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(value), element)
    return value


def is_same(left: Any, right: Any) -> bool:
    """Return whether two values agree bit for bit: tensors, sequences, maps, or nothing."""
    if isinstance(left, list) or isinstance(right, list):
        return _is_sequence(left, right) and all(map(is_same, left, right))
    if isinstance(left, Mapping) or isinstance(right, Mapping):
        return bool(left == right)
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(np.array_equal(left, right)) if left.dtype == object else left.tobytes() == right.tobytes()


def _is_sequence(left: Any, right: Any) -> bool:
    return isinstance(left, list) and isinstance(right, list) and len(left) == len(right)


def distance(expected: Any, actual: Any) -> float:
    """Return the largest difference over the largest expected magnitude; infinite where nothing can be compared."""
    if is_same(expected, actual):
        return 0.0
    if _is_sequence(expected, actual):
        return max(distance(left, right) for left, right in zip(expected, actual, strict=True))
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return float("inf")
    if expected.dtype != actual.dtype or expected.shape != actual.shape or expected.dtype.kind not in "fc":
        return float("inf")
    left, right = expected.astype(np.complex128), actual.astype(np.complex128)
    strange = ~np.isfinite(left)
    if not np.array_equal(left[strange], right[strange], equal_nan=True) or not np.isfinite(right[~strange]).all():
        return float("inf")
    gap = float(np.abs(left[~strange] - right[~strange]).max(initial=0.0))
    scale = float(np.abs(left[~strange]).max(initial=0.0))
    return gap / scale if scale else (float("inf") if gap else 0.0)


def tolerance(value: Any) -> float:
    """Return the relative difference that another order of accumulation may make (CONTRACT section 7)."""
    if isinstance(value, list):
        return max(map(tolerance, value), default=0.0)
    return _TOLERANCES.get(str(getattr(value, "dtype", "")), 0.0)


def matches_stored(expected: Sequence[Any], actual: Mapping[str, Any], rtol: float, atol: float) -> bool:
    """Return whether an answer is the stored one, within the suite's own tolerances."""
    return len(expected) == len(actual) and all(
        _is_close(left, right, rtol, atol) for left, right in zip(expected, actual.values(), strict=True)
    )


def _is_close(left: Any, right: Any, rtol: float, atol: float) -> bool:
    if isinstance(left, list | tuple):
        return (
            isinstance(right, list)
            and len(left) == len(right)
            and all(_is_close(one, other, rtol, atol) for one, other in zip(left, right, strict=True))
        )
    if left is None or right is None or isinstance(right, Mapping):
        return bool(left is right or left == right)
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype.type.__module__ != "numpy":  # onnxruntime hands such out as raw bytes, or not at all
        return bool(left.shape == right.shape and left.tobytes() == right.tobytes())
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype.kind not in "fciub":
        return bool(np.array_equal(left, right))
    return bool(np.allclose(right, left, rtol=rtol, atol=atol, equal_nan=True))
