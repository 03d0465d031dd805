"""Ends runs of onnxruntime that take too long: one thread, which sleeps until the first of them may be over.

onnxruntime looks between two nodes whether it is to stop, also inside loops; one long kernel, or a loop whose body is
empty, runs on. Such a run is called stuck, and only the end of its process ends it.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnxruntime

GRACE_S = 5.0
"""From when a run was told to stop until it is called stuck."""


@dataclass(slots=True, eq=False)
class Turn:
    """One run under a deadline."""

    end_s: float
    """When it must be over, on the monotonic clock."""
    index: int
    """Which request it is, for whoever is told that it is stuck."""
    options: Any
    """What onnxruntime is given, so that it can be told to stop."""
    is_over: bool = False
    """Whether its time is over and it was told to stop."""


class Watchdog:
    """Watches over the runs of one plan, any number at once.

    A run costs two microseconds. The thread wakes once in `timeout_s`, and for runs whose time is partly gone.
    """

    def __init__(self, timeout_s: float, grace_s: float = GRACE_S) -> None:
        """Give every run `timeout_s` seconds, and `grace_s` to stop when told."""
        self.timeout_s = timeout_s
        self._grace_s = grace_s
        self._on_stuck: Callable[[int], None] = lambda _index: None
        self._turns: dict[int, Turn] = {}
        self._wakes_s = -math.inf
        self._wake = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._ending = threading.Lock()
        """Held while a run leaves, and while it is said of one that it is stuck: never of one that has left."""

    def call_when_stuck(self, on_stuck: Callable[[int], None]) -> None:
        """Have the thread call `on_stuck` with the index of a run that did not stop when told.

        No run ends until `on_stuck` has returned, so that the index is that of a request which is still computed.
        """
        self._on_stuck = on_stuck

    @contextlib.contextmanager
    def watch(self, index: int = 0, used_s: float = 0.0) -> Iterator[Turn]:
        """Yield the options for a run, of whose time `used_s` seconds are gone already."""
        if self._thread is None:
            self._start()
        turn = Turn(time.monotonic() + self.timeout_s - used_s, index, _run_options())
        self._turns[id(turn)] = turn
        if turn.end_s < self._wakes_s:
            self._wake.set()
        try:
            yield turn
        finally:
            with self._ending:
                del self._turns[id(turn)]

    def close(self) -> None:
        """Let the thread end."""
        self._is_closed = True
        self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()

    # The thread.

    def _watch(self) -> None:
        while not self._is_closed:
            for turn in list(self._turns.values()):
                if turn.end_s <= time.monotonic():
                    self._end(turn)
            # No run that begins later ends before this, so that none need wake the thread to be seen in time.
            self._wakes_s = min(self._earliest_s(), time.monotonic() + self.timeout_s)
            if self._earliest_s() >= self._wakes_s:  # nobody came who still saw the old time
                self._wake.wait(max(0.0, self._wakes_s - time.monotonic()))
            self._wake.clear()

    def _earliest_s(self) -> float:
        return min((turn.end_s for turn in list(self._turns.values())), default=math.inf)

    def _end(self, turn: Turn) -> None:
        if turn.is_over:
            turn.end_s = math.inf
            with self._ending:
                if id(turn) in self._turns:
                    self._on_stuck(turn.index)
        else:
            turn.is_over = True
            turn.options.terminate = True
            turn.end_s = time.monotonic() + self._grace_s


def _run_options() -> Any:
    """Return new options, with an entry that onnxruntime asks for at every bound run: 20 us to find it missing."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "0")
    return options
