"""The program that asks: requests to a manager or worker, from its own place in the testbed.

    python -m fleet.asking JOB

JOB is a file with a `Job` as JSON; an `Asked` is printed.
"""

import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

import hyps
from hyps.observer import Observer, observe

_SETTLE_S = 0.03
"""After which the manager knows of all that was done for an answer it has sent."""
_READY_S = 300.0


class Job(Struct, frozen=True, kw_only=True):
    """What to ask."""

    address: str
    inputs: str
    """An .npz file."""
    expected: str
    """An .npz file with the unsplit model's outputs."""
    tolerance: float
    """Largest difference of an answer, relative to the largest value."""
    warm_up: int = 1
    requests: int = 0
    """That are made one after another."""
    in_flight: int = 0
    """That are kept on their way at once, for `seconds`."""
    seconds: float = 0.0
    reports: bool = False
    """Whether to ask, after each request, what the partitions took."""


class Asked(Struct, frozen=True, kw_only=True):
    """What came of it."""

    latencies_s: list[float]
    runs_s: list[dict[str, float]] = []
    """Of each request: seconds that each partition took; of requests made at once one entry, the means."""
    done_s: list[float] = []
    """Moments at which answers came that were asked for at once, from the start."""
    largest_gap: float = 0.0


class WrongAnswerError(Exception):
    """An answer is not the unsplit model's."""


class Asker:
    """One client, which checks every answer."""

    def __init__(self, job: Job) -> None:
        self.job, self.largest_gap = job, 0.0
        self.inputs, self.expected = dict(np.load(job.inputs)), dict(np.load(job.expected))
        self.session = hyps.InferenceSession(job.address)

    def ask(self) -> float:
        """Make a request and return the seconds until its answer."""
        start_s = time.perf_counter()
        answers = self.session.run(list(self.expected), self.inputs)
        latency_s = time.perf_counter() - start_s
        for answer, expected in zip(answers, self.expected.values(), strict=True):
            gap = float(np.max(np.abs(answer - expected)) / np.max(np.abs(expected)))
            self.largest_gap = max(self.largest_gap, gap)
        if not self.largest_gap <= self.job.tolerance:
            raise WrongAnswerError(f"an answer is off by {self.largest_gap:.2g} of the largest value")
        return latency_s


def main() -> None:
    """Ask, and print what it took."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    asker = Asker(job)
    for _ in range(job.warm_up):
        asker.ask()
    asked = flood(asker) if job.in_flight else one_by_one(asker)
    print(msgspec.json.encode(asked).decode())


def one_by_one(asker: Asker) -> Asked:
    """Make the requests one after another."""
    latencies_s, runs_s = [], []
    if not asker.job.reports:
        latencies_s = [asker.ask() for _ in range(asker.job.requests)]
        return Asked(latencies_s=latencies_s, largest_gap=asker.largest_gap)
    with observe(asker.job.address) as observer:
        before = _totals_s(observer)
        for _ in range(asker.job.requests):
            latencies_s.append(asker.ask())
            time.sleep(_SETTLE_S)
            after = _totals_s(observer)
            runs_s.append({partition: after[partition] - before.get(partition, 0.0) for partition in after})
            before = after
    return Asked(latencies_s=latencies_s, runs_s=runs_s, largest_gap=asker.largest_gap)


def flood(asker: Asker) -> Asked:
    """Keep several requests on their way for a while, each from a client of its own."""
    job = asker.job
    askers = [asker, *(Asker(job) for _ in range(job.in_flight - 1))]
    with observe(job.address) as observer:
        before = _totals_s(observer)
    start_s = time.perf_counter()
    latencies_s: list[float] = []
    done_s: list[float] = []
    failures: list[BaseException] = []

    def keep_asking(one: Asker) -> None:
        try:
            while time.perf_counter() - start_s < job.seconds and not failures:
                latency_s = one.ask()
                latencies_s.append(latency_s)
                done_s.append(time.perf_counter() - start_s)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=keep_asking, args=(one,)) for one in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    with observe(job.address) as observer:
        after = _totals_s(observer)
    mean_s = {name: (total_s - before.get(name, 0.0)) / max(1, len(done_s)) for name, total_s in after.items()}
    gap = max(one.largest_gap for one in askers)
    return Asked(latencies_s=latencies_s, runs_s=[mean_s], done_s=sorted(done_s), largest_gap=gap)


def _totals_s(observer: Observer) -> dict[str, float]:
    return {status.partition: status.run.total_s for status in observer.ask().partitions}


if __name__ == "__main__":
    main()
