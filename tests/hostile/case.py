"""A case: what lies in a folder, what is run there, and how it must end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_fixtures import Finished, run_command, snapshot

Build = Callable[[Path], None]
"""Puts what a case needs into the folder that its command runs in."""

COMPILE = ("hypsc", "compile", "model.onnx", "-o", "out")
RUN = ("hypsc", "run", "plan")
SERVE = ("hyps-worker", "plan", "--bind", "tcp://127.0.0.1:0")

PATIENCE_S = 30.0
"""How long a command may take on a machine that does other things too."""
CPU_S = 5.0
"""Most seconds that a command may compute, all its processes together."""
NBYTES = 10**9
"""Most memory that a command may have resident."""
BOMB_NBYTES = 500 * 10**6
"""The same, where the model asks for much more."""


@dataclass(frozen=True)
class Case:
    """One thing that must be refused."""

    id: str
    build: Build
    argv: Sequence[str]
    status: int
    code: str
    says: str = ""
    """Part of the sentence."""
    hint: str = ""
    """Part of the hint."""
    nbytes: int = NBYTES
    """Most memory it may take."""


@dataclass(frozen=True)
class Outcome:
    """What a case's command did, and what it left."""

    finished: Finished
    before: dict[str, str]
    after: dict[str, str]


def run_case(case: Case, place: Path) -> Outcome:
    """Build the case's folder in `place` and run its command there."""
    here, temporary = place / "here", place / "tmp"
    here.mkdir()
    temporary.mkdir()
    case.build(here)
    before = snapshot(place)
    finished = run_command(case.argv, here, timeout_s=PATIENCE_S, TMPDIR=str(temporary))
    return Outcome(finished, before, snapshot(place))


def check(case: Case, outcome: Outcome) -> None:
    """Assert that the command ended as the case says: in one sentence, in time, and leaving nothing."""
    finished = outcome.finished
    assert "Traceback" not in finished.stderr
    assert finished.status == case.status, finished.stderr
    assert f"[{case.code}" in finished.error
    assert case.says in finished.error
    assert case.hint in finished.hint
    assert len(finished.stderr) < 1200
    assert all(c.isprintable() or c == "\n" for c in finished.stderr)
    assert finished.stdout == "" or case.status == 4
    assert outcome.after == outcome.before
    assert not finished.has_orphans
    assert 0 < finished.peak_bytes < case.nbytes
    assert finished.cpu_s < CPU_S
