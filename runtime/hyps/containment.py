"""Runs a command in a child, so that whatever a model does to onnxruntime ends in one sentence and leaves nothing.

onnxruntime can crash, hang or take all memory on a strange model. So the process that the user started only watches:
its child works, prints and decides on the exit status, unless it dies of a signal; then the watcher says so, and
removes what was half done.
"""

import contextlib
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyps.adapters.guard import Page, become_expendable, death
from hyps.errors import HypsError

_GRACE_S = 3.0
"""How long a child that was told to stop may clean up."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TRIES, _IDLE_TRIES, _BETWEEN_S = 200, 20, 0.05
"""How often what is left is removed at most, how often in a row while it stays the same, and how many seconds apart."""

_SAID_NBYTES = 64 * 1024


def contain(work: Callable[[], Any], on_death: Callable[[HypsError, str], int], on_stop: Callable[[int], int]) -> Any:
    """Do `work` in a child and leave with its exit status; returns in the child only, with what `work` returns.

    To be called before anything large is imported and any thread is started.

    Args:
        work: the whole command; may end by `SystemExit`.
        on_death: says what the child died of, and what its libraries had printed; returns the exit status.
        on_stop: says that the signal with this number stopped the command; returns the exit status.
    """
    page, said = Page(), _file_in_memory()
    ours, alive = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    child = os.fork()
    if child == 0:
        os.close(alive)
        _set_up_child(page, said, ours)
        return work()
    os.close(ours)  # `alive` stays open for as long as this process lives
    status = _watch(child, page, said, on_death, on_stop)
    os._exit(status)  # this process has nothing to tidy, which would take as long as the child took for it


def die_with_writer(reader: int, process: int | None = None) -> None:
    """Have the system end a process once the other end of a pipe is closed, whatever it is doing then.

    Args:
        reader: the pipe's reading end, which that process has open too.
        process: its number; this one's if not given.
    """
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid() if process is None else process)
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)


def remove_folder(path: Path) -> None:
    """Remove a folder, and what processes that are only now ending still make in it meanwhile."""
    import shutil  # rarely needed, and takes longer to import than all the rest

    left: list[str] = []
    idle = 0
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        before = left
        try:
            left = sorted(os.listdir(path))
        except OSError:
            return
        idle = idle + 1 if left == before else 0
        if idle == _IDLE_TRIES:
            return
        time.sleep(_BETWEEN_S)


# The child


def _set_up_child(page: Page, said: int, lifeline: int) -> None:
    die_with_writer(lifeline)
    become_expendable(page)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a dump of all its memory helps no one
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, signal.SIGALRM, signal.SIGIO))
    _keep_stderr_to_ourselves(said)


def _keep_stderr_to_ourselves(said: int) -> None:
    """Let only Python print on stderr: what C and C++ libraries say as they crash goes into the file `said`."""
    if sys.stderr is None:  # closed by whoever started us
        return
    sys.stderr.flush()
    own = os.dup(2)
    os.dup2(said, 2)
    encoding = sys.stderr.encoding
    sys.stderr = open(own, "w", buffering=1, encoding=encoding, errors="backslashreplace")  # noqa: SIM115  # for good


# The watcher


class _Stop:
    """Passes signals on to the child, and ends it if it does not follow."""

    def __init__(self, child: int) -> None:
        self._child = child
        self.signum = 0

    def on_signal(self, signum: int, _frame: object) -> None:
        """Pass the first signal on and give the child a moment; a second one stops it at once."""
        is_second, self.signum = bool(self.signum), self.signum or signum
        self._send(signal.SIGKILL if is_second else signum)
        signal.setitimer(signal.ITIMER_REAL, _GRACE_S)

    def on_alarm(self, _signum: int, _frame: object) -> None:
        """End a child whose time to clean up is over."""
        self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signum)


def _watch(
    child: int, page: Page, said: int, on_death: Callable[[HypsError, str], int], on_stop: Callable[[int], int]
) -> int:
    stop = _Stop(child)
    signal.signal(signal.SIGALRM, stop.on_alarm)
    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop.on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, signal.SIGALRM))
    _, state = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    status = os.waitstatus_to_exitcode(state)
    if status >= 0:
        return status
    page.read()
    _remove(page.scratch)
    if stop.signum or -status in _STOPPING:
        return on_stop(stop.signum or -status)
    text = os.pread(said, _SAID_NBYTES, 0).decode("utf-8", "replace")
    return on_death(death(-status, page.phase, page.timeout_s, text), text)


def _remove(paths: list[str]) -> None:
    for path in map(Path, paths):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _file_in_memory() -> int:
    return os.memfd_create("hyps") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
