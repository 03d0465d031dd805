"""Requests for the source framework, drawn by numpy from a seed, and its answers left for the parent to compare."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyps.errors import TensorError, UsageError, printable
from hyps.formats.signature import shape_text
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.convert.request import Request, answers_name, feeds_name, first_line

Array = np.ndarray[Any, Any]

BATCH = 2
"""Where the first dimension is open: two different rows show more than one, and cost little."""

OPEN_SIZE = 11
"""Of other open dimensions."""

PICTURE_SIZE = 224
"""Of open dimensions of pictures: networks that halve them five times have nothing left of small ones."""

_LIMITS = (100, 10, 2)
"""Integers are drawn below the first of these that the model accepts: they may be rows of a table."""


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the source, as the ONNX model will have it."""

    name: str
    dtype: str
    """numpy's name, or `string`."""
    shape: tuple[int | None, ...] | None
    """None in it: open; None alone: even the number of dimensions is."""


def leave_references(
    request: Request, inputs: Sequence[Input], answer: Callable[[Mapping[str, Array]], Mapping[str, Array]]
) -> str:
    """Have the source framework answer as many requests as asked for, and leave both in the request's folder.

    Args:
        request: what the parent asks for.
        inputs: of the source; shapes that `request.inputs` fixes are taken from there.
        answer: computes the outputs, by ONNX name, from the inputs, by ONNX name.

    Returns:
        Why there are no references, as a phrase; empty where there are.

    Raises:
        TensorError: the request given in a file does not fit the inputs, or the source framework fails on it.
    """
    if request.feeds:
        feeds = _read_feeds(request, inputs)
        try:
            _leave(request, 0, feeds, answer(feeds))
        except Exception as error:  # of the framework, which may raise anything
            raise TensorError(f"the source framework fails on the given inputs: {first_line(error)}") from error
        return ""
    wanted = [Input(value.name, value.dtype, request.inputs.get(value.name, value.shape)) for value in inputs]
    for value in wanted:
        if not _can_draw(value):
            return f"no request can be made up for the input `{printable(value.name)}`; give one with --inputs"
    for limit in _LIMITS:
        try:
            for index in range(request.samples):
                feeds = draw(wanted, request.seed + index, limit)
                _leave(request, index, feeds, answer(feeds))
        except Exception as error:  # of the framework: an index beyond a table, sizes that do not fit each other
            reason = first_line(error)
            continue
        return ""
    return f"the source framework answers no request that was made up ({reason}); give one with --inputs"


def draw(inputs: Sequence[Input], seed: int, limit: int = _LIMITS[0]) -> dict[str, Array]:
    """Return a random request: pictures of 0 to 255, other numbers around 0, integers from 0 to below `limit`."""
    generator = np.random.default_rng(seed)
    return {value.name: _draw_one(value, generator, limit) for value in inputs}


def _can_draw(value: Input) -> bool:
    return value.shape is not None and value.dtype != "string" and np.dtype(value.dtype).kind in "biuf"


def _draw_one(value: Input, generator: np.random.Generator, limit: int) -> Array:
    assert value.shape is not None
    shape = _closed(value.shape)
    dtype = np.dtype(value.dtype)
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    if dtype.kind in "iu":
        return generator.integers(0, min(limit, int(np.iinfo(dtype).max)), shape).astype(dtype)
    if _is_picture(shape):
        return generator.uniform(0, 255, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _closed(shape: Sequence[int | None]) -> tuple[int, ...]:
    is_picture = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    open_size = PICTURE_SIZE if is_picture else OPEN_SIZE
    sizes = [open_size if size is None else size for size in shape]
    return tuple([BATCH if shape[0] is None else sizes[0], *sizes[1:]] if sizes else [])


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)) and math.prod(shape[1:]) >= 3 * 16 * 16


def _read_feeds(request: Request, inputs: Sequence[Input]) -> dict[str, Array]:
    """Return the request in a file, after a check of its names, types and shapes."""
    given = read_npz(Path(request.feeds))
    names = [value.name for value in inputs]
    if set(given) != set(names):
        listed = ", ".join(f"`{printable(name)}`" for name in names)
        raise UsageError(
            f"`{printable(Path(request.feeds).name)}` does not hold the model's inputs, which are {listed}"
        )
    for value in inputs:
        found, wanted = given[value.name], value.shape
        fits = wanted is None or (
            len(found.shape) == len(wanted)
            and all(size in (None, has) for size, has in zip(wanted, found.shape, strict=True))
        )
        dtype = "string" if found.dtype.kind in "OU" else str(found.dtype)
        if not fits or dtype != value.dtype:
            takes = "any shape" if wanted is None else shape_text(wanted)
            has = shape_text(found.shape)
            raise TensorError(
                f"the input `{printable(value.name)}` is {dtype} of {has}, and the model takes {value.dtype} of {takes}"
            )
    return {name: given[name] for name in names}


def _leave(request: Request, index: int, feeds: Mapping[str, Array], answers: Mapping[str, Array]) -> None:
    write_npz(Path(request.folder, feeds_name(index)), feeds)
    write_npz(Path(request.folder, answers_name(index)), answers)
