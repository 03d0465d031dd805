"""What partitions take on devices: measured of late, else predicted, else guessed from what the device can do."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from hyps.formats.plan import Plan
from hyps.formats.replanning import Timing

LEAST_RUNS = 20
"""Before what was measured counts as what a partition takes."""

_REMEMBERED = 64
_MOST_PAIRS = 4096
"""Of a partition and a device, at least; of devices that have gone the oldest are forgotten beyond it."""

_SMOOTHING = 0.2
_GUESS_S = 0.01


@dataclass(slots=True)
class _Measured:
    mean_s: float
    """Of one request."""
    runs: int = 0
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Timings:
    """Seconds per partition and device; devices that were lost are remembered, since they come back."""

    def __init__(self, plan: Plan) -> None:
        self._macs = {part.id: part.macs for part in plan.partitions}
        self._most_pairs = max(_MOST_PAIRS, 64 * len(self._macs))
        self._planned: frozenset[tuple[str, str]] = frozenset()
        """What the plan itself tells of, which is not forgotten."""
        self._predicted: dict[tuple[str, str], float] = {}
        for variant in reversed(plan.variants):
            self.predict(variant.placement, variant.prediction.partition_s, variant.prediction.batch)
        self._planned = frozenset(self._predicted)
        self._measured: dict[tuple[str, str], _Measured] = {}

    def predict(self, placement: Mapping[str, str], partition_s: Mapping[str, float], batch: int = 1) -> None:
        """Take what a placement is said to take."""
        for part, seconds in partition_s.items():
            if part in placement:
                self._predicted[part, placement[part]] = seconds / max(1, batch)
        searched = [pair for pair in self._predicted if pair not in self._planned]
        for pair in searched[: -self._most_pairs]:
            del self._predicted[pair]

    def add(self, part: str, device: str, seconds: float, requests: int = 1) -> None:
        """A run has ended, of so many requests together."""
        measured = self._measured.get((part, device))
        if measured is None:
            measured = self._measured[part, device] = _Measured(seconds / requests)
            if len(self._measured) > self._most_pairs:
                del self._measured[next(iter(self._measured))]
        measured.mean_s += _SMOOTHING * (seconds / requests - measured.mean_s)
        measured.runs += 1
        measured.latest.append(seconds)

    def expected_s(self, part: str, device: str, macs_per_s: float) -> float:
        """Return what a run is expected to take."""
        known = self._known_s(part, device, macs_per_s)
        return _GUESS_S if known is None else known

    def lease_s(self, part: str, device: str, macs_per_s: float, least_s: float, unknown_s: float) -> float:
        """Return how long a run may take before it is given up: ten times the longest that is known."""
        measured = self._measured.get((part, device))
        known = max(measured.latest) if measured is not None else self._known_s(part, device, macs_per_s)
        return unknown_s if known is None else max(least_s, 10 * known)

    def measured_s(self, part: str, device: str) -> float | None:
        """Return what runs take of late; None before there were enough."""
        measured = self._measured.get((part, device))
        return None if measured is None or measured.runs < LEAST_RUNS else measured.mean_s

    def predicted_s(self, part: str, device: str) -> float | None:
        """Return what runs were said to take; None: nobody said."""
        return self._predicted.get((part, device))

    def timings(self) -> tuple[Timing, ...]:
        """Return all that is known, for a search."""
        told = dict.fromkeys(sorted({*self._predicted, *self._measured}))
        return tuple(self._timing(part, device) for part, device in told)

    def _timing(self, part: str, device: str) -> Timing:
        measured = self.measured_s(part, device)
        seconds = self._known_s(part, device, 0.0) if measured is None else measured
        return Timing(partition=part, device=device, seconds=seconds or 0.0, is_measured=measured is not None)

    def _known_s(self, part: str, device: str, macs_per_s: float) -> float | None:
        measured = self._measured.get((part, device))
        if measured is not None:
            return measured.mean_s
        predicted = self._predicted.get((part, device))
        macs = self._macs.get(part)
        if predicted is None and macs and macs_per_s > 0:
            return macs / macs_per_s
        return predicted
