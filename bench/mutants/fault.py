"""A deliberate fault: what is put where, what it breaks, and which tests are there to catch it."""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fault:
    """One deliberate mistake in one source file."""

    name: str
    path: str
    """Of the source file, relative to the repository, with forward slashes."""
    find: str
    """Text that occurs in the file exactly once."""
    replacement: str
    breaks: str
    """What goes wrong, in words."""
    tests: tuple[str, ...]
    """Test files that should catch it, the quickest first."""


class RottenFaultError(Exception):
    """A fault that does not fit the sources of today, or changes nothing in them: mend the list, not the tests."""


def test_files(words: str) -> tuple[str, ...]:
    """Return the paths of test files.

    >>> test_files("passes/test_layers compiler/test_emit")
    ('tests/passes/test_layers.py', 'tests/compiler/test_emit.py')
    """
    return tuple(f"tests/{word}.py" for word in words.split())


def mutated(fault: Fault, source: str) -> str:
    """Return the source with the fault in it.

    Raises:
        RottenFaultError: its place is not there or not the only one, what comes out is no Python, or is the same.
    """
    found = source.count(fault.find)
    if found != 1:
        raise RottenFaultError(
            f"{fault.name}: its place occurs {found} times in {fault.path}: mend it in bench/mutants"
        )
    changed = source.replace(fault.find, fault.replacement)
    try:
        is_same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
    except SyntaxError as error:
        raise RottenFaultError(f"{fault.name}: {fault.path} is no Python any more: {error.msg}") from error
    if is_same:
        raise RottenFaultError(f"{fault.name}: it changes nothing in {fault.path}")
    return changed


def check(fault: Fault, root: Path) -> None:
    """Make sure that the fault fits the repository in `root`.

    Raises:
        RottenFaultError: as `mutated`, or one of its files is missing.
    """
    for path in (fault.path, *fault.tests):
        if not (root / path).is_file():
            raise RottenFaultError(f"{fault.name}: there is no {path}")
    mutated(fault, (root / fault.path).read_text())
