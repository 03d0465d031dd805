"""Versions of packages whose readers of model files are known to run code that they should not."""

from hyps.dependencies import is_below
from hyps.errors import DependencyError, printable


def refuse_unsafe(package: str, version: str, floor: str) -> None:
    """Refuse to read a stranger's file with a package older than the first that does not run code in it.

    >>> refuse_unsafe("keras", "3.15.1", "3.12")

    Raises:
        DependencyError: it is older.
    """
    if is_below(version, floor):
        text = f"{package} {printable(version)} is installed, and any before {floor} may run code from a model file"
        raise DependencyError(text, f'pip install --upgrade "{package}>={floor}"')
