"""The in-memory twin of `transport`: the same promises without a socket, for tests and simulation."""

import itertools
import queue
from collections.abc import Sequence

from hyps.adapters.transport import Buffer, Delivery, Departure
from hyps.errors import PeerError

_MAX_BACKLOG = 64
"""Messages that a client has not read; it is sent no more."""


class MemoryServer:
    """The in-memory twin of `ZmqServer`: `connect` gives its clients."""

    def __init__(self, address: str = "memory://worker", *, max_nbytes: int = 2**40) -> None:
        self.address = address
        self._max_nbytes = max_nbytes
        self._inbox: queue.SimpleQueue[Delivery | Departure | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._clients: dict[bytes, MemoryClient] = {}
        self.is_closed = False

    def connect(self) -> "MemoryClient":
        """Return a new client of this server."""
        peer = next(self._numbers).to_bytes(4, "little")
        self._clients[peer] = MemoryClient(self, peer)
        return self._clients[peer]

    def deliver(self, peer: bytes, parts: Sequence[Buffer]) -> None:
        """Take a message from a client; cut it off for a part that is too large."""
        if any(len(part) > self._max_nbytes for part in parts):
            self._clients[peer].inbox.put(None)
            self.leave(peer)
            return
        self._inbox.put(Delivery(peer, [memoryview(bytearray(part)) for part in parts]))

    def leave(self, peer: bytes) -> None:
        """Note that a client is gone."""
        if self._clients.pop(peer, None) is not None:
            self._inbox.put(Departure(peer))

    def receive(self, timeout_s: float) -> Delivery | Departure | None:
        """See `Server`."""
        try:
            return self._inbox.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return None

    def send(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """See `Server`."""
        client = self._clients.get(peer)
        if client is None or client.inbox.qsize() >= _MAX_BACKLOG:
            return False
        client.inbox.put([memoryview(bytearray(part)) for part in parts])
        return True

    def wake(self) -> None:
        """See `Server`."""
        self._inbox.put(None)

    def close(self, linger_s: float = 0.0) -> None:
        """See `Server`."""
        self.is_closed = True
        for client in [*self._clients.values()]:
            client.inbox.put(None)


class MemoryClient:
    """The in-memory twin of `ZmqClient`."""

    def __init__(self, server: MemoryServer, peer: bytes) -> None:
        self._server, self._peer = server, peer
        self.inbox: queue.SimpleQueue[Sequence[Buffer] | None] = queue.SimpleQueue()

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        """See `Client`."""
        if self._server.is_closed:
            raise PeerError(f"no worker answers at `{self._server.address}`")
        self._server.deliver(self._peer, parts)

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """See `Client`."""
        try:
            parts = self.inbox.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return None
        if parts is None:
            raise PeerError(f"the connection to `{self._server.address}` was lost")
        return parts

    def close(self) -> None:
        """See `Client`."""
        self._server.leave(self._peer)
