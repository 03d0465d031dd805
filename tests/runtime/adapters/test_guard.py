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


def test_scratch_beyond_the_page_is_left_out_whole(tmp_path: Path) -> None:
    page = guard.Page()
    long = [str(tmp_path / f"{index:04d}" / ("x" * 200)) for index in range(1000)]
    page.phase, page.scratch = "é" * 10_000, [*long, "/s"]
    page.write()
    page.phase, page.scratch = "", []
    page.read()
    assert page.phase.startswith("é" * 500)
    assert 200 < len(page.scratch) < 1000
    assert set(page.scratch) < {*long, "/s"}


def mappable_nbytes(folder: Path) -> int:
    """Return by how much the limit on private memory rises for weights in `folder`, in a process of its own."""
    script = (
        "import pathlib, resource, sys; from hyps.adapters import guard, machine\n"
        "machine.available_nbytes = lambda: 0; machine.data_nbytes = lambda: 10**11\n"
        "guard.become_expendable()\n"
        "with guard.guarded(pathlib.Path(sys.argv[1])):\n"
        "    print(resource.getrlimit(resource.RLIMIT_DATA)[0] - 10**11)\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)


def test_weights_in_folders_below_may_be_mapped_too(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path, count in {"m.onnx": 10, "a/w": 200, "a/b/w": 3000}.items():
        (tmp_path / path).write_bytes(bytes(count))
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # followed, it would count all for ever
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert mappable_nbytes(tmp_path) == 3210
    assert mappable_nbytes(tmp_path / "nowhere") == 0


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
