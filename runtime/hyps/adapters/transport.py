"""Messages between one worker and its clients, over links; `memory_transport` has the twin without sockets.

A server hears from many peers and answers each; a client talks to one server. Neither knows what a message means.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from hyps.adapters.links import MAX_FRAMES, Buffer, Heard, Lost, Opened
from hyps.adapters.zmq_links import ZmqLinks
from hyps.errors import PeerError, printable

__all__ = ["MAX_PARTS", "Buffer", "Client", "Delivery", "Departure", "Server", "ZmqClient", "ZmqServer"]

MAX_PARTS = MAX_FRAMES
"""Of one message: its header and its tensors."""

MAX_BACKLOG_NBYTES = 64 * 2**20
"""For one peer that does not read; nothing more is sent to it until it has read some."""

_PARTS_FACTOR = 64
"""Of how many of its largest parts a message may consist."""

_SERVER_SILENCE_S = 600.0
"""A client is only heard from while it waits for an answer; that of one that is gone breaks its connection."""

_CLIENT_SILENCE_S = 60.0
_BROKEN_S = 2.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a server got, and from whom."""

    peer: bytes
    parts: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class Departure:
    """A peer is gone: nothing more comes from it, and nothing that is sent to it arrives."""

    peer: bytes


class Server(Protocol):
    """A worker's side; all but `wake` belong to one thread."""

    address: str
    """Where clients reach it."""

    def receive(self, timeout_s: float) -> Delivery | Departure | None:
        """Return the next message or who is gone, or None after `timeout_s` or a `wake`."""

    def send(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """Send a message without waiting; return whether the peer is there and takes it.

        What does not leave at once leaves while `receive` is called.
        """

    def wake(self) -> None:
        """End a `receive` early, from any thread or signal handler."""

    def close(self, linger_s: float = 0.0) -> None:
        """Stop, after at most `linger_s` for what was sent to leave."""


class Client(Protocol):
    """A client's side; belongs to one thread at a time."""

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        """Send a message; what does not leave at once leaves while `receive` is called.

        Raises:
            PeerError: nobody is there within `timeout_s`, or the connection was lost; the next `send` makes a new one.
        """

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the next message, or None after `timeout_s`.

        Raises:
            PeerError: the connection was lost; the next `send` makes a new one.
        """

    def close(self) -> None:
        """Stop at once."""


class ZmqServer:
    """Links that clients come to, at one address."""

    def __init__(self, address: str, *, max_nbytes: int, allow_remote: bool = False) -> None:
        """Bind to `address`; `max_nbytes` is the most one part of a message may have.

        Raises:
            UsageError: no address that can be bound (`E_ADDRESS`), or one that other machines reach (`E_INSECURE`).
            PeerError: it is taken (`E_ADDRESS_IN_USE`), or the system does not give it.
        """
        self._links = ZmqLinks(
            frame_nbytes=max_nbytes, message_nbytes=_PARTS_FACTOR * max_nbytes, silence_s=_SERVER_SILENCE_S
        )
        self._peers: set[bytes] = set()
        try:
            self.address = self._links.listen(address, allow_remote=allow_remote)
        except Exception:
            self._links.close()
            raise

    def receive(self, timeout_s: float) -> Delivery | Departure | None:
        """See `Server`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            event = self._links.receive(max(0.0, deadline_s - time.monotonic()))
            match event:
                case None:
                    return None
                case Heard():
                    return Delivery(_name(event.link), event.frames)
                case Opened():
                    self._peers.add(_name(event.link))
                case Lost():
                    self._peers.discard(_name(event.link))
                    return Departure(_name(event.link))

    def send(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """See `Server`."""
        link = int.from_bytes(peer, "little")
        if peer not in self._peers or self._links.backlog_nbytes(link) > MAX_BACKLOG_NBYTES:
            return False
        self._links.send(link, parts)
        return True

    def wake(self) -> None:
        """See `Server`."""
        self._links.wake()

    def close(self, linger_s: float = 0.0) -> None:
        """See `Server`."""
        self._links.close(linger_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ZmqClient:
    """A link to the server at one address, and another one when it was lost."""

    def __init__(self, address: str, *, max_nbytes: int) -> None:
        """Begin to connect to `address`; whether anybody is there shows when something is sent.

        Raises:
            UsageError: no address that one can connect to (`E_ADDRESS`).
        """
        self._address, self._shown = address, printable(address)
        self._links = ZmqLinks(
            frame_nbytes=max_nbytes,
            message_nbytes=_PARTS_FACTOR * max_nbytes,
            silence_s=_CLIENT_SILENCE_S,
            broken_s=_BROKEN_S,
        )
        self._heard: deque[Sequence[Buffer]] = deque()
        self._link: int | None = None
        try:
            self._link = self._links.connect(address)
        except Exception:
            self._links.close()
            raise

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        """See `Client`."""
        deadline_s = time.monotonic() + timeout_s
        wait_s = 0.0
        while self._link is None or not self._is_quiet(wait_s):
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0:
                raise PeerError(
                    f"no worker answers at `{self._shown}`", "start one there with `hyps-worker PLAN --bind ADDRESS`"
                )
            if self._link is None:
                self._link = self._links.connect(self._address)
        self._links.send(self._link, parts)
        self._links.flush()

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """See `Client`."""
        deadline_s = time.monotonic() + timeout_s
        while not self._heard:
            if not self._hear(max(0.0, deadline_s - time.monotonic())):
                return None
        self._links.flush()
        return self._heard.popleft()

    def close(self) -> None:
        """See `Client`."""
        self._links.close()

    def _is_quiet(self, timeout_s: float) -> bool:
        """Hear what comes in time, and all that is there; return whether the link is open."""
        while self._hear(timeout_s):
            timeout_s = 0.0
        return self._link is not None and self._links.is_open(self._link)

    def _hear(self, timeout_s: float) -> bool:
        """Return whether something happened in time.

        Raises:
            PeerError: the connection was lost.
        """
        event = self._links.receive(timeout_s)
        if isinstance(event, Heard):
            self._heard.append(event.frames)
        elif isinstance(event, Lost):
            self._link = None
            hint = "see whether the worker still runs"
            raise PeerError(f"the connection to `{self._shown}` was lost: {printable(event.reason)}", hint)
        return event is not None


def _name(link: int) -> bytes:
    return link.to_bytes(8, "little")
