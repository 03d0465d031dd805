"""The process in which a model is checked: what it leaves where, however it ends."""

import tempfile
from pathlib import Path

import pytest

from check_fixtures import save_dense
from hyps.adapters.guard import limit_seconds
from hyps_compiler.checking.job import ModelJob, run_job
from hyps_compiler.checking.kept import digest_of, read_record
from hyps_compiler.checking.rules import CompileOptions


@pytest.mark.parametrize(("timeout_s", "code"), [(1e-6, "E_DEADLINE"), (600.0, "")], ids=["killed", "finished"])
def test_only_a_finished_plan_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, code: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read anew from the environment
    model, place = save_dense(tmp_path / "m.onnx"), tmp_path / "plans" / "deep" / "m"
    try:
        told = run_job(ModelJob(model=str(model), options=CompileOptions(timeout_s=timeout_s), output=str(place)))
    finally:
        limit_seconds(None)
    assert (told.problem.code if told.problem else "") == code
    assert [path.name for path in place.parent.iterdir()] == ([] if code else ["m"])
    assert (place / "plan.json").exists() == (not code)
    assert not any(scratch.iterdir())


def test_a_plan_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    place = tmp_path / "plan"
    place.mkdir()
    (place / "plan.json").write_text("{}")
    told = run_job(ModelJob(model=str(save_dense(tmp_path / "m.onnx")), options=CompileOptions(), output=str(place)))
    assert told.problem is not None
    assert told.problem.code == "E_EXISTS"
    assert (place / "plan.json").read_text() == "{}"


def test_a_plan_that_a_check_wrote_is_replaced_until_someone_else_does(tmp_path: Path) -> None:
    model, place = save_dense(tmp_path / "m.onnx"), tmp_path / "plan"
    job = ModelJob(model=str(model), options=CompileOptions(), output=str(place))
    first = run_job(job)
    assert first.facts is not None, first.problem
    record = read_record(place)
    assert record is not None
    assert (record.digest, record.options) == (first.facts.plan.digest, CompileOptions())
    save_dense(model, (16, 12, 4))
    second = run_job(job)
    assert second.facts is not None, second.problem
    assert second.facts.plan.digest == digest_of(place) != first.facts.plan.digest
    (place / "plan.json").write_text("{}")
    assert read_record(place) is None
    refused = run_job(job)
    assert refused.problem is not None
    assert refused.problem.code == "E_EXISTS"
