"""A pytest plugin for the runs under a fault: the copy is what is tested, failures are noted, the same ones each time.

It stands by itself: the runner copies it beside the repository's copy and names it with `-p`.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

PACKAGES = "HYPS_MUTANT_PACKAGES"
"""Environment: what must come from the copy, with commas between."""
ROOT = "HYPS_MUTANT_ROOT"
"""Environment: the copy."""
NOTES = "HYPS_MUTANT_NOTES"
"""Environment: the file that takes one JSON object a line for each test that fails."""


def pytest_configure() -> None:
    """Refuse to test anything but the copy; draw the same examples each time, and do not shrink what fails."""
    root = Path(os.environ[ROOT]).resolve()
    for name in filter(None, os.environ[PACKAGES].split(",")):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else Path()
        if not origin.is_relative_to(root):
            raise pytest.UsageError(f"{name} is {origin}, which is not in the copy {root}")
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test that failed."""
    if report.failed:
        _note(report.nodeid, report.longrepr, is_collected=True)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a file whose tests cannot be listed."""
    if report.failed:
        _note(report.nodeid, report.longrepr, is_collected=False)


def _note(test: str, problem: Any, *, is_collected: bool) -> None:
    crash = getattr(problem, "reprcrash", None)
    lines = str(problem if crash is None else crash.message).strip().splitlines() or [""]
    reason = lines[0] if crash is not None else lines[-1]
    with open(os.environ[NOTES], "a") as file:
        file.write(json.dumps({"test": test, "reason": reason, "is_collected": is_collected}) + "\n")
