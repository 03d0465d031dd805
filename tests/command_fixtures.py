"""Runs `hypsc` and `hyps-worker` as users do: real processes, whose every trace is looked for afterwards."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SCRIPTS = Path(sys.executable).parent
"""Where the commands of this environment lie."""

_LEFT_S = 2.0
_HASHED_NBYTES = 10**9
"""Files above this are made of holes, and reading these takes longer than what is tested."""


@dataclass(frozen=True)
class Finished:
    """What a process did."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    cpu_s: float
    """Seconds that it and its children computed."""
    peak_bytes: int
    """Most that it and its children were seen to have resident, each at its worst."""
    has_orphans: bool
    """Whether a process that it started still ran a moment later."""

    @property
    def error(self) -> str:
        """The sentence behind `error: `; asserts that stderr is that line and at most one hint."""
        lines = self.stderr.splitlines()
        assert lines, f"nothing on stderr, status {self.status}, stdout {self.stdout[:300]!r}"
        assert lines[0].startswith("error: "), self.stderr
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), self.stderr
        return lines[0].removeprefix("error: ")

    @property
    def hint(self) -> str:
        """What stands behind `hint: `; empty where there is none."""
        return next((line[6:] for line in self.stderr.splitlines() if line.startswith("hint: ")), "")


def run_command(argv: Sequence[str | bytes], folder: Path, *, timeout_s: float = 20.0, **env: str) -> Finished:
    """Run a command of this environment in `folder` to its end, in a session of its own."""
    with started(argv, folder, **env) as running:
        return running.finish(timeout_s)


class Running:
    """A process that has been started, and the files that take what it prints."""

    def __init__(self, process: "subprocess.Popen[bytes]", stdout: Path, stderr: Path) -> None:
        self.process, self._stdout, self._stderr = process, stdout, stderr
        self._start_s = time.monotonic()

    def finish(self, timeout_s: float = 20.0) -> Finished:
        """Wait for the end, which must come in time."""
        deadline_s = self._start_s + timeout_s
        peaks: Counter[int] = Counter()
        while True:
            peaks |= _peaks(self.process.pid)
            pid, state, used = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"still running after {timeout_s} s: {self.process.args!r}")
            time.sleep(0.02)
        seconds = time.monotonic() - self._start_s
        self.process.returncode = os.waitstatus_to_exitcode(state)
        return Finished(
            status=self.process.returncode,
            stdout=self._stdout.read_text(),
            stderr=self._stderr.read_text(),
            seconds=seconds,
            cpu_s=used.ru_utime + used.ru_stime,
            peak_bytes=peaks.total(),
            has_orphans=_is_left(self.process.pid),
        )

    def stderr_so_far(self) -> str:
        """Return what it has printed on stderr."""
        return self._stderr.read_text()


@contextmanager
def started(argv: Sequence[str | bytes], folder: Path, **env: str) -> Iterator[Running]:
    """Start a command of this environment in `folder`; whatever is left of it at the end is killed."""
    prints = folder.parent / f".prints-{folder.name}"
    prints.mkdir(exist_ok=True)
    stdout, stderr = prints / "stdout", prints / "stderr"
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONWARNINGS")}
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [_script(argv[0]), *argv[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**environment, **env},
            start_new_session=True,
        )
    try:
        yield Running(process, stdout, stderr)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def snapshot(folder: Path) -> dict[str, str]:
    """Return every path under `folder` with what is there, to see that nothing has come, gone or changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = str(path.relative_to(folder))
        if relative.split("/")[0].startswith(".prints-"):
            continue
        if path.is_symlink():
            found[relative] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.stat().st_size > _HASHED_NBYTES:
            found[relative] = f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
        elif path.is_file():
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[relative] = oct(path.lstat().st_mode)
    return found


def _script(name: str | bytes) -> str | bytes:
    return str(SCRIPTS / name) if isinstance(name, str) and (SCRIPTS / name).exists() else name


def _peaks(session: int) -> "Counter[int]":
    """Return the most that each process of a session has had resident; what `wait4` tells has its parent's in it."""
    found: Counter[int] = Counter()
    for process in psutil.pids():
        with suppress(OSError):
            if os.getsid(process) == session:
                status = Path(f"/proc/{process}/status").read_text()
                if "VmHWM:" in status:  # a process that has ended has none
                    found[process] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return found


def _is_left(session: int) -> bool:
    """Return whether a process of the session still runs; one that is just leaving gets a moment."""
    deadline_s = time.monotonic() + _LEFT_S
    while left := [pid for pid in psutil.pids() if _is_running_in(pid, session)]:
        if time.monotonic() > deadline_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.01)
    return False


def _is_running_in(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
