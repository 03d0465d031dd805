"""Files as they were when they were read, so that a change made meanwhile by someone else is noticed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyps.errors import HypsError, ModelError, printable

CHUNK_NBYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file, and what the system says of its content."""

    path: Path
    nbytes: int
    _state: tuple[int, int, int, int]

    def check(self, status: os.stat_result) -> None:
        """Make sure that a later look at the file finds it as it was.

        Raises:
            ModelError: it is another one, or was written to (`E_CHANGED`).
        """
        if (self.nbytes, self._state) != (status.st_size, _state(status)):
            raise _changed(self.path)


def stamp(path: Path, descriptor: int) -> Stamp:
    """Return the state of an open file."""
    status = os.fstat(descriptor)
    return Stamp(path, status.st_size, _state(status))


def chunks(descriptor: int, taken: Stamp) -> Iterator[bytes]:
    """Yield an open file from its beginning to the end that it had, however fast someone else makes it longer.

    Raises:
        ModelError: it was written to meanwhile (`E_CHANGED`).
    """
    left = taken.nbytes
    while chunk := os.read(descriptor, min(CHUNK_NBYTES, left)):
        left -= len(chunk)
        yield chunk
    taken.check(os.fstat(descriptor))


def copy(taken: Stamp, to: Path) -> None:
    """Write the file that was stamped to a new place, whatever its name has come to stand for.

    Raises:
        ModelError: it is another one, or was written to (`E_CHANGED`).
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with taken.path.open("rb") as file, to.open("xb") as made:
        taken.check(os.fstat(file.fileno()))
        for chunk in chunks(file.fileno(), taken):
            made.write(chunk)


@contextmanager
def unchanged(stamps: Iterable[Stamp]) -> Iterator[None]:
    """Do work that reads the files again; what goes wrong in it because one has changed is called that.

    Raises:
        ModelError: a file is not what it was (`E_CHANGED`).
    """
    try:
        yield
    except HypsError as error:
        try:
            _check_all(stamps)
        except ModelError as change:
            raise change from error
        raise
    _check_all(stamps)


def _check_all(stamps: Iterable[Stamp]) -> None:
    for taken in stamps:
        try:
            taken.check(taken.path.stat())
        except OSError as error:
            raise _changed(taken.path) from error


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _changed(path: Path) -> ModelError:
    shown = printable(os.fspath(path), 200)
    return ModelError(f"`{shown}` changed while it was read", "wait until it is written, then try again", "E_CHANGED")
