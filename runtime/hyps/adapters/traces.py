"""Writes a trace into a file that is whole at every moment, whatever becomes of the process, and never too large."""

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hyps.errors import OutputError, printable
from hyps.formats.chrome_trace import Event, encode_event

logger = logging.getLogger(__name__)

MAX_TRACE_NBYTES = 64 * 2**20
"""Of one file; the one before it is kept beside it."""

_BEGIN, _END = b"[\n", b"\n]\n"


class TraceFile:
    """A JSON array of trace events, which Perfetto and chrome://tracing open.

    Each `write` puts its events and the array's end into the file with one call, over the end that was there: a process
    that is killed leaves a whole file. At `max_nbytes` the file is renamed to `NAME.1`, over the one before, and begun
    anew. Tracing never stops what is traced: when the disk is full it ends, and says so once.
    """

    def __init__(self, path: Path, headers: Callable[[], Sequence[Event]], max_nbytes: int = MAX_TRACE_NBYTES) -> None:
        """Begin the file at `path`, in the place of one that was there.

        Args:
            path: where it is written.
            headers: the events that each file begins with.
            max_nbytes: at which it is begun anew.

        Raises:
            OutputError: it cannot be written there.
        """
        self._path, self._headers, self._max_nbytes = path, headers, max_nbytes
        self._file = -1
        self._nbytes = 0
        try:
            self._begin()
        except OSError as error:
            self.close()
            raise OutputError(f"`{printable(str(path))}` cannot be written: {error.strerror}") from error

    def write(self, events: Sequence[Event]) -> None:
        """Add events; nothing, once writing has failed."""
        if not events or self._file < 0:
            return
        data = ",\n".join(map(encode_event, events)).encode()
        try:
            if self._nbytes + len(data) > self._max_nbytes:
                self.close()
                os.replace(self._path, f"{self._path}.1")
                self._begin()
            self._add(data)
        except OSError as error:
            self.close()
            logger.warning("tracing into `%s` ends: %s", printable(str(self._path)), error.strerror)

    def close(self) -> None:
        """Write no more; the file is whole already."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        beside = f"{self._path}.new"
        self._file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._nbytes = 0
        self._put(_BEGIN + _END[1:], 0)
        self._nbytes = len(_BEGIN) + len(_END) - 1
        headers = self._headers()
        if headers:
            self._add(",\n".join(map(encode_event, headers)).encode())
        os.replace(beside, self._path)

    def _add(self, data: bytes) -> None:
        is_first = self._nbytes == len(_BEGIN) + len(_END) - 1
        place = len(_BEGIN) if is_first else self._nbytes - len(_END)
        self._put((b"" if is_first else b",\n") + data + _END, place)
        self._nbytes = place + (0 if is_first else 2) + len(data) + len(_END)

    def _put(self, data: bytes, place: int) -> None:
        """Write `data` from `place` on; where there is no room for all of it, leave the array as it was before."""
        if os.pwrite(self._file, data, place) < len(data):
            os.ftruncate(self._file, place)
            os.pwrite(self._file, _END, place)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
