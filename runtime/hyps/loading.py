"""Has a plan's partitions in memory: loads each in the way that suits it, reads ahead, releases, and times it."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyps.adapters.machine import trim
from hyps.adapters.sessions import Mode, Session, Sessions
from hyps.adapters.streams import Streamed, Streams
from hyps.core.residency import Residency, Task, has_room_for_speed, packable
from hyps.errors import HypsError
from hyps.formats.plan import Plan

_REMEMBERED_RUNS = 4096


def _recent() -> deque[float]:
    return deque(maxlen=_REMEMBERED_RUNS)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a partition took, the latest last; only the last few thousand are remembered."""

    load_s: deque[float] = field(default_factory=_recent)
    """To have its weights and its session; of one that was read ahead, what the reading thread took."""
    run_s: deque[float] = field(default_factory=_recent)
    wait_s: deque[float] = field(default_factory=_recent)
    """What the request stood still for of each loading."""
    release_s: deque[float] = field(default_factory=_recent)
    """To hand its memory back after its turn."""
    read_nbytes: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_RUNS))
    """What was read of files for each loading; of weights that are mapped, their length."""


def choose_modes(
    plan: Plan, tasks: Sequence[Task], residency: Residency, alive_nbytes: int, *, is_spilling: bool
) -> dict[str, Mode]:
    """Return how each partition is run: laid out for speed where memory allows it, else read, else mapped.

    `alive_nbytes` is the most that a request has alive at once. Where tensors are sent away to a file, what is free is
    theirs, and nothing is laid out anew.
    """
    plain = {part.id: Mode.MAPPED if part.form is None else Mode.STREAMED for part in plan.partitions}
    if is_spilling:
        return plain
    if has_room_for_speed(tasks, residency, alive_nbytes):
        return dict.fromkeys(plain, Mode.FAST)
    return {**plain, **dict.fromkeys(packable(tasks, residency), Mode.PACKED)}


class Loader:
    """Loads and releases partitions as it is told; all its methods are for one thread at a time.

    Attributes:
        timings: seconds per partition id.
        modes: how each partition is run, by its id.
    """

    def __init__(self, folder: Path, plan: Plan, opener: Sessions, modes: Mapping[str, Mode]) -> None:
        """Take the plan in `folder`, what opens its sessions, and how each partition is run, by its id."""
        self._folder, self._opener, self.modes = folder, opener, dict(modes)
        self._optimization = plan.optimization
        self._partitions = {partition.id: partition for partition in plan.partitions}
        self._streams = Streams(opener)
        self._sessions: dict[str, Session] = {}
        self._ahead: dict[str, Streamed] = {}
        self._released: str | None = None
        self.timings = {partition.id: Timing() for partition in plan.partitions}

    @property
    def loaded(self) -> frozenset[str]:
        """Ids of the partitions that are in memory, or on their way."""
        return frozenset({*self._sessions, *self._ahead})

    def session(self, partition: str) -> Session:
        """Return what runs a loaded partition: a session, or a `Streamed`."""
        return self._sessions[partition]

    def prepare(self, partition: str) -> None:
        """Do what can be done once for all turns of a partition.

        Raises:
            PlanError: it cannot be loaded.
        """
        if self.modes[partition] is Mode.STREAMED:
            self._streams.prepare(self._folder, self._partitions[partition], self._optimization)

    def read_ahead(self, partition: str, room_nbytes: int | None) -> None:
        """Begin to load a partition beside what is done meanwhile, where it is one whose weights are read.

        Raises:
            PlanError: it cannot be loaded.
        """
        if self.modes[partition] is Mode.STREAMED:
            self._ahead[partition] = self._begin(partition, room_nbytes)

    def load(self, partition: str, room_nbytes: int | None = None) -> None:
        """Load a partition, or wait until it has been read ahead.

        Args:
            partition: its id.
            room_nbytes: what memory that nobody uses may take beside it; None: as much as there is.

        Raises:
            PlanError: it cannot be loaded.
        """
        start_s = time.perf_counter()
        is_ahead = partition in self._ahead
        if self.modes[partition] is Mode.STREAMED:
            streamed = self._ahead[partition] if is_ahead else self._begin(partition, room_nbytes)
            self._ahead[partition] = streamed  # so that `unload` finds it should the wait be broken off
            try:
                self._streams.finish(streamed)
            except HypsError:
                del self._ahead[partition]  # it has been shut
                raise
            self._sessions[partition] = self._ahead.pop(partition)
        else:
            path = self._folder / self._partitions[partition].file
            self._sessions[partition] = self._opener.open(path, self.modes[partition], self._optimization)
        wait_s = time.perf_counter() - start_s
        self.timings[partition].load_s.append(streamed.read_s if is_ahead else wait_s)
        self.timings[partition].wait_s.append(wait_s)
        self.timings[partition].read_nbytes.append(self._read_nbytes(partition))

    def _read_nbytes(self, partition: str) -> int:
        session = self._sessions[partition]
        if isinstance(session, Streamed):
            return session.read_nbytes
        return sum(ref.nbytes for ref in self._partitions[partition].weights)

    def unload(self, partition: str) -> None:
        """Release a partition that is loaded or on its way; nothing happens where it is neither."""
        start_s = time.perf_counter()
        ahead, session = self._ahead.pop(partition, None), self._sessions.pop(partition, None)
        if ahead is not None:
            self._streams.shut(ahead)
        if session is None:
            return
        if isinstance(session, Streamed):
            self._streams.shut(session)
        else:
            del session
            trim()
        self.timings[partition].release_s.append(time.perf_counter() - start_s)
        self._released = partition

    def shrink(self, most_nbytes: int) -> None:
        """Give memory back to the system until what nobody uses takes `most_nbytes` at most."""
        start_s = time.perf_counter()
        self._streams.shrink(most_nbytes)
        if self._released is not None:
            self.timings[self._released].release_s[-1] += time.perf_counter() - start_s

    def close(self) -> None:
        """Release everything."""
        for partition in [*self._ahead, *self._sessions]:
            self.unload(partition)
        self._streams.close()
        self._opener.shrink()
        trim()

    def _begin(self, partition: str, room_nbytes: int | None) -> Streamed:
        return self._streams.begin(self._folder, self._partitions[partition], self._optimization, room_nbytes)
