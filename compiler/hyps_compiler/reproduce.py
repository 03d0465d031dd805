"""Runs the two models in this folder on the same inputs and says how far they are apart.

Needs onnxruntime and numpy only. Ends with status 1 while they differ, and with 0 once they agree.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def main(folder: Path) -> int:
    """Run the reproduction in `folder` and return the exit status."""
    about = json.loads((folder / "reproduction.json").read_text())
    given = _read(folder / "inputs.npz", about["inputs"])
    target = about["tensor"]
    expected = _run(folder / "model.onnx", given, target, optimized=False)
    try:
        values = dict(given)
        for name in about["partitions"]:
            values.update(_run(folder / name, values, None, optimized=about["optimized"]))
        actual = values[target]
    except Exception as error:  # onnxruntime's own classes share no parent but this
        _say(f"{about['partitions'][-1]} fails in onnxruntime: {str(error).splitlines()[0]}")
        return 1
    return _compare(target, expected[target], actual, about["tolerance"])


def _run(path: Path, values: dict[str, Any], wanted: str | None, *, optimized: bool) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [wanted] if wanted else [output.name for output in session.get_outputs()]
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _read(path: Path, names: dict[str, str]) -> dict[str, Any]:
    """Return the arrays by the names of the tensors; text the way onnxruntime wants it."""
    with np.load(path, allow_pickle=False) as arrays:
        read = {name: arrays[key] for key, name in names.items()}
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in read.items()}


def _compare(name: str, expected: Any, actual: Any, tolerance: float | None) -> int:
    _say(f"tensor {name!r}")
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        same = repr(expected) == repr(actual)
        _say("they agree" if same else "they differ: no tensors, see expected and actual")
        return 0 if same else 1
    _say(f"model.onnx  makes {expected.dtype} {list(expected.shape)}: {_peek(expected)}")
    _say(f"partitions  make  {actual.dtype} {list(actual.shape)}: {_peek(actual)}")
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        _say("they differ in type or shape")
        return 1
    if expected.dtype == object:
        different = int((expected != actual).sum())
    else:
        raw = (expected.size, expected.dtype.itemsize)
        left, right = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(raw) for array in (expected, actual)
        )
        different = int((left != right).any(axis=1).sum())
    if not different:
        _say("they agree bit for bit")
        return 0
    _say(f"they differ in {different} of {expected.size} elements")
    return _measure(expected, actual, tolerance) if expected.dtype.kind in "fiu" else 1


def _measure(expected: Any, actual: Any, tolerance: float | None) -> int:
    """Say the largest difference; within the tolerance, where there is one, they agree."""
    with np.errstate(all="ignore"):
        left, right = expected.astype(np.float64), actual.astype(np.float64)
        gaps = np.abs(left - right)
        unequal_nan = np.isnan(left) != np.isnan(right)
        largest = float(np.nanmax(np.where(left == right, 0.0, gaps), initial=0.0))
        scale = float(np.max(np.abs(left[np.isfinite(left)]), initial=0.0))
    relative = largest / scale if scale else float("inf") if largest else 0.0
    _say(f"largest difference: {largest:.6g}, relative to the largest value: {relative:.6g}")
    if unequal_nan.any():
        _say(f"NaN in one of the two only: {int(unequal_nan.sum())} elements")
        return 1
    return 0 if tolerance is not None and relative <= tolerance else 1


def _peek(array: Any) -> str:
    shown = ", ".join(str(item) for item in array.reshape(-1)[:6])
    return shown + (", ..." if array.size > 6 else "")


def _say(text: str) -> None:
    sys.stdout.write(text.encode("ascii", "backslashreplace").decode() + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
