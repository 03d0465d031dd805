"""What the doctor says."""

import json
import resource
from importlib.metadata import PackageNotFoundError

import pytest
from click.testing import CliRunner

from hyps.cli import worker
from hyps.dependencies import FLOORS
from hyps.doctor import as_json, examine, show


def test_this_machine_is_examined() -> None:
    diagnosis = examine()
    assert {p.name for p in diagnosis.packages} == {name for floors in FLOORS.values() for name in floors}
    assert diagnosis.machine["memory_bytes"] > diagnosis.machine["available_bytes"] > 0
    assert diagnosis.machine["cores"] >= 1
    assert "CPUExecutionProvider" in diagnosis.machine["execution_providers"]
    assert json.loads(json.dumps(as_json(diagnosis), allow_nan=False))["machine"]["libzmq"]
    assert diagnosis.exit_status == 0


def test_it_reads_well_in_80_columns() -> None:
    diagnosis = examine()
    lines = show(diagnosis).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("onnxruntime ") for line in lines)
    assert any(line.startswith("available ") for line in lines)


def test_what_is_too_old_or_missing_comes_last_with_its_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("onnx", "onnx-gpu"):
            raise PackageNotFoundError(name)
        return "1.2" if name == "onnxruntime" else "99"

    monkeypatch.setattr("hyps.doctor.version", version)
    diagnosis = examine()
    assert diagnosis.exit_status == 1
    assert show(diagnosis).endswith(
        "problem: onnxruntime 1.2 is older than 1.27\n"
        '  do: pip install --upgrade "onnxruntime>=1.27"\n'
        "problem: onnx is not installed\n"
        '  do: pip install "hyps[compiler]"'
    )


def test_the_worker_tells_without_a_plan() -> None:
    result = CliRunner().invoke(worker, ["--doctor"])
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    assert "networkx" not in result.stdout


@pytest.mark.parametrize("args", [["--doctor", "--json"], ["--json", "--doctor"], ["plan", "--doctor", "--json"]])
def test_the_worker_tells_machines_too(args: list[str]) -> None:
    result = CliRunner().invoke(worker, args)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["machine"]["cores"] >= 1


def test_a_worker_that_serves_has_no_json() -> None:
    result = CliRunner().invoke(worker, ["plan", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["message"] == "--json is for --doctor only"


@pytest.mark.parametrize(("soft", "said"), [(1048576, "1048576"), (resource.RLIM_INFINITY, "no limit")])
def test_limits_are_whole_numbers_or_none(monkeypatch: pytest.MonkeyPatch, soft: int, said: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, resource.RLIM_INFINITY))
    diagnosis = examine([""])
    assert f"open files           {said}" in show(diagnosis).splitlines()
    assert diagnosis.machine["open_files"] == (None if said == "no limit" else soft)


@pytest.mark.parametrize(("gone", "status"), [("onnx", 0), ("msgspec", 1)])
def test_only_what_every_command_needs_must_be_there(monkeypatch: pytest.MonkeyPatch, gone: str, status: int) -> None:
    def version(name: str) -> str:
        if name.startswith(gone) and not name.startswith("onnxruntime"):
            raise PackageNotFoundError(name)
        return "99"

    monkeypatch.setattr("hyps.doctor.version", version)
    diagnosis = examine()
    assert diagnosis.exit_status == status
    assert f"problem: {gone} is not installed" in show(diagnosis)
