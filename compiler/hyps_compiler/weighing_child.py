"""The process in which a plan is weighed: it prints a `Weighing`, or null where the system does not tell peaks."""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hyps.adapters.guard import become_expendable, limit_seconds
from hyps.adapters.machine import hold_memory_down, trim
from hyps.adapters.plan_files import read_plan
from hyps.adapters.resident import Resident, give_back, peak_error_nbytes, reset_peak, resident
from hyps.adapters.sessions import Mode, Sessions
from hyps.adapters.tables import Table
from hyps.containment import die_with_writer
from hyps.errors import HypsError
from hyps.formats.plan import Form, Partition, Plan, StreamedWeight
from hyps.formats.weight_blocks import rows_nbytes
from hyps_compiler.arrays import read_npz
from hyps_compiler.weighing import Way, Weighing, Weight

_REPEATS = 4
"""The first time counts code that is read; of the other three the largest counts."""
_PATIENCE_S = 15.0
"""After so long no further repeat is begun."""

Feeds = Mapping[str, Any]
Runner = Callable[[Feeds], dict[str, Any]]


def main() -> None:
    """Weigh the plan `argv[1]` on the request in `argv[2]`, run in the way `argv[3]` by `argv[4]` threads.

    Its last argument is the longest that one call may take, in seconds, 0 for no limit. A refusal goes to stderr, its
    sentence and its hint on a line each, with its exit status. The process ends when its standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_seconds(float(sys.argv[5]) or None)
    way = msgspec.convert(sys.argv[3], Way)
    try:
        weighing = weigh(Path(sys.argv[1]), read_npz(Path(sys.argv[2])), way, int(sys.argv[4]) or None)
    except HypsError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(msgspec.json.encode(weighing).decode())


def weigh(folder: Path, feeds: Feeds, way: Way, threads: int | None) -> Weighing | None:
    """Return what each partition adds to the resident set of this process, which does nothing else."""
    plan = read_plan(folder)
    opener = Sessions(threads, is_alone=len(plan.partitions) == 1)
    hold_memory_down()
    opener.measure_base()
    give_back()
    base = resident()
    if base is None or not reset_peak():
        return None
    return _Scale(folder, plan, way, opener).weigh(feeds, base)


@dataclass(slots=True)
class _Watch:
    """What one turn of a partition did to the resident set."""

    rise_nbytes: int
    anonymous_nbytes: int
    file_nbytes: int
    seconds: float


@dataclass(slots=True)
class _Scale:
    """Runs partitions one after another, each loaded for its own turn alone."""

    folder: Path
    plan: Plan
    way: Way
    opener: Sessions
    store: dict[str, Any] = field(default_factory=dict)

    def weigh(self, feeds: Feeds, base: Resident) -> Weighing:
        watches: dict[str, list[_Watch]] = {part.id: [] for part in self.plan.partitions}
        start_s = time.monotonic()
        for _ in range(_REPEATS):
            self.store = dict(feeds)
            for index, partition in enumerate(self.plan.partitions):
                watches[partition.id].append(self._watched(partition))
                self._drop_unneeded(index)
            if time.monotonic() - start_s > _PATIENCE_S:
                break
        self.store = {}
        trim()
        end = _resident()
        return Weighing(
            base_nbytes=base.total_nbytes,
            end_nbytes=end.total_nbytes,
            error_nbytes=peak_error_nbytes(1),
            partitions=tuple(_weight(part.id, watches[part.id]) for part in self.plan.partitions),
        )

    def _watched(self, partition: Partition) -> _Watch:
        held_nbytes = sum(_nbytes(value) for value in self.store.values())
        trim()
        reset_peak()
        before, start_s = _resident(), time.perf_counter()
        run = self._load(partition)
        made = run({name: self.store[name] for name in partition.inputs})
        seconds, after = time.perf_counter() - start_s, _resident()
        self.store.update(made)
        return _Watch(
            rise_nbytes=after.peak_nbytes - before.total_nbytes + held_nbytes,
            anonymous_nbytes=after.anonymous_nbytes - before.anonymous_nbytes + held_nbytes,
            file_nbytes=after.file_nbytes - before.file_nbytes,
            seconds=seconds,
        )

    def _load(self, partition: Partition) -> Runner:
        if self.way == "streamed" and partition.form is not None:
            return self._streamed(partition)
        mode = Mode.PACKED if self.way == "kept" else Mode.MAPPED
        session = self.opener.open(self.folder / partition.file, mode, self.plan.optimization)
        names = list(partition.outputs)
        return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))

    def _streamed(self, partition: Partition) -> Runner:
        form = partition.form
        assert form is not None
        session = self.opener.open(self.folder / form.file, Mode.MAPPED, self.plan.optimization)
        files = {ref.path: ref for ref in partition.weights}
        tables = {
            w: Table(self.folder, files[weight.path], weight) for w, weight in _named(form) if weight.looked_up_by
        }
        weights = {w: _read(self.folder, weight) for w, weight in _named(form) if w not in tables}
        made = [f"y{index}" for index in range(len(form.outputs))]

        def run(feeds: Feeds) -> dict[str, Any]:
            given = {f"x{index}": feeds[name] for index, name in enumerate(form.inputs)}
            rows = {w: table.array for w, table in tables.items()}
            spread = [_read_rows(table, feeds) for table in tables.values()]
            answers = session.run(made, {**given, **weights, **rows})
            del spread
            for table in tables.values():
                table.close()
            return dict(zip(form.outputs, answers, strict=True))

        return run

    def _drop_unneeded(self, index: int) -> None:
        later = {name for part in self.plan.partitions[index + 1 :] for name in part.inputs}
        needed = later | {tensor.name for tensor in self.plan.model.outputs}
        self.store = {name: value for name, value in self.store.items() if name in needed}


def _weight(partition: str, watches: list[_Watch]) -> Weight:
    last = watches[-1]
    return Weight(
        id=partition,
        rises_nbytes=tuple(watch.rise_nbytes for watch in watches),
        anonymous_nbytes=last.anonymous_nbytes,
        file_nbytes=last.file_nbytes,
        seconds=statistics.median(watch.seconds for watch in watches),
    )


def _named(form: Form) -> Iterator[tuple[str, StreamedWeight]]:
    """Yield the form's weights by its names for them."""
    return ((f"w{index}", weight) for index, weight in enumerate(form.weights))


def _read_rows(table: Table, feeds: Feeds) -> Any:
    """Read what the request looks up; return memory of the size by which rows of another request may take more."""
    count = sum(feeds[name].size for name in table.looked_up_by)
    most = rows_nbytes(table.array.nbytes, len(table.array), count)
    return np.ones(max(0, most - table.read(feeds)), np.uint8)


def _read(folder: Path, weight: StreamedWeight) -> Any:
    """Return the weight, read into memory of its own."""
    raw = np.fromfile(folder / weight.path, np.uint8, count=weight.nbytes, offset=weight.offset)
    return raw.view(weight.dtype).reshape(weight.shape)


def _nbytes(value: Any) -> int:
    return int(getattr(value, "nbytes", 0))


def _resident() -> Resident:
    now = resident()
    assert now is not None, "it was told before the first partition"
    return now


if __name__ == "__main__":
    main()
