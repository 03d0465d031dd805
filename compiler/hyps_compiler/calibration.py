"""Requests to calibrate with: from an `.npz` file or a folder of them, checked, and a part of them held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hyps.adapters.feeds import Feeds as FeedsCheck
from hyps.errors import ExecutionError, HypsError, TensorError, printable
from hyps.formats.dtypes import numpy_name
from hyps.formats.plan import NamedTensor
from hyps_compiler.arrays import read_npz
from hyps_compiler.ort import run

_HOLD_OUT_EVERY = 5
"""Every so manieth request tells no ranges, so that the loss can be measured on what was not seen."""

Array = np.ndarray[Any, Any]
Request = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The requests of a user, all checked against the model's inputs."""

    told: tuple[Request, ...]
    """Those that may tell ranges."""
    held_out: tuple[Request, ...]
    """Those kept back; empty where there are too few."""

    @property
    def all(self) -> tuple[Request, ...]:
        """All requests."""
        return (*self.told, *self.held_out)


def read_calibration(path: Path, session: ort.InferenceSession) -> Calibration:
    """Return the requests in an `.npz` file, or in all those of a folder in the order of their names.

    A file may hold several, as in `requests_in`.

    Raises:
        TensorError: there is none, a file cannot be read, does not fit the inputs, or holds NaN or an infinity.
    """
    declared = [_declared(info) for info in session.get_inputs()]
    requests = [request for file in _files(path) for request in _read(file, declared, session)]
    if not requests:
        raise TensorError(f"`{printable(str(path))}` holds no request to calibrate with", _HINT)
    if len(requests) < _HOLD_OUT_EVERY:
        return Calibration(tuple(requests), ())
    held = slice(_HOLD_OUT_EVERY - 1, None, _HOLD_OUT_EVERY)
    told = [request for number, request in enumerate(requests, 1) if number % _HOLD_OUT_EVERY]
    return Calibration(tuple(told), tuple(requests[held]))


_HINT = "give an .npz file with an array for each input, or a folder of such files"
_FORMS = "give an array for each input, of one request, or of several along an axis before those of the input"
_ROUNDING = 1e-3
"""How far, relative to the largest value, answers to a batch may be from those to its rows."""


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        return sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz")
    except OSError as error:
        raise TensorError(f"`{printable(str(path))}` cannot be read: {error.strerror}") from error


def _declared(info: Any) -> NamedTensor:
    shape = tuple(size if isinstance(size, int) and size >= 0 else size or None for size in info.shape)
    is_tensor = info.type.startswith("tensor(")
    dtype = numpy_name(info.type) if is_tensor else info.type
    return NamedTensor(name=info.name, dtype=dtype, shape=shape or None)  # [] may be a scalar or an unknown rank


def _read(file: Path, declared: Sequence[NamedTensor], session: ort.InferenceSession) -> list[Request]:
    """Return the requests of one file."""
    shown = printable(str(file), 200)
    arrays = read_npz(file)
    try:
        requests = requests_in(arrays, declared, lambda: session)
    except TensorError as error:
        raise TensorError(f"calibration file `{shown}`: {error.message}", error.hint, error.code) from error
    for request in requests:
        for name, array in request.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TensorError(
                    f"calibration file `{shown}`: `{printable(name)}` holds NaN or an infinity, which tell no range",
                    "leave such requests out",
                )
            if array.size == 0:
                raise TensorError(f"calibration file `{shown}`: `{printable(name)}` is empty", "leave it out")
    return requests


def requests_in(
    arrays: Mapping[str, Array], declared: Sequence[NamedTensor], session: Callable[[], ort.InferenceSession]
) -> list[Request]:
    """Return the requests that a user's arrays hold, checked against the model's inputs.

    They are several (1) where all arrays have an axis more than the inputs, which then counts them; (2) where all are
    longer along the first axis than the 1 of the model; (3) where the first axis is open in the model, and the model
    answers each row alone as it does among others: then it is a batch, and no sequence.

    Args:
        arrays: by the names of the inputs.
        declared: the inputs.
        session: returns the model to ask; called in case 3 alone.

    Raises:
        TensorError: they do not fit the inputs, or hold different numbers of requests.
    """
    try:
        return [FeedsCheck(declared).checked(request) for request in _taken_apart(arrays, declared, session)]
    except TensorError as error:
        raise TensorError(error.message, f"{error.hint}; {_FORMS}" if error.hint else _FORMS, error.code) from error


def _taken_apart(
    arrays: Mapping[str, Array], declared: Sequence[NamedTensor], session: Callable[[], ort.InferenceSession]
) -> list[Request]:
    kinds = {_kind(tensor, arrays[tensor.name]) for tensor in declared if tensor.name in arrays}
    counts = {len(array) for array in arrays.values() if array.ndim}
    if kinds == {"batch"}:
        are_rows = len(counts) == 1 and _answers_by_row(session(), FeedsCheck(declared).checked(arrays))
        kinds = {"rows" if are_rows else "single"}
    if kinds not in ({"stack"}, {"rows"}, {"rows", "batch"}):
        return [arrays]
    if len(counts) != 1:
        told = ", ".join(map(str, sorted(counts)))
        raise TensorError(f"its arrays hold different numbers of requests: {told}", "give as many of each")
    keep = "rows" in kinds
    return [
        {name: array[i : i + 1] if keep else np.ascontiguousarray(array[i]) for name, array in arrays.items()}
        for i in range(counts.pop())
    ]


def _kind(tensor: NamedTensor, array: Array) -> str:
    shape = tensor.shape
    if shape is not None and array.ndim == len(shape) + 1:
        return "stack"
    if not shape or array.ndim != len(shape) or len(array) == 1:
        return "single"
    return "rows" if shape[0] == 1 else "single" if isinstance(shape[0], int) or len(array) == 0 else "batch"


def _answers_by_row(session: ort.InferenceSession, batch: Request) -> bool:
    """Return whether the first two rows are answered alone as they are together, or cannot be asked together."""
    names = [output.name for output in session.get_outputs()]
    try:
        alone = [run(session, names, {name: array[i : i + 1] for name, array in batch.items()}) for i in range(2)]
    except ExecutionError:
        return False
    try:
        together = run(session, names, {name: array[:2] for name, array in batch.items()})
    except ExecutionError:
        return True
    return all(_are_rows(together[name], [answer[name] for answer in alone]) for name in names)


def _are_rows(together: Any, alone: Sequence[Any]) -> bool:
    if not all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in (together, *alone)):
        return False
    if any(value.ndim == 0 for value in alone):
        return False
    rows = np.concatenate(alone)
    if rows.shape != together.shape:
        return False
    largest = float(np.abs(together.astype(np.float64)).max(initial=0.0))
    return np.allclose(rows, together, rtol=_ROUNDING, atol=_ROUNDING * largest, equal_nan=True)


def run_problem(error: HypsError) -> TensorError:
    """Return the refusal of a request that fits the inputs, on which the model fails."""
    return TensorError(f"the model does not run on a request to calibrate with: {error.message}", _HINT)
