"""The runner of deliberate faults, on a tiny repository; `bench/mutants` puts the faults themselves into this one."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mutants import __main__ as command
from mutants.fault import Fault, RottenFaultError, check, mutated
from mutants.runner import PACKAGES, SOURCES, Copy, RunError
from mutants.table import FAULTS

ROOT = Path(__file__).parents[2]
TOY = "runtime/hyps/toy.py"
TOY_TESTS = "tests/test_toy.py"
SOURCE = """\
def double(number: int) -> int:
    while number > 99:
        number -= 1
    return 2 * number


def triple(number: int) -> int:
    return 3 * number
"""
TESTS = """\
from hyps.toy import double


def test_two_is_doubled() -> None:
    assert double(2) == 4


def test_numbers_that_are_too_large_are_made_smaller() -> None:
    assert double(101) == 198
"""


def toy_fault(find: str, replacement: str, name: str = "toy") -> Fault:
    return Fault(name, TOY, find, replacement, "something", (TOY_TESTS,))


CAUGHT = toy_fault("2 * number", "3 * number", "caught")
MISSED = toy_fault("return 3 * number", "return 4 * number", "missed")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with empty packages, a module and its tests."""
    root = tmp_path / "repository"
    homes = ("runtime", "compiler", "models", "passes")
    files = {f"{home}/{package}/__init__.py": "" for home, package in zip(homes, PACKAGES, strict=True)}
    for name, text in {**files, "pytest.ini": "[pytest]\n", TOY: SOURCE, TOY_TESTS: TESTS}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def copy_of(root: Path, *, without: str = "") -> Copy:
    files = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return Copy(root, [name for name in files if name != without], root.parent / "work")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_fits_the_sources(fault: Fault) -> None:
    check(fault, ROOT)
    assert fault.path.split("/")[0] in {*SOURCES, "bench"}
    assert fault.breaks
    assert fault.tests


def test_faults_have_names_of_their_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 35


@pytest.mark.parametrize(
    ("find", "replacement", "problem"),
    [
        ("4 * number", "5 * number", "its place occurs 0 times"),
        ("number", "numbers", "its place occurs 6 times"),
        ("2 * number", "(2 * number)", "changes nothing"),
        ("2 * number", "2 * number  # twice", "changes nothing"),
        ("2 * number", "2 * (number", "is no Python any more"),
    ],
)
def test_a_fault_that_does_not_fit_is_reported(find: str, replacement: str, problem: str) -> None:
    with pytest.raises(RottenFaultError, match=problem):
        mutated(toy_fault(find, replacement), SOURCE)


def test_a_fault_whose_tests_are_gone_is_reported(repository: Path) -> None:
    check(CAUGHT, repository)
    (repository / TOY_TESTS).unlink()
    with pytest.raises(RottenFaultError, match=r"there is no tests/test_toy\.py"):
        check(CAUGHT, repository)


def test_a_fault_is_caught_missed_or_broken_and_leaves_nothing_behind(repository: Path) -> None:
    copy = copy_of(repository)
    more = ((), ())
    assert copy.run([TOY_TESTS], 60, is_first_enough=False) == []
    for fault, verdict, caught_by in (
        (CAUGHT, "caught", f"{TOY_TESTS}::test_two_is_doubled"),
        (MISSED, "missed", ""),
        (toy_fault("number > 99", "number > 98"), "caught", "smaller"),
        (toy_fault("number > 99", "number > limit"), "broken", ""),
        (toy_fault("def double(", "def duplicate("), "broken", ""),
    ):
        result = copy.try_fault(fault, 60, lambda: more)
        assert (result.verdict, caught_by in result.caught_by) == (verdict, True), (fault, result)
    assert copy.run([TOY_TESTS], 60, is_first_enough=False) == []
    assert (repository / TOY).read_text() == SOURCE


def test_tests_that_go_on_and_on_catch_too(repository: Path) -> None:
    result = copy_of(repository).try_fault(toy_fault("number -= 1", "number += 0"), 4, lambda: ((), ()))
    assert (result.verdict, result.caught_by) == ("caught", "a limit of 4 s")


def test_the_rest_of_an_area_is_run_where_a_faults_own_tests_miss_it(repository: Path) -> None:
    lines = ("import hyps.toy", "def test_triple(): assert hyps.toy.triple(1) == 3", "def test_bad(): assert False")
    (repository / "tests" / "test_more.py").write_text("\n".join(lines))
    copy = copy_of(repository)
    bad, good = "tests/test_more.py::test_bad", "tests/test_more.py::test_triple"
    result = copy.try_fault(MISSED, 60, lambda: (["tests/test_more.py"], [bad]))
    assert (result.verdict, result.caught_by) == ("caught", good)
    harmless = toy_fault("number -= 1", "number -= 2 - 1")
    assert copy.try_fault(harmless, 60, lambda: (["tests/test_more.py"], [bad])).verdict == "missed"


def test_only_the_copy_is_tested(repository: Path) -> None:
    copy = copy_of(repository, without="compiler/hyps_compiler/__init__.py")
    with pytest.raises(RunError, match=r"hyps_compiler is .* not in the copy"):
        copy.run([TOY_TESTS], 60, is_first_enough=False)


def test_a_run_without_tests_is_no_success(repository: Path) -> None:
    (repository / TOY_TESTS).write_text("")
    with pytest.raises(RunError, match="status 5"):
        copy_of(repository).run([TOY_TESTS], 60, is_first_enough=False)


@pytest.fixture
def runner(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the command work on the toy; return where its results go."""
    if shutil.which("git") is None:
        pytest.skip("git, which says what belongs to a repository, is not there")
    for words in (("init", "-q"), ("add", ".")):
        subprocess.run(["git", *words], cwd=repository, check=True, timeout=20)
    monkeypatch.setattr(command, "ROOT", repository)
    return repository.parent / "results.json"


def run_command(monkeypatch: pytest.MonkeyPatch, faults: Sequence[Fault], *arguments: str) -> Result:
    monkeypatch.setattr(command, "FAULTS", tuple(faults))
    return CliRunner().invoke(command.main, ["--quick", *arguments])


def test_a_fault_that_is_not_caught_makes_the_status_1(runner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_command(monkeypatch, [CAUGHT, MISSED], "--results", str(runner))
    assert done.exit_code == 1, done.output
    assert "toy: two_is_doubled" in done.stdout
    assert "NOT CAUGHT (missed): something" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 of 2 caught")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    told = json.loads(runner.read_text())
    assert (told["caught"], told["missed"], told["broken"]) == (1, 1, 0)
    assert [record["name"] for record in told["faults"]] == ["caught", "missed"]


def test_it_goes_on_where_it_was(runner: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(monkeypatch, [CAUGHT], "--results", str(runner)).exit_code == 0
    (repository / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")  # no run would succeed
    again = run_command(monkeypatch, [CAUGHT], "--results", str(runner))
    assert again.exit_code == 0, again.output
    (repository / TOY_TESTS).write_text(f"{TESTS}\n\n")
    changed = run_command(monkeypatch, [CAUGHT], "--results", str(runner))
    assert changed.exit_code == 1
    assert "error: pytest ended with status 4" in changed.stderr


def test_tests_that_fail_without_a_fault_are_no_measure(
    runner: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / TOY_TESTS).write_text(TESTS.replace("198", "199"))
    done = run_command(monkeypatch, [CAUGHT], "--results", str(runner))
    assert done.exit_code == 1
    assert "without any fault tests/test_toy.py::test_numbers" in done.stderr


def test_a_rotten_fault_is_said_before_anything_is_run(runner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_command(monkeypatch, [CAUGHT, toy_fault("nowhere", "")], "--results", str(runner))
    assert done.exit_code == 1
    assert "error: toy: its place occurs 0 times" in done.stderr
    assert not runner.exists()


def test_faults_are_listed_and_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_command(monkeypatch, [CAUGHT, MISSED], "--list", "--only", "miss")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["fault", "missed"]
