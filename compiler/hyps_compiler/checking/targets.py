"""Which models are to be checked: files, zoo names, and all that is found in folders."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hyps.adapters.plan_files import PLAN_FILE
from hyps.errors import ModelError, UsageError, printable
from hyps_compiler.convert.kinds import kind_of
from hyps_compiler.locations import locations_in

ZOO = "zoo:"
ONNX = ".onnx"


@dataclass(frozen=True, slots=True)
class Target:
    """One model to check."""

    model: str
    """As messages name it: its path with forward slashes, relative as it was given, or `zoo:NAME`."""
    path: Path | None
    """None: it is of the zoo."""
    name: str = ""
    """As every check with the same budget names it, wherever it runs: its path from the budget's folder, or
    `zoo:NAME`; empty: there is no budget."""

    @property
    def place(self) -> PurePosixPath:
        """Where its plan lies in a folder of plans: its path from the budget's folder."""
        return _place_of(self.name) if self.name else self.place_here

    @property
    def place_here(self) -> PurePosixPath:
        """Its path from the working directory, as a place."""
        return _place_of(self.model if self.path is None else os.path.relpath(self.path))


def _place_of(name: str) -> PurePosixPath:
    """Return a name as a path; artifact stores take no colons, and nothing may leave the folder."""
    if name.startswith(ZOO):
        return PurePosixPath(name.replace(":", "@", 1))
    return PurePosixPath(*("up" if part == ".." else part for part in PurePosixPath(name).parts))


def find_targets(
    arguments: Sequence[str], name_of: Callable[[str, Path | None], str] = lambda model, path: ""
) -> tuple[Target, ...]:
    """Return the models that the arguments name, each once; those of a folder sorted by their paths.

    A folder is searched for ONNX files and every kind of source that can be converted. Plan folders, hidden folders
    and files in which the weights of another model lie are left out.

    Args:
        arguments: files, folders, and names of the zoo.
        name_of: the budget's, which names a model.

    Raises:
        ModelError: a path does not exist or is no text, or a folder holds no model.
        UsageError: the plans of two models would lie in one place.
    """
    found: dict[str, Target] = {}
    for argument in arguments:
        for target in _targets(argument):
            _check_text(target.model)
            found.setdefault(target.model, replace(target, name=name_of(target.model, target.path)))
    places: dict[PurePosixPath, Target] = {}
    for target in found.values():
        other = places.setdefault(target.place_here, target)
        if other is not target:
            raise UsageError(
                f"`{printable(other.model)}` and `{printable(target.model)}` are one model", "name it in one way"
            )
    return tuple(found.values())


def model_files(path: Path) -> list[tuple[str, Path]]:
    """Return the files that a model consists of with their names in it, sorted: its own, and those of its weights.

    Files that are missing are left out; whoever compiles the model tells of them.
    """
    if path.is_dir() or kind_of(path) is not None:
        return files_in(path)
    beside = [(name, path.parent / name) for name in locations_in(path) if _is_plain(name)]  # ONNX, whatever its name
    return [*files_in(path), *((name, file) for name, file in beside if file.is_file())]


def files_in(path: Path) -> list[tuple[str, Path]]:
    """Return the files in a folder with their names in it, sorted; of a file that alone, without a name."""
    if not path.is_dir():
        return [("", path)]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return [(file.relative_to(path).as_posix(), file) for file in inside]


def _check_text(model: str) -> None:
    """Refuse a name that no report can hold: on Linux, names of files are bytes of any kind."""
    try:
        model.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"the name `{printable(model)}` is no UTF-8", "rename it", "E_NAME") from error


def _targets(argument: str) -> Iterator[Target]:
    if argument.startswith(ZOO):
        yield Target(argument, None)
        return
    path = Path(argument)
    try:
        is_folder = path.is_dir()
        is_there = path.exists()
    except (OSError, ValueError) as error:
        raise ModelError(f"`{printable(argument)}` cannot be read: {error}", code="E_NOT_FOUND") from error
    if not is_there:
        raise ModelError(
            f"`{printable(argument)}` does not exist", "give an ONNX file, a folder, or zoo:NAME", "E_NOT_FOUND"
        )
    if not is_folder or _is_source(path):
        yield Target(path.as_posix(), path)
        return
    if (path / PLAN_FILE).is_file():
        hint = f"give the model that it was made of; to compare with the plan, add --previous {printable(argument)}"
        raise ModelError(f"`{printable(argument)}` is a plan and no model", hint)
    models = list(_models_in(path))
    if not models:
        raise ModelError(f"the folder `{printable(argument)}` holds no model", "give one that does", "E_NOT_FOUND")
    yield from models


def _models_in(folder: Path) -> Iterator[Target]:
    weights: set[str] = set()
    found = []
    for path in _candidates(folder):
        found.append(path)
        if path.suffix.lower() == ONNX:
            with suppress(OSError):  # one that cannot be read is told of when it is checked, and the others are checked
                weights.update(os.path.normpath(path.parent / name) for name in locations_in(path) if _is_plain(name))
    yield from (Target(path.as_posix(), path) for path in found if os.path.normpath(path) not in weights)


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield whatever under the folder looks like a model, sorted; no link to a folder is followed.

    What cannot be read is yielded too, a folder as well, so that it is told of and the others are checked.
    """
    try:
        is_plan = (folder / PLAN_FILE).is_file()
        paths = sorted(folder.iterdir())
    except OSError:
        yield folder
        return
    if is_plan:
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if _is_source(path) or (path.suffix.lower() == ONNX and path.is_file()):
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _candidates(path)


def _is_source(path: Path) -> bool:
    """Return whether a path is of a kind that can be converted, or may be and cannot be read."""
    try:
        return kind_of(path) is not None
    except OSError:
        return True


def _is_plain(name: str) -> bool:
    """Return whether the name of a weights file stays in the model's folder, as those that are read do."""
    return bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in PurePosixPath(name).parts
