"""PyTorch's files as they can be told apart, and looked into, without PyTorch.

Four things share the suffixes: exported programs (`torch.export.save`), scripted modules (`torch.jit.save`), pickled
modules and pickled weights (both `torch.save`). Only the first two hold a network.
"""

import io
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from hyps.errors import ModelError, printable
from hyps_compiler.convert.checks import COPY_HINT, head, shown

Content = Literal["exported", "scripted", "module", "weights", "compiled", "other"]

SUFFIXES = (".pt", ".pth", ".torchscript", ".ts")
"""Of whatever PyTorch writes; `.pt2` is an exported program's own."""

_ZIP = b"PK\x03\x04"
_EXPORT_HINT = (
    "where the model was made, call `torch.export.save(torch.export.export(model.eval(), example_inputs), FILE)`,"
    " and convert that file"
)
_OLD_PROGRAM = "serialized_exported_program.json"
"""In the archives of PyTorch before 2.8, whose members lie in no folder."""

_OLD_PICKLES = 4
"""In a file of PyTorch before 1.6, up to the one that holds the object; tensors follow."""

_MOST_PICKLE_NBYTES = 2**26
"""Of a pickle that is looked through: the tensors lie outside it."""


def is_program(source: Path) -> bool:
    """Return whether a file is an exported program: by its suffix, or by what it holds."""
    suffix = source.suffix.lower()
    if suffix not in (".pt2", *SUFFIXES) or not source.is_file():
        return False
    try:
        return suffix == ".pt2" or content_of(source) == "exported"
    except ModelError:  # which `check_content` says
        return False


def content_of(source: Path) -> Content:
    """Return what a PyTorch file holds.

    Raises:
        ModelError: it cannot be read, or is cut short.
    """
    start = head(source)
    if start.startswith(_ZIP):
        with _opened(source) as archive:
            return _content_of_archive(archive)
    if start[:1] == b"\x80":
        with source.open("rb") as file:
            return "weights" if _only_weights(file) else "module"
    return "other"


def check_content(source: Path) -> None:
    """Refuse what is no exported program, no scripted module and no pickled module, and say what it is instead.

    Raises:
        ModelError: as said.
    """
    content = content_of(source)
    if content == "weights":
        raise ModelError(
            f"{shown(source)} holds weights only, as `torch.save(model.state_dict(), ...)` writes them, and no network",
            _EXPORT_HINT,
        )
    if content == "compiled":
        raise ModelError(
            f"{shown(source)} holds machine code that AOTInductor made for one kind of computer, and no network",
            _EXPORT_HINT,
        )
    if content == "other":
        what = "no PyTorch archive" if head(source).startswith(_ZIP) else "no PyTorch file"
        raise ModelError(f"{shown(source)} is {what}: it does not hold what PyTorch writes", _EXPORT_HINT)
    _check_members(source)


def runs_code(source: Path) -> bool:
    """Return whether PyTorch may run code from this very file as it reads it: whether it is no exported program.

    PyTorch's own advice is to treat scripted modules as programs; a pickle is one. What an exported program may run
    is found and refused by `screening`.
    """
    return content_of(source) != "exported"


def is_traced(source: Path) -> bool:
    """Return whether a scripted module was traced, so that its file tells the inputs it was traced with."""
    with _opened(source) as archive:
        return any(name.endswith("/traced_inputs.pkl") for name in archive.namelist())


def members(source: Path) -> list[str]:
    """Return the names of an archive's members.

    Raises:
        ModelError: the archive is damaged, or two members have one name, so that readers may differ in which they read.
    """
    with _opened(source) as archive:
        names = archive.namelist()
    if len({name.lower() for name in names}) != len(names):  # PyTorch's reader does not tell capitals from others
        raise ModelError(f"{shown(source)} holds two members of the same name", COPY_HINT)
    return names


def documents(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of every member of an archive that is JSON, by its name or where it lies.

    Raises:
        ModelError: as `members`.
    """
    chosen = [name for name in members(source) if name.lower().endswith(".json") or "/models/" in name.lower()]
    with _opened(source) as archive:
        yield from ((name, archive.read(name)) for name in chosen)


def _content_of_archive(archive: zipfile.ZipFile) -> Content:
    names = set(archive.namelist())
    inner = {name.partition("/")[2] for name in names}
    if any("data/aotinductor/" in name.lower() for name in names):  # PyTorch would load it, whatever else is there
        return "compiled"
    if _OLD_PROGRAM in names or any(name.startswith("models/") and name.endswith(".json") for name in inner):
        return "exported"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "scripted"
    pickled = next((name for name in names if name.endswith("data.pkl") and name.count("/") < 2), None)
    if pickled is None:
        return "other"
    with archive.open(pickled) as file:
        return "weights" if _only_weights(file) else "module"


def _only_weights(file: IO[bytes]) -> bool:
    """Return whether the pickles in a file make nothing but tensors in containers; they are read, not run."""
    pickled = io.BytesIO(file.read(_MOST_PICKLE_NBYTES))
    try:
        return all(_is_plain(name) for _ in range(_OLD_PICKLES) for name in _globals(pickled))
    except ValueError:  # of pickletools, for what is no pickle
        return False


def _is_plain(name: str) -> bool:
    module, _, what = name.partition(" ")
    return (
        (module, what) == ("collections", "OrderedDict")
        or (module in ("torch", "torch._utils", "torch.storage") and what.startswith(("_rebuild", "_load", "Size")))
        or (module.startswith("torch") and what.endswith(("Storage", "dtype", "Parameter", "device")))
    )


def _globals(pickled: io.BytesIO) -> Iterator[str]:
    """Yield the functions and classes, as `module name`, that the next pickle names; none at the end."""
    if pickled.tell() == pickled.getbuffer().nbytes:
        return
    texts: list[str] = []
    for operation, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str) and operation.name in ("GLOBAL", "INST"):
            yield argument
        elif isinstance(argument, str):
            texts.append(argument)
        elif operation.name == "STACK_GLOBAL":
            yield " ".join(texts[-2:])


def _check_members(source: Path) -> None:
    """Refuse an archive with a member that was altered by accident; PyTorch's reader does not always look."""
    if not head(source).startswith(_ZIP):
        return
    with _opened(source) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ModelError(f"{shown(source)} is damaged: `{printable(damaged)}` in it has a wrong checksum", COPY_HINT)


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and turn what a damaged one makes zipfile raise into one sentence."""
    try:
        with zipfile.ZipFile(source) as archive:
            # of an archive cut short, zipfile finds the list of members of one inside it
            if any(info.header_offset == 0 for info in archive.infolist()):
                yield archive
                return
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        reason = printable(str(error) or type(error).__name__)
        raise ModelError(f"{shown(source)} is cut short or damaged: {reason}", COPY_HINT) from error
    except OSError as error:
        raise ModelError(f"{shown(source)} cannot be read: {error.strerror}") from error
    raise ModelError(f"{shown(source)} is cut short or damaged: it does not begin with its first member", COPY_HINT)
