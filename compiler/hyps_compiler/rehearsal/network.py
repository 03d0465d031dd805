"""A virtual network that keeps what `hyps.adapters.links` promises: messages come once and in order, or the link ends.

What it does within the promise is drawn: how long a message takes, whether what was sent before a loss still arrives,
which end hears of a loss first, and how late the other one does.
"""

import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from hyps.adapters.links import Lost, Opened, Taken
from hyps_compiler.rehearsal.agenda import Agenda, Process

_RETRY_S = 0.2
_MOST_DELAY_S = 3.0


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way: what its frames hold, not their bytes."""

    message: Any
    """The struct that the first frame is of."""
    values: tuple[Any, ...]
    """The tensors."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message came; stands for `hyps.adapters.links.Heard`."""

    link: int
    parcel: Parcel


NetworkEvent = Opened | Arrived | Taken | Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How the network is, faults aside."""

    delay_s: float
    """Of a message, about."""
    jitter: float
    """Up to so many times as long."""
    bytes_per_s: float
    silence_s: float
    """After which an end of a link takes the other for gone."""
    drops_on_loss: float
    """How likely what is on its way when a link is lost does not arrive."""


@dataclass(slots=True, eq=False)
class _End:
    """One end of a link."""

    links: "VirtualLinks"
    number: int
    address: str = ""
    """Of the end that connects: where to."""
    other: "_End | None" = None
    way: tuple[str, str] = ("", "")
    """The process at the other end, and the one at this."""
    is_open: bool = True
    """Whether its process still has it."""
    arrives_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """When the latest that was sent to it arrives, per lane: urgent messages overtake the others."""
    held: "deque[Callable[[], None]]" = field(default_factory=deque)
    """What waits where the way is cut."""
    loses: bool = False
    """Whether what is on its way to it is dropped, since the other end is gone."""
    unsent: list[Callable[[], None]] = field(default_factory=list)
    """What was said before somebody was there."""
    backlog_nbytes: int = 0


class Network:
    """All processes' links, and the cuts between processes; a cut is of one direction."""

    def __init__(self, agenda: Agenda, rng: random.Random, weather: Weather) -> None:
        self.agenda, self._rng, self.weather = agenda, rng, weather
        self.listeners: dict[str, VirtualLinks] = {}
        """By address."""
        self.messages = 0
        self.losses = 0
        self._cuts: dict[tuple[str, str], int] = {}
        self._ends: dict[tuple[str, str], list[_End]] = {}
        """By the process that sends and the one that hears: the hearing ends."""
        self._slowness: dict[tuple[str, str], float] = {}
        self._healed = 0
        """How often; what was cut before is cut no more."""

    def is_cut(self, source: str, target: str) -> bool:
        """Return whether nothing gets from one process to another."""
        return self._cuts.get((source, target), 0) > 0

    def cut(self, source: str, target: str, seconds: float) -> None:
        """Let nothing through from `source` to `target` for a while; cuts may overlap."""
        way, healed = (source, target), self._healed
        self._cuts[way] = self._cuts.get(way, 0) + 1
        silence_s = self.weather.silence_s
        if seconds > silence_s:
            self.agenda.after(silence_s, lambda: self._fall_silent(way, healed))
        self.agenda.after(seconds, lambda: self._mend(way, healed))

    def heal(self) -> None:
        """End all cuts, and what is slow."""
        self._healed += 1
        self._slowness.clear()
        for way in list(self._cuts):
            self._cuts[way] = 1
            self._mend(way, self._healed)

    def busy_ways(self) -> list[tuple[str, str]]:
        """Return the ways on which tensors are that are not known to have come."""
        return [
            way
            for way, ends in self._ends.items()
            if any(end.other is not None and end.other.backlog_nbytes > 0 for end in ends)
        ]

    def break_links(self, source: str, target: str) -> None:
        """Lose all links between two processes that both go on; `target` hears of it first."""
        for end in list(self._ends.get((source, target), ())):
            end.links.lose(end, "the connection broke")

    def slow_down(self, source: str, target: str, times: float) -> None:
        """Make each message take so many times as long; 1 undoes it."""
        self._slowness[source, target] = times

    def _draw_delay_s(self, way: tuple[str, str], nbytes: int) -> float:
        weather = self.weather
        delay_s = weather.delay_s * (1.0 + weather.jitter * self._rng.random() ** 3)
        seconds = (delay_s + nbytes / weather.bytes_per_s) * self._slowness.get(way, 1.0)
        return min(seconds, _MOST_DELAY_S)

    def happens(self, probability: float) -> bool:
        """Return whether something that is so likely is the case now."""
        return self._rng.random() < probability

    def post(self, end: _End, nbytes: int, arrive: Callable[[], None], *, is_urgent: bool = False) -> None:
        """Do `arrive` when something sent to `end` now has come, behind all that was sent to it before.

        What is urgent overtakes what is not, and is not overtaken.
        """
        due_s = self.agenda.now_s + self._draw_delay_s(end.way, nbytes)
        end.arrives_s[is_urgent] = due_s = max(end.arrives_s[is_urgent], end.arrives_s[True], due_s)
        self.agenda.at(due_s, lambda: self._let_through(end, arrive))

    def post_last(self, end: _End, arrive: Callable[[], None]) -> None:
        """Do `arrive` behind all that was sent to `end` before, in either lane."""
        end.arrives_s = [max(end.arrives_s)] * 2
        self.post(end, 0, arrive)

    def join(self, one: _End, other: _End) -> None:
        """Make two ends a link."""
        one.other, other.other = other, one
        for end, there in ((one, other), (other, one)):
            end.way = (there.links.name, end.links.name)
            self._ends.setdefault(end.way, []).append(end)

    def part(self, end: _End) -> None:
        """Note that the process of an end has it no more: the other end hears of it."""
        other = end.other
        if other is None or end not in self._ends.get(end.way, ()):
            return
        self._ends[end.way].remove(end)
        if other.is_open:
            other.loses = self.happens(self.weather.drops_on_loss)
            self.post_last(other, lambda: other.links.lose(other, "the peer is gone"))

    def _let_through(self, end: _End, arrive: Callable[[], None]) -> None:
        if end.held or self._cuts.get(end.way):
            end.held.append(arrive)
        else:
            arrive()

    def _mend(self, way: tuple[str, str], healed: int) -> None:
        if healed != self._healed:
            return
        self._cuts[way] -= 1
        if self._cuts[way]:
            return
        for end in list(self._ends.get(way, ())):
            while end.held:
                end.held.popleft()()

    def _fall_silent(self, way: tuple[str, str], healed: int) -> None:
        """Lose the ends that have heard nothing for too long."""
        if healed == self._healed:
            for end in list(self._ends.get(way, ())):
                end.links.lose(end, "the peer is silent")


class VirtualLinks:
    """The links of one process in one of its lives; `on_event` hears what happens."""

    def __init__(self, network: Network, process: Process, on_event: Callable[[NetworkEvent], None]) -> None:
        self._network, self._process, self._on_event = network, process, on_event
        self.name = process.name
        self._ends: dict[int, _End] = {}
        self._numbers = 0
        self._listens: list[str] = []

    def listen(self, address: str) -> None:
        """Let others come to `address`."""
        self._network.listeners[address] = self
        self._listens.append(address)

    def connect(self, address: str) -> int:
        """Begin to connect, again and again until somebody is there."""
        end = self._new_end(address)
        self._process.later(0.0, lambda: self._knock(end))
        return end.number

    def send(
        self,
        link: int,
        message: Any,
        values: tuple[Any, ...] = (),
        nbytes: int = 0,
        token: Hashable | None = None,
        *,
        is_urgent: bool = False,
    ) -> None:
        """Send a message, as soon as somebody is there; what is sent to a lost link is dropped."""
        end = self._ends.get(link)
        if end is None:
            return
        parcel = Parcel(message, values, nbytes)
        self._network.messages += 1
        end.backlog_nbytes += nbytes
        if end.other is None:
            end.unsent.append(lambda: self._post(end, parcel, token, is_urgent=is_urgent))
        else:
            self._post(end, parcel, token, is_urgent=is_urgent)

    def is_open(self, link: int) -> bool:
        """Return whether somebody is there."""
        end = self._ends.get(link)
        return end is not None and end.other is not None

    def backlog_nbytes(self, link: int) -> int:
        """Return the bytes that were sent and not taken yet."""
        end = self._ends.get(link)
        return 0 if end is None else end.backlog_nbytes

    def close_link(self, link: int) -> None:
        """Drop a link without an event; the peer hears that it is lost."""
        end = self._ends.pop(link, None)
        if end is not None:
            end.is_open = False
            self._network.part(end)

    def close(self) -> None:
        """Be gone, as when the process ends."""
        for address in self._listens:
            if self._network.listeners.get(address) is self:
                del self._network.listeners[address]
        for link in list(self._ends):
            self.close_link(link)

    def lose(self, end: _End, reason: str) -> None:
        """Let the process hear that a link is lost, unless it has dropped it."""
        if end.is_open:
            end.is_open = False
            self._network.losses += 1
            self._network.part(end)
            self._process.later(0.0, lambda: self._tell_loss(end, reason))

    def _tell_loss(self, end: _End, reason: str) -> None:
        if self._ends.pop(end.number, None) is not None:
            self._on_event(Lost(end.number, reason))

    def _new_end(self, address: str = "") -> _End:
        self._numbers += 1
        end = self._ends[self._numbers] = _End(self, self._numbers, address)
        return end

    def _knock(self, end: _End) -> None:
        """See whether somebody is there and can be heard; else try again."""
        if not end.is_open:
            return
        network, there = self._network, self._network.listeners.get(end.address)
        if there is None or network.is_cut(self.name, there.name) or network.is_cut(there.name, self.name):
            self._process.later(_RETRY_S, lambda: self._knock(end))
            return
        other = there._new_end()
        network.join(end, other)
        network.post_last(other, lambda: there._open(other, came_to_us=True))
        network.post_last(end, lambda: self._open(end, came_to_us=False))
        for send in end.unsent:
            send()
        end.unsent.clear()

    def _post(self, end: _End, parcel: Parcel, token: Hashable | None, *, is_urgent: bool) -> None:
        other = end.other
        assert other is not None, "what is said before somebody is there waits"
        self._network.post(other, parcel.nbytes, lambda: other.links._arrive(other, parcel, token), is_urgent=is_urgent)

    def _open(self, end: _End, *, came_to_us: bool) -> None:
        self._if_open(end, lambda: self._on_event(Opened(end.number, came_to_us)))

    def _arrive(self, end: _End, parcel: Parcel, token: Hashable | None) -> None:
        if end.loses or not end.is_open:
            return
        self._if_open(end, lambda: self._hear(end, parcel, token))

    def _hear(self, end: _End, parcel: Parcel, token: Hashable | None) -> None:
        sender = end.other
        assert sender is not None, "only ends of links are sent to"
        self._network.post(sender, 0, lambda: sender.links._take(sender, parcel.nbytes, token))
        self._on_event(Arrived(end.number, parcel))

    def _take(self, end: _End, nbytes: int, token: Hashable | None) -> None:
        end.backlog_nbytes -= nbytes
        if token is not None and not end.loses:
            self._if_open(end, lambda: self._on_event(Taken(end.number, token)))

    def _if_open(self, end: _End, action: Callable[[], None]) -> None:
        """Do `action` when the process runs, unless it has dropped the link by then."""
        self._process.later(0.0, lambda: action() if end.number in self._ends else None)
