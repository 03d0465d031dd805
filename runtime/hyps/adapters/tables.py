"""Tables of look-ups: of a large weight only the rows that a run asks for are read, and none is kept.

Not mapped: the system maps what its page cache has around a row as well, megabytes at a time where it caches so, and
a process that promised to stay small would not.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyps.adapters.plan_files import length_error, opened
from hyps.adapters.reading import fill
from hyps.errors import PlanError
from hyps.formats.plan import FileRef, StreamedWeight
from hyps.formats.quantities import format_nbytes

Array = np.ndarray[Any, Any]

_PAGE_NBYTES = mmap.PAGESIZE
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if hasattr(mmap, "MADV_NOHUGEPAGE") else 0
"""Memory that is never used whole need not be there: Python names the flag from 3.13 on."""
_INT32_END = 2**31


class Table:
    """A weight whose first axis is only ever indexed: an array in which just the rows of one run stand."""

    def __init__(self, folder: Path, file: FileRef, weight: StreamedWeight) -> None:
        """Open the table.

        Args:
            folder: in which the file lies.
            file: where the weight's bytes are.
            weight: one with `looked_up_by`.

        Raises:
            PlanError: the file is missing or has another length than the plan says, or there is no memory.
        """
        self._file, self._weight = file, weight
        self._first = weight.offset - weight.offset % _PAGE_NBYTES
        self._memory = _new_memory(weight.offset - self._first + weight.nbytes)
        with opened(folder, file.path) as descriptor:
            found = os.fstat(descriptor).st_size
            if found != file.nbytes:
                raise length_error(file.path, found, file.nbytes)
            self._descriptor = os.dup(descriptor)

    @property
    def looked_up_by(self) -> tuple[str, ...]:
        """Names of the partition's inputs that hold the indices."""
        return self._weight.looked_up_by

    @property
    def array(self) -> Array:
        """The whole table; rows that were not read have any value."""
        flat = np.frombuffer(memoryview(self._memory), np.uint8, self._weight.nbytes, self._weight.offset - self._first)
        return flat.view(self._weight.dtype).reshape(self._weight.shape)

    def read(self, feeds: Mapping[str, Any]) -> int:
        """Read the rows that a run on `feeds` looks up, the partition's inputs by name; return how many bytes.

        Raises:
            PlanError: the file cannot be read to the end any more.
        """
        spans = list(self._spans([np.asarray(feeds[name]) for name in self.looked_up_by]))
        if len(spans) > 1 and hasattr(os, "posix_fadvise"):
            for start, stop in spans:  # all at once: the disk need not wait for us to ask for the next
                os.posix_fadvise(self._descriptor, self._first + start, stop - start, os.POSIX_FADV_WILLNEED)
        with memoryview(self._memory) as memory:
            for start, stop in spans:
                self._read_span(memory, start, stop)
        return sum(stop - start for start, stop in spans)

    def drop(self) -> None:
        """Give the memory of the rows back to the system."""
        self._memory.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Close the file; the memory goes with the last array that points into it."""
        os.close(self._descriptor)

    def _spans(self, indices: list[Array]) -> Iterator[tuple[int, int]]:
        """Yield whole pages, as first and past-the-last byte of the memory, that hold the rows at `indices`."""
        rows = _rows(indices, self._weight.shape[0])
        if not rows.size:
            return
        width = self._weight.nbytes // self._weight.shape[0]
        begins = self._weight.offset - self._first + rows * width
        starts = begins // _PAGE_NBYTES * _PAGE_NBYTES
        stops = -(-(begins + width) // _PAGE_NBYTES) * _PAGE_NBYTES
        is_apart = starts[1:] > stops[:-1]
        firsts, lasts = np.append(True, is_apart), np.append(is_apart, True)
        end = min(len(self._memory), self._file.nbytes - self._first)
        yield from zip(starts[firsts].tolist(), np.minimum(stops[lasts], end).tolist(), strict=True)

    def _read_span(self, memory: memoryview, start: int, stop: int) -> None:
        end = start + fill(self._descriptor, memory[start:stop], self._first + start)
        if end < stop:
            raise length_error(self._file.path, self._first + end, self._file.nbytes)


def _rows(indices: list[Array], count: int) -> Array:
    """Return, ascending and once each, the rows of a table of `count` that may be looked up by any of `indices`.

    Negative ones count from the end. Those that 32 bits do not hold may have been cut off to them on their way. What is
    outside of the table onnxruntime refuses.
    """
    wanted = np.concatenate([array.ravel().astype(np.int64) for array in indices])
    if wanted.size and (wanted.max() >= _INT32_END or wanted.min() < -_INT32_END):
        wanted = np.append(wanted, wanted.astype(np.int32))
    rows = np.where(wanted < 0, wanted + count, wanted)
    return np.unique(rows[(rows >= 0) & (rows < count)])


def _new_memory(nbytes: int) -> mmap.mmap:
    # shared, though nobody shares it: a limit on private memory (`ulimit -d`, the guard's own) would count all of it
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        memory = mmap.mmap(-1, nbytes + -nbytes % _PAGE_NBYTES, flags=flags)
    except OSError as error:
        hint = "raise the limit on the memory that the process may address (`ulimit -v`, `ulimit -d`)"
        message = f"there is no room for a table of {format_nbytes(nbytes)}, of which only rows would be read"
        raise PlanError(message, hint, "E_MEMORY") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a row would take 2 MB
    return memory
