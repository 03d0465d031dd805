"""A scratch file for tensors that have no place in memory: it has no name, so that no end of the process leaves it."""

import errno
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyps.adapters.reading import fill
from hyps.errors import OutputError, printable
from hyps.formats.quantities import format_nbytes

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_USUAL = ("/tmp", "/var/tmp")  # where temporary files belong; the second stays on a disk everywhere
_ALIGNMENT = 4096
_CHUNK_NBYTES = 2**24


@dataclass(slots=True)
class SpillCounts:
    """What went through the file, in bytes and seconds."""

    written_nbytes: int = 0
    write_s: float = 0.0
    read_nbytes: int = 0
    read_s: float = 0.0

    def since(self, before: "SpillCounts") -> "SpillCounts":
        """Return what went through it after `before` was noted."""
        return SpillCounts(
            self.written_nbytes - before.written_nbytes,
            self.write_s - before.write_s,
            self.read_nbytes - before.read_nbytes,
            self.read_s - before.read_s,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in the file."""

    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SpillFile:
    """Tensors on disk; made when the first one comes, closed by `close`. Room that is given back is used again."""

    def __init__(self, folder: str | None = None) -> None:
        """Take the folder for it; None: `TMPDIR`, or where temporary files usually are on a disk."""
        self._folder = folder
        self._shown = ""
        self._file: int | None = None
        self._end = 0
        self._gaps: dict[int, int] = {}
        self.counts = SpillCounts()

    @staticmethod
    def takes(value: Any) -> bool:
        """Return whether a value can be stored: an array of plain numbers that lies in one piece."""
        return isinstance(value, np.ndarray) and not value.dtype.hasobject and value.flags.c_contiguous

    def write(self, value: "np.ndarray[Any, Any]") -> Stored:
        """Store an array and return where.

        Raises:
            OutputError: there is no room on the disk (`E_DISKFULL`), no folder to write to, or the disk fails.
        """
        start = time.perf_counter()
        file = self._opened()
        stored = Stored(self._take_room(_padded(value.nbytes)), value.nbytes, value.dtype, value.shape)
        try:
            if value.nbytes:
                os.posix_fallocate(
                    file, stored.offset, value.nbytes
                )  # else a full disk shows only as it is written out
            for offset, part in _parts(value):
                _write_all(file, part, stored.offset + offset)
        except OSError as error:
            self.free(stored)
            raise self._refusal(error, value.nbytes) from error
        self.counts.written_nbytes += value.nbytes
        self.counts.write_s += time.perf_counter() - start
        return stored

    def read(self, stored: Stored) -> "np.ndarray[Any, Any]":
        """Return the array that lies there; it stays there.

        Raises:
            OutputError: the disk fails.
        """
        start = time.perf_counter()
        value: np.ndarray[Any, Any] = np.empty(stored.shape, stored.dtype)
        try:
            for offset, part in _parts(value):
                if fill(self._opened(), part, stored.offset + offset) < len(part):
                    raise OSError(errno.EIO, "the file ends early")
        except OSError as error:
            raise self._refusal(error, stored.nbytes) from error
        self.counts.read_nbytes += stored.nbytes
        self.counts.read_s += time.perf_counter() - start
        return value

    def free(self, stored: Stored) -> None:
        """Give its room back."""
        self._gaps[stored.offset] = _padded(stored.nbytes)
        if sum(self._gaps.values()) == self._end:
            self._gaps, self._end = {}, 0
            if self._file is not None:
                os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Close the file, which ends it."""
        if self._file is not None:
            os.close(self._file)
            self._file, self._end, self._gaps = None, 0, {}

    def _take_room(self, nbytes: int) -> int:
        """Return where `nbytes` fit: in the smallest gap that does, else at the end."""
        fitting = [(size, offset) for offset, size in _joined(self._gaps) if size >= nbytes]
        if not fitting or not nbytes:
            self._end += nbytes
            return self._end - nbytes
        size, offset = min(fitting)
        self._gaps = {place: length for place, length in _joined(self._gaps) if place != offset}
        if size > nbytes:
            self._gaps[offset + nbytes] = size - nbytes
        return offset

    def _opened(self) -> int:
        if self._file is None:
            folder = self._folder or os.environ.get("TMPDIR") or _usual_folder()
            self._shown = f"`{printable(folder)}`"
            if _kind_of(folder) in _IN_MEMORY:
                raise OutputError(
                    f"{self._shown} lies in memory, so that feature maps moved there would still take it",
                    "set TMPDIR to a folder on a disk",
                    code="E_SCRATCH",
                )
            try:
                self._file = _open_nameless(folder)
            except OSError as error:
                raise self._refusal(error, 0) from error
        return self._file

    def _refusal(self, error: OSError, nbytes: int) -> OutputError:
        if error.errno in _FULL:
            return OutputError(
                f"the disk of {self._shown} is full: no room for {format_nbytes(nbytes)} of feature maps",
                "make room, set TMPDIR to a folder on another disk, or give a larger `--memory`",
                code="E_DISKFULL",
            )
        return OutputError(
            f"the scratch file in {self._shown} fails: {error.strerror}",
            "set TMPDIR to a folder that can be written to",
            code="E_SCRATCH",
        )


def _usual_folder() -> str:
    """Return the first usual folder that is on a disk; where none is, the first."""
    there = [folder for folder in _USUAL if Path(folder).is_dir()]
    return next((folder for folder in there if _kind_of(folder) not in _IN_MEMORY), _USUAL[0])


def _kind_of(folder: str) -> str:
    """Return the kind of file system that holds the folder, such as `ext4`; empty where the system does not tell."""
    try:
        device = os.stat(folder).st_dev
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return ""


def _open_nameless(folder: str) -> int:
    """Return a new file that no name leads to."""
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    for number in itertools.count():
        path = os.path.join(folder, f".hyps-spill-{os.getpid()}-{number}")
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        os.unlink(path)
        return file
    raise AssertionError


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _joined(gaps: dict[int, int]) -> list[tuple[int, int]]:
    """Return the gaps with neighbours made one, by offset."""
    joined: list[tuple[int, int]] = []
    for offset, size in sorted(gaps.items()):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((offset, size))
    return joined


def _parts(value: "np.ndarray[Any, Any]") -> Iterator[tuple[int, memoryview]]:
    """Yield the array's bytes in pieces, each with its offset."""
    data = value.reshape(-1).view(np.uint8).data
    for offset in range(0, len(data), _CHUNK_NBYTES):
        yield offset, data[offset : offset + _CHUNK_NBYTES]


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done
