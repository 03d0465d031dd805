"""Versions that will do."""

import re
import tomllib
from pathlib import Path

import pytest

from hyps.dependencies import FLOORS, UNSAFE, check_safe, floor_of, is_below
from hyps.errors import DependencyError


def test_the_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    declared = {
        extra: dict(re.split(">=", line) for line in groups[extra] if not line.startswith("hyps[")) for extra in FLOORS
    }
    assert declared == FLOORS


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.9", True), ("1.20.9", True), ("1.21", False), ("1.21.0+cpu", False), ("2", False)]
)
def test_versions_compare_as_numbers(version: str, is_old: bool) -> None:
    assert is_below(version, "1.21") == is_old


def test_what_is_installed_here_is_safe() -> None:
    check_safe(*UNSAFE)


@pytest.mark.parametrize("package", sorted(UNSAFE))
def test_an_old_package_is_refused(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{package}.__version__", "1.2.3")
    with pytest.raises(DependencyError, match=f"{package} 1.2.3 is installed, and any before") as caught:
        check_safe(package)
    assert caught.value.hint == f'pip install --upgrade "{package}>={floor_of(package)}"'
