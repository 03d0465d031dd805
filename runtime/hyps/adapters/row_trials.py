"""Has it tried, in a process of its own, whether requests may be computed together (`hyps.row_trial`)."""

import subprocess
import sys
from pathlib import Path

from hyps.errors import InfeasibleError, printable

DIFFERENT = 4
"""How the program ends where they may not."""

_TRIAL_S = 120.0


def require_independent_rows(folder: str | Path) -> str:
    """Return why it could not be tried whether requests may be computed together; empty: they may be.

    One trial with made-up values cannot prove it; it shows what mixes rows whatever the values.

    Raises:
        InfeasibleError: the rows of an answer depend on each other.
    """
    command = [sys.executable, "-m", "hyps.row_trial", str(folder)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it took longer than {_TRIAL_S:g} s"
    told = printable(ended.stdout.strip(), 300)
    if ended.returncode == DIFFERENT:
        raise InfeasibleError(
            f"requests cannot be computed together: a row of output `{told}` depends on the other rows",
            "leave --batch out: answers would be wrong",
        )
    return "" if ended.returncode == 0 else told or f"the trial ended with status {ended.returncode}"
