"""A node's two working threads: one runs partitions, the other finds their files and opens their sessions."""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyps.adapters.ceiling import Ceiling
from hyps.adapters.deadlines import Turn, Watchdog
from hyps.adapters.guard import deadline_error, guarded
from hyps.adapters.machine import hold_memory_down, trim
from hyps.adapters.resident import give_back
from hyps.adapters.sessions import ORT_ERRORS, Mode, Session, Sessions, execution_error
from hyps.adapters.streams import Streamed, Streams
from hyps.errors import HypsError, InternalError
from hyps.formats.plan import Optimization, Partition

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""A partition's id and digest."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A session is open, or why it is not."""

    key: Key
    error: HypsError | None
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """A run is over: its outputs by name, or why there are none."""

    run: int
    outcome: dict[str, Any] | HypsError
    start_s: float
    """On the monotonic clock."""
    end_s: float


@dataclass(frozen=True, slots=True)
class Stuck:
    """A run does not end: nothing can be computed in this process any more."""

    run: int


@dataclass(frozen=True, slots=True)
class Done:
    """An errand is over: what it returned, or why it did not."""

    name: Any
    """What the errand was called."""
    result: Any


Completion = Opened | Ran | Stuck | Done


@dataclass(frozen=True, slots=True)
class _Job:
    run: int
    partition: str
    session: Session
    outputs: tuple[str, ...]
    feeds: Callable[[], Mapping[str, Any]]
    needed_nbytes: int


class Executor:
    """Runs what it is given, in turn; all its methods are for the thread that made it."""

    def __init__(
        self,
        opener: Sessions,
        timeout_s: float | None,
        on_completion: Callable[[Completion], None],
        budget_nbytes: int | None = None,
    ) -> None:
        """Start the threads.

        Args:
            opener: opens the sessions.
            timeout_s: the longest that one run may take; None: as long as it does.
            on_completion: is called by the threads with what is over.
            budget_nbytes: the most that the process may have resident: requests larger than foreseen that would pass it
                are refused, and what can be given back is where a run left more. None: as much as there is.
        """
        self._opener, self._tell = opener, on_completion
        self._ceiling = None if budget_nbytes is None else Ceiling(budget_nbytes)
        self._memory = threading.Lock()
        """Of who loads a partition, and who runs one with memory held down: the one would fail of the other."""
        self._watchdog = None if timeout_s is None else Watchdog(timeout_s)
        if self._watchdog is not None:
            self._watchdog.call_when_stuck(lambda run: on_completion(Stuck(run)))
        self._streams = Streams(opener)
        self._sessions: dict[Key, Session] = {}
        self._runs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._errands: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._now: tuple[int, float] | None = None
        """The run that is computed, and since when."""
        self._is_held_down = False
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._compute, "compute"), (self._do_errands, "files"))
        ]
        for thread in self._threads:
            thread.start()

    def close(self, wait_s: float = 0.0) -> None:
        """Let the threads end after what they do now, and wait for that: a process that ends meanwhile would crash."""
        self._runs.put(None)
        self._errands.put(None)
        if self._watchdog is not None:
            self._watchdog.close()
        end_s = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self._streams.close()

    def open(self, key: Key, folder: Path, partition: Partition, mode: Mode, optimization: Optimization) -> None:
        """Load a partition whose files lie in `folder`; `Opened` tells."""

        def work() -> None:
            start_s = time.monotonic()
            error: HypsError | None = None
            try:
                with self._memory:
                    self._sessions[key] = self._loaded(folder, partition, mode, optimization)
                if mode is Mode.FAST and self._ceiling is not None:
                    give_back()  # what laying weights out took
            except HypsError as refusal:
                error = refusal
            except Exception as broken:  # were nobody told, the partition would be on its way for ever
                logger.exception("a session broke off")
                error = InternalError(f"{type(broken).__name__}: {broken}")
            self._tell(Opened(key, error, start_s, time.monotonic()))

        if mode is not Mode.FAST and not self._is_held_down:
            self._is_held_down = True
            hold_memory_down()
        self._errands.put((None, work))

    def shut(self, key: Key) -> None:
        """Release a partition; runs of it that were begun go on."""
        session = self._sessions.pop(key, None)
        errand = functools.partial(self._let_go, session) if isinstance(session, Streamed) else self._give_back
        self._errands.put((None, errand))

    def run(
        self,
        run: int,
        key: Key,
        outputs: tuple[str, ...],
        feeds: Callable[[], Mapping[str, Any]],
        needed_nbytes: int = 0,
    ) -> None:
        """Run a partition whose session is open on what `feeds` returns; `Ran` tells.

        `needed_nbytes` is what a request is reckoned to take that is larger than foreseen, 0 of any other: it is
        refused where it would pass the budget.
        """
        session = self._sessions[key]
        if isinstance(session, Streamed):
            self._streams.hold(session)
        self._runs.put(_Job(run, key[0], session, outputs, feeds, needed_nbytes))

    def do(self, name: Any, errand: Callable[[], Any]) -> None:
        """Have something done beside the computing, in turn; `Done` tells with this name."""
        self._errands.put((name, errand))

    def running(self) -> tuple[int, float] | None:
        """Return the run that is computed, and for how many seconds so far."""
        now = self._now
        return None if now is None else (now[0], time.monotonic() - now[1])

    # The thread that computes.

    def _compute(self) -> None:
        while (job := self._runs.get()) is not None:
            start_s = time.monotonic()
            self._now = job.run, start_s
            try:
                outcome: dict[str, Any] | HypsError = self._outcome(job)
            except HypsError as error:
                outcome = error
            except Exception as error:  # this thread's top: were it to die, every later run would wait for ever
                logger.exception("a run broke off")
                outcome = InternalError(f"{type(error).__name__}: {error}")
            self._now = None
            if isinstance(job.session, Streamed):
                self._let_go(job.session)
            self._tell(Ran(job.run, outcome, start_s, time.monotonic()))
            del job, outcome  # which others may be done with, and are not to wait for the next in memory
            self._settle()

    def _settle(self) -> None:
        if self._ceiling is None:
            return
        try:
            self._ceiling.settle(self._opener.shrink)
        except ORT_ERRORS:  # this thread's top as well
            logger.exception("memory could not be given back")

    def _outcome(self, job: _Job) -> dict[str, Any]:
        feeds = dict(job.feeds())
        with self._room_for(job):
            if self._watchdog is None:
                return self._called(job, feeds, None)
            with self._watchdog.watch(job.run) as turn:
                return self._called(job, feeds, turn)

    @contextlib.contextmanager
    def _room_for(self, job: _Job) -> Iterator[None]:
        """Give a job that is larger than foreseen the room that it needs, and no more.

        Raises:
            ExecutionError: there is none (`E_MEMORY`).
        """
        if self._ceiling is None or not job.needed_nbytes:
            yield
            return
        with self._memory:
            self._ceiling.make_room(job.partition, job.needed_nbytes, self._opener.shrink, job.needed_nbytes)
            with self._ceiling.backstop():
                yield

    def _called(self, job: _Job, feeds: dict[str, Any], turn: Turn | None) -> dict[str, Any]:
        try:
            with guarded():
                made = job.session.run(list(job.outputs), feeds, None if turn is None else turn.options)
        except ORT_ERRORS as error:
            if turn is not None and turn.is_over and self._watchdog is not None:
                raise deadline_error(job.partition, self._watchdog.timeout_s) from error
            raise execution_error(job.partition, error) from error
        return dict(zip(job.outputs, made, strict=True))

    # The thread that does the rest.

    def _loaded(self, folder: Path, partition: Partition, mode: Mode, optimization: Optimization) -> Session:
        if mode is not Mode.STREAMED:
            return self._opener.open(folder / partition.file, mode, optimization)
        streamed = self._streams.begin(folder, partition, optimization, room_nbytes=0)
        self._streams.finish(streamed)
        return streamed

    def _give_back(self) -> None:
        self._opener.shrink()
        trim()

    def _let_go(self, streamed: Streamed) -> None:
        self._streams.shut(streamed)
        self._streams.shrink(0)  # tensors of other requests may come into its place at any time

    def _do_errands(self) -> None:
        while (entry := self._errands.get()) is not None:
            name, errand = entry
            try:
                result = errand()
            except HypsError as error:
                result = error
            except Exception as error:  # this thread's top, as above
                logger.exception("an errand broke off")
                result = InternalError(f"{type(error).__name__}: {error}")
            if name is not None:
                self._tell(Done(name, result))
