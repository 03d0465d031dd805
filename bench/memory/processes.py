"""One process under limits: what it measured until it ended, was killed, or took too long."""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from common import load
from inferring import Job
from limits import CannotSlowDownError, Limit, drop_page_cache, memory_limit

BENCH = Path(__file__).parents[1]
SD_CARD_BYTES_PER_S = 40_000_000
_READ_NBYTES = 2**22


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of running a model."""

    label: str
    script: str
    job: Job


@dataclass(slots=True)
class Run:
    """What one process told; as much as it came to."""

    load_average: float
    """Of the machine, when it began: others disturb."""
    load_s: float | None = None
    samples_s: dict[str, list[float]] = field(default_factory=dict)
    """Per mode that it finished."""
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bytes at the end of each mode."""
    cgroup_peak_bytes: int | None = None
    failure: str = ""
    """Why it did not finish; empty: it did."""


def run_once(contender: Contender, limit_bytes: int, deadline_s: float) -> Run:
    """Start the contender in a cgroup of its own, its files thrown out of the page cache before."""
    run = Run(load())
    drop_page_cache(Path(contender.job.files))
    with memory_limit(limit_bytes) as limit:
        command = [sys.executable, BENCH / contender.script, json.dumps(asdict(contender.job))]
        process = limit.popen(command, stdin=-1, stdout=-1, stderr=-3)
        assert process.stdout is not None
        assert process.stdin is not None
        over = threading.Event()
        with process, _killed_after(process, deadline_s, over), process.stdin as answers, process.stdout as lines:
            _listen(run, contender, limit, lines, answers)
        run.cgroup_peak_bytes = limit.peak_bytes()
    if over.is_set():
        run.failure = f"over {deadline_s:.0f} s"
    elif process.returncode:
        run.failure = "killed" if process.returncode == -9 else f"status {process.returncode}"
    return run


def quick(contender: Contender, modes: Sequence[str], seconds: float = 0.0) -> Contender:
    """Return the contender with other modes, and one repeat where no seconds are given."""
    return replace(contender, job=replace(contender.job, modes=tuple(modes), seconds=seconds))


def cannot_slow_down(folder: Path) -> str:
    """Return why the disk of `folder` cannot be slowed down; empty: it can, and reads become slow.

    Kernels take the rule and ignore it for reads through the page cache, or for some disks; hence the proof.
    """
    nbytes, file = SD_CARD_BYTES_PER_S // 2, folder / "slow"
    file.write_bytes(bytes(nbytes))
    drop_page_cache(file)
    script = "import sys, time; b = time.time(); open(sys.argv[1], 'rb').read(); print(time.time() - b)"
    try:
        with memory_limit(10**9) as limit:
            limit.slow_disk_down(folder, SD_CARD_BYTES_PER_S)
            seconds = float(limit.popen([sys.executable, "-c", script, file], stdout=-1).communicate()[0])
    except CannotSlowDownError as error:
        return str(error)
    finally:
        file.unlink()
    return "" if seconds > 0.4 * nbytes / SD_CARD_BYTES_PER_S * 2 else "reads are as fast as before"


def _listen(run: Run, contender: Contender, limit: Limit, lines: IO[str], answers: IO[str]) -> None:
    for line in lines:
        told: dict[str, Any] = json.loads(line)
        if "ask" in told:
            _serve(told["ask"], Path(contender.job.files), limit)
            answers.write("\n")
            answers.flush()
        elif "mode" in told:
            run.samples_s[told["mode"]], run.memory[told["mode"]] = told["samples_s"], told["memory"]
        else:
            run.load_s = told["load_s"]


def _serve(wish: str, files: Path, limit: Limit) -> None:
    """Do what a contender cannot do by itself: fill the page cache at our expense, or slow the disk down."""
    if wish == "slow":
        limit.slow_disk_down(files, SD_CARD_BYTES_PER_S)
        return
    for path in [files] if files.is_file() else files.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_NBYTES):
                    pass


@contextmanager
def _killed_after(process: Any, seconds: float, over: threading.Event) -> Iterator[None]:
    def kill() -> None:
        over.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
