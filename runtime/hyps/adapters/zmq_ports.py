"""The sockets of a process's links: one per address that is listened to, one per connection that was made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import zmq

from hyps.adapters.links import Buffer
from hyps.adapters.sockets import Security, WakePipe, bind, connect, make_dealer, make_router, watch

_ZERO_COPY_NBYTES = 65536
"""From here on copying costs more than being told when a buffer is free again."""

_MORE = zmq.NOBLOCK | zmq.SNDMORE
_LinkT = TypeVar("_LinkT")
Socket = Any
"""A ZeroMQ socket."""


@dataclass(slots=True, eq=False)
class Port(Generic[_LinkT]):
    """A socket, and the one that tells of its connections."""

    socket: Socket
    monitor: Socket
    link: _LinkT | None
    """The one link of a socket that connects; None: a socket that is connected to."""
    is_local: bool
    """Whether peers are on the same machine, by the kind of address."""
    is_full: bool = False
    """Whether it is watched for room."""


@dataclass(frozen=True, slots=True)
class Ready(Generic[_LinkT]):
    """What a wait ended with."""

    is_woken: bool
    sockets: Sequence[Socket]
    """With something to read, or room."""
    roomy: Sequence[Port[_LinkT]]
    """That were full and are not any more."""


class Ports(Generic[_LinkT]):
    """Opens, watches and closes sockets; belongs to one thread, but for `wake`."""

    def __init__(self, security: Security | None) -> None:
        self._security = security
        self._context: zmq.Context[Any] = zmq.Context()
        self._pipe = WakePipe()
        self._poller = zmq.Poller()
        self._poller.register(self._pipe.read_fd, zmq.POLLIN)
        self._ports: dict[Socket, Port[_LinkT]] = {}
        """By their sockets."""
        self._monitors: dict[Socket, Port[_LinkT]] = {}
        """By their monitors."""

    def listen(self, address: str, *, allow_remote: bool) -> str:
        """Make a socket that peers come to, and return its address; see `Links.listen`."""
        socket = make_router(self._context, self._security)
        try:
            bound = bind(socket, address, allow_remote=allow_remote)
        except Exception:
            socket.close()
            raise
        self._add(socket, zmq.EVENT_DISCONNECTED, is_local=bound.startswith("ipc:"))
        return bound

    def connect(self, address: str) -> Port[_LinkT]:
        """Make a socket that goes to one peer; see `Links.connect`."""
        socket = make_dealer(self._context, self._security)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        port = self._add(socket, events, is_local=address.startswith("ipc:"))
        try:
            connect(socket, address)
        except Exception:
            self.drop(port)
            raise
        return port

    def drop(self, port: Port[_LinkT], linger_ms: int = 0) -> None:
        """Close a socket."""
        del self._ports[port.socket], self._monitors[port.monitor]
        self._poller.unregister(port.socket)
        self._poller.unregister(port.monitor)
        port.socket.disable_monitor()
        port.monitor.close(linger=0)
        port.socket.close(linger=linger_ms)

    def close(self, linger_ms: int) -> None:
        """Close all."""
        for port in list(self._ports.values()):
            self.drop(port, linger_ms)
        self._context.term()
        self._pipe.close()

    def of(self, socket: Socket) -> Port[_LinkT] | None:
        """Return the port of a socket; None: it is none's, or closed."""
        return self._ports.get(socket)

    def watched_by(self, monitor: Socket) -> Port[_LinkT] | None:
        """Return the port that a monitor tells of; None: it is no monitor, or closed."""
        return self._monitors.get(monitor)

    def wait(self, timeout_s: float) -> Ready[_LinkT]:
        """Wait until a socket is ready, or for `wake`."""
        timeout_ms = 0 if self._pipe.begin_wait() else math.ceil(max(0.0, timeout_s) * 1000)
        ready = dict(self._poller.poll(timeout_ms))
        is_woken = self._pipe.end_wait(is_readable=ready.pop(self._pipe.read_fd, 0) != 0)
        roomy = []
        for socket, flags in ready.items():
            if flags & zmq.POLLOUT:
                port = self._ports[socket]
                port.is_full = False
                self._poller.modify(socket, zmq.POLLIN)
                roomy.append(port)
        return Ready(is_woken, list(ready), roomy)

    def wake(self) -> None:
        """End a wait, from any thread or signal handler."""
        self._pipe.wake()

    def put(self, port: Port[_LinkT], parts: list[Buffer]) -> bool:
        """Return whether the socket took a message; if not, one that connects is watched for room.

        Raises:
            ZMQError: nobody is there whom the socket calls so (`EHOSTUNREACH`).
        """
        send, last = port.socket.send, parts.pop()
        try:
            for part in parts:
                send(part, _MORE, copy=len(part) < _ZERO_COPY_NBYTES)
            send(last, zmq.NOBLOCK, copy=len(last) < _ZERO_COPY_NBYTES)
        except zmq.Again:
            if port.link is not None and not port.is_full:
                port.is_full = True
                self._poller.modify(port.socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        return True

    def _add(self, socket: Socket, events: int, *, is_local: bool) -> Port[_LinkT]:
        port: Port[_LinkT] = Port(socket, watch(socket, events), None, is_local)
        self._ports[socket] = self._monitors[port.monitor] = port
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(port.monitor, zmq.POLLIN)
        return port
