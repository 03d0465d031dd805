"""Every ZeroMQ socket of the product is made here, with the profile that was measured to fail loudly and early."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import zmq

from hyps.adapters.addresses import in_use, look_up
from hyps.errors import PeerError, printable
from hyps.formats.packets import MAX_PIECE_NBYTES

Security = Callable[["zmq.Socket[Any]"], None]
"""Gives a socket its keys before it is bound or connected."""

MAX_FRAME_NBYTES = MAX_PIECE_NBYTES + 4096
"""Of one frame on a wire: a stranger makes us hold no more."""

HIGH_WATER_MESSAGES = 16
"""Of packets that a socket holds for one peer, in each direction."""

_PROFILE: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER_MESSAGES,
    zmq.RCVHWM: HIGH_WATER_MESSAGES,
    zmq.MAXMSGSIZE: MAX_FRAME_NBYTES,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 4000,
    zmq.HEARTBEAT_TTL: 4000,
    zmq.TCP_KEEPALIVE: 1,
}
_ROUTER_PROFILE: dict[int, int] = {zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 0}
_DEALER_PROFILE: dict[int, int] = {
    zmq.IMMEDIATE: 1,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.CONNECT_TIMEOUT: 2000,
}


def make_router(context: "zmq.Context[Any]", security: Security | None = None) -> "zmq.Socket[Any]":
    """Return a socket that peers come to; it names them itself, and says so when one takes nothing."""
    return _make(context, zmq.ROUTER, _ROUTER_PROFILE, security)


def make_dealer(context: "zmq.Context[Any]", security: Security | None = None) -> "zmq.Socket[Any]":
    """Return a socket that goes to one peer; it takes nothing while there is no connection."""
    return _make(context, zmq.DEALER, _DEALER_PROFILE, security)


def watch(made: "zmq.Socket[Any]", events: int) -> "zmq.Socket[Any]":
    """Return the socket on which `made` tells of its connections."""
    return made.get_monitor_socket(events)


def bind(made: "zmq.Socket[Any]", address: str, *, allow_remote: bool) -> str:
    """Let peers come to `address`; return it with the port it got.

    Raises:
        UsageError: no address that can be bound (`E_ADDRESS`), or one that other machines reach (`E_INSECURE`).
        PeerError: it is taken (`E_ADDRESS_IN_USE`), or the system does not give it.
    """
    bindable = look_up(address).bindable(address, allow_remote)
    made.set(zmq.IPV6, "[" in bindable)
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
    return made.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def connect(made: "zmq.Socket[Any]", address: str) -> None:
    """Begin to connect to `address`.

    Raises:
        UsageError: no address that one can connect to (`E_ADDRESS`).
    """
    target = look_up(address).connectable(address)
    made.set(zmq.IPV6, "[" in target)
    made.connect(target)


class _WriteEnd:
    """A pipe's end that is closed when nobody holds it any more.

    Were it closed while another thread is about to write, its number could by then be another file's.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class WakePipe:
    """Ends a wait from any thread or signal handler; costs a system call only where somebody waits.

    Who waits says so with `begin_wait`, then waits for `read_fd` and whatever else, and says `end_wait`.
    """

    def __init__(self) -> None:
        self.read_fd, write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(write_fd, False)
        self._write_end: _WriteEnd | None = _WriteEnd(write_fd)
        self._is_wanted = self._is_waiting = False

    def wake(self) -> None:
        """End the wait there is, or else the next one; harmless after `close`."""
        self._is_wanted = True  # before one looks who waits, as who waits says so before it looks here: one sees it
        write_end = self._write_end
        if self._is_waiting and write_end is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(write_end.fd, b"\0")

    def begin_wait(self) -> bool:
        """Note that a wait begins; return whether it is not to be one."""
        self._is_waiting = True
        return self._is_wanted

    def end_wait(self, *, is_readable: bool) -> bool:
        """Note that the wait is over, and whether `read_fd` was; return whether somebody wanted it to end."""
        self._is_waiting = False
        if is_readable:
            with contextlib.suppress(BlockingIOError):
                while len(os.read(self.read_fd, 4096)) == 4096:
                    pass
        if not self._is_wanted:
            return False
        self._is_wanted = False  # never when it was not seen: what is wanted in between would be lost
        return True

    def close(self) -> None:
        """Give the descriptors back."""
        if self._write_end is not None:
            self._write_end = None
            os.close(self.read_fd)


def _make(
    context: "zmq.Context[Any]", kind: int, profile: dict[int, int], security: Security | None
) -> "zmq.Socket[Any]":
    made: zmq.Socket[Any] = context.socket(kind)
    for option, value in {**_PROFILE, **profile}.items():
        made.set(option, value)
    if security is not None:
        security(made)
    return made
