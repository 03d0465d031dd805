"""Copies of the repository in which faults are tried, and what pytest says of each."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mutants import guard
from mutants.fault import Fault, mutated

Verdict = Literal["caught", "missed", "broken"]
"""A fault is broken where the tests cannot even be imported with it, or use a name that is not there: no test was
needed to see it."""

SOURCES = ("compiler", "passes", "runtime", "models")
PACKAGES = ("hyps", "hyps_compiler", "hyps_models", "hyps_passes")

_ALL_CUTS = "tests/property tests/integration/test_onnx_light.py tests/integration/test_real_features.py"
AREAS: dict[str, str] = {
    "compiler": f"tests/compiler tests/passes {_ALL_CUTS}",
    "passes": f"tests/passes tests/compiler {_ALL_CUTS}",
    "runtime": f"tests/runtime tests/compiler {_ALL_CUTS}",
    "bench": "tests/integration/test_conformance.py",
}
"""By the first folder of a source file, the tests that are run where those that should catch a fault do not."""

_TRIVIAL = re.compile(r"^(NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError)\b")
_PASSED, _FAILED, _INTERRUPTED = 0, 1, 2
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that failed."""

    test: str
    reason: str
    is_collected: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a fault."""

    verdict: Verdict
    caught_by: str
    """The test that failed, or that the time was over; empty where none did."""
    reason: str
    seconds: float


class RunError(Exception):
    """pytest itself could not do its work."""


def tracked_files(root: Path) -> list[str]:
    """Return the paths of what git keeps of the repository, new files that it does not know yet left out."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True)
    return [name for name in done.stdout.decode().split("\0") if name and (root / name).is_file()]


class Copy:
    """A copy of the repository, as its working tree is now, in which one fault at a time is put."""

    def __init__(self, root: Path, files: Collection[str], folder: Path, packages: Collection[str] = PACKAGES) -> None:
        """Copy `files` of the repository `root` into the new folder `folder`."""
        self._copy, self._guard = folder / "copy", folder / "guard"
        for name in files:
            target = self._copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        self._guard.mkdir(parents=True)
        shutil.copy2(guard.__file__, self._guard / "hyps_mutant_guard.py")
        self._notes = folder / "notes.jsonl"
        paths = [*(self._copy / name for name in SOURCES), self._guard]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            guard.ROOT: str(self._copy),
            guard.PACKAGES: ",".join(packages),
            guard.NOTES: str(self._notes),
        }
        self._times = itertools.count(int(time.time()) + 2)

    def try_fault(
        self, fault: Fault, timeout_s: float, more: Callable[[], tuple[Sequence[str], Collection[str]]]
    ) -> Result:
        """Run the fault's tests with the fault in its place, and where they pass those of `more`.

        Args:
            fault: what to put in; the copy is as before afterwards.
            timeout_s: longest that its own tests may take.
            more: returns further test files or folders, and the tests among them that fail without any fault.

        Raises:
            RottenFaultError: the fault does not fit.
            RunError: pytest itself failed.
        """
        path, start = self._copy / fault.path, time.monotonic()
        source = path.read_text()
        self._write(path, mutated(fault, source))
        try:
            found = self.run(fault.tests, timeout_s, is_first_enough=True)
            if not found:
                tests, known = more()
                found = self.run(tests, 10 * timeout_s, is_first_enough=True, leave_out=known) if tests else []
        finally:
            self._write(path, source)
        return _result(found, time.monotonic() - start)

    def run(
        self, tests: Sequence[str], timeout_s: float, *, is_first_enough: bool, leave_out: Collection[str] = ()
    ) -> list[Failure]:
        """Run test files in the copy as it is; return what failed, the first one only where that is enough.

        Raises:
            RunError: pytest itself failed.
        """
        self._notes.write_text("")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "hyps_mutant_guard", *tests]
        command += [f"--deselect={test}" for test in leave_out] + ["-x"] * is_first_enough
        status, said = _finish(command, self._copy, self._environment, timeout_s)
        if status is None:
            return [Failure(f"a limit of {timeout_s:g} s", "the tests went on and on")]
        failures = [Failure(**json.loads(line)) for line in self._notes.read_text().splitlines()]
        if status not in (_PASSED, _FAILED, _INTERRUPTED) or bool(failures) != (status != _PASSED):
            raise RunError(f"pytest ended with status {status}: {' '.join(said.split())[-400:]}")
        return failures

    def _write(self, path: Path, text: str) -> None:
        """Write a source file with a time of its own, by which Python knows compiled code that is out of date."""
        path.write_text(text)
        seconds = next(self._times)
        os.utime(path, (seconds, seconds))


def digest(fault: Fault, root: Path) -> str:
    """Return what tells whether a result is of today: of the fault, the file that it is in, and its tests."""
    told = hashlib.sha256(repr(fault).encode())
    for path in (fault.path, *fault.tests):
        told.update((root / path).read_bytes())
    return told.hexdigest()[:16]


def area(fault: Fault) -> tuple[str, ...]:
    """Return all tests that have to do with what the fault is in."""
    return tuple(AREAS[fault.path.split("/")[0]].split())


def _result(found: Sequence[Failure], seconds: float) -> Result:
    if not found:
        return Result("missed", "", "", round(seconds, 1))
    first = found[0]
    is_trivial = not first.is_collected or _TRIVIAL.match(first.reason) is not None
    return Result("broken" if is_trivial else "caught", first.test, first.reason[:200], round(seconds, 1))


def _finish(
    command: Sequence[str], folder: Path, environment: dict[str, str], timeout_s: float
) -> tuple[int | None, str]:
    """Return the exit status and what was printed; None for a status where the time was over, and nothing is left."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return None, ""
        except BaseException:
            _end(process)
            raise
    return process.returncode, said


def _end(process: "subprocess.Popen[str]") -> None:
    """Interrupt pytest, so that its tests end what they have started; kill what does not listen."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
