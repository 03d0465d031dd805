"""Memory for weights that is made once and used again, so that each partition need not have pages of its own."""

import mmap
import threading
from dataclasses import dataclass

from hyps.errors import PlanError
from hyps.formats.quantities import format_nbytes

_PAGE_NBYTES = mmap.PAGESIZE


@dataclass(slots=True, eq=False)
class Buffer:
    """Page-aligned memory, and what it holds."""

    memory: mmap.mmap
    key: str | None
    """What lies in it, for whoever needs the same; None: nothing of use."""
    used_nbytes: int
    touched_nbytes: int
    """From the beginning, bytes that may be resident: written since the memory was new or given back."""
    users: int = 1
    is_filled: bool = False

    @property
    def idle_nbytes(self) -> int:
        """Bytes that may be resident and are of no use now."""
        return self.touched_nbytes - (_whole_pages(self.used_nbytes) if self.users else 0)


class WeightPool:
    """Buffers for blocks of weights; its methods may be called from several threads."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self, key: str, nbytes: int) -> Buffer:
        """Return memory for the block `key`: what holds it already, else what is idle, else new memory.

        Raises:
            PlanError: the system has no such memory (`E_MEMORY`).
        """
        with self._lock:
            for buffer in self._buffers:
                if buffer.key == key:
                    buffer.users += 1
                    return buffer
            buffer = self._idle_of(nbytes) or self._new(nbytes)
            buffer.key, buffer.used_nbytes, buffer.users, buffer.is_filled = key, nbytes, 1, False
            buffer.touched_nbytes = max(buffer.touched_nbytes, _whole_pages(nbytes))
            return buffer

    def give(self, buffer: Buffer) -> None:
        """Take back memory that one user needs no more; what it holds stays there until something else is wanted."""
        with self._lock:
            buffer.users -= 1

    def shrink(self, most_nbytes: int) -> None:
        """Give memory that nobody uses back to the system until at most `most_nbytes` of it may be resident."""
        with self._lock:
            over = sum(buffer.idle_nbytes for buffer in self._buffers) - max(0, most_nbytes)
            for buffer in sorted(self._buffers, key=lambda buffer: (buffer.users, buffer.idle_nbytes)):
                if over > 0 and buffer.idle_nbytes:
                    over -= buffer.idle_nbytes
                    self._empty(buffer)

    @property
    def idle_nbytes(self) -> int:
        """Bytes of memory that nobody uses and that may be resident."""
        with self._lock:
            return sum(buffer.idle_nbytes for buffer in self._buffers)

    def _idle_of(self, nbytes: int) -> Buffer | None:
        """Return the smallest idle memory that is large enough, or the largest made larger: its pages are there."""
        idle = sorted((b for b in self._buffers if not b.users), key=lambda buffer: len(buffer.memory))
        for buffer in idle:
            if len(buffer.memory) >= nbytes:
                return buffer
        if not idle:
            return None
        try:
            idle[-1].memory.resize(_whole_pages(nbytes))
        except (BufferError, OSError, SystemError):  # an array still points into it, or the system has no such call
            self._buffers.remove(idle[-1])
            return None
        return idle[-1]

    def _new(self, nbytes: int) -> Buffer:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            memory = mmap.mmap(-1, max(_PAGE_NBYTES, _whole_pages(nbytes)), flags=flags)
        except OSError as error:
            hint = "give `--memory`, or compile with a smaller `--memory`"
            raise PlanError(f"there is no memory for {format_nbytes(nbytes)} of weights", hint, "E_MEMORY") from error
        buffer = Buffer(memory, None, nbytes, 0)
        self._buffers.append(buffer)
        return buffer

    def _empty(self, buffer: Buffer) -> None:
        """Give back what is idle; memory that nobody uses is forgotten with it."""
        if not buffer.users:
            self._buffers.remove(buffer)  # unmapped with the last array that points into it
            return
        kept = _whole_pages(buffer.used_nbytes)
        buffer.memory.madvise(mmap.MADV_DONTNEED, kept, buffer.touched_nbytes - kept)
        buffer.touched_nbytes = kept


def _whole_pages(nbytes: int) -> int:
    return nbytes + -nbytes % _PAGE_NBYTES
