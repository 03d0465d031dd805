"""`python bench/mutants`: puts deliberate faults into a copy of HyPS and prints which test catches each.

The status is 0 where every fault is caught, 1 where one is not.
"""

import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, machine
from hyps.terminal import table
from mutants.fault import Fault, RottenFaultError, check
from mutants.runner import Copy, Failure, RunError, area, digest, tracked_files
from mutants.table import FAULTS

ROOT = Path(__file__).parents[2]
_CLEAN_TIMEOUT_S = 1200.0

Records = dict[str, dict[str, Any]]
"""By the fault's name: the fault's result, and the digest of what it is of."""


@click.command()
@click.option("--only", multiple=True, metavar="WORD", help="Only faults with this in their name.")
@click.option("--jobs", default=1, show_default=True, help="Copies at once.")
@click.option("--timeout", default=150.0, show_default=True, help="Seconds for one fault's own tests.")
@click.option("--quick", is_flag=True, help="Where a fault's own tests miss it, do not run all of its area.")
@click.option("--fresh", is_flag=True, help="Forget earlier results instead of going on from them.")
@click.option("--list", "is_list", is_flag=True, help="Only say which faults there are.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS / "mutants.json", help="Where they go.")
def main(
    only: tuple[str, ...], jobs: int, timeout: float, quick: bool, fresh: bool, is_list: bool, results: Path
) -> None:
    """Put every fault into a copy, run the tests that should catch it, and where they do not all of its area."""
    faults = [fault for fault in FAULTS if not only or any(word in fault.name for word in only)]
    if is_list:
        print(table([(fault.name, fault.breaks) for fault in faults], ("fault", "what it breaks")))
        return
    try:
        for fault in faults:
            check(fault, ROOT)
        done = {} if fresh else read(results, FAULTS, ROOT)
        done = try_all(faults, done, results, jobs=jobs, timeout_s=timeout, is_quick=quick)
    except (RottenFaultError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(show(faults, done))
    sys.exit(any(done[fault.name]["verdict"] != "caught" for fault in faults))


def read(path: Path, faults: Collection[Fault], root: Path) -> Records:
    """Return the caught faults of a file of results that are still of today's faults, sources and tests."""
    found = json.loads(path.read_text())["faults"] if path.exists() else []
    records = {record["name"]: record for record in found}
    named = {fault.name: fault for fault in faults}
    caught = {n: r for n, r in records.items() if n in named and r["verdict"] == "caught"}
    return {n: r for n, r in caught.items() if r["digest"] == digest(named[n], root)}


def try_all(
    faults: Sequence[Fault], done: Records, results: Path, *, jobs: int, timeout_s: float, is_quick: bool
) -> Records:
    """Try what is not done yet; the file of results is complete after each.

    Raises:
        RunError: the tests fail without any fault.
    """
    left = [fault for fault in faults if fault.name not in done]
    if not left:
        return done
    files, digests = tracked_files(ROOT), {fault.name: digest(fault, ROOT) for fault in left}
    with tempfile.TemporaryDirectory(prefix="hyps-mutants-") as scratch:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(min(jobs, len(left))):
            copies.put(Copy(ROOT, files, Path(scratch) / str(number)))
        clean = _Clean(Copy(ROOT, files, Path(scratch) / "clean"))
        clean.check(sorted({test for fault in left for test in fault.tests}))
        writing = threading.Lock()

        def try_one(fault: Fault) -> None:
            copy = copies.get()
            more = () if is_quick else area(fault)
            try:
                result = copy.try_fault(fault, timeout_s, lambda: (more, clean.failing(more)))
            finally:
                copies.put(copy)
            with writing:
                told = {"name": fault.name, "path": fault.path, "breaks": fault.breaks, **asdict(result)}
                done[fault.name] = {**told, "digest": digests[fault.name]}
                _write(results, done)
                _tell(f"{fault.name}: {result.verdict} {result.caught_by}", result.seconds)

        with ThreadPoolExecutor(min(jobs, len(left))) as pool:
            try:
                list(pool.map(try_one, left))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return done


class _Clean:
    """What the tests say without a fault."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._failing: dict[tuple[str, ...], list[Failure]] = {}
        self._lock = threading.Lock()

    def check(self, tests: Sequence[str]) -> None:
        start = time.monotonic()
        found = self._copy.run(tests, _CLEAN_TIMEOUT_S, is_first_enough=False)
        if found:
            raise RunError(f"without any fault {found[0].test} fails: {found[0].reason}")
        _tell(f"without a fault {len(tests)} test files pass", time.monotonic() - start)

    def failing(self, tests: tuple[str, ...]) -> list[str]:
        """Return which of the tests fail anyway, so that they catch nothing."""
        with self._lock:
            if tests and tests not in self._failing:
                self._failing[tests] = self._copy.run(tests, _CLEAN_TIMEOUT_S, is_first_enough=False)
            return [failure.test for failure in self._failing.get(tests, ())]


def show(faults: Sequence[Fault], done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the faults, which test caught each and in how many seconds, 80 columns wide."""
    rows = [(fault.name, _catcher(done[fault.name]), f"{done[fault.name]['seconds']:.1f}") for fault in faults]
    caught = sum(done[fault.name]["verdict"] == "caught" for fault in faults)
    seconds = sum(done[fault.name]["seconds"] for fault in faults)
    return f"{table(rows, ('fault', 'caught by', 's'), 'llr')}\n\n{caught} of {len(faults)} caught, {seconds:.0f} s"


def _catcher(record: Mapping[str, Any]) -> str:
    """Return the test without the folders that all tests are in."""
    if record["verdict"] != "caught":
        return f"NOT CAUGHT ({record['verdict']}): {record['breaks']}"
    file, _, test = record["caught_by"].partition("::")
    return f"{Path(file).stem.removeprefix('test_')}: {test.removeprefix('test_')}" if test else file


def _write(path: Path, done: Records) -> None:
    ordered = [done[fault.name] for fault in FAULTS if fault.name in done]
    counts = {word: sum(record["verdict"] == word for record in ordered) for word in ("caught", "missed", "broken")}
    value = {"machine": machine(), **counts, "faults": ordered}
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    beside.replace(path)


def _tell(text: str, seconds: float) -> None:
    print(f"{seconds:6.1f} s  {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
