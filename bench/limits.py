"""Real limits for a child process: its memory, and how fast it reads a disk.

A memory cgroup where one can be made, else a limit on the child's own data; a slow disk needs a cgroup, of v1's `blkio`
or v2's `io`.
"""

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_V1 = Path("/sys/fs/cgroup/memory")
_V1_DISK = Path("/sys/fs/cgroup/blkio")
_V2 = Path("/sys/fs/cgroup")


class CannotSlowDownError(Exception):
    """The kernel offers no way to slow this disk down; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How the children of one `memory_limit` block are held down."""

    kind: str
    """`cgroup v1`, `cgroup v2` or `RLIMIT_DATA`. Cgroups count the page cache too; RLIMIT_DATA only private memory."""
    enter: Callable[[], None]
    """Called in the child before it becomes the program."""
    folder: Path | None
    disk_folder: Path | None = None
    """The cgroup that holds the disk down: v1 has one of its own for that."""

    def slow_disk_down(self, path: Path, bytes_per_s: int) -> None:
        """Let the children read the disk that holds `path` no faster, from now on.

        Raises:
            CannotSlowDownError: there is no cgroup for that, or the path is on no disk.
        """
        if self.disk_folder is None:
            raise CannotSlowDownError("there is no cgroup that holds a disk down")
        device = _disk_of(path)
        is_v1 = self.disk_folder.is_relative_to(_V1_DISK)
        file, rule = ("blkio.throttle.read_bps_device", "") if is_v1 else ("io.max", "rbps=")
        try:
            (self.disk_folder / file).write_text(f"{device} {rule}{bytes_per_s}")
        except OSError as error:
            raise CannotSlowDownError(f"the kernel refuses to slow device {device} down: {error}") from error

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
    disk_folder = _make_disk_cgroup(folder)

    def enter() -> None:
        for group in dict.fromkeys((folder, disk_folder or folder)):
            (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield Limit("cgroup v1" if folder.is_relative_to(_V1) else "cgroup v2", enter, folder, disk_folder)
    finally:
        for group in dict.fromkeys((folder, disk_folder or folder)):
            _remove(group)


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
            for controller in ("+memory", "+io"):
                with contextlib.suppress(OSError):
                    (_V2 / "cgroup.subtree_control").write_text(controller)
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


def _make_disk_cgroup(folder: Path) -> Path | None:
    """Return the cgroup in which `folder`'s children can be held down at reading; None where there is none."""
    if not folder.is_relative_to(_V1):
        return folder if (folder / "io.max").exists() else None
    with contextlib.suppress(OSError):
        if (_V1_DISK / "blkio.throttle.read_bps_device").exists():
            beside = _V1_DISK / folder.name
            beside.mkdir()
            return beside
    return None


def _remove(group: Path) -> None:
    """Remove a cgroup; a child that was killed leaves it a moment after it was waited for."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return
    group.rmdir()


def _disk_of(path: Path) -> str:
    """Return the numbers of the whole disk that holds `path`: rules for a partition of it are refused."""
    device = path.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if not node.exists():
        raise CannotSlowDownError(f"`{path.name}` lies on no disk, device {os.major(device)}:{os.minor(device)}")
    disk = node.parent if (node / "partition").exists() else node
    return (disk / "dev").read_text().strip()
