"""Results by the digest of what they depend on: JSON files that are read, checked and never run."""

import contextlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from hyps.errors import OutputError, printable
from hyps_compiler.checking.facts import VERSION

logger = logging.getLogger(__name__)

_MOST_NBYTES = 64 * 2**20
_T = TypeVar("_T", bound=Struct)


class _Entry(Struct, frozen=True, kw_only=True):
    """What a file of the cache holds."""

    format: str
    version: int
    key: str
    """Its own name, so that a file that was renamed is no result of something else."""
    value: msgspec.Raw


_FORMAT = "hyps-check"


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of results; several processes may use it at once, since files appear whole and are never changed."""

    folder: Path | None
    """None: nothing is kept."""

    def read(self, key: str, kind: type[_T]) -> _T | None:
        """Return what is kept under a key; None where there is nothing, or what there is cannot be right."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_NBYTES + 1)
            entry = msgspec.json.decode(data, type=_Entry)
            if (entry.format, entry.version, entry.key) == (_FORMAT, VERSION, key):
                return msgspec.json.decode(entry.value, type=kind)
            logger.warning("the cache entry %s is of something else and is made anew", key)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("the cache entry %s cannot be read and is made anew: %s", key, error)
        return None

    def write(self, key: str, value: Struct) -> None:
        """Keep a value under a key, in place of what is there.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            return
        path = self._path(key)
        entry = _Entry(format=_FORMAT, version=VERSION, key=key, value=msgspec.Raw(msgspec.json.encode(value)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, msgspec.json.encode(entry))
        except OSError as error:
            raise OutputError(
                f"the cache `{printable(str(self.folder))}` cannot be written: {error.strerror or error}",
                "give another folder with --cache, or --no-cache",
            ) from error

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"


def default_folder() -> Path:
    """Return where results are kept unless the user says otherwise: `hyps/check` in the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "hyps" / "check"


def _write_whole(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
