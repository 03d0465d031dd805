"""What this machine and this process are: CPU family, cores, resident memory; and how freed memory is given back."""

import ctypes
import functools
import os
import platform
from pathlib import Path

from hyps.adapters.cgroups import group_memory

_CPU_FLAGS = ("avx", "avx2", "avx512f", "asimd", "sve")
"""What onnxruntime's choice of layout depends on: x86 first, then ARM."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_SMALL_NBYTES = 64 * 1024


@functools.cache
def cpu_family() -> str:
    """Return the kind of CPU that a `native` plan is tied to, such as `x86_64+avx+avx2+avx512f`."""
    flags = cpu_facts()[1]
    return "+".join([platform.machine(), *(flag for flag in _CPU_FLAGS if flag in flags)])


def cpu_facts() -> tuple[str, frozenset[str]]:
    """Return the processor's name, empty where the system does not tell, and what it can do in the system's words."""
    name, flags = "", set()
    for line in _lines("/proc/cpuinfo"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("flags", "Features"):
            flags.update(value.split())
        elif key in ("model name", "Model"):
            name = value
    return name, frozenset(flags)


def core_count() -> int:
    """Return the physical cores that this process may use: a second thread per core only waits for the first."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores, processor, package = set(), -1, ""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor" and value.isdigit():
            processor = int(value)
        elif name == "physical id":
            package = value
        elif name == "core id" and processor in allowed:
            cores.add((package, value))
    return len(cores) or len(allowed)


def rss_nbytes() -> int | None:
    """Return the bytes of memory that this process has resident; None where `/proc` does not tell."""
    return _status_nbytes("VmRSS")


def peak_rss_nbytes() -> int | None:
    """Return the most bytes that this process has had resident; None where `/proc` does not tell."""
    return _status_nbytes("VmHWM")


def data_nbytes() -> int | None:
    """Return the bytes of private memory that this process may write to, used or not; what RLIMIT_DATA bounds."""
    return _status_nbytes("VmData")


def available_nbytes() -> int | None:
    """Return the memory that this process can still take: the machine's, or its cgroup's where that has less.

    None where the system does not tell. Swap counts, and so does what the system holds of files and would drop.
    """
    machine = meminfo()
    if "MemAvailable" not in machine:
        return None
    free = machine["MemAvailable"] + machine.get("SwapFree", 0)
    group = group_memory()
    return free if group is None else min(free, group.available_nbytes)


def meminfo() -> dict[str, int]:
    """Return the bytes that the system tells of its memory by name, such as `MemTotal`; empty where it does not."""
    found = {}
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


def hold_memory_down() -> None:
    """Make the allocator give freed memory back at once; does nothing where the C library is not glibc.

    glibc otherwise raises its thresholds as large blocks are freed and then keeps what a released partition leaves: a
    model run one partition after another was measured at 497 MB instead of 92. The price is page faults on every
    large block, so that a worker without a memory budget does without.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _SMALL_NBYTES)
        mallopt(_M_TRIM_THRESHOLD, _SMALL_NBYTES)
        mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give freed memory back to the system; does nothing where the C library is not glibc."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), name, None)


def _status_nbytes(field: str) -> int | None:
    for line in _lines("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
