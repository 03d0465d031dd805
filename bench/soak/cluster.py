"""The manager and workers of a soak, on this machine, and who kills and restarts them."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BIN = Path(sys.executable).parent
_ENDING_S = 20.0


class Member:
    """A process that is started again when it was killed."""

    def __init__(self, name: str, command: Sequence[Any], log: Path) -> None:
        self.name, self._command, self._log = name, list(map(str, command)), log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it and return its number."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self.process.pid

    def kill(self) -> None:
        """Kill it as the kernel would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it with SIGTERM and return its status; it is killed when it does not end."""
        if self.process is None:
            return 0
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)  # it may have been stopped
        try:
            return self.process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None


def manager(plan: Path, address: str, folder: Path) -> Member:
    """Return a manager that is not started yet."""
    return Member("manager", [_BIN / "hyps-manager", plan, "--bind", address], folder / "manager.log")


def worker(name: str, plan: Path, address: str, folder: Path) -> Member:
    """Return a worker that is not started yet."""
    command = [_BIN / "hyps-worker", plan, "--manager", address, "--device", name, "--threads", 1]
    return Member(name, command, folder / f"{name}.log")


def client(kind: str, index: int, address: str, questions: Path, pause_s: float, folder: Path) -> Member:
    """Return a client that is not started yet; what it tells goes to its log."""
    words = [kind, address, questions, index, pause_s]
    command = [sys.executable, "-m", "soak.clients", *words]
    return Member(f"{kind}-{index}", command, folder / f"client-{kind}-{index}.log")
