"""The plans to compare with: where they are looked for, what of a report is read, and what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from check_fixtures import checked, layer, outcome, partition, plan
from hyps.errors import PlanError, UsageError
from hyps_compiler.checking import summary
from hyps_compiler.checking.previous import open_previous
from hyps_compiler.checking.rules import Rule
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
    assert previous.told == {"zoo:digits": found}
    assert previous.folder(ONE) is None


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
