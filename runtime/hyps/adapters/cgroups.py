"""The control group that this process is in, of either version: how much memory and processor it is given."""

import math
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
    """What can still be taken, swap included; cached files that would be dropped are not counted as taken."""


def group_memory(root: Path = _ROOT) -> GroupMemory | None:
    """Return the limit on this process's memory; None where no group limits it.

    Args:
        root: where `proc` and `sys` lie.
    """
    swap = _swap_free_nbytes(root)
    found = [memory for folder in _folders("memory", root) if (memory := _memory_of(folder, swap)) is not None]
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


def _memory_of(folder: Path, swap_free_nbytes: int) -> GroupMemory | None:
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED_NBYTES:
            kept = max(0, used - _evictable_nbytes(folder, prefix))
            return GroupMemory(limit, max(0, limit - kept) + int(min(swap_free_nbytes, _swap_nbytes(folder))))
    return None


def _evictable_nbytes(folder: Path, prefix: str) -> int:
    """Return what the system drops before it refuses memory: caches of files, also those in use, and of their names."""
    stats = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    return sum(int(stats.get(prefix + name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))


def _swap_nbytes(folder: Path) -> float:
    """Return how much more the group may swap out; infinity where only the machine's swap limits it."""
    limit, used = _number(folder / "memory.swap.max"), _number(folder / "memory.swap.current")
    if limit is not None and used is not None:
        return max(0, limit - used)
    both, memory = _number(folder / "memory.memsw.limit_in_bytes"), _number(folder / "memory.limit_in_bytes")
    both_used, memory_used = _number(folder / "memory.memsw.usage_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if both is None or memory is None or both_used is None or memory_used is None:
        return math.inf
    return max(0, (both - memory) - (both_used - memory_used))


def _swap_free_nbytes(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("SwapFree:"):
            return int(line.split()[1]) * 1024
    return 0


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
