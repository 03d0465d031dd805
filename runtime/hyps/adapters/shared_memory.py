"""Memory that two processes of one machine share: one puts a tensor there, the other's arrays lie on it.

Whoever receives makes the arena and whoever sends manages it. It has no name anywhere: the sender finds it among the
receiver's open files, as only the same user can, and nothing is left behind however either of them ends.
"""

import fcntl
import logging
import mmap
import os
import sys
import weakref
from bisect import insort
from collections import deque
from functools import partial
from typing import Any, assert_never

import numpy as np

from hyps.adapters.links import Buffer
from hyps.errors import PeerError
from hyps.formats.packets import Freed, Internal, Mapped, Offer

logger = logging.getLogger(__name__)

PAGE_NBYTES = 4096
"""Blocks begin and end at multiples of it; the first page holds the secret."""

_NAME = "hyps-arena"
_SECRET_NBYTES = 32
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")
"""Nobody can make it smaller under a reader, who would be killed for reading behind its end."""

_LEAST_NBYTES = 32 * 1024
"""Of a frame that is worth a block."""

_FREED_NBYTES = 4 * 2**20
"""Of blocks that are used no more, before the sender is told."""

_TRIM_S = 5.0
"""How long no block is in use before the memory is given back to the system."""

IS_SUPPORTED = sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
"""Whether this system has such memory."""


class SharedFrames:
    """What a link shares with its peer, in both directions.

    `offer` and what comes from the peer (`on_message`) go as messages between the links themselves.
    """

    def __init__(self, nbytes: int) -> None:
        """Share nothing yet; `nbytes` is what the peer will be offered, and 0 that nothing is shared."""
        self._nbytes = nbytes if IS_SUPPORTED else 0
        self._arena: Arena | None = None
        self._tenancy: Tenancy | None = None
        self._lodged_s = 0.0
        self._freed: list[int] = []
        self._freed_nbytes = 0

    def offer(self) -> Offer | None:
        """Make memory for the peer's frames; return what it has to know, or None where there is none to share."""
        if not self._nbytes:
            return None
        try:
            self._arena = Arena(self._nbytes)
        except OSError as error:
            logger.info("frames go over the socket, for there is no memory to share: %s", error)
            return None
        return self._arena.offer

    def on_message(self, message: Internal) -> Internal | None:
        """Do what the peer's message asks; return the answer, if there is one.

        Raises:
            PeerError: it frees what was not used (`E_PROTOCOL`).
        """
        match message:
            case Offer():
                return Mapped(self._open(message))
            case Mapped():
                if self._arena is not None:
                    self._arena.seal_off()
            case Freed():
                if self._tenancy is not None:
                    for offset in message.offsets:
                        self._tenancy.free(offset)
            case _:
                assert_never(message)
        return None

    def lodge(self, frames: list[Buffer], now_s: float) -> tuple[tuple[int, int], ...]:
        """Put large frames into the peer's memory as far as there is room; return which, and where.

        In `frames` nothing is left of them.
        """
        if self._tenancy is None:
            return ()
        places = []
        for index, frame in enumerate(frames):
            if len(frame) > _LEAST_NBYTES:
                offset = self._tenancy.put(frame)
                if offset is not None:
                    places.append((index, offset))
                    frames[index] = b""
                    self._lodged_s = now_s
        return tuple(places)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return a frame that the peer put there; see `Arena.view`.

        Raises:
            PeerError: there can be no such frame (`E_PROTOCOL`).
        """
        if self._arena is None:
            raise PeerError("a peer put frames where nothing was offered", code="E_PROTOCOL")
        return self._arena.view(offset, nbytes)

    def take_news(self) -> Freed | None:
        """Return what the peer should know of blocks that are free again, when it is worth a message."""
        if self._arena is None or not self._arena.has_freed:
            return None
        offsets, nbytes = self._arena.take_freed()
        self._freed += offsets
        self._freed_nbytes += nbytes
        if self._freed_nbytes < _FREED_NBYTES:
            return None
        news = Freed(tuple(self._freed))
        self._freed, self._freed_nbytes = [], 0
        return news

    @property
    def is_trimmable(self) -> bool:
        """Whether there is memory to be given back some seconds after it was used."""
        return self._tenancy is not None and self._tenancy.is_trimmable

    def trim(self, now_s: float) -> None:
        """Give memory back that was not used for some seconds."""
        if self._tenancy is not None and now_s - self._lodged_s > _TRIM_S:
            self._tenancy.trim()

    def close(self) -> None:
        """Share nothing any more; frames that are in use stay as long as they are."""
        if self._arena is not None:
            self._arena.seal_off()
        self._arena = self._tenancy = None

    def _open(self, offer: Offer) -> bool:
        if not self._nbytes or self._tenancy is not None:
            return False
        try:
            self._tenancy = Tenancy(offer)
        except (OSError, ValueError) as error:
            logger.info("frames go over the socket, for a peer's memory cannot be shared: %s", error)
        return self._tenancy is not None


class Arena:
    """The receiver's side."""

    def __init__(self, nbytes: int) -> None:
        """Make an arena of so many bytes; the system gives them as they are written to.

        Raises:
            OSError: the system gives none.
        """
        self._fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, nbytes)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _all_seals())
            self._map = mmap.mmap(self._fd, nbytes)
        except OSError:
            os.close(self._fd)
            raise
        self._nbytes, self._secret = nbytes, os.urandom(_SECRET_NBYTES)
        self._map[:_SECRET_NBYTES] = self._secret
        self._used: dict[int, tuple[int, weakref.ref[Any]]] = {}
        """Bytes of each block that the sender filled, by its offset."""
        self._freed: deque[int] = deque()

    @property
    def offer(self) -> Offer:
        """What the sender has to know to find the arena."""
        return Offer(os.getpid(), self._fd, self._nbytes, self._secret)

    def seal_off(self) -> None:
        """Give up the descriptor by which a sender finds the arena: it has, or it never will."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return a block that the sender filled; it is free again when nothing refers to it any more.

        Raises:
            PeerError: there can be no such block (`E_PROTOCOL`).
        """
        fits = offset >= PAGE_NBYTES and offset % PAGE_NBYTES == 0 and 0 < nbytes <= self._nbytes - offset
        if not fits or offset in self._used:
            raise PeerError(f"a peer put {nbytes} bytes at {offset} of its arena", code="E_PROTOCOL")
        array = np.frombuffer(self._map, np.uint8, nbytes, offset)
        note = partial(
            _note, self._freed, offset
        )  # not self: what is forgotten must not wait for a collection of cycles
        self._used[offset] = nbytes, weakref.ref(array, note)
        return array.data

    @property
    def has_freed(self) -> bool:
        """Whether blocks became free since `take_freed`."""
        return bool(self._freed)

    def take_freed(self) -> tuple[tuple[int, ...], int]:
        """Return the offsets of the blocks that became free, and their bytes."""
        offsets = tuple([self._freed.popleft() for _ in range(len(self._freed))])
        return offsets, sum(self._used.pop(offset)[0] for offset in offsets)


class Tenancy:
    """The sender's side of a peer's arena."""

    def __init__(self, offer: Offer) -> None:
        """Open what a peer offers.

        Raises:
            OSError, ValueError: it cannot be opened from here, or is no arena.
        """
        path = f"/proc/{offer.process}/fd/{offer.descriptor}"
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise ValueError("no arena")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(fd)
            is_ours = facts.st_uid == os.geteuid() and facts.st_size == offer.nbytes
            if not is_ours or fcntl.fcntl(fd, fcntl.F_GET_SEALS) != _all_seals():
                raise ValueError("no arena")
            self._map = mmap.mmap(fd, offer.nbytes)
        finally:
            os.close(fd)
        if (
            self._map[:_SECRET_NBYTES] != offer.secret
        ):  # both are the peer's: nothing is to be guessed by the time it takes
            self._map.close()
            raise ValueError("another arena")
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._free = [(PAGE_NBYTES, offer.nbytes // PAGE_NBYTES * PAGE_NBYTES)]
        self._blocks: dict[int, int] = {}
        """End of each block by its offset."""
        self._is_touched = False

    def put(self, frame: Buffer) -> int | None:
        """Copy a frame into a free block and return its offset; None: there is no room."""
        nbytes = len(frame)
        offset = self._allocate(-(-nbytes // PAGE_NBYTES) * PAGE_NBYTES)
        if offset is not None:
            np.copyto(self._bytes[offset : offset + nbytes], np.frombuffer(frame, np.uint8))
            self._is_touched = True
        return offset

    def free(self, offset: int) -> None:
        """Note that the receiver needs a block no more.

        Raises:
            PeerError: there is no such block (`E_PROTOCOL`).
        """
        stop = self._blocks.pop(offset, None)
        if stop is None:
            raise PeerError(f"a peer freed what was not used at {offset} of its arena", code="E_PROTOCOL")
        insort(self._free, (offset, stop))
        self._free = _merged(self._free)

    @property
    def is_trimmable(self) -> bool:
        """Whether the system holds memory for blocks of which none is in use."""
        return self._is_touched and not self._blocks

    def trim(self) -> None:
        """Give the memory of unused blocks back to the system, when none is in use."""
        if self.is_trimmable:
            self._map.madvise(mmap.MADV_REMOVE, PAGE_NBYTES, self._free[0][1] - PAGE_NBYTES)
            self._is_touched = False

    def _allocate(self, nbytes: int) -> int | None:
        """Return the first room that is large enough: memory that was used just now is the fastest."""
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= nbytes:
                if stop - start == nbytes:
                    del self._free[index]
                else:
                    self._free[index] = (start + nbytes, stop)
                self._blocks[start] = start + nbytes
                return start
        return None


def _note(freed: deque[int], offset: int, _: object) -> None:
    """Note, in whatever thread, that nothing refers to a block any more."""
    freed.append(offset)


def _all_seals() -> int:
    seals = 0
    for name in _SEALS:
        seals |= getattr(fcntl, name)
    return seals


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted ranges, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
