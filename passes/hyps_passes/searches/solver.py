"""The one place that says whether ortools is there: maximum flow and CP-SAT, which only searches use."""

import importlib

from hyps.dependencies import floor_of, is_below
from hyps.errors import DependencyError

_HINT = 'pip install "hyps[search]"'


def require_solver() -> None:
    """Refuse to search without ortools; called before a search imports what it uses of it.

    Raises:
        DependencyError: ortools is missing, cannot be loaded, or is older than its floor.
    """
    try:
        version = str(importlib.import_module("ortools").__version__)
    except ImportError as error:
        raise DependencyError("searching for the best split needs ortools, which is not installed", _HINT) from error
    floor = floor_of("ortools")
    if is_below(version, floor):
        text = f"searching for the best split needs ortools {floor} or newer, and {version} is installed"
        raise DependencyError(text, f"{_HINT} --upgrade")
