"""A converted model against its source: onnxruntime's answers beside those that the source framework left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


_ROUNDING = 3.0
"""An output may be so many times further off than rounding alone moves it in onnxruntime."""

_MOST_ROUNDING = 0.5
"""Beyond it, relative, an output is refused whatever rounding may do: two such values have nothing in common."""


_MASK = 1e30
"""Values from here on stand for minus or plus infinity; they are no measure of what lies beside them."""


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
    is_blank: bool = True
    """Whether all that the source answered was NaN."""
    rounding: float | None = None
    """How far rounding alone moves it in onnxruntime, relative; only known where it is beyond its tolerance."""


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
    beyond = [name for name in names if _is_beyond(tallies[name].worst, made)]
    for name, moved in _rounding(session, model, folder, beyond, samples).items():
        tallies[name].rounding = moved
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
    found = _compare(name, expected, actual)
    is_blank = expected.dtype.kind == "f" and expected.size > 0 and bool(np.isnan(expected).all())
    tally.is_blank = tally.is_blank and is_blank
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


def _compare(name: str, expected: Array, actual: Any) -> Difference:
    """Return how far an output is off; where both have masks in the same places, relative to the values beside them."""
    found = compare(name, expected, actual)
    if found.is_identical or found.problem or expected.dtype.kind != "f":
        return found
    masks = (np.abs(expected) >= _MASK) & (np.abs(actual) >= _MASK) & (np.sign(expected) == np.sign(actual))
    if found.relative > _TOLERANCES.get(found.dtype, 0.0) or not masks.any():
        return found
    beside = compare(name, np.where(masks, 0, expected), np.where(masks, 0, actual))
    return found if beside.is_identical else replace(beside, different=found.different)


def _relative(left: Array, right: Array) -> float:
    """Return how far two arrays are apart, relative to the largest value in either."""
    found = _compare("", left, right)
    return 0.0 if found.is_identical else found.relative


def _is_beyond(worst: Difference | None, made: Made) -> bool:
    """Return whether the numbers of an output are too far off, of which rounding might be the reason."""
    return worst is not None and not worst.problem and worst.relative > _tolerance(worst, made)


def _rounding(session: Any, model: Path, folder: Path, names: Sequence[str], samples: int) -> dict[str, float]:
    """Return how far rounding alone moves outputs: without onnxruntime's optimizations, and with inputs a bit off.

    Where a network enlarges what rounding did to its first layers, no two frameworks agree more closely than that. What
    moves with nothing changed draws random numbers, and rounding has no part in numbers that are not rounded: 0.
    """
    moved = dict.fromkeys(names, 0.0)
    if not names:
        return moved
    plain = open_session(model, "none")
    inputs = {value.name for value in session.get_inputs()}
    for index in range(samples):
        feeds = {name: value for name, value in read_npz(folder / feeds_name(index)).items() if name in inputs}
        nudged = {
            name: np.nextafter(value, np.inf, dtype=value.dtype) if value.dtype.kind == "f" else value
            for name, value in feeds.items()
        }
        answers, again = run(session, names, feeds), run(session, names, feeds)
        names = [name for name in names if _is_steady(answers[name], again[name])]
        for others in (run(plain, names, feeds), run(session, names, nudged)):
            for name in names:
                moved[name] = max(moved[name], _relative(answers[name], others[name]))
    return {name: moved[name] if name in names else 0.0 for name in moved}


def _is_steady(answer: Any, again: Any) -> bool:
    """Return whether an output is of rounded numbers, the same in two runs on one request."""
    return isinstance(answer, np.ndarray) and answer.dtype.kind == "f" and compare("", answer, again).is_identical


def _summary(name: str, tally: _Tally, made: Made) -> OutputAgreement:
    assert tally.worst is not None
    worst = tally.worst
    step = made.steps.get(name)
    varies = tally.spread > _CLEARLY * worst.relative if tally.has_several else None
    return OutputAgreement(
        output=name,
        difference=worst.relative,
        absolute=worst.largest,
        tolerance=max(_tolerance(worst, made), min(_ROUNDING * (tally.rounding or 0.0), _MOST_ROUNDING)),
        rounding=tally.rounding,
        equal_share=tally.equal / tally.elements if tally.elements else 1.0,
        varies=varies,
        is_blank=tally.is_blank,
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
