"""Messages between one worker and its clients, over ZeroMQ; `memory_transport` has the twin without sockets.

A server hears from many peers and answers each; a client talks to one server. Neither knows what a message means.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import zmq

from hyps.adapters.addresses import in_use, look_up
from hyps.errors import PeerError, printable

Buffer = bytes | bytearray | memoryview

MAX_PARTS = 4100
"""Of one message: its header and its tensors."""

HIGH_WATER_MESSAGES = 16
"""For one peer; more are not taken until it has read some."""

_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 1000, 3000
_HANDSHAKE_MS = 2000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a server got, and from whom."""

    peer: bytes
    parts: Sequence[Buffer]


class Server(Protocol):
    """A worker's side; all but `wake` belong to one thread."""

    address: str
    """Where clients reach it."""

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next message, or None after `timeout_s` or a `wake`."""

    def send(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """Send a message without waiting; return whether the peer is there and takes it."""

    def wake(self) -> None:
        """End a `receive` early, from any thread or signal handler."""

    def close(self, linger_s: float = 0.0) -> None:
        """Stop, after at most `linger_s` for what was sent to leave."""


class Client(Protocol):
    """A client's side; belongs to one thread at a time."""

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        """Send a message.

        Raises:
            PeerError: nobody takes it within `timeout_s`.
        """

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the next message, or None after `timeout_s`.

        Raises:
            PeerError: the connection was lost; the next `send` makes a new one.
        """

    def close(self) -> None:
        """Stop at once."""


class ZmqServer:
    """A ROUTER socket bound to one address."""

    def __init__(self, address: str, *, max_nbytes: int, allow_remote: bool = False) -> None:
        """Bind to `address`; `max_nbytes` is the most one part of a message may have.

        Raises:
            UsageError: no address that can be bound (`E_ADDRESS`), or one that other machines reach (`E_INSECURE`).
            PeerError: it is taken (`E_ADDRESS_IN_USE`), or the system does not give it.
        """
        bindable = look_up(address).bindable(address, allow_remote)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.ROUTER, max_nbytes)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 0)
        self._socket.set(zmq.IPV6, "[" in bindable)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        try:
            _bind(self._socket, bindable, address)
        except Exception:
            self.close()
            raise
        self.address = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def receive(self, timeout_s: float) -> Delivery | None:
        """See `Server`."""
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._socket not in ready:
            return None
        peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        return Delivery(peer.bytes, [part.buffer for part in parts[: MAX_PARTS + 1]])

    def send(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """See `Server`."""
        try:
            self._socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def wake(self) -> None:
        """See `Server`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self, linger_s: float = 0.0) -> None:
        """See `Server`."""
        if self._context.closed:
            return
        self._socket.close(linger=round(linger_s * 1000))
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ZmqClient:
    """A DEALER socket connected to one address."""

    def __init__(self, address: str, *, max_nbytes: int) -> None:
        """Begin to connect to `address`; whether anybody is there shows when something is sent.

        Raises:
            UsageError: no address that one can connect to (`E_ADDRESS`).
        """
        target = look_up(address).connectable(address)
        self._shown = printable(address)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER, max_nbytes)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._monitor: zmq.Socket[Any] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.set(zmq.IPV6, "[" in target)
        self._socket.connect(target)

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        """See `Client`."""
        if not self._socket.poll(max(0, round(timeout_s * 1000)), zmq.POLLOUT):
            raise PeerError(
                f"no worker answers at `{self._shown}`", "start one there with `hyps-worker PLAN --bind ADDRESS`"
            )
        self._forget_disconnects()
        self._socket.send_multipart(list(parts), zmq.NOBLOCK, copy=False)

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """See `Client`."""
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._socket in ready:
            return [part.buffer for part in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)[: MAX_PARTS + 1]]
        if self._monitor in ready:
            self._forget_disconnects()
            raise PeerError(f"the connection to `{self._shown}` was lost", "see whether the worker still runs")
        return None

    def close(self) -> None:
        """See `Client`."""
        if not self._context.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)
            self._context.term()

    def _forget_disconnects(self) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()  # zmq.utils.monitor would bring in asyncio: 6 MB


def _socket(context: "zmq.Context[Any]", kind: int, max_nbytes: int) -> "zmq.Socket[Any]":
    """Return a socket that cannot wait for ever, hoard messages, or take one that is too large."""
    made: zmq.Socket[Any] = context.socket(kind)
    for option, value in {
        zmq.LINGER: 0,
        zmq.SNDHWM: HIGH_WATER_MESSAGES,
        zmq.RCVHWM: HIGH_WATER_MESSAGES,
        zmq.MAXMSGSIZE: max_nbytes,
        zmq.HANDSHAKE_IVL: _HANDSHAKE_MS,
        zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
        zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
        zmq.HEARTBEAT_TTL: _HEARTBEAT_TIMEOUT_MS,
        zmq.TCP_KEEPALIVE: 1,
    }.items():
        made.set(option, value)
    return made


def _bind(made: "zmq.Socket[Any]", bindable: str, address: str) -> None:
    mask = os.umask(0o077)  # an ipc socket is a file: only its owner may connect
    try:
        made.bind(bindable)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise in_use(address) from error
        reason = printable(str(error))
        raise PeerError(f"`{printable(address)}` cannot be bound: {reason}", code="E_ADDRESS") from error
    finally:
        os.umask(mask)
