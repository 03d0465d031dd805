"""What every process of the memory benchmark does once it has loaded its model: infer, cold and warm, and tell.

Its command line is one JSON object, a `Job`; it prints a JSON line for each step, so that what a process that is
killed has measured until then is kept. Where it needs its parent (`ask`) it waits for a line on standard input.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MADV_PAGEOUT = 21


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do."""

    model: str
    """The ONNX file or the plan folder."""
    how: str
    feeds: str
    """An npz file with the request."""
    files: str
    """The folder or the file whose pages are thrown out."""
    modes: tuple[str, ...]
    """`cold`: thrown out of memory before each inference; `warm`: what memory there is keeps is kept; `cached`: all in
    the page cache, charged to somebody else; `slow`: cold, from a disk that the parent has slowed down."""
    repeats: int
    seconds: float
    """No further repeat of a mode begins after that; there is always one."""


def read_job() -> tuple[Job, dict[str, Any]]:
    """Return what this process was started for, and the request."""
    job = Job(**json.loads(sys.argv[1]))
    with np.load(job.feeds) as arrays:
        return job, dict(arrays)


def infer(job: Job, load: Callable[[], Callable[[], object]]) -> None:
    """Load, then measure every mode; `load` returns what runs one inference."""
    start = time.perf_counter()
    run = load()
    _tell(load_s=time.perf_counter() - start)
    for mode in job.modes:
        if mode in ("cached", "slow"):
            evict(Path(job.files))
            _tell(ask=mode)
            sys.stdin.readline()
        if mode == "warm" and mode == job.modes[0]:
            run()
        _tell(mode=mode, samples_s=list(_samples(job, mode, run)), memory=_memory())


def evict(files: Path) -> None:
    """Throw the files out of memory, also the pages that this process has mapped."""
    paths = [files] if files.is_file() else sorted(path for path in files.rglob("*") if path.is_file())
    names = {str(path.resolve()) for path in paths}
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in names:
            first, end = (int(number, 16) for number in parts[0].split("-"))
            if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_PAGEOUT):
                raise OSError(ctypes.get_errno(), "madvise failed", parts[5])
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _samples(job: Job, mode: str, run: Callable[[], object]) -> list[float]:
    samples: list[float] = []
    begin = time.perf_counter()
    while not samples or (len(samples) < job.repeats and time.perf_counter() - begin < job.seconds):
        if mode in ("cold", "slow"):
            evict(Path(job.files))
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return samples


def _memory() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    names = {"peak_rss_bytes": "VmHWM", "rss_bytes": "VmRSS", "private_bytes": "RssAnon"}
    return {key: int(status[field].split()[0]) * 1024 for key, field in names.items() if field in status}


def _tell(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)
