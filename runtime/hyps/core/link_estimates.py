"""What links can do, told by how long messages took that were sent anyway: latency and rate of every direction.

How a manager comes to samples, all of which go to `add`:

* `Beat.sendings` of a node: what others have taken of it, over device links and, with `HUB`, over the way to the hub.
* `Echo` and `Echoed` when a node has joined, by `link_probing`.

`facts` gives what a question about a placement takes (`Question.links`), `statuses` what a report shows.

A sample is the time from sending a message until it is known to be taken, so it holds the latency of both directions.
Samples are kept by classes of sizes, the latest of each; of a class the middle one counts, so that a few messages that
had to wait change nothing. A line through the classes gives rate and latency; classes of which nothing was heard for
long weigh little. Where all messages are of one size, latency and rate cannot be told apart: what is told is right for
that size.
"""

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hyps.formats.replanning import LinkFacts
from hyps.formats.status import LinkStatus

_LATEST = 16
"""Samples of a class; of an older link nothing is remembered but these."""
_LONG_NBYTES = 64 * 1024
"""Below, a message tells of the latency rather than of the rate."""
_HALF_LIFE_S = 30.0
"""In which what was heard of one size loses half its weight against others."""
_MATTERS = 1.25
"""How much longer than the shortest messages long ones must take to tell a rate, rather than the least it can be."""
_LEAST_S = 1e-7
_MOST_TARGETS = 256
"""Of one device, which names them itself; beyond, the one that was not heard of for longest is forgotten."""
_CROSSINGS = 2


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """What one direction can do."""

    bytes_per_s: float | None
    """None: messages were too short to tell."""
    latency_s: float
    """One way."""
    samples: int
    """That are behind it."""

    def seconds(self, nbytes: int) -> float:
        """Return how long a message takes to come there; one way."""
        return self.latency_s + (nbytes / self.bytes_per_s if self.bytes_per_s else 0.0)


@dataclass(slots=True)
class _Class:
    """The latest messages of about one size: bytes and seconds."""

    samples: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_LATEST))
    heard_s: float = 0.0
    """When the latest was heard of."""


@dataclass(frozen=True, slots=True)
class _Point:
    nbytes: float
    seconds: float
    weight: float


class LinkEstimates:
    """The links of one cluster, each direction by itself."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], dict[int, _Class]] = {}

    def add(
        self, source: str, target: str, nbytes: int, seconds: float, now_s: float, *, behind_nbytes: int = 0
    ) -> None:
        """Take a sample.

        Args:
            source: the device that sent, or `HUB`.
            target: the device that took it, or `HUB`.
            nbytes: of the message.
            seconds: from when it was sent until it was known to be taken.
            now_s: the time, which rises.
            behind_nbytes: what had been sent there before and was not taken yet.
        """
        passed = nbytes + behind_nbytes
        if (source, target) not in self._links:
            self._make_room(source)
        classes = self._links.setdefault((source, target), {})
        kept = classes.setdefault(passed.bit_length() // 2, _Class())
        kept.samples.append((passed, max(seconds, _LEAST_S)))
        kept.heard_s = now_s

    def forget(self, device: str) -> None:
        """Drop what is known of a device that has gone."""
        self._links = {link: classes for link, classes in self._links.items() if device not in link}

    def get(self, source: str, target: str) -> LinkEstimate | None:
        """Return what one direction can do, or None: nothing was heard of it."""
        classes = self._links.get((source, target))
        return _fitted(classes) if classes else None

    def facts(self, closed: Iterable[tuple[str, str]] = ()) -> tuple[LinkFacts, ...]:
        """Return all that is known, for a search; `closed` are directions in which devices do not reach each other."""
        shut = set(closed)
        return tuple(self._facts(link, is_open=link not in shut) for link in sorted({*self._links, *shut}))

    def statuses(self) -> tuple[LinkStatus, ...]:
        """Return all that is known, for those who watch."""
        known = ((link, self.get(*link)) for link in sorted(self._links))
        return tuple(
            LinkStatus(source=source, target=target, bytes_per_s=told.bytes_per_s, seconds=told.latency_s)
            for (source, target), told in known
            if told is not None
        )

    def _make_room(self, source: str) -> None:
        own = [link for link in self._links if link[0] == source]
        if len(own) >= _MOST_TARGETS:
            del self._links[min(own, key=lambda link: max(kept.heard_s for kept in self._links[link].values()))]

    def _facts(self, link: tuple[str, str], *, is_open: bool) -> LinkFacts:
        source, target = link
        told = self.get(source, target)
        if told is None:
            return LinkFacts(source=source, target=target, is_open=is_open)
        rate, latency_s = told.bytes_per_s, told.latency_s
        return LinkFacts(source=source, target=target, bytes_per_s=rate, latency_s=latency_s, is_open=is_open)


def _fitted(classes: dict[int, _Class]) -> LinkEstimate:
    samples = sum(len(kept.samples) for kept in classes.values())
    points = _points(classes)
    shortest, longest = points[0], points[-1]
    if len(points) > 1 and longest.seconds > _MATTERS * shortest.seconds:
        fixed_s, s_per_byte = _line(points)
        if s_per_byte > 0:
            return LinkEstimate(1 / s_per_byte, fixed_s / _CROSSINGS, samples)
    if len(points) == 1 and longest.nbytes >= _LONG_NBYTES:
        return LinkEstimate(longest.nbytes / longest.seconds, 0.0, samples)
    rate = longest.nbytes / longest.seconds if longest.nbytes >= _LONG_NBYTES else None
    return LinkEstimate(rate, min(point.seconds for point in points) / _CROSSINGS, samples)


def _points(classes: dict[int, _Class]) -> list[_Point]:
    """Return the middle of each class, the smallest messages first."""
    latest_s = max(kept.heard_s for kept in classes.values())
    return [
        _Point(
            statistics.median(nbytes for nbytes, _ in kept.samples),
            statistics.median(seconds for _, seconds in kept.samples),
            len(kept.samples) / _LATEST * 0.5 ** ((latest_s - kept.heard_s) / _HALF_LIFE_S),
        )
        for _, kept in sorted(classes.items())
    ]


def _line(points: list[_Point]) -> tuple[float, float]:
    """Return seconds of an empty message, and per byte, that are off by the smallest parts; neither is below zero."""
    weights = [point.weight / point.seconds**2 for point in points]
    total = sum(weights)
    mean_nbytes = sum(w * p.nbytes for w, p in zip(weights, points, strict=True)) / total
    mean_s = sum(w * p.seconds for w, p in zip(weights, points, strict=True)) / total
    spread = sum(w * (p.nbytes - mean_nbytes) ** 2 for w, p in zip(weights, points, strict=True))
    joint = sum(w * (p.nbytes - mean_nbytes) * p.seconds for w, p in zip(weights, points, strict=True))
    s_per_byte = joint / spread if spread else 0.0
    fixed_s = mean_s - s_per_byte * mean_nbytes
    if fixed_s < 0:  # the line through the origin that fits best
        squares = sum(w * p.nbytes**2 for w, p in zip(weights, points, strict=True))
        return 0.0, sum(w * p.nbytes * p.seconds for w, p in zip(weights, points, strict=True)) / squares
    return fixed_s, s_per_byte
