"""What a process that may die of onnxruntime is allowed, and what its watcher is told."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hyps.adapters import guard
from hyps.errors import DeadlineError


def test_the_watcher_reads_what_was_written_last(tmp_path: Path) -> None:
    page = guard.Page()
    page.phase, page.timeout_s, page.scratch = "measuring \udcff", 1.5, [str(tmp_path / "a"), "/b\udcff"]
    page.write()
    page.phase, page.timeout_s, page.scratch = "", 0.0, []
    page.read()
    assert (page.phase, page.timeout_s) == ("measuring \udcff", 1.5)
    assert page.scratch == [str(tmp_path / "a"), "/b\udcff"]


def test_a_page_nobody_wrote_on_says_nothing() -> None:
    page = guard.Page()
    page.read()
    assert (page.phase, page.timeout_s, page.scratch) == ("", 0.0, [])


def test_an_ordinary_process_is_not_limited() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    guard.limit_seconds(0.001)
    with guard.guarded():
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    guard.limit_seconds(None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


SCRIPT = """
import sys, time
import numpy as np
from hyps.adapters import guard, machine
guard.become_expendable()
guard.limit_seconds(0.2)
with guard.guarded():
    pass
time.sleep(0.4)  # outside nothing is counted
with guard.guarded():
    if sys.argv[1] == "memory":
        try:
            np.empty(int(machine.available_nbytes() * 1.2), np.uint8)
        except MemoryError:
            print("refused")
        np.empty(10**6, np.uint8)
    else:
        sum(iter(int, 1))
"""


@pytest.mark.parametrize(("what", "status", "said"), [("memory", 0, "refused\n"), ("time", -signal.SIGALRM, "")])
def test_one_call_is_bounded(what: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, said, "")


@pytest.mark.parametrize(
    ("number", "said", "code", "text"),
    [
        (signal.SIGALRM, "", "E_DEADLINE", "onnxruntime took longer than --timeout 2 s while verifying"),
        (signal.SIGKILL, "", "E_KILLED", "the process was killed (SIGKILL) while verifying, perhaps because"),
        (signal.SIGABRT, "", "E_CRASHED", "onnxruntime crashed (SIGABRT) while verifying"),
        (signal.SIGABRT, "terminate called: std::bad_alloc", "E_MEMORY", "memory ran out while verifying"),
    ],
)
def test_every_death_has_a_sentence(number: int, said: str, code: str, text: str) -> None:
    error = guard.death(number, "verifying", 2.0, said)
    assert (error.code, error.exit_status, bool(error.hint)) == (code, 1, True)
    assert error.message.startswith(text)
    assert isinstance(error, DeadlineError) == (code == "E_DEADLINE")
