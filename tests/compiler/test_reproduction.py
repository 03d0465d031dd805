"""The process in which a reproduction is seen to differ."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyps_compiler import reproduction

WAIT_S = 20.0
ENDLESS = "print('begun', flush=True)\nopen('begun', 'w').close()\nsum(iter(int, 1))\n"


@pytest.mark.parametrize(
    ("script", "differs"),
    [
        ("print('they differ'); raise SystemExit(1)", True),
        ("print('they agree')", False),
        ("raise SystemExit(1)", False),
        (ENDLESS, None),
    ],
)
def test_only_what_was_seen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, differs: bool | None
) -> None:
    monkeypatch.setattr(reproduction, "_CHECK_S", 1.0 if differs is None else WAIT_S)
    (tmp_path / "reproduce.py").write_text(script)
    assert reproduction._still_differs(tmp_path) is differs


def test_it_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "reproduce.py").write_text(ENDLESS)
    script = "import pathlib; from hyps_compiler import reproduction; reproduction._still_differs(pathlib.Path())"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
        deadline_s = time.monotonic() + WAIT_S
        try:
            while not (tmp_path / "begun").exists():
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            (child,) = psutil.Process(process.pid).children()
        finally:
            os.kill(process.pid, signal.SIGKILL)
    try:
        psutil.wait_procs([child], timeout=2.0)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    finally:
        if child.is_running():
            child.kill()
