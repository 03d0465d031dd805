"""What can be seen to be wrong with what a user asks for, before any framework is loaded, which takes long."""

import importlib.util
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from hyps.errors import UsageError, printable


def check_modules(names: Sequence[str]) -> None:
    """Refuse modules that Python does not find, installed or in the working directory; none is imported.

    Raises:
        UsageError: one is not there. Of `package.module` only the package is looked for: to look further would run it.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise UsageError(
                f"`{printable(name)}` is no name of a module",
                "name it as Python imports it, such as --module layers for layers.py in the working directory",
            )
        if not _is_found(name.partition(".")[0]):
            raise UsageError(
                f"the module `{printable(name)}` cannot be imported: it is not installed, nor in the working directory",
                "install it, or run the command in the folder that it lies in",
            )


def check_feeds(path: Path | None) -> None:
    """Refuse a file of requests that cannot be read.

    Raises:
        TensorError: it is missing, no .npz file, or holds Python objects.
    """
    if path is not None:
        from hyps_compiler.arrays import read_npz  # numpy, which nobody who only asks for a kind should wait for

        read_npz(path)


def _is_found(name: str) -> bool:
    try:
        return bool(importlib.util.find_spec(name) or PathFinder.find_spec(name, [""]))  # "" is the working directory
    except ValueError:  # of `__main__`, which tells nothing of itself
        return False
