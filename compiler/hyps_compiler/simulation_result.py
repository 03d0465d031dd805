"""What a simulation tells: latencies, what every device and link did, and the first requests moment by moment."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["compute", "load", "transfer"]
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a device or link did for one request."""

    kind: Kind
    resource: str
    """The device or link."""
    request: int
    name: str
    """The partition or tensor."""
    queued_s: float
    """Since when it waited."""
    start_s: float
    end_s: float
    is_lost: bool = False
    """Whether a fault broke it off."""
    message: int = -1
    """Of a transfer: the same on all links of its way."""
    producer: str = ""
    """Of a transfer: the partition that made the tensor; empty: the request brought it."""
    consumers: tuple[str, ...] = ()
    """Of a transfer: the partitions that it goes to."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one device or link did."""

    name: str
    busy_s: float
    """With what came to its end, loading included."""
    load_s: float
    """Of a device: loading partitions that it does not keep."""
    lost_s: float
    """With what a fault broke off."""
    done: int
    """Partitions run, or messages carried."""
    redone: int
    """Those that a fault broke off."""
    nbytes: int
    """Of a link: what it carried."""
    mean_queue: float
    """How many waited, on average over the whole time."""
    most_queued: int


@dataclass(frozen=True, slots=True)
class Life:
    """One request from its arrival to its answer."""

    request: int
    variant: str
    arrived_s: float
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Simulated:
    """The whole of it."""

    requests: npt.NDArray[np.int64]
    """Numbers of the answered requests, in the order of their answers."""
    latencies_s: npt.NDArray[np.float64]
    """Of each of these, from arrival to answer."""
    refused: tuple[int, ...]
    """Numbers of those that were not let in."""
    start_s: float
    """The first arrival."""
    end_s: float
    """The last answer."""
    devices: tuple[Use, ...]
    links: tuple[Use, ...]
    variants: tuple[tuple[str, int], ...]
    """How many requests went through each."""
    most_in_flight: int
    most_waiting: int
    """At the entry, to be let in."""
    lives: tuple[Life, ...] = ()
    """The first requests."""
    spans: tuple[Span, ...] = ()
    """What was done for them."""

    @property
    def seconds(self) -> float:
        """From the first arrival to the last answer."""
        return self.end_s - self.start_s

    @property
    def throughput_rps(self) -> float:
        """Answers in a second of the whole time; 0 where nothing was answered or it took no time."""
        return len(self.requests) / self.seconds if self.seconds > 0 else 0.0

    @property
    def mean_s(self) -> float:
        """The mean latency; 0 where nothing was answered."""
        return float(self.latencies_s.mean()) if len(self.latencies_s) else 0.0

    def percentile_s(self, percent: float) -> float:
        """Return the latency that so many of the answered requests do not exceed; 0 where nothing was answered."""
        if not len(self.latencies_s):
            return 0.0
        return float(np.percentile(self.latencies_s, percent, method="inverted_cdf"))

    def utilization(self, use: Use) -> float:
        """Return the part of the time in which a device or link was busy, lost work included."""
        return (use.busy_s + use.lost_s) / self.seconds if self.seconds > 0 else 0.0


def mean_queue(waited_s: float, seconds: float) -> float:
    """Return how many wait on average, where all together wait `waited_s` within `seconds`: Little's law."""
    return waited_s / seconds if seconds > 0 else 0.0
