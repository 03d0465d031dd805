"""Weights that lie in other files: where they may be, how they are opened, how far they reach.

A stranger's model could name any file of this machine and have it copied into the plan. So a name stays in the model's
folder, no link is followed on the way, and a file that has a second name elsewhere is somebody else's. Only where the
model itself is given as a link may the data be one too, to a file beside the model's real one.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from onnx import TensorProto

from hyps.errors import ModelError, printable
from hyps_compiler.snapshot import Stamp, chunks, stamp
from hyps_compiler.tensors import tensor_nbytes

_KEYS = frozenset({"location", "offset", "length", "checksum"})
_PREPACKED = "prepacked"
"""How the keys begin under which onnxruntime notes what it has packed for its kernels."""
_MEMORY = "_ORT_MEM_ADDR_"
"""Part of the location by which onnxruntime marks an address in its own memory."""

_EXPORT_AGAIN = "export the model again"
_TRUNCATED = "the data file is truncated or belongs to another model: copy it again"
_COPY = "copy the data beside the model and name it there"
_NO_LINKS = "copy the model and its data with `cp -L` into one folder"
_OWN = "give it a copy of its own: `cp FILE COPY && mv COPY FILE`"

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A fifo must not make us wait."""


class Digest(Protocol):
    """A hash that takes bytes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


def read_external(model: Path, tensors: Iterable[TensorProto], digest: Digest) -> list[Stamp]:
    """Check every file in which one of the tensors lies, feed the files to `digest` in order, and return their states.

    Raises:
        ModelError: data is missing (`E_EXTERNAL_MISSING`), elsewhere than in plain files of the model's folder, out of
            bounds, or other data than its checksum says (`E_EXTERNAL`), or changes meanwhile (`E_CHANGED`).
    """
    held: dict[Path, list[tuple[TensorProto, dict[str, str]]]] = {}
    for tensor in tensors:
        entries = _entries(tensor)
        held.setdefault(Path(*_parts(tensor, entries)), []).append((tensor, entries))
    stamps = []
    for location in sorted(held):
        shown = _shown(os.fspath(location), held[location][0][0])
        with _opened(model, location, shown) as descriptor:
            taken = stamp(model.parent / location, descriptor)
            for tensor, entries in held[location]:
                _check_extent(entries, tensor, taken.nbytes)
            wanted = {entries["checksum"].lower() for _, entries in held[location] if "checksum" in entries}
            sha1 = hashlib.sha1(usedforsecurity=False)
            for chunk in chunks(descriptor, taken):
                digest.update(chunk)
                if wanted:
                    sha1.update(chunk)
            if wanted - {sha1.hexdigest()}:
                raise _error(f"{shown} is not the data that its checksum belongs to", _TRUNCATED)
        stamps.append(taken)
    return stamps


def _entries(tensor: TensorProto) -> dict[str, str]:
    """Return the keys and values that say where the data lies; refuse what two readers may read differently."""
    name = printable(tensor.name)
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise _error(f"the external data of tensor `{name}` has `{printable(entry.key)}` twice", _EXPORT_AGAIN)
        if entry.key not in _KEYS and not entry.key.startswith(_PREPACKED):
            raise _error(
                f"the external data of tensor `{name}` has the unknown key `{printable(entry.key)}`", _EXPORT_AGAIN
            )
        entries[entry.key] = entry.value
    return entries


def _parts(tensor: TensorProto, entries: dict[str, str]) -> tuple[str, ...]:
    """Return the way to the data from the model's folder."""
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts:
        raise _error(f"tensor `{printable(tensor.name)}` has its data in a file that it does not name")
    if _MEMORY in location:
        raise _error(f"tensor `{printable(tensor.name)}` has its data at an address in memory", _EXPORT_AGAIN)
    if location.startswith("/") or "\\" in location or "\0" in location or ".." in parts:
        raise _error(f"{_shown(location, tensor)} lies outside the model's folder")
    return parts


@contextmanager
def _opened(model: Path, location: Path, shown: str) -> Iterator[int]:
    """Yield a descriptor of a plain file below the model's folder, or of one that `_beside_real` opens."""
    descriptor = os.open(model.parent, _FLAGS | os.O_DIRECTORY)
    try:
        for part in location.parts[:-1]:
            descriptor = _exchange(descriptor, _opened_in(descriptor, part))
        try:
            inner = _opened_in(descriptor, location.name)
        except OSError as error:
            if error.errno != errno.ELOOP or not model.is_symlink():
                raise
            inner = _beside_real(model, location, descriptor)
        descriptor = _exchange(descriptor, inner)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _error(f"{shown} is no plain file")
        if status.st_nlink > 1:
            raise _error(f"{shown} is no plain file of its own: it has another name as well", _OWN)
        yield descriptor
    except FileNotFoundError as error:
        hint = f"put it beside `{printable(os.fspath(model), 200)}`"
        raise ModelError(f"{shown} is missing", hint, code="E_EXTERNAL_MISSING") from error
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or "its name is none that a file can have"
        if getattr(error, "errno", None) == errno.ELOOP:
            raise _error(f"{shown} is reached through a link", _NO_LINKS) from error
        raise _error(f"{shown} cannot be read: {reason}") from error
    finally:
        os.close(descriptor)


def _beside_real(model: Path, location: Path, folder: int) -> int:
    """Return a descriptor of the data that lies beside the model's real file, where both are given as links.

    Model hubs keep their downloads so: a folder of files named after their hashes, and links to them elsewhere. The
    link to the data lies in `folder`, which is open; no second link is followed.

    Raises:
        OSError: the data is a link to somewhere else (`ELOOP`), or cannot be opened.
    """
    target = model.parent / location.parent / os.readlink(location.name, dir_fd=folder)
    home = Path(os.path.realpath(model)).parent
    if Path(os.path.realpath(target.parent)) != home:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    real = os.open(home, _FLAGS | os.O_DIRECTORY)
    try:
        return _opened_in(real, target.name)
    finally:
        os.close(real)


def _opened_in(folder: int, name: str) -> int:
    return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=folder)


def _exchange(descriptor: int, other: int) -> int:
    """Close a descriptor and return the one that takes its place."""
    os.close(descriptor)
    return other


def _check_extent(entries: dict[str, str], tensor: TensorProto, available: int) -> None:
    shown = _shown(entries["location"], tensor)
    offset = _whole_number(entries.get("offset", "0"))
    said = _whole_number(entries.get("length", "0"))
    length = said if said != 0 else available - (offset or 0)  # onnxruntime takes a length of 0 for none
    if offset is None or length is None:
        raise _error(f"{shown} has an offset or length that is no whole number", _EXPORT_AGAIN)
    needed = tensor_nbytes(tensor)
    if needed is None:
        raise _error(f"{shown} is of a type that cannot lie in a file", _EXPORT_AGAIN)
    if length < needed or (said and length > needed):
        raise _error(f"{shown} has {max(length, 0)} bytes, and the tensor's shape needs {needed}", _TRUNCATED)
    if length < 0 or offset + length > available:
        raise _error(f"{shown} reaches to byte {offset + length} of a file of {available}", _TRUNCATED)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _shown(location: str, tensor: TensorProto) -> str:
    return f"the external data `{printable(location)}` of tensor `{printable(tensor.name)}`"


def _error(message: str, hint: str = _COPY) -> ModelError:
    return ModelError(message, hint, code="E_EXTERNAL")
