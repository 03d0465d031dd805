"""Adds delay to a wire: carries its packets between two TAP devices, each a set time after it came.

    python -m testbed.relay CARD NAMESPACE_A NAMESPACE_B SECONDS

takes the device CARD of both namespaces (files that stand for them) and says "relaying"; it ends when the process that
started it is gone. The kernel's own delay queue (netem) is not in every kernel; this is the same on every machine.

Packets come and go as the kernel's network stack has them, up to 64 KB at once with the checksum left open, so that
one process carries some gigabits a second. Where a rate is set, tbf has cut them into the wire's own size before they
come here. It runs before everything else, pacers too: a packet that waits for a core would be late.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

_PRIORITY = 60
_LONGEST_WAIT_S = 0.5
"""After which it looks whether its parent is still there."""
_PACKET_NBYTES = 10 + 14 + 65_536 + 64
"""The header of virtio, that of Ethernet, and the most that the kernel hands over at once, with some room."""
_TICK_S = 200e-6
"""How often it looks while packets are on their way. Looking for each would take ten times the processor time."""
_MOST_WAITING_NBYTES = 64 * 2**20
"""In one direction. With more the device is not read, and its own queue drops packets as a router's does."""

_NEW_NETWORK = 0x40000000
_SET_INTERFACE, _SET_OFFLOADS = 0x400454CA, 0x400454D0
_IS_TAP, _NO_PROTOCOL, _HAS_HEADER = 0x0002, 0x1000, 0x4000
_OPEN_CHECKSUM, _SEGMENTS_4, _SEGMENTS_6 = 0x01, 0x02, 0x04


class Packet(NamedTuple):
    """A packet on its way."""

    due_s: float
    data: bytes


class Way:
    """One direction."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._packets: deque[Packet] = deque()
        self._nbytes = 0

    @property
    def has_some(self) -> bool:
        """Whether packets are on their way."""
        return bool(self._packets)

    def read(self, due_s: float) -> None:
        """Take what is there; it is due at `due_s`. With too much on its way, nothing is taken."""
        with contextlib.suppress(BlockingIOError):
            while self._nbytes < _MOST_WAITING_NBYTES:
                data = os.read(self.source, _PACKET_NBYTES)
                self._packets.append(Packet(due_s, data))
                self._nbytes += len(data)

    def write_due(self, now_s: float) -> None:
        """Hand on what is due."""
        while self._packets and self._packets[0].due_s <= now_s:
            data = self._packets.popleft().data
            self._nbytes -= len(data)
            with contextlib.suppress(OSError):  # a device that is down, or has no room, loses it, as any does
                os.write(self.target, data)


def main() -> None:
    """Relay until the parent is gone."""
    card, *namespaces, delay = sys.argv[1:]
    parent = os.getppid()
    first, second = (_open_tap(Path(namespace), card) for namespace in namespaces)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("relaying", flush=True)
    relay(first, second, float(delay), parent)


def relay(first: int, second: int, delay_s: float, parent: int) -> None:
    """Carry what can be read from each of two files to the other, `delay_s` later, while `parent` lives."""
    ways = (Way(first, second), Way(second, first))
    clock, sleep = time.perf_counter, time.sleep
    while os.getppid() == parent:
        if not any(way.has_some for way in ways):
            select.select([first, second], [], [], _LONGEST_WAIT_S)
        for way in ways:
            way.write_due(clock())
            way.read(clock() + delay_s)
        sleep(_TICK_S)


def _open_tap(namespace: Path, card: str) -> int:
    """Return a file that is the other end of a TAP device of a namespace; this process stays in the namespace."""
    with namespace.open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace.name}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IS_TAP | _NO_PROTOCOL | _HAS_HEADER
    fcntl.ioctl(end, _SET_INTERFACE, struct.pack("16sH22x", card.encode(), flags))
    fcntl.ioctl(end, _SET_OFFLOADS, _OPEN_CHECKSUM | _SEGMENTS_4 | _SEGMENTS_6)
    return end


if __name__ == "__main__":
    main()
