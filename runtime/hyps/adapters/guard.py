"""What one call of onnxruntime may take in a process that is ready to die of it: seconds, and bytes of memory.

A command of `hypsc` does its work in a child (see `hyps.containment`), and so no call can outlast the alarm, which the
system itself delivers, nor take more memory than there is. In any other process everything here does nothing.
"""

import contextlib
import itertools
import math
import mmap
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from hyps.errors import DeadlineError, ExecutionError, HypsError, printable
from hyps.formats.quantities import format_seconds

_PAGE_NBYTES = 64 * 1024
_TEXT = "utf-8"
_SEPARATOR = b"\0"
_PHASE_NBYTES = 1024
_MOST_ENTRIES = 10_000
_FRESH_S = 1.0
_MORE_TIME = "give more time with --timeout, such as --timeout 1h; a loop in the model may have no end"
_LESS_MEMORY = "free memory, or use a smaller model or smaller inputs"


class Page:
    """Memory that the working process shares with the one that watches it: what it does, and what it must not leave.

    Attributes:
        phase: what is being done, such as `measuring tensors`.
        timeout_s: the alarm's seconds; 0 without.
        scratch: files and folders that are worth nothing once the process has died.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PAGE_NBYTES)
        self.phase, self.timeout_s = "", 0.0
        self.scratch: list[str] = []

    def write(self) -> None:
        """Let the other process read what the attributes hold; scratch beyond the page's end is left out."""
        data = _encoded(str(self.timeout_s)) + _SEPARATOR + _encoded(self.phase)[:_PHASE_NBYTES]
        for entry in map(_encoded, self.scratch):  # whole ones only: the start of a path is that of another's folder
            if 8 + len(data) + len(_SEPARATOR) + len(entry) <= _PAGE_NBYTES:
                data += _SEPARATOR + entry
        self._memory[: len(data) + 8] = len(data).to_bytes(8, "little") + data

    def read(self) -> None:
        """Set the attributes to what the other process wrote last."""
        end = 8 + int.from_bytes(self._memory[:8], "little")
        parts = [part.decode(_TEXT, "surrogateescape") for part in self._memory[8:end].split(_SEPARATOR)]
        if len(parts) >= 2:
            self.timeout_s, self.phase, self.scratch = float(parts[0]), parts[1], parts[2:]


def _encoded(text: str) -> bytes:
    return text.encode(_TEXT, "surrogateescape")


class _Process:
    """What holds for this process, as its timers and limits do: the one such state there is."""

    def __init__(self) -> None:
        self.is_expendable = False
        self.timeout_s: float | None = None
        self.page: Page | None = None
        self.ceiling_nbytes = math.inf  # the limit on its memory that it was started with
        self.bounded_s = -math.inf  # when its memory was last bounded, on the monotonic clock


_process = _Process()


def become_expendable(page: Page | None = None) -> None:
    """Let every later call of onnxruntime be the end of this process; `page` is what its watcher reads."""
    _process.is_expendable, _process.page = True, page
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    _process.ceiling_nbytes = math.inf if soft == resource.RLIM_INFINITY else soft


def limit_seconds(timeout_s: float | None) -> None:
    """End this process with SIGALRM if one later call of onnxruntime takes longer; None: no limit."""
    _process.timeout_s = timeout_s
    if _process.page is not None:
        _process.page.timeout_s = timeout_s or 0.0
        _process.page.write()


def allowed_seconds() -> float | None:
    """Return what `limit_seconds` was told last."""
    return _process.timeout_s


def note_phase(text: str) -> None:
    """Tell the watcher what is being done."""
    if _process.page is not None:
        _process.page.phase = text
        _process.page.write()


def note_scratch(path: Path) -> None:
    """Have the watcher remove a file or folder if this process dies."""
    if _process.page is not None:
        _process.page.scratch.append(str(path.absolute()))
        _process.page.write()


def forget_scratch(path: Path) -> None:
    """Take back what `note_scratch` said."""
    if _process.page is not None:
        _process.page.scratch.remove(str(path.absolute()))
        _process.page.write()


def guarded(weights: Path | None = None) -> contextlib.AbstractContextManager[None]:
    """Bound the seconds and the memory of what is done within; calls do not nest.

    Memory is what the machine has available, so that a tensor too large for it is refused, not the whole process
    killed; it is measured anew after a second. Weights that are mapped from files take none of it, and yet the system
    counts them: `weights` is the folder from which they may be.
    """
    return _bounded(weights) if _process.is_expendable else _FREE


_FREE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@contextlib.contextmanager
def _bounded(weights: Path | None) -> Iterator[None]:
    if weights is not None or time.monotonic() - _process.bounded_s > _FRESH_S:
        _bound_memory(weights)
    if _process.timeout_s is not None:
        signal.setitimer(signal.ITIMER_REAL, _process.timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def death(signum: int, phase: str, timeout_s: float, said: str = "") -> HypsError:
    """Return what a process that was guarded died of.

    Args:
        signum: the signal that ended it.
        phase: what it was doing; may be empty.
        timeout_s: the seconds that one call could take.
        said: what the libraries left on stderr.
    """
    doing = f" while {phase}" if phase else ""
    name = signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"
    if signum == signal.SIGALRM:
        return DeadlineError(f"onnxruntime took longer than --timeout {format_seconds(timeout_s)}{doing}", _MORE_TIME)
    if signum == signal.SIGKILL:
        text = f"the process was killed ({name}){doing}, perhaps because memory ran out"
        return ExecutionError(text, _LESS_MEMORY, code="E_KILLED")
    if "bad_alloc" in said or "Memory allocation" in said:
        return ExecutionError(f"memory ran out{doing}", _LESS_MEMORY, code="E_MEMORY")
    text = f"onnxruntime crashed ({name}){doing}"
    return ExecutionError(
        text, "the model crashes onnxruntime itself: export it again, or report it there", "E_CRASHED"
    )


def deadline_error(partition: str, timeout_s: float) -> DeadlineError:
    """Return the refusal of a request that took longer than it may; it was in `partition` when it was ended."""
    text = f"the request took longer than {format_seconds(timeout_s)}, in partition `{printable(partition)}`"
    return DeadlineError(text, _MORE_TIME)


def _bound_memory(weights: Path | None) -> None:
    """Set the most private memory to what is available on top of what is used."""
    from hyps.adapters.machine import available_nbytes, data_nbytes  # `--help` does without

    used, available = data_nbytes(), available_nbytes()
    if used is None or available is None:
        return
    mapped = 0 if weights is None else _file_nbytes(weights)
    limit = min(used + available + mapped, _process.ceiling_nbytes)
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _process.bounded_s = time.monotonic()


def _file_nbytes(folder: Path) -> int:
    """Return the bytes of the files in `folder` and below; of a very large tree, of those found first."""
    found, seen, todo = 0, 0, [folder]
    while todo and seen < _MOST_ENTRIES:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:  # whoever opens it says what is wrong
            for entry in itertools.islice(entries, _MOST_ENTRIES - seen):
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
                elif entry.is_file():
                    found += entry.stat().st_size
    return found
