"""Whether what is sampled of a process grows; pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_GROWTH = {"rss_nbytes": 8e6, "descriptors": 3.0, "threads": 1.0}
"""Between the second quarter of a run and its last, by what is sampled. The first quarter is for caches to fill."""
_PART = 0.25


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of one quantity."""

    what: str
    early: float
    """Median of the second quarter."""
    late: float
    """Median of the last quarter."""
    per_hour: float
    """Slope of a straight line through all behind the first quarter."""

    @property
    def is_too_much(self) -> bool:
        """Whether it grew by more than is allowed."""
        return self.late - self.early > MOST_GROWTH[self.what]


def growth_of(what: str, samples: Sequence[tuple[float, float]]) -> Growth | None:
    """Return how a quantity grew, of samples of seconds and value; None of too few."""
    count = len(samples)
    first = int(count * _PART)
    if count < 8:
        return None
    early = statistics.median(value for _, value in samples[first : 2 * first])
    late = statistics.median(value for _, value in samples[count - first :])
    steady = samples[first:]
    slope = statistics.linear_regression([at for at, _ in steady], [value for _, value in steady]).slope
    return Growth(what, early, late, slope * 3600)


def unexpected(failed: Mapping[str, int], allowed: frozenset[str]) -> dict[str, int]:
    """Return the failures that no client asked for."""
    return {code: count for code, count in sorted(failed.items()) if code not in allowed}
