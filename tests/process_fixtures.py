"""Managers, groups and workers as users start them: processes that say lines, and end with a test."""

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from msgspec.structs import replace

import hyps
from hyps.formats.plan import Plan, Variant
from plan_fixtures import sharded, write_plan_file

WAIT_S = 20.0
ANYWHERE = "tcp://127.0.0.1:0"
COMMANDS = {
    "hyps-worker": "from hyps.cli import worker as run",
    "hyps-manager": "from hyps.cli_manager import manager as run",
}


class Process:
    """A command that runs, and the lines that it says."""

    def __init__(self, command: str, *args: object) -> None:
        code = f"{COMMANDS[command]}; run(prog_name='{command}')"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def hear(self, words: str) -> str:
        """Wait for a line with `words`, and return it."""
        end_s = time.monotonic() + WAIT_S
        while True:
            line = self._lines.get(timeout=max(0.01, end_s - time.monotonic()))
            assert line is not None, f"it ended with {self.process.wait(WAIT_S)} and said {self.said}"
            self.said.append(line)
            if words in line:
                return line

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        while (line := self._lines.get(timeout=WAIT_S)) is not None:
            self.said.append(line)
        return status

    def stop(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Branch:
    """A manager or a group on a port of the system's choice, and what is started below it one by one."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *args: object, bind: str = ANYWHERE) -> None:
        self._stack, self.folder = stack, folder
        self.manager = self._start("hyps-manager", *args, "--bind", bind)
        self.address = self.manager.hear("serving at").split()[2].rstrip(":")

    def worker(self, device: str, *options: object, plan: Path | None = None) -> Process:
        """Start a worker with a cache of its own."""
        cache = ("--cache", self.folder / f"cache-{device}")
        found = () if plan is None else (plan,)
        means = ("--manager", self.address, "--device", device, "--threads", 1)
        return self._start("hyps-worker", *found, *means, *cache, *options)

    def joined(self, device: str, *options: object, plan: Path | None = None) -> Process:
        """Start a worker and wait until it has joined."""
        process = self.worker(device, *options, plan=plan)
        process.hear("joined the manager")
        return process

    def group(self, device: str, *options: object, bind: str = ANYWHERE) -> "Branch":
        """Start a group, which joins when it has a worker."""
        means = ("--manager", self.address, "--device", device, "--cache", self.folder / f"cache-{device}")
        return Branch(self.folder, self._stack, *means, *options, bind=bind)

    def _start(self, command: str, *args: object) -> Process:
        process = Process(command, *args)
        self._stack.callback(process.stop)
        return process


class Cluster(Branch):
    """A manager with a plan, and all that is started below it."""

    def __init__(self, folder: Path, plan: Path, *options: object) -> None:
        self.plan = plan
        super().__init__(folder, contextlib.ExitStack(), plan, *options)

    def close(self) -> None:
        self._stack.close()


def place(folder: Path, plan: Plan, **placement: str) -> Path:
    """Write the plan with one placement."""
    write_plan_file(folder, replace(plan, variants=(Variant(name="placed", placement=placement),)))
    return folder


def sharded_plan(folder: Path) -> Path:
    """Return the folder of a plan with H-partitions on `a` and `b` at the same time."""
    placement = {"first": "a", "fc0": "a", "fc1": "b", "fc2": "b", "last": "b"}
    return place(folder, sharded(width=24).write(folder), **placement)


def check_same(remote: Any, local: Any, feeds: dict[str, Any]) -> None:
    answers, expected = remote.run(None, feeds), local.run(None, feeds)
    for answer, value in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer, value)


def until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, "it took too long"
        time.sleep(0.02)


@pytest.fixture
def cluster_of(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Return what starts a cluster of a plan, which ends with the test."""
    made: list[Cluster] = []

    def make(plan: Path, *options: object) -> Cluster:
        made.append(Cluster(tmp_path, plan, *options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


class Load:
    """Threads that ask and compare without end; `good` counts the right answers of each."""

    def __init__(self, address: str, plan: Path, threads: int = 2) -> None:
        self.good = [0] * threads
        self.failures: list[BaseException] = []
        self._address, self._plan = address, plan
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(WAIT_S)
        assert not self.failures

    def await_more(self, count: int = 20) -> None:
        """Wait until every thread has so many right answers more."""
        before = list(self.good)
        until(lambda: min(now - then for now, then in zip(self.good, before, strict=True)) > count or self.failures)

    def _ask(self, index: int) -> None:
        try:
            with hyps.InferenceSession(self._address) as remote, hyps.InferenceSession(self._plan, threads=1) as local:
                while not self._stopped.is_set():
                    feeds = sharded(width=24).feeds(seed=self.good[index], batch=1 + index)
                    check_same(remote, local, feeds)
                    self.good[index] += 1
        except BaseException as error:  # told to the test's own thread
            self.failures.append(error)
