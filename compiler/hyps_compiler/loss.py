"""What quantization does to a model's answers: measured when a plan is made, and looked at again by `hypsc verify`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec import structs

from hyps.formats.plan import OutputLoss, Quantization
from hyps_compiler.measure import Feeds
from hyps_compiler.ort import open_session, run
from hyps_compiler.source import Source

_LARGE_NBYTES = 10**9
"""Above this many bytes of weights none are copied into the kernels' layouts, which would double them."""

Array = np.ndarray[Any, Any]
Answer = Mapping[str, Any]


def measure_loss(record: Quantization, original: Source, quantized: Source, requests: Sequence[Feeds]) -> Quantization:
    """Return the record with how far the quantized model is from the original, both as onnxruntime runs them."""
    expected = whole_answers(original, requests)
    actual = whole_answers(quantized, requests)
    losses = compare_answers(original.outputs, expected, actual)
    return structs.replace(record, measured_requests=len(requests), losses=losses)


def whole_answers(source: Source, requests: Sequence[Feeds]) -> list[dict[str, Any]]:
    """Return what the whole model answers in onnxruntime with its default options."""
    session = open_session(source.path, "default", prepack=source.nbytes <= _LARGE_NBYTES)
    names = [output.name for output in session.get_outputs()]
    return [run(session, names, request) for request in requests]


def compare_answers(
    names: Sequence[str], expected: Sequence[Answer], actual: Sequence[Answer]
) -> tuple[OutputLoss, ...]:
    """Return the loss of each output over all requests."""
    tallies = {name: _Tally() for name in names}
    for wanted, answer in zip(expected, actual, strict=True):
        for name, tally in tallies.items():
            tally.add(wanted[name], answer.get(name))
    return tuple(tally.loss(name) for name, tally in tallies.items())


@dataclass(slots=True)
class _Tally:
    """Sums the differences in one output."""

    largest: float = 0.0
    relative: float = 0.0
    means: list[float] = field(default_factory=list)
    same: int = 0
    vectors: int = 0
    is_number: bool = True

    def add(self, expected: Any, actual: Any) -> None:
        """Count one request's output."""
        if not _are_alike(expected, actual):
            self.is_number = False
            return
        wide, other = expected.astype(np.float64), actual.astype(np.float64)
        with np.errstate(all="ignore"):
            gaps = np.where(wide == other, 0.0, np.abs(wide - other))  # equal infinities are no difference
        scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
        largest, mean = (float(gaps.max(initial=0.0)), float(gaps.mean())) if gaps.size else (0.0, 0.0)
        self.largest = max(self.largest, largest, key=_nan_last)
        self.relative = max(self.relative, _over(largest, scale), key=_nan_last)
        self.means.append(_over(mean, scale))
        if expected.dtype.kind == "f" and expected.ndim and expected.shape[-1] > 1 and expected.size:
            hits = wide.argmax(-1) == other.argmax(-1)
            self.same, self.vectors = self.same + int(hits.sum()), self.vectors + hits.size

    def loss(self, name: str) -> OutputLoss:
        """Return what all requests come to."""
        if not self.is_number:
            return OutputLoss(output=name, largest=None, relative=None, mean=None)
        return OutputLoss(
            output=name,
            largest=_finite(self.largest),
            relative=_finite(self.relative),
            mean=_finite(sum(self.means) / len(self.means)) if self.means else 0.0,
            same_top1=self.same / self.vectors if self.vectors else None,
        )


def _are_alike(expected: Any, actual: Any) -> bool:
    """Return whether both are tensors of numbers of one shape: another shape, as detectors give, has no difference."""
    both = isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)
    return both and expected.dtype.kind in "fiub" and actual.dtype.kind in "fiub" and expected.shape == actual.shape


def _over(gap: float, scale: float) -> float:
    return 0.0 if gap == 0 else gap / scale if scale else math.inf


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
