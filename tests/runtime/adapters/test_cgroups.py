"""Control groups of both versions, as files."""

from pathlib import Path

import pytest

from hyps.adapters.cgroups import GroupMemory, can_make_groups, group_cores, group_memory, group_version


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


VERSION_2 = {
    "proc/self/cgroup": "0::/user/app",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory",
    "sys/fs/cgroup/user/memory.max": "1000",
    "sys/fs/cgroup/user/memory.current": "900",
    "sys/fs/cgroup/user/memory.stat": "anon 600\nactive_file 120\ninactive_file 150\nslab_reclaimable 30",
    "sys/fs/cgroup/user/app/memory.max": "max",
    "sys/fs/cgroup/user/app/memory.current": "500",
    "sys/fs/cgroup/user/app/cpu.max": "150000 100000",
}

VERSION_1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/app\n3:cpuacct,cpu:/app\n0::/",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000",
    "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "2000",
    "sys/fs/cgroup/memory/app/memory.usage_in_bytes": "1500",
    "sys/fs/cgroup/memory/app/memory.stat": "inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 400",
    "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "50000",
    "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    ("files", "version", "memory", "cores"),
    [(VERSION_2, 2, GroupMemory(1000, 400), 1.5), (VERSION_1, 1, GroupMemory(2000, 1000), 0.5)],
)
def test_the_tightest_group_counts(
    tmp_path: Path, files: dict[str, str], version: int, memory: GroupMemory, cores: float
) -> None:
    root = tree(tmp_path, files)
    assert (group_version(root), group_memory(root), group_cores(root)) == (version, memory, cores)
    assert can_make_groups(root)


@pytest.mark.parametrize(
    ("files", "swap"),
    [
        ({}, 8192),
        ({"sys/fs/cgroup/memory.swap.max": "max", "sys/fs/cgroup/memory.swap.current": "0"}, 8192),
        ({"sys/fs/cgroup/memory.swap.max": "500", "sys/fs/cgroup/memory.swap.current": "200"}, 300),
        ({"sys/fs/cgroup/memory.swap.max": "0", "sys/fs/cgroup/memory.swap.current": "0"}, 0),
    ],
)
def test_swap_that_is_left_counts_in_version_2(tmp_path: Path, files: dict[str, str], swap: int) -> None:
    group = {"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "900"}
    swapping = {"proc/self/cgroup": "0::/", "proc/meminfo": "SwapTotal: 9 kB\nSwapFree:  8 kB"}
    assert group_memory(tree(tmp_path, {**swapping, **group, **files})) == GroupMemory(1000, 100 + swap)


def test_swap_that_is_left_counts_in_version_1(tmp_path: Path) -> None:
    files = {
        **VERSION_1,
        "proc/meminfo": "SwapFree: 8 kB",
        "sys/fs/cgroup/memory/app/memory.memsw.limit_in_bytes": "2600",
        "sys/fs/cgroup/memory/app/memory.memsw.usage_in_bytes": "1700",
    }
    assert group_memory(tree(tmp_path, files)) == GroupMemory(2000, 1000 + 400)


def test_the_hosts_path_in_a_container_is_its_top(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/host/path/of/container",
        "sys/fs/cgroup/memory.max": "100",
        "sys/fs/cgroup/memory.current": "40",
    }
    assert group_memory(tree(tmp_path, files)) == GroupMemory(100, 60)


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert (group_version(tmp_path), group_memory(tmp_path), group_cores(tmp_path)) == (None, None, None)
    assert not can_make_groups(tmp_path)
