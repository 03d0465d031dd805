"""The control group that this process is in, of either version: how much memory and processor it is given."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED_NBYTES = 2**60
"""Version 1 says the largest number that its counter holds."""


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What the tightest of the groups that this process is in leaves it."""

    limit_nbytes: int
    available_nbytes: int
    """What can still be taken; cached files that would be dropped are not counted as taken."""


def group_memory(root: Path = _ROOT) -> GroupMemory | None:
    """Return the limit on this process's memory; None where no group limits it.

    Args:
        root: where `proc` and `sys` lie.
    """
    found = [memory for folder in _folders("memory", root) if (memory := _memory_of(folder)) is not None]
    if not found:
        return None
    return GroupMemory(min(m.limit_nbytes for m in found), min(m.available_nbytes for m in found))


def group_cores(root: Path = _ROOT) -> float | None:
    """Return how many cores' time this process is given; None where no group limits it."""
    quotas = [quota for folder in _folders("cpu", root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def group_version(root: Path = _ROOT) -> int | None:
    """Return 1 or 2, whichever limits memory here; None without control groups."""
    folder = next(_folders("memory", root), None)
    if folder is None:
        return None
    return 1 if (folder / "memory.limit_in_bytes").exists() else 2


def can_make_groups(root: Path = _ROOT) -> bool:
    """Return whether this process may make a group of its own, to put others under a limit."""
    folder = next(_folders("memory", root), None)
    return folder is not None and os.access(folder, os.W_OK)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folder of this process's group and those above it, the nearest first."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, group = (*line.split(":", 2), "", "")[:3]
        if controller in names.split(","):
            top = mount / controller
        elif not names and not (mount / controller).is_dir():
            top = mount
        else:
            continue
        folder = top / group.lstrip("/")
        while folder != top:
            if folder.is_dir():  # in a container the path may be the host's, of which only the top is there
                yield folder
            folder = folder.parent
        if top.is_dir():
            yield top
        return


def _memory_of(folder: Path) -> GroupMemory | None:
    for limit_name, used_name, files_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED_NBYTES:
            stats = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
            evictable = int(stats.get(files_name, 0))
            return GroupMemory(limit, max(0, limit - max(0, used - evictable)))
    return None


def _quota_of(folder: Path) -> float | None:
    quota, period = (*_read(folder / "cpu.max").split(), "", "")[:2]
    if quota.isdigit() and period.isdigit():
        return int(quota) / int(period)
    old_quota, old_period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return old_quota / old_period if old_quota and old_period and old_quota > 0 else None


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
