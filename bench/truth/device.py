"""The program on the device: runs the first side of a cut itself and asks a worker for the rest, when it is told to.

    python -m truth.device JOB

JOB is a file with a line of JSON: the model and, by the name of each cut, the folder of its head and the address of the
worker that has its tail. Then lines on standard input, `NAME COUNT`, are answered with a line of JSON each: per request
the microseconds of the whole and of the head. All heads stay loaded, as a worker's partitions do.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import hyps
import hyps_models
from hyps.local import LocalRunner
from truth.job import Job, Part, decode_job

_TOLERANCE = 1e-4
"""Of the largest output: layouts and fusions differ between the parts and the whole."""


class Cut:
    """Both sides of a cut, ready to run."""

    def __init__(self, part: Part, stack: contextlib.ExitStack) -> None:
        """Load the head and connect to the tail."""
        self.head = stack.enter_context(LocalRunner(part.head, threads=1, check=False)) if part.head else None
        self.tail = stack.enter_context(hyps.InferenceSession(part.tail)) if part.tail else None
        self.wanted = [told.name for told in self.tail.get_inputs()] if self.tail else []
        self.answered = [told.name for told in self.tail.get_outputs()] if self.tail else []

    def run(self, feeds: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Return the outputs of both sides, and the seconds of the first."""
        start_s = time.perf_counter()
        made = self.head.run({told.name: feeds[told.name] for told in self.head.inputs}) if self.head else {}
        head_s = time.perf_counter() - start_s
        if self.tail is not None:
            known = {**feeds, **made}
            answer = self.tail.run(None, {name: known[name] for name in self.wanted})
            made = {**made, **dict(zip(self.answered, answer, strict=True))}
        return made, head_s


def main() -> None:
    """Load every cut, check that all give the same answer, and run what standard input asks for."""
    job = decode_job(Path(sys.argv[1]).read_bytes())
    feeds = hyps_models.sample_inputs(job.model)
    with contextlib.ExitStack() as stack:
        cuts = {name: Cut(part, stack) for name, part in job.parts.items()}
        _check(job, cuts, feeds)
        print("ready", flush=True)
        for line in sys.stdin:
            name, count = line.rsplit(maxsplit=1)
            print(json.dumps([_timed(cuts[name], feeds) for _ in range(int(count))]), flush=True)


def _timed(cut: Cut, feeds: dict[str, Any]) -> tuple[int, int]:
    start_s = time.perf_counter()
    _, head_s = cut.run(feeds)
    return round((time.perf_counter() - start_s) * 1e6), round(head_s * 1e6)


def _check(job: Job, cuts: dict[str, Cut], feeds: dict[str, Any]) -> None:
    """Refuse to time what does not compute the model."""
    reference, _ = cuts[job.reference].run(feeds)
    for name, cut in cuts.items():
        made, _ = cut.run(feeds)
        for output, expected in reference.items():
            difference = float(np.abs(made[output] - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
            if difference > _TOLERANCE:
                raise SystemExit(f"cut `{name}` differs by {difference:.2g} in `{output}`")


if __name__ == "__main__":
    main()
