"""A converted model against its source: onnxruntime's answers beside those that the source framework left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hyps.errors import DifferenceError, ExecutionError, ModelError, printable
from hyps_compiler.arrays import read_npz
from hyps_compiler.compare import Difference, compare
from hyps_compiler.convert.conversion import OutputAgreement
from hyps_compiler.convert.request import Made, answers_name, feeds_name
from hyps_compiler.ort import open_session, run

Array = np.ndarray[Any, Any]

_TOLERANCES = {"bfloat16": 8e-2, "float16": 1e-2, "float32": 1e-4, "float64": 1e-4}
"""Relative to the largest value; a converter may keep float64 constants as float32."""

_STEPS = 2.01
"""As many steps of the quantization may a quantized output be off, and what float32 adds to the figure: every framework
rounds in its own way."""

_CLEARLY = 10.0
"""An output depends on its input where it differs so many times more among samples than between the frameworks."""


@dataclass(slots=True)
class _Tally:
    """One output over all samples."""

    worst: Difference | None = None
    equal: int = 0
    elements: int = 0
    spread: float = 0.0
    """Largest difference among samples, or among the rows of one, relative to the largest value."""
    seen: list[Array] = field(default_factory=list)
    has_several: bool = False


def compare_with_references(folder: Path, model: Path, made: Made, samples: int) -> tuple[OutputAgreement, ...]:
    """Run a model on the references in a folder and return how far each of its outputs is off.

    Raises:
        ModelError: onnxruntime refuses the model, or fails on what the source framework answers.
        DifferenceError: an output is not the source's.
    """
    session = open_session(model, "default")
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name for value in session.get_inputs()}
    tallies = {name: _Tally() for name in names}
    for index in range(samples):
        feeds = {name: value for name, value in read_npz(folder / feeds_name(index)).items() if name in inputs}
        expected = read_npz(folder / answers_name(index))
        _check_names(names, expected)
        try:
            actual = run(session, names, feeds)
        except ExecutionError as error:
            raise ModelError(f"the converted model fails where its source does not: {error.message}") from error
        for name in names:
            _add(tallies[name], name, expected[name], actual[name], _batch(feeds))
    agreement = tuple(_summary(name, tallies[name], made) for name in names)
    _check(tallies, agreement, made)
    return agreement


def _check_names(names: Sequence[str], expected: Mapping[str, Array]) -> None:
    missing = sorted(set(names) ^ set(expected))
    if missing:
        raise DifferenceError(
            f"the converted model and its source do not have the same outputs: `{printable(missing[0])}` is in one only"
        )


def _batch(feeds: Mapping[str, Array]) -> int | None:
    """Return the number of rows that all inputs have, if they have one."""
    rows = {value.shape[0] for value in feeds.values() if value.ndim}
    return rows.pop() if len(rows) == 1 else None


def _add(tally: _Tally, name: str, expected: Array, actual: Any, batch: int | None) -> None:
    """Count one sample of one output."""
    found = compare(name, expected, actual)
    tally.elements += expected.size
    tally.equal += 0 if found.is_unlike else expected.size - found.different
    if tally.worst is None or found.is_unlike or found.relative > tally.worst.relative:
        tally.worst = found
    if expected.dtype.kind in "OUS":
        return
    rows = list(expected) if batch and batch > 1 and expected.ndim and expected.shape[0] == batch else [expected]
    for row in rows:
        for other in tally.seen:
            tally.has_several = True
            if other.shape != row.shape:
                tally.spread = math.inf
            else:
                tally.spread = max(tally.spread, _relative(other, row))
        tally.seen = [row]  # neighbours are enough: if all are equal, these are


def _relative(left: Array, right: Array) -> float:
    """Return how far two arrays are apart, relative to the largest value in either."""
    found = compare("", left, right)
    return 0.0 if found.is_identical else found.relative


def _summary(name: str, tally: _Tally, made: Made) -> OutputAgreement:
    assert tally.worst is not None
    worst = tally.worst
    step = made.steps.get(name)
    varies = tally.spread > _CLEARLY * worst.relative if tally.has_several else None
    return OutputAgreement(
        output=name,
        difference=worst.relative,
        absolute=worst.largest,
        tolerance=_tolerance(worst, made),
        equal_share=tally.equal / tally.elements if tally.elements else 1.0,
        varies=varies,
        steps=None if step is None else worst.largest / step,
    )


def _tolerance(found: Difference, made: Made) -> float:
    return made.tolerances.get(found.tensor, _TOLERANCES.get(found.dtype, 0.0))


def _check(tallies: Mapping[str, _Tally], agreement: Sequence[OutputAgreement], made: Made) -> None:
    """Raise if an output is not the source's."""
    for found in agreement:
        worst = tallies[found.output].worst
        assert worst is not None
        is_close = found.difference <= found.tolerance or (found.steps is not None and found.steps <= _STEPS)
        if worst.is_unlike or not (worst.is_identical or is_close):
            source = made.framework.split()[0]
            raise DifferenceError(
                f"the converted model does not compute what its source computes in {source}:"
                f" output `{printable(found.output)}` {worst}",
                "add --no-verify to get the ONNX model anyway",
            )
