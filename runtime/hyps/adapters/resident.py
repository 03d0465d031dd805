"""What this process has resident: how much, the most so far, and what can be given back without losing anything."""

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from hyps.adapters.machine import trim

CODE_NBYTES = 16_000_000
"""What opening and running partitions brings into memory for good, beside them: onnxruntime's code, mostly.

Measured after each of 40 partitions of a network had run once: 13.0 to 15.9 MB for seven networks, of images and of
sound, with 32, 16 and 8 bits, by one and by two threads."""

_MADV_DONTNEED = 4
_RESET_PEAK = "5"  # proc(5): the peak becomes what is resident now
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes of this process that lie in memory, now and at most."""

    total_nbytes: int
    anonymous_nbytes: int
    """Made by the process: nothing else holds them."""
    file_nbytes: int
    """Of files: code and mapped weights, which the system can drop and read again."""
    peak_nbytes: int
    """The most in all since the process began or `reset_peak`."""


def resident() -> Resident | None:
    """Return what is resident; None where `/proc` does not tell."""
    found = {}
    for line in _lines("/proc/self/status"):
        name, _, value = line.partition(":")
        if value.endswith(" kB\n"):
            found[name] = int(value.split()[0]) * 1024
    if not {"VmRSS", "VmHWM", "RssAnon", "RssFile"} <= found.keys():
        return None
    shared = found.get("RssShmem", 0)
    return Resident(found["VmRSS"], found["RssAnon"] + shared, found["RssFile"], found["VmHWM"])


def reset_peak() -> bool:
    """Have the peak begin anew at what is resident now; return False where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write(_RESET_PEAK)
    except OSError:
        return False
    return True


class OwnPeak:
    """The most bytes resident from now on, without code beyond `CODE_NBYTES`, wherever `/proc` tells.

    How much code the system maps at once depends on how a file lies in its page cache: of libraries that were just
    written whole pieces of up to 2 MB, 13 MB more in all than of the same ones read from the disk. It takes such pages
    back where memory is short. One at a time is told of what `give_back` drops: what was resident with a peak can only
    be seen before. Between two givings back it may be too low by the code beyond that came after the peak.
    """

    def __init__(self) -> None:
        global _watching
        reset_peak()
        self._code_nbytes = _library_nbytes() + CODE_NBYTES
        self._most_nbytes = 0
        _watching = self

    def measure(self) -> int:
        """Return it, for all that was so far; 0 where the system does not tell."""
        now = resident()
        if now is not None:
            beyond_nbytes = max(0, _library_nbytes() - self._code_nbytes)
            self._most_nbytes = max(self._most_nbytes, now.peak_nbytes - beyond_nbytes)
        return self._most_nbytes


_watching: OwnPeak | None = None


def peak_error_nbytes(threads: int) -> int:
    """Return by how much the peak may be too low when `threads` threads took memory.

    Linux counts pages in batches, per processor or per thread by version, and adds them up when it is asked; the peak
    is noted without adding up. Two counters of at most 64 pages each, one for anonymous pages and one for files'.
    """
    return 2 * 64 * _PAGE_NBYTES * max(1, threads)


def give_back() -> None:
    """Give freed memory back to the system, and the pages of libraries, which are read again where they are needed.

    Starting Python, numpy and onnxruntime touches 27 MB of code and tables of which opening and running a partition
    needs 8. The system keeps them in its page cache while it has room, so that they come back in about a millisecond.
    """
    if _watching is not None:
        _watching.measure()
    madvise = _madvise()
    if madvise is not None:
        for start, length in _library_pages():
            madvise(start, length, _MADV_DONTNEED)
    trim()
    if _watching is not None:
        reset_peak()  # what was resident with it is not any more


def _library_nbytes() -> int:
    """Return how much of programs and libraries is resident; 0 where `/proc` does not tell."""
    found, is_library = 0, False
    for line in _lines("/proc/self/smaps"):
        if line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024 if is_library else 0
        elif (match := _MAPPING.match(line)) is not None:
            is_library = _is_library(match[5])
    return found


def _library_pages() -> list[tuple[int, int]]:
    """Return start and length of the mappings of programs and libraries that were never written to.

    A page that was written to, be it by the loader before it became read-only, exists nowhere else and would be lost:
    `smaps` counts such pages as anonymous.
    """
    found: list[tuple[int, int]] = []
    mapping: tuple[int, int] | None = None
    for line in _lines("/proc/self/smaps"):
        if line.startswith("Anonymous:") and mapping is not None and line.split()[1] == "0":
            found.append(mapping)
        elif (match := _MAPPING.match(line)) is not None:
            start, stop = int(match[1], 16), int(match[2], 16)
            is_kept = match[4] == "0" or "w" in match[3] or not _is_library(match[5])
            mapping = None if is_kept else (start, stop - start)
    return found


def _is_library(path: str) -> bool:
    """Return whether the path is a library's or the program's, which stay mapped as long as the process lives."""
    return path.startswith("/") and (".so" in os.path.basename(path) or path == os.path.realpath(sys.executable))


@functools.cache
def _madvise() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _lines(path: str) -> Iterator[str]:
    """Yield the lines one by one: what this module is about would not be helped by reading all at once."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        yield from file
