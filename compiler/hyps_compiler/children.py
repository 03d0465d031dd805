"""Runs a module of ours in a process of its own, which ends with this one, and says why it failed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hyps.adapters.guard import allowed_seconds, death
from hyps.errors import HypsError, InfeasibleError, printable


def run_child(module: str, arguments: Sequence[str], scratch: Path, phase: str) -> str:
    """Run `python -m module ARGUMENTS... SECONDS` and return what it printed.

    The child's standard input stays open as long as this process lives, and it ends with that. The last argument is the
    longest that one call of onnxruntime may take there, 0 for no limit.

    Args:
        module: the module's name.
        arguments: its arguments.
        scratch: a folder for what it says on stderr.
        phase: what it does, for people.

    Raises:
        InfeasibleError: the child ended with that class's exit status; its last two lines are message and hint.
        HypsError: it failed in another way.
    """
    timeout_s = allowed_seconds() or 0.0
    command = [sys.executable, "-P", "-m", module, *arguments, str(timeout_s)]
    pipe = subprocess.PIPE
    with (
        (scratch / "said").open("w+", errors="replace") as stderr,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            printed = process.stdout.read()
            process.wait()
        except BaseException:
            process.kill()
            raise
        stderr.seek(0)
        said = stderr.read()
    if process.returncode < 0:
        raise death(-process.returncode, phase, timeout_s, said)
    if process.returncode == InfeasibleError.exit_status:
        message, hint = said.splitlines()[-2:]
        raise InfeasibleError(message, hint)
    if process.returncode != 0:
        lines = said.strip().splitlines() or ["it said nothing"]
        raise HypsError(f"the plan did not run in a process of its own: {printable(lines[-1], 200)}")
    return printed
