"""What partitions take on devices that have not run them: told by what they took elsewhere, and what else ran here.

The model is the plainest there is: a partition has an amount of work, a device a speed, and seconds are the quotient.
Both are fitted to all that was timed, in logarithms, by least squares; multiply-accumulates and the speed that a
device measured when it joined stand in where nothing was timed, and weigh little where something was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyps.formats.replanning import DeviceFacts, PartitionFacts, Question

Floats = npt.NDArray[np.float64]

_PRIOR = 0.005
"""What multiply-accumulates, and a device's measured speed, weigh against one timing."""
_PREDICTED = 0.2
"""What a predicted timing weighs against a measured one."""
_TYPICAL_MACS_PER_S = 2e9
"""Of one core of a small board: the scale where no device tells its speed."""
_MACS_PER_BYTE = 0.25
"""Work that moving a byte stands for, where multiply-accumulates are unknown."""
_LEAST_S = 1e-7
_MOST_S = 1e9


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of every partition on every device, and how sure they are."""

    seconds: tuple[tuple[float, ...], ...]
    """By partition and device, in the order of the question."""
    guessed: tuple[str, ...]
    """Partitions of which nothing was timed anywhere."""


def times_of(question: Question) -> Times:
    """Return what each partition takes on each device.

    What was measured there; else what was predicted, times what predictions are off by on that device; else what the
    model says.
    """
    measured = {(t.partition, t.device): t.seconds for t in question.timings if t.is_measured}
    predicted = {(t.partition, t.device): t.seconds for t in question.timings if not t.is_measured and t.seconds}
    drift = _drifts(measured, predicted)
    corrected = {key: min(seconds * drift.get(key[1], 1.0), _MOST_S) for key, seconds in predicted.items()}
    told = {**corrected, **measured}
    modelled = _modelled(question, told, measured)
    timed = {part for part, _ in told}
    names = [device.name for device in question.devices]
    return Times(
        tuple(
            tuple(told.get((part.id, name), model) for name, model in zip(names, row, strict=True))
            for part, row in zip(question.partitions, modelled, strict=True)
        ),
        tuple(part.id for part in question.partitions if part.id not in timed),
    )


def _drifts(measured: Mapping[tuple[str, str], float], predicted: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Return by device how many times longer than predicted what was measured took."""
    ratios: dict[str, list[float]] = {}
    for key, seconds in measured.items():
        if predicted.get(key, 0.0) > 0:
            ratios.setdefault(key[1], []).append(math.log(max(seconds, _LEAST_S) / predicted[key]))
    return {device: math.exp(sum(logs) / len(logs)) for device, logs in ratios.items()}


def _modelled(
    question: Question, told: Mapping[tuple[str, str], float], measured: Mapping[tuple[str, str], float]
) -> Sequence[Sequence[float]]:
    """Return seconds by partition and device, from amounts of work and speeds that fit best what is told."""
    rows = {part.id: row for row, part in enumerate(question.partitions)}
    names = dict.fromkeys([*(device.name for device in question.devices), *sorted({device for _, device in told})])
    columns = {name: len(rows) + index for index, name in enumerate(names)}
    matrix = np.zeros((len(rows) + len(columns),) * 2)
    target = np.zeros(len(matrix))
    for (part, device), seconds in sorted(told.items()):
        if part in rows:
            weight = 1.0 if (part, device) in measured else _PREDICTED
            _add(matrix, target, ((rows[part], 1.0), (columns[device], -1.0)), math.log(max(seconds, _LEAST_S)), weight)
    for row, work in enumerate(_works(question)):
        _add(matrix, target, ((row, 1.0),), math.log(work), _PRIOR)
    for name, speed in zip(names, _speeds(question.devices, len(names)), strict=True):
        _add(matrix, target, ((columns[name], 1.0),), math.log(speed), _PRIOR)
    fitted = np.linalg.solve(matrix, target)
    works, speeds = fitted[: len(rows)], fitted[len(rows) : len(rows) + len(question.devices)]
    seconds_by_row: list[list[float]] = np.exp(np.minimum(works[:, None] - speeds, math.log(_MOST_S))).tolist()
    return seconds_by_row


def _add(
    matrix: Floats,
    target: Floats,
    terms: Sequence[tuple[int, float]],
    value: float,
    weight: float,
) -> None:
    """Add one equation, the sum of the terms being the value, to the normal equations."""
    for index, factor in terms:
        target[index] += weight * factor * value
        for other, other_factor in terms:
            matrix[index, other] += weight * factor * other_factor


def _works(question: Question) -> list[float]:
    return [max(_work(question, part), 1.0) for part in question.partitions]


def _work(question: Question, part: PartitionFacts) -> float:
    """Return multiply-accumulates; where they are unknown or few, what moving its bytes stands for."""
    nbytes = sum(question.tensor_bytes[name] for name in (*part.inputs, *part.outputs))
    nbytes += sum(weight.nbytes for weight in part.weights)
    return max(float(part.macs or 0), nbytes * _MACS_PER_BYTE)


def _speeds(devices: Sequence[DeviceFacts], count: int) -> list[float]:
    """Return what devices told of their speed, the middle of it for the others, and those that are gone behind them."""
    known = sorted(device.macs_per_s for device in devices if device.macs_per_s > 0)
    middle = known[len(known) // 2] if known else _TYPICAL_MACS_PER_S
    told = [device.macs_per_s or middle for device in devices]
    return told + [middle] * (count - len(told))
