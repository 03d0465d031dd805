"""Keeps what this process has resident below a budget, whatever was reckoned: looks before work begins, and makes room.

What a plan's figures cannot foresee is a request larger than the plan was made for, another library's memory, and what
the allocator leaves in pieces.
"""

import contextlib
import mmap
import os
import resource
import threading
from collections.abc import Callable, Iterator

from hyps.adapters.resident import give_back
from hyps.errors import ExecutionError, printable
from hyps.formats.quantities import format_nbytes

_LEFT_NBYTES = 64 * 2**20
"""What other threads may need while a partition is held to what is left: their failing would end the process.

A thread's stack alone is 8 MB, and what a socket receives is private memory as well. By so much a request larger than
the plan was made for may pass the budget before it fails.
"""


class _Held:
    """Who is held to a limit now, in this process, which has one for all its threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.before_nbytes = resource.RLIM_INFINITY  # the limit to go back to when nobody is any more


_held = _Held()


class Ceiling:
    """A budget of resident bytes for this process; its methods may be called from several threads."""

    def __init__(self, budget_nbytes: int) -> None:
        self.budget_nbytes = budget_nbytes

    def make_room(self, partition: str, needed_nbytes: int, free: Callable[[], None], most_nbytes: int) -> None:
        """Return when `needed_nbytes` more fit; where they do not, first call `free` and give back what can be.

        One short file is read each time. Where the system does not tell what is resident everything fits. The refusal
        names a budget with which `most_nbytes` more would fit, since other partitions may need that.

        Raises:
            ExecutionError: they do not fit (`E_MEMORY`), for `partition`.
        """
        if self._over(needed_nbytes) <= 0:
            return
        free()
        give_back()
        over = self._over(needed_nbytes)
        if over > 0:
            enough = self.budget_nbytes + max(over, self._over(most_nbytes))
            raise ExecutionError(
                f"partition `{printable(partition)}` needs {format_nbytes(needed_nbytes)} more than the process has"
                f" now, which would pass the budget of {format_nbytes(self.budget_nbytes)}",
                f"send smaller requests, or give at least `--memory {-(-enough // 10**6)}MB`",
                code="E_MEMORY",
            )

    def settle(self, free: Callable[[], None]) -> None:
        """Call `free` and give back what can be where a request has left more than the budget allows."""
        if self._over(0) > 0:
            free()
            give_back()

    @contextlib.contextmanager
    def backstop(self) -> Iterator[None]:
        """Have the system refuse private memory beyond the budget within: onnxruntime then fails instead of passing it.

        For work whose need nobody knows; every thread of the process is held to it meanwhile.
        """
        resident, private = _statm()
        if not resident:
            yield
            return
        _tighten(private + max(0, self.budget_nbytes - resident) + _LEFT_NBYTES)
        try:
            yield
        finally:
            _loosen()

    def _over(self, needed_nbytes: int) -> int:
        resident, _ = _statm()
        return resident + needed_nbytes - self.budget_nbytes if resident else 0


def _tighten(limit_nbytes: int) -> None:
    """Lower the process's limit until `_loosen` was called as often; it stays where it is lower already."""
    with _held.lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if not _held.count:
            _held.before_nbytes = soft
        _held.count += 1
        if soft == resource.RLIM_INFINITY or limit_nbytes < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_nbytes, hard))


def _loosen() -> None:
    with _held.lock:
        _held.count -= 1
        if not _held.count:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (_held.before_nbytes, hard))


def _statm() -> tuple[int, int]:
    """Return the resident bytes and those of private writable memory, stack included; zeros where nothing tells."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0, 0
    try:
        fields = os.read(descriptor, 200).split()
    finally:
        os.close(descriptor)
    return int(fields[1]) * mmap.PAGESIZE, int(fields[5]) * mmap.PAGESIZE
