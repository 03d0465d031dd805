"""Writes a trace into a file that can be read whatever becomes of the process, and that never grows too large."""

import contextlib
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

_PAGE_NBYTES = 4096
_BEGIN, _BETWEEN, _END = b"[\n", b",\n", b"\n]\n"


class TraceFile:
    """A JSON array of trace events, which Perfetto and chrome://tracing open.

    While it is written the array has no end, which both take as it is; `close` puts it. No event lies across a page of
    memory, over which alone the system writes everything or nothing when the process is killed: what is there is whole
    events. At `max_nbytes` the file is closed and renamed to `NAME.1`, over the one before, and begun anew. Tracing
    never stops what is traced: when the disk is full it ends, and says so once.
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
            self._give_up()
            raise OutputError(f"`{printable(str(path))}` cannot be written: {error.strerror}") from error

    def write(self, events: Sequence[Event]) -> None:
        """Add events; nothing, once writing has failed."""
        if not events or self._file < 0:
            return
        try:
            if self._nbytes > self._max_nbytes:
                self.close()
                os.replace(self._path, f"{self._path}.1")
                self._begin()
            self._add(events)
        except OSError as error:
            self._give_up()
            logger.warning("tracing into `%s` ends: %s", printable(str(self._path)), error.strerror)

    def close(self) -> None:
        """End the array and write no more."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError):  # the array can be read without its end
            self._put(_END)
        self._give_up()

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
        self._put(_BEGIN)
        self._add(self._headers())
        os.replace(beside, self._path)

    def _give_up(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _add(self, events: Sequence[Event]) -> None:
        page = b""
        for event in events:
            is_first = self._nbytes + len(page) == len(_BEGIN)
            piece = (b"" if is_first else _BETWEEN) + encode_event(event).encode()
            room = _PAGE_NBYTES - (self._nbytes + len(page)) % _PAGE_NBYTES
            if len(piece) > room:
                self._put(page + b" " * room)
                page = b""
            page += piece
            if len(page) >= _PAGE_NBYTES:
                self._put(page)
                page = b""
        self._put(page)

    def _put(self, data: bytes) -> None:
        """Write `data` behind what there is; where there is no room for all of it, nothing."""
        if os.write(self._file, data) < len(data):
            os.ftruncate(self._file, self._nbytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._nbytes += len(data)
