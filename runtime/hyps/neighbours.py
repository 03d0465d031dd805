"""A node's links to other nodes: those it sends to, and those that may send to it."""

import hmac
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hyps.adapters.links import Links
from hyps.core.node_events import NeighbourBack, NeighbourLost
from hyps.errors import HypsError, printable
from hyps.formats.node_messages import (
    NODE_PROTOCOL_VERSION,
    Greet,
    Neighbour,
    Setup,
    encode_node_message,
)

logger = logging.getLogger(__name__)

_OPEN_S = 1.5
"""How long an endpoint is tried before the next one is."""

_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Before a lost device is tried again; the last over and over."""

_GREET_S = 10.0
"""How long a peer may be silent before it is sent away, and one may wait whom no setup names yet."""

_MAX_STRANGERS = 64


@dataclass(slots=True)
class _Target:
    """A device that is sent to."""

    neighbour: Neighbour
    link: int = 0
    """0: none just now."""
    endpoint: int = -1
    """Which of its endpoints is tried."""
    is_open: bool = False
    is_lost: bool = False
    """Whether the state machine was told so."""
    failures: int = 0
    due_s: float = 0.0
    """When to do something about it: try it again, or stop waiting for it."""


@dataclass(slots=True)
class _Source:
    """A link that came to us."""

    since_s: float
    greet: Greet | None = None
    is_known: bool = False


@dataclass(slots=True)
class Neighbours:
    """Keeps links to the devices of the latest setup, and lets in those that it names; for the shell's thread."""

    links: Links
    device: str
    """What this node is called."""
    tell: Callable[[NeighbourLost | NeighbourBack], None]
    """Is called when a device that is sent to is lost, or there, also for the first time."""
    _targets: dict[str, _Target] = field(default_factory=dict)
    _by_link: dict[int, str] = field(default_factory=dict)
    _secrets: Mapping[str, str] = field(default_factory=dict)
    """Of the devices that may send to us."""
    _sources: dict[int, _Source] = field(default_factory=dict)

    def follow(self, now_s: float, setup: Setup) -> None:
        """Connect to whom the setup names, and let in whom it names; drop all others."""
        wanted = {neighbour.device: neighbour for neighbour in setup.targets}
        for device in [name for name, target in self._targets.items() if wanted.get(name) != target.neighbour]:
            self._drop_target(device)
        for device, neighbour in wanted.items():
            if device not in self._targets:
                self._targets[device] = target = _Target(neighbour)
                self._try_next(now_s, target)
        self._secrets = {neighbour.device: neighbour.secret for neighbour in setup.sources}
        for link, source in list(self._sources.items()):
            if source.greet is not None:
                self._judge(link, source)

    def drop_all(self) -> None:
        """Have nothing to do with any of them any more."""
        for device in list(self._targets):
            self._drop_target(device)
        for link in list(self._sources):
            self._send_away(link)
        self._secrets = {}

    def link_to(self, device: str) -> int | None:
        """Return the link to a device, or None while nobody is there."""
        target = self._targets.get(device)
        return target.link if target is not None and target.is_open else None

    def is_target(self, device: str) -> bool:
        """Return whether the latest setup has us send to a device."""
        return device in self._targets

    def knows(self, link: int) -> bool:
        """Return whether a link is to or from another node, or a stranger that came to us."""
        return link in self._by_link or link in self._sources

    def is_let_in(self, link: int) -> bool:
        """Return whether the peer has shown that it may send to us."""
        source = self._sources.get(link)
        return source is not None and source.is_known

    def on_opened(self, now_s: float, link: int, *, came_to_us: bool) -> None:
        """A peer is there."""
        if came_to_us:
            self._take_in(now_s, link)
            return
        device = self._by_link.get(link)
        if device is not None:
            target = self._targets[device]
            target.is_open, target.failures, target.due_s = True, 0, math.inf
            target.is_lost = False
            self.tell(NeighbourBack(device))

    def on_lost(self, now_s: float, link: int) -> None:
        """A peer is gone."""
        self._sources.pop(link, None)
        device = self._by_link.pop(link, None)
        if device is not None:
            target = self._targets[device]
            was_open, target.link, target.is_open = target.is_open, 0, False
            target.failures += 1
            if was_open:
                target.endpoint = -1  # the best first
            self._lose(target)
            target.due_s = now_s + _PAUSES_S[min(target.failures, len(_PAUSES_S)) - 1]

    def on_greet(self, link: int, greet: Greet) -> None:
        """A peer says who it is."""
        source = self._sources.get(link)
        if source is None or source.greet is not None or greet.version != NODE_PROTOCOL_VERSION:
            self._send_away(link)
            return
        source.greet = greet
        self._judge(link, source)

    def send_away(self, link: int) -> None:
        """Have no more to do with a peer that came to us and misbehaved."""
        self._send_away(link)

    def on_time(self, now_s: float) -> None:
        """Try again those that were lost, and send away those that do not say who they are."""
        for target in self._targets.values():
            if now_s >= target.due_s:
                self._on_due(now_s, target)
        for link, source in list(self._sources.items()):
            if not source.is_known and now_s - source.since_s > _GREET_S:
                self._send_away(link)

    @property
    def next_s(self) -> float:
        """When to call `on_time`."""
        greets = (source.since_s + _GREET_S for source in self._sources.values() if not source.is_known)
        return min((*(target.due_s for target in self._targets.values()), *greets), default=math.inf)

    # Those that are sent to.

    def _on_due(self, now_s: float, target: _Target) -> None:
        if target.link:  # nobody answered at this endpoint
            target.failures += 1
            if target.endpoint == len(target.neighbour.endpoints) - 1:
                self._lose(target)
            if len(target.neighbour.endpoints) == 1:
                target.due_s = now_s + _PAUSES_S[-1]
                return  # the link itself keeps trying
            self._hang_up(target)
        self._try_next(now_s, target)

    def _try_next(self, now_s: float, target: _Target) -> None:
        endpoints = target.neighbour.endpoints
        if not endpoints:
            target.due_s = math.inf
            self._lose(target)
            return
        target.endpoint = (target.endpoint + 1) % len(endpoints)
        target.due_s = now_s + _OPEN_S
        try:
            target.link = self.links.connect(endpoints[target.endpoint])
        except HypsError as error:
            logger.info("no way to `%s`: %s", printable(target.neighbour.device), error.message)
            target.link = 0
            target.due_s = now_s + _PAUSES_S[-1]
            if target.endpoint == len(endpoints) - 1:
                self._lose(target)
            return
        self._by_link[target.link] = target.neighbour.device
        greet = Greet(NODE_PROTOCOL_VERSION, self.device, target.neighbour.secret)
        self.links.send(target.link, [encode_node_message(greet)])

    def _lose(self, target: _Target) -> None:
        if not target.is_lost:
            target.is_lost = True
            self.tell(NeighbourLost(target.neighbour.device))

    def _hang_up(self, target: _Target) -> None:
        if target.link:
            self._by_link.pop(target.link, None)
            self.links.close_link(target.link)
            target.link, target.is_open = 0, False

    def _drop_target(self, device: str) -> None:
        target = self._targets.pop(device)
        self._hang_up(target)
        # What was not delivered waits for the next link, if it is named again; it is not unreachable until then.
        self._lose(target)
        self.tell(NeighbourBack(device))

    # Those that come.

    def _take_in(self, now_s: float, link: int) -> None:
        strangers = [number for number, source in self._sources.items() if not source.is_known]
        if len(strangers) >= _MAX_STRANGERS:
            self._send_away(strangers[0])
        self._sources[link] = _Source(now_s)

    def _judge(self, link: int, source: _Source) -> None:
        """Let a peer in whose secret is that of the device it says it is; one that is not named (yet) waits."""
        assert source.greet is not None, "only those that greeted are judged"
        secret = self._secrets.get(source.greet.device)
        is_right = secret is not None and hmac.compare_digest(secret.encode(), source.greet.secret.encode())
        if not is_right and (source.is_known or secret is not None):
            logger.info("a peer that calls itself `%s` was sent away", printable(source.greet.device))
            self._send_away(link)
            return
        source.is_known = is_right
        if is_right:
            self.links.admit(link)

    def _send_away(self, link: int) -> None:
        self._sources.pop(link, None)
        self.links.close_link(link)
