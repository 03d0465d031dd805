"""Control groups of either version: a quota of processor time, a limit on memory, and who is in them."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyps.errors import HypsError

_ROOT = Path("/sys/fs/cgroup")
_LEAST_QUOTA_US = 1000
"""What the kernel takes."""
_GONE_S = 10.0
_MOST_SHARES, _MOST_WEIGHT = 262_144, 10_000
"""Under version 1 and 2: whatever else wants the same core waits for a device, so that figures are its own."""


@dataclass(frozen=True, slots=True)
class Group:
    """The folders of one device's group: one under version 2, one per controller under version 1."""

    folders: tuple[Path, ...]

    @property
    def entrances(self) -> tuple[Path, ...]:
        """The files into which a process writes its number to enter."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    def remove(self) -> None:
        """Kill whatever runs in the group, and remove it.

        Raises:
            HypsError: something in it cannot be killed.
        """
        deadline_s = time.monotonic() + _GONE_S
        while left := [folder for folder in self.folders if not _remove(folder)]:
            if time.monotonic() > deadline_s:
                raise HypsError(f"the control group `{left[0].name}` cannot be removed: a process in it does not end")
            time.sleep(0.01)


def make_group(name: str, *, cpu_fraction: float | None, memory_bytes: int | None, period_s: float = 0.1) -> Group:
    """Make a group; None leaves out a limit.

    With a period of 100 ms a quota slows long work by its factor; below 10 ms it drifts, and at 2 ms it does nothing.

    Raises:
        HypsError: there are no control groups here, or they cannot be changed.
    """
    parents = _parents()
    if parents is None:
        raise HypsError(f"there are no control groups under `{_ROOT}`", "mount them, or use another machine")
    cpu, memory = parents
    wanted = [cpu] if memory_bytes is None or memory == cpu else [cpu, memory]
    group = Group(tuple(parent / name for parent in wanted))
    try:
        for folder in group.folders:
            folder.mkdir()
        _favour(group.folders[0])
        if cpu_fraction is not None:
            _limit_cpu(group.folders[0], cpu_fraction, round(period_s * 1e6))
        if memory_bytes is not None:
            _limit_memory(group.folders[-1], memory_bytes)
    except OSError as error:
        group.remove()
        raise HypsError(f"the control group `{name}` cannot be made: {error.strerror}", "run as root") from error
    return group


def can_make_groups() -> bool:
    """Return whether there are control groups here, and groups can be made under them."""
    parents = _parents()
    return parents is not None and all(os.access(parent, os.W_OK) for parent in parents)


def find_groups(prefix: str) -> Iterator[Group]:
    """Yield every group whose name begins with `prefix`."""
    parents = _parents() or ()
    for folder in sorted({folder for parent in set(parents) for folder in parent.glob(f"{prefix}*")}):
        yield Group((folder,))


def _parents() -> tuple[Path, Path] | None:
    """Return the folders under which groups for processor time and for memory are made."""
    if (_ROOT / "cpu" / "cpu.cfs_quota_us").exists():
        return _ROOT / "cpu", _ROOT / "memory"
    controllers = _ROOT / "cgroup.controllers"
    return (_ROOT, _ROOT) if controllers.exists() else None


def _favour(folder: Path) -> None:
    if (folder / "cpu.shares").exists():
        (folder / "cpu.shares").write_text(str(_MOST_SHARES))
        return
    (folder.parent / "cgroup.subtree_control").write_text("+cpu")
    (folder / "cpu.weight").write_text(str(_MOST_WEIGHT))


def _limit_cpu(folder: Path, fraction: float, period_us: int) -> None:
    quota_us = max(_LEAST_QUOTA_US, int(fraction * period_us))
    period_us = round(quota_us / fraction)
    if (folder / "cpu.cfs_quota_us").exists():
        (folder / "cpu.cfs_period_us").write_text(str(period_us))
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        return
    (folder / "cpu.max").write_text(f"{quota_us} {period_us}")


def _limit_memory(folder: Path, nbytes: int) -> None:
    if (folder / "memory.limit_in_bytes").exists():
        (folder / "memory.limit_in_bytes").write_text(str(nbytes))
        swap, swap_nbytes = folder / "memory.memsw.limit_in_bytes", nbytes
    else:
        (folder.parent / "cgroup.subtree_control").write_text("+memory")
        (folder / "memory.max").write_text(str(nbytes))
        swap, swap_nbytes = folder / "memory.swap.max", 0
    with contextlib.suppress(FileNotFoundError):  # a kernel without swap has no such file
        swap.write_text(str(swap_nbytes))


def _remove(folder: Path) -> bool:
    """Kill what runs in the folder and return whether it is gone: a process may enter it until then."""
    try:
        for line in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENODEV):  # it is not empty yet; it went while it was read
            return error.errno == errno.ENODEV
        raise
    return True
