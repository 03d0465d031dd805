"""`hypsc check` as continuous integration runs it: a change that outgrows the budget, and the cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from check_fixtures import save_dense, skip_if_edited
from command_fixtures import Finished, run_command
from hyps_compiler.checking.keys import software_digest

WAIT_S = 120.0

BUDGET = """
[defaults]
cut = "all"

[limits]
peak_memory = "64MB"
difference = 1e-4

[growth]
partition_bytes = "{growth}%"
"""
NARROW, WIDE = (1024, 1024, 64), (1024, 4096, 64)


def check(folder: Path, *words: str, **env: str) -> Finished:
    argv = ["hypsc", "check", *words, "--budget", "budget.toml", "--cache", "cache"]
    return run_command(argv, folder, timeout_s=WAIT_S, **env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working copy whose model has been checked, and then got a wider layer."""
    made = tmp_path_factory.mktemp("story") / "repository"
    (made / "models").mkdir(parents=True)
    (made / "budget.toml").write_text(BUDGET.format(growth=5))
    save_dense(made / "models" / "net.onnx", NARROW)
    (made / "onnx.py").write_text("raise RuntimeError('the working directory is no place to import from')")
    first = check(made, "models", "-o", "plans")
    assert first.status == 0, first.stdout + first.stderr
    assert "1 model within the budget" in first.stdout
    save_dense(made / "models" / "net.onnx", WIDE)
    return made


@pytest.fixture(scope="module")
def software() -> str:
    return software_digest()


@pytest.fixture(scope="module")
def red(folder: Path, software: str) -> Finished:
    assert software, "taken before the run that fills the cache"
    return check(
        folder, "models", "--previous", "plans", "--markdown", "c.md", "--junit", "c.xml", "--sarif", "c.sarif"
    )


def test_a_layer_that_outgrows_the_budget_is_named(folder: Path, red: Finished) -> None:
    assert red.status == 3
    assert not red.stderr
    assert (
        "more than the 64.0 MB of budget.toml: layer `fc1` (Gemm) grew from 4.20 MB to 16.8 MB of weights since the"
        " previous plan; `limits.peak_memory = "
    ) in red.stdout
    assert "partition `p000` needs 7" in red.stdout
    assert "300 % more than the 4.20 MB of the previous plan, where budget.toml allows 5 %" in red.stdout
    assert "partition `p000` grew from 4.20 MB to 16.8 MB of weights" in red.stdout
    assert "grew from 4.20 MB to 16.8 MB" in (folder / "c.md").read_text()
    assert 'failures="2"' in (folder / "c.xml").read_text()
    results = json.loads((folder / "c.sarif").read_bytes())["runs"][0]["results"]
    assert {result["ruleId"] for result in results} == {"peak_memory", "growth.partition_bytes"}


def test_a_raised_limit_is_green_from_the_cache_without_onnx(folder: Path, red: Finished, software: str) -> None:
    raised = BUDGET.replace("64MB", "80MB").format(growth=300)
    (folder / "budget.toml").write_text(raised)
    poison = folder.parent / "poison"
    for name in ("onnx", "onnx_ir", "onnxruntime", "networkx"):
        (poison / name).mkdir(parents=True)
        (poison / name / "__init__.py").write_text("raise RuntimeError('this must not be imported')")
    green = check(folder, "models", "--previous", "plans", "--json", PYTHONPATH=str(poison))
    skip_if_edited(software)
    assert green.status == 0, green.stdout
    (model,) = json.loads(green.stdout)["models"]
    assert model["cached"] is True
    assert green.cpu_s < red.cpu_s / 3
    save_dense(folder / "other.onnx")
    anew = check(folder, "other.onnx", PYTHONPATH=str(poison))
    assert anew.status == 1, "what is not in the cache needs them"


def test_what_json_printed_can_be_compared_with(folder: Path, red: Finished, software: str) -> None:
    assert red.status == 3
    told = check(folder, "models", "--json")
    (folder / "report.json").write_text(told.stdout)
    (folder / "budget.toml").write_text(BUDGET.replace("64MB", "80MB").format(growth=0))
    same = check(folder, "models", "--previous", "report.json")
    assert same.status == 0, same.stdout
    skip_if_edited(software)
    assert "cached" in same.stdout


@pytest.mark.slow
def test_every_model_is_checked_and_the_worst_decides(folder: Path) -> None:
    (folder / "models" / "broken.onnx").write_bytes(b"not a model at all")
    (folder / "budget.toml").write_text(BUDGET.replace("64MB", "65MB").format(growth=5))
    try:
        both = check(folder, "models", "--json", "--previous", "plans")
    finally:
        (folder / "models" / "broken.onnx").unlink()
    told = json.loads(both.stdout)
    assert both.status == told["exit_status"] == 1
    assert {one["model"]: one["exit_status"] for one in told["models"]} == {
        "models/broken.onnx": 1,
        "models/net.onnx": 3,
    }
    broken = told["models"][0]["verdicts"][0]
    assert "is truncated or no ONNX model" in broken["message"]
    assert "[E_NOT_ONNX]" in broken["message"]


@pytest.mark.slow
def test_a_model_that_cannot_keep_its_limit_is_told_with_the_layer_that_grew(folder: Path) -> None:
    (folder / "tight.toml").write_text('[defaults]\nmemory = "20MB"\ncut = "all"\n')
    argv = ["hypsc", "check", "models/net.onnx", "--budget", "tight.toml", "--cache", "cache", "--previous", "plans"]
    told = run_command(argv, folder, timeout_s=WAIT_S)
    assert told.status == 3
    assert 'more than `memory = "20.0 MB"`' in told.stdout
    assert "layer `fc1` (Gemm) grew from 4.20 MB to 16.8 MB of weights since the previous plan" in told.stdout
    assert 'the smallest that would do is `memory = "' in told.stdout


@pytest.mark.parametrize(
    ("budget", "status", "said"),
    [
        ("[limits]\npeak_mem = 1", 1, "unknown key `limits.peak_mem`: did you mean `peak_memory`? [E_BUDGET]"),
        ("[limits]\nlatency = '1s'", 1, "`limits.latency` needs a `cluster`"),
    ],
)
def test_a_budget_that_is_wrong_is_one_sentence(tmp_path: Path, budget: str, status: int, said: str) -> None:
    (tmp_path / "budget.toml").write_text(budget)
    told = check(tmp_path, "zoo:digits")
    assert told.status == status
    assert said in told.error


@pytest.mark.slow
def test_a_model_that_takes_too_long_is_told_so(folder: Path) -> None:
    (folder / "hasty.toml").write_text('[defaults]\ntimeout = "1us"\n')
    argv = ["hypsc", "check", "models/net.onnx", "--budget", "hasty.toml", "--no-cache"]
    told = run_command(argv, folder, timeout_s=WAIT_S)
    assert told.status == 1
    assert "[E_DEADLINE]" in told.stdout


@pytest.mark.slow
def test_a_plan_that_no_check_wrote_is_not_replaced_unless_forced(folder: Path, software: str) -> None:
    (folder / "budget.toml").write_text("")
    (folder / "new" / "models" / "net.onnx").mkdir(parents=True)
    (folder / "new" / "models" / "net.onnx" / "plan.json").write_text("{}")
    kept = check(folder, "models/net.onnx", "-o", "new")
    assert kept.status == 1
    assert "is a plan that no check wrote" in kept.error
    forced = check(folder, "models/net.onnx", "-o", "new", "--force")
    assert forced.status == 0
    again = check(folder, "models/net.onnx", "-o", "new")
    skip_if_edited(software)
    assert again.status == 0, "the plan is there already, and known"
    assert "cached" in again.stdout


@pytest.fixture
def unprivileged(tmp_path: Path) -> list[str]:
    """Return the words before a command by which it cannot read what its mode forbids."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the superuser reads every file, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


def test_what_cannot_be_read_spoils_no_other_model(tmp_path: Path, unprivileged: list[str]) -> None:
    models = tmp_path / "models"
    for name in ("good.onnx", "secret.onnx", "secret.pb", "locked/inner.onnx"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_dense(models / name)
    (tmp_path / "budget.toml").write_text("")
    for name in ("secret.onnx", "secret.pb", "locked"):
        (models / name).chmod(0)
    command = Path(sys.executable).parent / "hypsc"
    argv = [*unprivileged, str(command), "check", "models", "--budget", "budget.toml", "--no-cache", "--json"]
    try:
        told = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
    finally:
        (models / "locked").chmod(0o755)
    rows = {one["model"]: one["verdicts"][0] for one in json.loads(told.stdout)["models"]}
    assert told.returncode == 1, told.stderr
    assert rows.pop("models/good.onnx")["is_kept"]
    assert sorted(rows) == ["models/locked", "models/secret.onnx", "models/secret.pb"]
    for name, verdict in rows.items():
        assert verdict["message"].startswith(f"`{name}")
        assert verdict["message"].endswith("` cannot be read: Permission denied [E_PERMISSION]")


def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path: Path, unprivileged: list[str]) -> None:
    save_dense(tmp_path / "net.onnx")
    (tmp_path / "budget.toml").write_text("")
    (tmp_path / "shut").mkdir(mode=0o555)
    command = [*unprivileged, str(Path(sys.executable).parent / "hypsc"), "check", "net.onnx", "--no-cache"]
    for option, place, said, hint in (
        ("-o", "shut/plans", "the folder `shut` is not writable [E_PERMISSION]", "give another folder with `-o`"),
        (
            "--markdown",
            "shut/x.md",
            "the folder of `shut/x.md` is not writable",
            "give another place with `--markdown`",
        ),
        ("--junit", "gone/x.xml", "the folder of `gone/x.xml` does not exist", "make its folder: mkdir -p gone"),
    ):
        argv = [*command, "--budget", "budget.toml", option, place]
        told = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
        assert told.returncode == 1
        assert told.stdout == ""
        assert said in told.stderr
        assert hint in told.stderr


def test_a_plan_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text("")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text("{}")
    told = check(tmp_path, "plan")
    assert told.status == 1
    assert "`plan` is a plan and no model" in told.error
    assert "--previous plan" in told.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models that have been checked, and whose plans and report are kept."""
    made = tmp_path_factory.mktemp("two")
    (made / "budget.toml").write_text('[growth]\npartition_bytes = "0%"\n[models."vision/*.onnx"]\npartitions = 1\n')
    (made / "models").mkdir()
    for name in ("one.onnx", "two.onnx"):
        save_dense(made / "models" / name)
    first = check(made, "models", "-o", "plans", "--json")
    assert first.status == 0, first.stdout + first.stderr
    (made / "report.json").write_text(first.stdout)
    told = first.stderr.splitlines()
    assert told[0] == (
        'note: `models."vision/*.onnx"` of the budget fits none of the models; their paths from its folder are such as'
        " `models/one.onnx`"
    )
    assert [line.partition(": ok, ")[0] for line in told[1:3]] == ["1 of 2: models/one.onnx", "2 of 2: models/two.onnx"]
    assert told[3:] == ["note: growth was not judged: no previous plan was given with --previous"]
    save_dense(made / "models" / "one.onnx", (64, 64, 4))
    return made


@pytest.mark.parametrize("previous", ["plans", "report.json"])
def test_a_previous_plan_is_found_from_wherever_the_check_runs(two: Path, previous: str) -> None:
    words = ["hypsc", "check", "--budget", str(two / "budget.toml"), "--cache", str(two / "cache")]
    words += ["--previous", str(two / previous)]
    for folder, model in ((two, str(two / "models")), (two / "models", ".")):
        told = run_command([*words, model], folder, timeout_s=WAIT_S)
        assert told.status == 3, told.stdout + told.stderr
        assert "layer `fc1` (Gemm) grew from 544 B to 16.6 kB of weights since the previous plan" in told.stdout
        assert "warning" not in told.stderr


def test_a_model_that_is_not_in_what_is_compared_with_is_said_loudly(two: Path) -> None:
    save_dense(two / "other.onnx")
    told = check(two, "other.onnx", "--previous", "report.json")
    assert told.status == 0
    assert told.stderr.splitlines()[-1] == (
        "warning: `report.json` holds no plan of 1 of 1 models, whose growth is not judged: `other.onnx`;"
        " it holds `models/one.onnx`, `models/two.onnx`"
    )


def test_what_is_done_is_told_when_a_check_is_stopped(two: Path) -> None:
    (two / "tmp").mkdir()
    command = Path(sys.executable).parent / "hypsc"
    with subprocess.Popen(
        [str(command), "check", "models", "zoo:lstm", "zoo:digits", "--budget", "budget.toml", "--no-cache"],
        cwd=two,
        env={**os.environ, "TMPDIR": str(two / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("1 of 4: models/one.onnx: ok") for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C: every process gets it
        printed, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert printed == ""
    assert "models/one.onnx" in said
    assert "1 model within the budget, and 3 not checked" in said
    assert said.splitlines()[-1] == "error: interrupted [E_INTERRUPTED]"
    assert list((two / "tmp").iterdir()) == []
