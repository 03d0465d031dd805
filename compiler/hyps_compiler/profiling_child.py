"""Measures pieces of a model in a process of its own, as a worker would run them, and prints what it found.

What is compared with something else is timed in turns with it, so that what disturbs one disturbs the other; and the
whole model is in every group, so that groups can be compared.
"""

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hyps.adapters.guard import become_expendable, guarded, limit_seconds
from hyps.adapters.machine import available_nbytes, peak_rss_nbytes, trim
from hyps.adapters.resident import CODE_NBYTES, OwnPeak
from hyps.adapters.sessions import ORT_ERRORS, Mode, Session, Sessions, execution_error
from hyps.containment import die_with_writer
from hyps.errors import HypsError, InfeasibleError
from hyps.formats.plan import Optimization
from hyps.formats.profiles import Sample
from hyps.formats.quantities import format_nbytes
from hyps_compiler.arrays import read_npz
from hyps_compiler.profiling_jobs import Answer, Border, Job, Piece, Progress

_OPTIMIZATION: Optimization = "portable"
_GROUP_PIECES = 24
"""Loaded at a time, at most."""
_GROUP_S, _MOST_ROUNDS = 2.0, 10
"""Short pieces are timed more often than asked: until a group took so long, at most so many times as often."""
_LONG_GROUP_S, _FEWEST_ROUNDS = 15.0, 3
"""Long ones, such as large batches, less often: a group that has taken so long ends after so many rounds."""
_EMPTY_RUNS = 400
_SHARE_OF_AVAILABLE = 0.7

Feeds = Mapping[str, Any]


def main() -> None:
    """Do the job that `argv[1]` names; lines of JSON go to stdout: `Progress` as often as there is some, one `Answer`.

    A refusal goes to stderr, its sentence and its hint on a line each, with its exit status. The process ends when its
    standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    limit_seconds(job.timeout_s or None)
    try:
        answer = _Bench(job, _print).measure()
    except HypsError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_status)
    _print(answer)


def _print(line: Progress | Answer) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


@dataclass(slots=True)
class _Runner:
    """A piece that is loaded, with a request for it."""

    piece: Piece
    session: Session
    feeds: Feeds = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def run(self) -> list[Any]:
        """Return the outputs of one run.

        Raises:
            ExecutionError: onnxruntime fails.
        """
        try:
            outputs: list[Any] = self.session.run(list(self.piece.outputs), dict(self.feeds))
        except ORT_ERRORS as error:
            raise execution_error(self.piece.file, error) from error
        return outputs

    def time(self) -> None:
        """Time one run.

        What ran before it has put its data out of the caches, as the wait for a request does on a worker.
        """
        with guarded():
            start_s = time.perf_counter()
            self.run()
            self.seconds.append(time.perf_counter() - start_s)


@dataclass(frozen=True, slots=True)
class _Round:
    """What was timed in turns: the whole, and both sides of some borders."""

    whole: list[float]
    heads: dict[int, list[float]]
    tails: dict[int, list[float]]


class _Bench:
    def __init__(self, job: Job, say: Callable[[Progress], None]) -> None:
        self._job, self._say = job, say
        self._sessions = Sessions(job.threads, share_pool=True)
        self._random = random.Random(0)
        self._base_nbytes = self._sessions.measure_base() + CODE_NBYTES
        self._peak = OwnPeak()
        free = (available_nbytes() or 2**62) * _SHARE_OF_AVAILABLE
        self._room_nbytes = free if job.memory_bytes is None else min(free, job.memory_bytes - self._base_nbytes)
        self._steps = 0

    def measure(self) -> Answer:
        """Return what the job asks for."""
        session_s = self._time_empty()
        job = self._job
        if job.whole.session_bytes(max(job.requests)) <= self._room_nbytes:
            return self._measure_cuts(session_s)
        return self._measure_layers(session_s)

    def _time_empty(self) -> float:
        """Return the seconds of a partition that does nothing."""
        session = self._open(self._job.empty)
        (name,) = (value.name for value in session.get_inputs())
        feeds, seconds = {name: np.zeros(1, np.float32)}, []
        with guarded():
            for _ in range(_EMPTY_RUNS):
                start_s = time.perf_counter()
                session.run(None, feeds)
                seconds.append(time.perf_counter() - start_s)
        return statistics.median(seconds)

    # The whole fits: every border's head and tail.

    def _measure_cuts(self, session_s: float) -> Answer:
        job = self._job
        requests = {batch: self._request(batch) for batch in sorted(job.requests)}
        whole = self._load(job.whole)
        for request in requests.values():
            whole.feeds = request
            whole.time()
        peak = self._peak_nbytes()
        groups = list(self._groups(job.borders)) or [()]
        found: dict[int, list[_Round]] = {batch: [] for batch in requests}
        for group in groups:
            heads = {border.index: self._load(border.head) for border in group}
            tails = {border.index: self._load(border.tail) for border in group}
            for batch, request in requests.items():
                self._feed(group, heads, tails, request)
                whole.feeds = request
                self._time_in_turns([whole, *heads.values(), *tails.values()])
                found[batch].append(_Round(whole.seconds, _seconds(heads), _seconds(tails)))
                self._step(len(groups) * len(requests))
        wholes = {batch: [s for each in rounds for s in each.whole] for batch, rounds in found.items()}
        return Answer(
            session_s=session_s,
            whole={batch: _sample(seconds) for batch, seconds in wholes.items()},
            heads=_by_border(found, lambda each: each.heads),
            tails=_by_border(found, lambda each: each.tails),
            peak_memory_bytes=peak,
        )

    def _groups(self, borders: Sequence[Border]) -> Iterator[Sequence[Border]]:
        """Yield the borders in groups whose sessions fit beside the whole model's, far ones together.

        A group of neighbours would be disturbed as one, and its error be taken for the cost of its layers.
        """
        batch = max(self._job.requests)
        room = self._room_nbytes - self._job.whole.session_bytes(batch)
        needs = [border.head.session_bytes(batch) + border.tail.session_bytes(batch) for border in borders]
        count = max(1, math.ceil(sum(needs) / max(room, 1)), math.ceil(2 * len(borders) / _GROUP_PIECES))
        for start in range(count):
            group: list[Border] = []
            taken = 0
            for border, need in list(zip(borders, needs, strict=True))[start::count]:
                if group and taken + need > room:
                    yield group
                    group, taken = [], 0
                group.append(border)
                taken += need
            if group:
                yield group

    def _feed(
        self, group: Sequence[Border], heads: Mapping[int, _Runner], tails: Mapping[int, _Runner], request: Feeds
    ) -> None:
        """Give each piece its inputs: the request's, and for tails what the heads make."""
        for border in group:
            head, tail = heads[border.index], tails[border.index]
            head.feeds = {name: request[name] for name in border.head.inputs}
            with guarded():
                made = dict(zip(border.head.outputs, head.run(), strict=True))
            tail.feeds = {name: made[name] if name in made else request[name] for name in border.tail.inputs}

    # It does not: layer by layer, and each with the next.

    def _measure_layers(self, session_s: float) -> Answer:
        job = self._job
        self._check_room()
        alone: dict[int, dict[int, Sample]] = {}
        pairs: dict[int, dict[int, Sample]] = {}
        for batch in sorted(job.requests):
            known = dict(self._request(batch))
            for place, piece in enumerate(job.layers):
                runner = self._time_alone(piece, known)
                alone.setdefault(place, {})[batch] = _sample(runner.seconds)
                made = dict(zip(piece.outputs, runner.run(), strict=True))
                del runner
                self._sessions.shrink()
                if place < len(job.pairs) and job.pairs[place].session_bytes(batch) <= self._room_nbytes:
                    pairs.setdefault(place, {})[batch] = _sample(self._time_alone(job.pairs[place], known).seconds)
                wanted = {name for later in job.layers[place + 1 :] for name in later.inputs}
                known = {name: value for name, value in {**known, **made}.items() if name in wanted}
                trim()
                self._step(len(job.layers) * len(job.requests))
        pairs = {place: samples for place, samples in pairs.items() if len(samples) == len(job.requests)}
        return Answer(session_s=session_s, whole=None, alone=alone, pairs=pairs, peak_memory_bytes=self._peak_nbytes())

    def _check_room(self) -> None:
        """Refuse a model of which one layer is too large.

        Raises:
            InfeasibleError: it is.
        """
        needed = max(piece.session_bytes(max(self._job.requests)) for piece in self._job.layers)
        if needed > self._room_nbytes:
            least = -(-(needed + self._base_nbytes) // 10**6)
            raise InfeasibleError(
                f"measuring the largest layer needs {format_nbytes(needed)} beside the process itself",
                f"give --memory {least}MB, or free memory",
            )

    def _time_alone(self, piece: Piece, known: Feeds) -> _Runner:
        runner = self._load(piece)
        runner.feeds = {name: known[name] for name in piece.inputs}
        self._time_in_turns([runner])
        return runner

    # Both.

    def _peak_nbytes(self) -> int | None:
        return self._peak.measure() or peak_rss_nbytes()

    def _request(self, batch: int) -> Feeds:
        return read_npz(Path(self._job.folder) / self._job.requests[batch])

    def _load(self, piece: Piece) -> _Runner:
        return _Runner(piece, self._open(piece.file))

    def _open(self, name: str) -> Session:
        return self._sessions.open(Path(self._job.folder) / name, Mode.FAST, _OPTIMIZATION)

    def _time_in_turns(self, runners: Sequence[_Runner]) -> None:
        """Time each of them once a round; what the first round says is forgotten, it warms up."""
        order = list(runners)
        for runner in order:
            runner.seconds = []
            runner.time()
        for runner in order:
            runner.seconds = []
        start_s, asked = time.monotonic(), self._job.repeats
        for count in range(_MOST_ROUNDS * asked):
            limit_s = _GROUP_S if count >= asked else _LONG_GROUP_S if count >= _FEWEST_ROUNDS else math.inf
            if time.monotonic() - start_s > limit_s:
                return
            self._random.shuffle(order)
            for runner in order:
                runner.time()

    def _step(self, total: int) -> None:
        self._steps += 1
        self._say(Progress(done=self._steps, total=total))


def _seconds(runners: Mapping[int, _Runner]) -> dict[int, list[float]]:
    return {index: runner.seconds for index, runner in runners.items()}


def _by_border(
    found: Mapping[int, Sequence[_Round]], side: Callable[[_Round], Mapping[int, list[float]]]
) -> dict[int, dict[int, Sample]]:
    """Return the samples of one side of each border, by batch.

    A group's seconds are brought to those of the others by what the whole took meanwhile.
    """
    samples: dict[int, dict[int, Sample]] = {}
    for batch, rounds in found.items():
        typical_s = statistics.median(seconds for each in rounds for seconds in each.whole)
        for each in rounds:
            drift = typical_s / statistics.median(each.whole)
            for index, seconds in side(each).items():
                samples.setdefault(index, {})[batch] = _sample([value * drift for value in seconds])
    return samples


def _sample(seconds: Iterable[float]) -> Sample:
    ordered = sorted(seconds)
    place = min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)
    return Sample(median_s=statistics.median(ordered), p95_s=ordered[place], n=len(ordered))


if __name__ == "__main__":
    main()
