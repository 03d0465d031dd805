"""What is simulated: devices, links and a plan's partitions as plain figures, and the load that is put on them."""

import bisect
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

REQUEST = -1
"""Stands for the request: the producer of the model's inputs, which are on the entry."""


@dataclass(frozen=True, slots=True)
class Down:
    """A device or link that does nothing from one moment to another; what it was doing then is lost and done again."""

    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """A device: it runs one partition at a time."""

    name: str
    downs: tuple[Down, ...] = ()
    """In order, none touching the next."""
    room: int | None = None
    """Most requests that it works on at once while it swaps partitions: their activations fit beside them."""


@dataclass(frozen=True, slots=True)
class Step:
    """From `from_s` on a byte takes `s_per_byte`; infinite: nothing moves."""

    from_s: float
    s_per_byte: float


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two devices: it carries one message at a time, in the order in which they come."""

    name: str
    source: int
    target: int
    s_per_byte: float
    """Until the first step."""
    latency_s: float = 0.0
    """From the last byte sent to the last byte there; the next message does not wait for it."""
    message_s: float = 0.0
    """What every message takes beside its bytes."""
    steps: tuple[Step, ...] = ()
    downs: tuple[Down, ...] = ()

    def s_per_byte_at(self, time_s: float) -> float:
        """Return how long a byte takes at a moment."""
        index = bisect.bisect_right(self.steps, time_s, key=lambda step: step.from_s)
        return self.steps[index - 1].s_per_byte if index else self.s_per_byte


@dataclass(frozen=True, slots=True)
class Partition:
    """What runs as one piece; one that takes no time passes on what it gets, whatever its device does."""

    name: str
    seconds: tuple[tuple[int, float], ...]
    """The devices that may run it, and how long it takes there; a request alone goes to the first."""
    is_swapped: bool = False
    """Whether it is loaded for its turn and released after it, since its device does not hold all."""
    load_s: float = 0.0
    """How long loading it takes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a partition, or the request, makes and others use: sent once to every device that needs it."""

    name: str
    nbytes: int
    producer: int
    """Index of a partition, or REQUEST."""
    consumers: tuple[int, ...] = ()
    """Indices of partitions."""
    is_output: bool = False
    """Whether the answer has it: it must come back to the entry."""
    reach: float = 1.0
    """How likely a request needs it; its transfers take that part of their time, as in `estimate`."""


@dataclass(frozen=True)
class Dataflow:
    """A variant: partitions in an order in which they can run, and what goes between them."""

    name: str
    partitions: tuple[Partition, ...]
    tensors: tuple[Tensor, ...]
    """Those of one producer leave in this order."""

    @cached_property
    def is_fixed(self) -> bool:
        """Whether every partition has one device only."""
        return all(len(partition.seconds) == 1 for partition in self.partitions)


@dataclass(frozen=True)
class System:
    """Devices, links and the dataflows that requests go through."""

    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    dataflows: tuple[Dataflow, ...]
    entry: int = 0
    """The device at which requests arise and answers are wanted."""
    routes: dict[tuple[int, int], tuple[int, ...]] | None = None
    """The links from one device to another; None: by the smallest delay of `TYPICAL_NBYTES`."""
    choose: Callable[[float], int] | None = None
    """Which dataflow a request that begins at a moment goes through; None: the first."""

    @cached_property
    def route_of(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The links from each device to each other that can be reached."""
        return dict(_routes(self)) if self.routes is None else self.routes


TYPICAL_NBYTES = 100_000
"""As much as a feature map late in a network has."""


@dataclass(frozen=True, slots=True)
class Closed:
    """As soon as one request is answered the next begins, so many of them at once."""

    in_flight: int = 1


@dataclass(frozen=True, slots=True)
class Open:
    """Requests that arrive whatever becomes of those before."""

    rps: float
    is_random: bool = True
    """At random moments (a Poisson process); else evenly."""
    in_flight: int | None = None
    """Most that are let in at once; the others wait at the entry."""
    most_waiting: int | None = None
    """Most that wait there; those that come then are refused."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Requests that arrive at given moments, in ascending order."""

    times_s: tuple[float, ...]
    in_flight: int | None = None
    most_waiting: int | None = None


Load = Closed | Open | Listed


def _routes(system: System) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
    """Dijkstra from every device."""
    leaving: dict[int, list[int]] = {}
    for index, link in enumerate(system.links):
        leaving.setdefault(link.source, []).append(index)
    for source in range(len(system.devices)):
        todo: list[tuple[float, int, tuple[int, ...]]] = [(0.0, source, ())]
        found: set[int] = set()
        while todo:
            delay, device, path = heapq.heappop(todo)
            if device in found:
                continue
            found.add(device)
            if path:
                yield (source, device), path
            for index in leaving.get(device, ()):
                link = system.links[index]
                cost = link.latency_s + link.message_s + TYPICAL_NBYTES * link.s_per_byte
                if link.target not in found and math.isfinite(cost):
                    heapq.heappush(todo, (delay + cost, link.target, (*path, index)))
