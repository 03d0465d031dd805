"""Rates, shares and quantiles of late, in memory that does not grow; time is a value that rises."""

import math
from bisect import bisect_left
from collections import deque

from hyps.formats.status import BUCKETS_S, Durations

_SLOTS = 20
_LATEST = 1024


class Rate:
    """How much happened per second, over a window that slides in steps of a twentieth of it.

    >>> rate = Rate(window_s=10.0)
    >>> for second in range(20):
    ...     rate.add(float(second), 3.0)
    >>> round(rate.per_s(20.0), 1)
    3.0
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self._slot_s = window_s / _SLOTS
        self._slots: deque[tuple[int, float]] = deque()
        """Number and sum of each slot of the window in which anything happened, the oldest first."""
        self._since_s: float | None = None
        self.total = 0.0

    def add(self, now_s: float, amount: float = 1.0) -> None:
        """Count `amount` at `now_s`."""
        self._since_s = now_s if self._since_s is None else self._since_s
        self.total += amount
        self._add(self._number(now_s), amount)

    def add_between(self, start_s: float, end_s: float) -> None:
        """Count one per second from `start_s` to `end_s`: `per_s` is then the part of the window that was taken."""
        self._since_s = start_s if self._since_s is None else self._since_s
        self.total += max(0.0, end_s - start_s)
        first, last = self._number(start_s), self._number(end_s)
        for number in range(max(first, last - _SLOTS - 1), last + 1):
            begin_s, until_s = number * self._slot_s, (number + 1) * self._slot_s
            self._add(number, max(0.0, min(end_s, until_s) - max(start_s, begin_s)))

    def per_s(self, now_s: float) -> float:
        """Return what was counted per second of the window that ends at `now_s`; of a shorter one at the beginning."""
        if self._since_s is None:
            return 0.0
        number = self._number(now_s)
        oldest = number - _SLOTS
        recent = sum(amount for slot, amount in self._slots if oldest <= slot <= number)
        begin_s = max(oldest * self._slot_s, self._since_s)
        return recent / max(now_s - begin_s, self._slot_s)

    def _number(self, time_s: float) -> int:
        return math.floor(time_s / self._slot_s)

    def _add(self, number: int, amount: float) -> None:
        slots = self._slots
        while slots and slots[0][0] < number - 2 * _SLOTS:
            slots.popleft()
        for place in range(len(slots) - 1, -1, -1):
            slot, before = slots[place]
            if slot == number:
                slots[place] = (slot, before + amount)
                return
            if slot < number:
                slots.insert(place + 1, (number, amount))
                return
        slots.appendleft((number, amount))


class Latencies:
    """How long something takes: exact quantiles of the latest, and counts per class of all."""

    def __init__(self, latest: int = _LATEST) -> None:
        self._latest: deque[float] = deque(maxlen=latest)
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._total_s = 0.0
        self._n = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        seconds = max(0.0, seconds)
        self._latest.append(seconds)
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._total_s += seconds
        self._n += 1

    def __len__(self) -> int:
        return self._n

    def durations(self) -> Durations:
        """Return what is known."""
        ordered = sorted(self._latest)
        return Durations(
            n=self._n,
            total_s=self._total_s,
            counts=tuple(self._counts) if self._n else (),
            p50_s=quantile(ordered, 0.5),
            p95_s=quantile(ordered, 0.95),
            p99_s=quantile(ordered, 0.99),
        )


def quantile(ordered: list[float], share: float) -> float | None:
    """Return the smallest of `ordered` that at least `share` of them do not exceed; None where there are none.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5), quantile([1.0, 2.0], 0.99), quantile([], 0.5)
    (2.0, 2.0, None)
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
