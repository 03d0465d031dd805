"""The check of several models: what is taken from the cache, what is kept in it, and what is read first."""

from pathlib import Path

import pytest

from check_fixtures import layer, outcome, partition, plan, save_dense
from hyps.errors import OutputError
from hyps_compiler.checking import check as module
from hyps_compiler.checking.budget import decode_budget
from hyps_compiler.checking.cache import Cache
from hyps_compiler.checking.check import CheckOptions, check_models
from hyps_compiler.checking.facts import Outcome, Problem
from hyps_compiler.checking.job import Job, ModelJob
from hyps_compiler.checking.limits import Checked
from hyps_compiler.checking.previous import open_previous
from hyps_compiler.checking.targets import Target

FOUND = outcome(plan(partition(0, layer("fc1", 12))))


class Jobs:
    """Stands for the processes that examine models: answers what it is told, and notes what it was asked."""

    def __init__(self, answer: Outcome = FOUND) -> None:
        self.answer, self.asked = answer, list[Job]()

    def run(self, job: Job) -> Outcome:
        self.asked.append(job)
        return self.answer


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = save_dense(tmp_path / "m.onnx")
    return Target(str(path), path)


def check(
    target: Target, options: CheckOptions, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, budget: str = ""
) -> Checked:
    monkeypatch.setattr(module, "run_job", jobs.run)
    monkeypatch.setattr(module, "software_digest", lambda: "software")
    return check_models([target], decode_budget(budget), options)[0]


def test_what_is_known_is_not_asked_again(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, options = Jobs(), CheckOptions(Cache(tmp_path / "cache"))
    first = check(target, options, jobs, monkeypatch)
    second = check(target, options, jobs, monkeypatch, "[limits]\npartition_bytes = 1")
    other = check(target, options, jobs, monkeypatch, "[defaults]\ncut = 'all'")
    assert [one.is_cached for one in (first, second, other)] == [False, True, False]
    assert [one.exit_status for one in (first, second, other)] == [0, 3, 0]
    assert len(jobs.asked) == 2


def test_without_a_cache_all_is_asked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    assert not any(check(target, CheckOptions(), jobs, monkeypatch).is_cached for _ in range(2))
    assert len(jobs.asked) == 2


@pytest.mark.parametrize(("status", "is_kept"), [(3, True), (1, False), (4, False), (70, False)])
def test_what_may_come_out_otherwise_tomorrow_is_not_kept(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch, status: int, is_kept: bool
) -> None:
    jobs = Jobs(Outcome(problem=Problem(message="m", hint="", code="E_X", exit_status=status)))
    options = CheckOptions(Cache(tmp_path / "cache"))
    check(target, options, jobs, monkeypatch)
    again = check(target, options, jobs, monkeypatch)
    assert (again.exit_status, again.is_cached) == (status, is_kept)


def test_a_model_that_is_written_meanwhile_is_not_kept(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writing(Jobs):
        def run(self, job: Job) -> Outcome:
            assert target.path is not None
            save_dense(target.path, (16, 12, 4))
            return super().run(job)

    options = CheckOptions(Cache(tmp_path / "cache"))
    check(target, options, Writing(), monkeypatch)
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert not check(target, options, Jobs(), monkeypatch).is_cached


def test_the_previous_plan_is_read_before_the_new_one_takes_its_place(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "plans" / "m.onnx"
    place.mkdir(parents=True)
    (place / "plan.json").write_text("{}")
    jobs = Jobs()
    options = CheckOptions(previous=open_previous(tmp_path / "plans", (target,)), output=tmp_path / "plans", force=True)
    check(target, options, jobs, monkeypatch)
    assert [isinstance(job, ModelJob) for job in jobs.asked] == [False, True]


def test_a_previous_plan_that_is_damaged_is_told_as_that(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").rename(tmp_path / "n.onnx")
    moved = Target("n.onnx", Path("n.onnx"))
    (tmp_path / "plans" / "n.onnx").mkdir(parents=True)
    (tmp_path / "plans" / "n.onnx" / "plan.json").write_text("{}")
    jobs = Jobs(Outcome(problem=Problem(message="it is torn", hint="", code="E_PLAN", exit_status=1)))
    options = CheckOptions(previous=open_previous(tmp_path / "plans", (moved,)))
    told = check(moved, options, jobs, monkeypatch)
    assert told.exit_status == 1
    assert told.broken[0].message == "the previous plan is of no use: it is torn [E_PLAN]"
    assert told.notes == ()
    assert len(jobs.asked) == 1


def test_a_model_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone.keras"
    told = check(Target(str(gone), gone), CheckOptions(), Jobs(), monkeypatch)
    assert told.exit_status == 1
    assert "cannot be read: No such file" in told.broken[0].message


def test_a_model_without_a_previous_plan_is_noted(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = "[growth]\npeak_memory = '5%'"
    assert check(target, CheckOptions(), Jobs(), monkeypatch, budget).notes == ()
    (tmp_path / "plans").mkdir()
    options = CheckOptions(previous=open_previous(tmp_path / "plans", (target,)))
    assert check(target, options, Jobs(), monkeypatch, budget).notes == ("there is no previous plan of it",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, ""),
        ({"plan.json": "{}"}, "is a plan that no check wrote"),
        ({"notes.txt": ""}, "holds something else than a plan"),
    ],
)
def test_what_a_plan_would_replace_is_looked_at_first(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch, content: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place, jobs = tmp_path / "plans" / "m.onnx", Jobs()
    place.mkdir(parents=True)
    for name, text in content.items():
        (place / name).write_text(text)
    options = CheckOptions(output=tmp_path / "plans")
    if not said:
        assert check(target, options, jobs, monkeypatch).exit_status == 0
        return
    with pytest.raises(OutputError, match=said):
        check(target, options, jobs, monkeypatch)
    assert jobs.asked == []


def test_a_folder_for_plans_that_is_a_file_is_refused_first(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    jobs = Jobs()
    with pytest.raises(OutputError, match="is no folder"):
        check(target, CheckOptions(output=tmp_path / "file" / "plans"), jobs, monkeypatch)
    assert jobs.asked == []
