"""The plans to compare with: where they are looked for, what of a report is read, and what is refused."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from check_fixtures import checked, layer, outcome, partition, plan
from hyps.errors import PlanError, UsageError
from hyps_compiler.checking import summary
from hyps_compiler.checking.previous import open_previous
from hyps_compiler.checking.rules import CompileOptions, Rule
from hyps_compiler.checking.targets import Target
from hyps_compiler.cli import main

ONE, TWO = Target("zoo:digits", None), Target("zoo:lstm", None)


def test_nothing_is_nothing() -> None:
    previous = open_previous(None, (ONE,))
    assert previous.folder(ONE) is None
    assert previous.path is None


def test_one_plan_is_that_of_the_one_model(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert open_previous(tmp_path, (ONE,)).folder(ONE) == tmp_path
    with pytest.raises(UsageError, match="is one plan and there are 2 models"):
        open_previous(tmp_path, (ONE, TWO))


def test_in_a_folder_each_model_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "zoo@digits").mkdir()
    (tmp_path / "zoo@digits" / "plan.json").write_text("{}")
    previous = open_previous(tmp_path, (ONE, TWO))
    assert previous.folder(ONE) == tmp_path / "zoo@digits"
    assert previous.folder(TWO) is None


def test_of_a_report_the_plans_are_read(tmp_path: Path) -> None:
    found = plan(partition(0, layer("fc1", 12)))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(summary.as_json([checked("zoo:digits", outcome(found), Rule())], "budget.toml")))
    previous = open_previous(path, (ONE, TWO))
    assert previous.plan(ONE) == msgspec.structs.replace(found, options=CompileOptions())
    assert previous.plan(TWO) is None
    assert previous.folder(ONE) is None


def test_a_report_knows_models_by_their_names_not_as_they_were_typed(tmp_path: Path) -> None:
    found = plan(partition(0, layer("fc1", 12)))
    one = dataclasses.replace(checked("net.onnx", outcome(found), Rule()), name="models/net.onnx")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(summary.as_json([one], "budget.toml")))
    previous = open_previous(path, (ONE,))
    typed = Target("/repository/models/net.onnx", Path("/repository/models/net.onnx"), "models/net.onnx")
    told = previous.plan(typed)
    assert told is not None
    assert told.options == CompileOptions()
    assert previous.plan(Target("net.onnx", Path("net.onnx"), "other/net.onnx")) is None
    assert previous.names() == ["models/net.onnx"]


def test_plans_lie_by_the_names_of_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans" / "models" / "net.onnx").mkdir(parents=True)
    (tmp_path / "plans" / "models" / "net.onnx" / "plan.json").write_text("{}")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    previous = open_previous(tmp_path / "plans", (ONE, TWO))
    named = Target("net.onnx", Path("net.onnx"), "models/net.onnx")
    assert previous.folder(named) == tmp_path / "plans" / "models" / "net.onnx"
    assert previous.folder(Target("net.onnx", Path("net.onnx"), "other/net.onnx")) is None
    assert previous.names() == ["models/net.onnx"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other", "models": []}', '{"format": "hyps-check"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(PlanError, match="is no report of a check"):
        open_previous(path, (ONE,))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there are no previous plans"):
        open_previous(tmp_path / "gone", (ONE,))


def test_a_cache_and_none_contradict_each_other(tmp_path: Path) -> None:
    words = ["check", "zoo:digits", "--budget", "b.toml", "--no-cache", "--cache", str(tmp_path)]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 2
    assert "contradict each other" in told.stderr
