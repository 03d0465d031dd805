"""The plans that `hypsc check -o` keeps: what shows that it made them and how, and which places it may take."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from hyps.adapters.plan_files import PLAN_FILE
from hyps.errors import OutputError, printable
from hyps_compiler.checking.rules import CompileOptions

RECORD_FILE = "check.json"
_FORMAT = "hyps-check-plan"
_ANOTHER = "give another folder with `-o`"
_MOST_NBYTES = 2**20


class Record(Struct, frozen=True, kw_only=True):
    """The file beside a plan that says that a check made it."""

    format: str = _FORMAT
    digest: str
    """SHA-256 of the `plan.json` beside it: one that was replaced since is no plan of ours."""
    options: CompileOptions
    """How the model was compiled."""
    files: dict[str, int] = {}
    """Bytes of every file of the plan, by its path in the folder."""


def write_record(folder: Path, digest: str, options: CompileOptions) -> None:
    """Note in a plan's folder that a check made it."""
    record = Record(digest=digest, options=options, files=dict(sorted(_sizes(folder))))
    (folder / RECORD_FILE).write_bytes(msgspec.json.encode(record))


def read_record(folder: Path) -> Record | None:
    """Return what a plan's folder says of the check that made it; None where none did."""
    try:
        with (folder / RECORD_FILE).open("rb") as file:
            record = msgspec.json.decode(file.read(_MOST_NBYTES), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.format == _FORMAT and record.digest == digest_of(folder) else None


def is_in_place(folder: Path, digest: str) -> bool:
    """Return whether a folder holds a plan as a check wrote it: the `plan.json` of that SHA-256, and no file lost.

    Of the other files the sizes count; to read them would take as long as to make small ones.
    """
    record = read_record(folder)
    if record is None or record.digest != digest or not record.files:
        return False
    there = dict(_sizes(folder))
    return all(there.get(name) == nbytes for name, nbytes in record.files.items())


def _sizes(folder: Path) -> Iterable[tuple[str, int]]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != RECORD_FILE:
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def digest_of(folder: Path) -> str | None:
    """Return the SHA-256 of a plan's `plan.json`; None where there is none."""
    try:
        return hashlib.sha256((folder / PLAN_FILE).read_bytes()).hexdigest()
    except OSError:
        return None


def check_places(output: Path, places: Iterable[Path], *, force: bool) -> None:
    """Refuse a folder for plans in which one of the places in it cannot be taken, before any model is checked.

    Plans that a check wrote are replaced by the next one.

    Raises:
        OutputError: no folder can be made or written there, or something else lies in a place; with `force` another
            plan may.
    """
    for place in (output / "any", *places):
        try:
            _check_folder(place.parent)
            _check_place(place, force=force)
        except OSError as error:
            shown = _shown(place)
            raise OutputError(f"{shown} cannot be written: {error.strerror or error}", _ANOTHER) from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, or made under the nearest one that is there."""
    there = next(
        (above for above in (folder, *folder.parents, *folder.absolute().parents) if os.path.lexists(above)), folder
    )
    if not there.is_dir():
        raise OutputError(f"{_shown(there)} is no folder, and plans cannot be kept in it", _ANOTHER, "E_EXISTS")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {_shown(there)} is not writable", _ANOTHER, "E_PERMISSION")


def _check_place(place: Path, *, force: bool) -> None:
    if not os.path.lexists(place):
        return
    shown = _shown(place)
    if not place.is_dir() or place.is_symlink():
        raise OutputError(f"{shown} exists and is no folder", _ANOTHER, "E_EXISTS")
    if not any(place.iterdir()):
        return
    if not (place / PLAN_FILE).exists():
        raise OutputError(f"{shown} exists and holds something else than a plan", _ANOTHER, "E_EXISTS")
    if not force and read_record(place) is None:
        hint = "add --force to replace it, or give another folder with `-o`"
        raise OutputError(f"{shown} is a plan that no check wrote", hint, "E_EXISTS")


def _shown(path: Path) -> str:
    return f"`{printable(os.fspath(path), 200)}`"
