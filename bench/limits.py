"""A real memory limit for a child process: a memory cgroup where one can be made, else a limit on its own data."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Limit:
    """How the children of one `memory_limit` block are held down."""

    kind: str
    """`cgroup v1`, `cgroup v2` or `RLIMIT_DATA`. Cgroups count the page cache too; RLIMIT_DATA only private memory."""
    enter: Callable[[], None]
    """Called in the child before it becomes the program."""
    folder: Path | None

    def peak_bytes(self) -> int | None:
        """Return the most memory the cgroup has held; None without one."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self.folder is not None and (self.folder / name).exists():
                return int((self.folder / name).read_text())
        return None

    def popen(self, command: Sequence[Any], **options: Any) -> "subprocess.Popen[str]":
        """Start a program under the limit."""
        return subprocess.Popen(list(map(str, command)), preexec_fn=self.enter, text=True, **options)


@contextlib.contextmanager
def memory_limit(nbytes: int, *, name: str = "hyps-bench") -> Iterator[Limit]:
    """Limit the memory of children started in this block; swap does not help them.

    As root a memory cgroup is made (v1 or v2) and removed; otherwise each child limits its own private memory.
    """
    folder = _make_cgroup(f"{name}-{os.getpid()}", nbytes)
    if folder is None:
        yield Limit("RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes)), None)
        return

    def enter() -> None:
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield Limit("cgroup v1" if folder.is_relative_to(_V1) else "cgroup v2", enter, folder)
    finally:
        folder.rmdir()


def drop_page_cache(*folders: Path) -> None:
    """Throw the files' pages out of the cache, so that whoever reads them next pays and is charged for them."""
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _make_cgroup(name: str, nbytes: int) -> Path | None:
    """Return a new cgroup with the limit; None where none can be made."""
    with contextlib.suppress(OSError):
        if (_V1 / "memory.limit_in_bytes").exists():
            return _limited(_V1 / name, {"memory.limit_in_bytes": nbytes, "memory.memsw.limit_in_bytes": nbytes})
        if "memory" in (_V2 / "cgroup.controllers").read_text().split():
            (_V2 / "cgroup.subtree_control").write_text("+memory")
            return _limited(_V2 / name, {"memory.max": nbytes, "memory.swap.max": 0})
    return None


def _limited(folder: Path, values: dict[str, int]) -> Path | None:
    folder.mkdir()
    first, *rest = values.items()
    try:
        (folder / first[0]).write_text(str(first[1]))
    except OSError:
        folder.rmdir()
        raise
    for file, value in rest:
        with contextlib.suppress(OSError):  # no swap accounting in this kernel: then there must be no swap
            (folder / file).write_text(str(value))
    return folder
