"""The in-memory twin of `zmq_links`: the same promises without a socket, for tests."""

import itertools
import queue
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hyps.adapters.links import MAX_FRAMES, Buffer, Heard, LinkEvent, Lost, Opened, Taken
from hyps.errors import PeerError, UsageError


@dataclass(slots=True)
class MemoryNetwork:
    """What the `MemoryLinks` of one test share: who listens where."""

    listeners: dict[str, "MemoryLinks"] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))


class MemoryLinks:
    """A process's links on a `MemoryNetwork`; addresses are any words."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._inbox: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        self._peers: dict[int, tuple[MemoryLinks, int]] = {}
        """Per link of ours, whose it is at the other end, and its number there."""
        self._is_closed = False

    def listen(self, address: str, *, allow_remote: bool = False) -> str:
        """See `Links`."""
        with self._network.lock:
            if address in self._network.listeners:
                raise PeerError(f"`{address}` is already in use", code="E_ADDRESS_IN_USE")
            self._network.listeners[address] = self
        return address

    def connect(self, address: str) -> int:
        """See `Links`; nobody there is a loss at once."""
        if not address:
            raise UsageError("`` is no address", code="E_ADDRESS")
        with self._network.lock:
            link = next(self._network.numbers)
            other = self._network.listeners.get(address)
            if other is None or other._is_closed:
                self._inbox.put(Lost(link, f"nobody listens at `{address}`"))
                return link
            there = next(self._network.numbers)
            self._peers[link], other._peers[there] = (other, there), (self, link)
            self._inbox.put(Opened(link, came_to_us=False))
            other._inbox.put(Opened(there, came_to_us=True))
        return link

    def send(
        self, link: int, frames: Sequence[Buffer], token: Hashable | None = None, *, is_urgent: bool = False
    ) -> None:
        """See `Links`; nothing is ever held up, so that an urgent message has nothing to overtake."""
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise UsageError(f"a message of {len(frames)} frames")
        with self._network.lock:
            if link not in self._peers:
                return
            other, there = self._peers[link]
            other._inbox.put(Heard(there, [memoryview(bytearray(frame)) for frame in frames]))
            if token is not None:
                self._inbox.put(Taken(link, token))

    def admit(self, link: int) -> None:
        """See `Links`; messages here have any size."""

    def backlog_nbytes(self, link: int) -> int:
        """See `Links`; everything is taken at once."""
        return 0

    def receive(self, timeout_s: float) -> LinkEvent | None:
        """See `Links`."""
        try:
            return self._inbox.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return None

    def flush(self) -> None:
        """See `Links`; nothing is ever kept back."""

    def close_link(self, link: int) -> None:
        """See `Links`."""
        with self._network.lock:
            if link not in self._peers:
                return
            other, there = self._peers.pop(link)
            if other._peers.pop(there, None) is not None:
                other._inbox.put(Lost(there, "the peer left"))

    def wake(self) -> None:
        """See `Links`."""
        self._inbox.put(None)

    def close(self, linger_s: float = 0.0) -> None:
        """See `Links`."""
        with self._network.lock:
            self._is_closed = True
            for link in list(self._peers):
                self.close_link(link)
            for address in [name for name, links in self._network.listeners.items() if links is self]:
                del self._network.listeners[address]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
