"""The GitHub action, the GitLab component and the pre-commit hook, as far as they can be run without their hosts."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with the documentation's tools, its stubs do not

from check_fixtures import save_dense, skip_if_edited
from hyps_compiler.checking.budget import read_budget
from hyps_compiler.checking.keys import software_digest
from hyps_compiler.convert.kinds import KINDS
from hyps_models import names

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT_S = 120.0
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass
class Runner:
    """A stand-in for the machine that runs an action: its folders, its files for outputs, and its environment."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "temp").mkdir()
        (self.folder / "temp" / "hypsc").symlink_to(BIN.parent)
        (self.folder / "work").mkdir()
        self.outputs: dict[str, dict[str, str]] = {}
        self.software = software_digest()

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def run(self, step: str, inputs: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        """Run a step's script as the runner does: the expressions in its `env` evaluated, nothing in the script."""
        told = next(one for one in ACTION["runs"]["steps"] if one.get("id", one.get("name")) == step)
        output, summary = self.folder / "output", self.folder / "summary.md"
        output.write_text("")
        summary.touch()
        env = {name: self._evaluated(str(value), inputs) for name, value in told.get("env", {}).items()}
        finished = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", told["run"]],
            cwd=self.work,
            env={
                **os.environ,
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                "RUNNER_TEMP": str(self.folder / "temp"),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        self.outputs[step] = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return finished

    def _evaluated(self, text: str, inputs: dict[str, str]) -> str:
        defaults = {name: str(told.get("default", "")) for name, told in ACTION["inputs"].items()}
        assert set(inputs) <= set(defaults)

        def value(match: re.Match[str]) -> str:
            first, *rest = match[1].split(".")
            if first == "inputs":
                return {**defaults, **inputs}[rest[0]]
            if match[1] == "github.action_path":
                return str(ROOT)
            assert (first, rest[1]) == ("steps", "outputs"), match[0]
            return self.outputs[rest[0]][rest[2]]

        return _EXPRESSION.sub(value, text)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    made = Runner(tmp_path_factory.mktemp("action"))
    (made.work / "my models").mkdir()
    save_dense(made.work / "my models" / "net.onnx")
    (made.work / "msgspec.py").write_text("raise RuntimeError('the working directory is no place to import from')")
    (made.work / "budget.toml").write_text('[limits]\npartition_bytes = "500B"\n')
    return made


@pytest.fixture(scope="module")
def red(runner: Runner) -> "subprocess.CompletedProcess[str]":
    return runner.run("check", {"paths": "my models\n\n", "previous": "nothing-yet.json"})


def test_no_expression_stands_in_a_script() -> None:
    scripts = [step["run"] for step in ACTION["runs"]["steps"] if "run" in step]
    assert len(scripts) == 4
    for script in scripts:
        assert "${{" not in script
    for step in ACTION["runs"]["steps"]:
        assert ("run" in step) == ("shell" in step)
        assert ("run" in step) != ("uses" in step)


def test_every_expression_names_what_there_is() -> None:
    text = (ROOT / "action.yml").read_text()
    ids = {step["id"] for step in ACTION["runs"]["steps"] if "id" in step}
    for expression in _EXPRESSION.findall(text):
        first, *rest = expression.split(".")
        assert first in ("inputs", "steps", "github", "runner")
        assert first != "inputs" or rest[0] in ACTION["inputs"]
        assert first != "steps" or rest[0] in ids


def test_a_passed_limit_is_told_in_every_form(runner: Runner, red: "subprocess.CompletedProcess[str]") -> None:
    assert red.returncode == 0, "the step that decides comes last, so that reports can be uploaded"
    notice, error = (line for line in red.stdout.splitlines() if line.startswith("::"))
    assert notice == "::notice title=hypsc check::there is nothing to compare with yet"
    assert error.startswith(
        "::error file=my models/net.onnx,title=hypsc check%3A largest partition::partition `p000` has"
    )
    assert "its largest is layer `fc1` (Gemm)" in error
    told = runner.outputs["check"]
    assert told["status"] == "3"
    assert json.loads(Path(told["report"]).read_bytes())["exit_status"] == 3
    assert "❌" in (runner.folder / "summary.md").read_text()
    for name in ("markdown", "junit", "sarif"):
        assert Path(told[name]).stat().st_size
    assert runner.run("Decide", {}).returncode == 3


def test_a_raised_limit_is_green_from_the_cache(runner: Runner, red: "subprocess.CompletedProcess[str]") -> None:
    report = runner.outputs["check"]["report"]
    kept = runner.work / "earlier.json"
    kept.write_bytes(Path(report).read_bytes())
    (runner.work / "raised.toml").write_text('[limits]\npartition_bytes = "1kB"\n[growth]\npartition_bytes = "0%"\n')
    green = runner.run("check", {"paths": "my models", "budget": "raised.toml", "previous": "earlier.json"})
    skip_if_edited(runner.software)
    assert "::error" not in green.stdout
    (model,) = json.loads(Path(report).read_bytes())["models"]
    assert model["cached"] is True
    assert [verdict["check"] for verdict in model["verdicts"]] == [
        "compiles",
        "partition_bytes",
        "growth.partition_bytes",
    ]
    assert runner.outputs["check"]["status"] == "0"
    assert runner.run("Decide", {}).returncode == 0
    assert red.returncode == 0


def test_the_content_is_that_of_models_and_options_not_of_limits(runner: Runner) -> None:
    budget = runner.work / "content.toml"
    digests = []
    for text in ("", "[limits]\npartitions = 3", "[defaults]\ncut = 'all'"):
        budget.write_text(text)
        assert runner.run("content", {"paths": "my models", "budget": "content.toml"}).returncode == 0
        digests.append(runner.outputs["content"]["digest"])
    skip_if_edited(runner.software)
    assert digests[0] == digests[1] != digests[2]
    assert re.fullmatch("[0-9a-f]{64}", digests[0])
    budget.write_text("no budget")
    assert runner.run("content", {"paths": "my models", "budget": "content.toml"}).returncode == 0
    assert runner.outputs["content"]["digest"] == "none"


def test_inputs_are_never_part_of_a_script(runner: Runner) -> None:
    nasty = "$(touch pwned) `touch pwned` * ; touch pwned #' ; touch pwned '\" ; touch pwned\n$(touch pwned)"
    before = sorted(path.name for path in runner.work.iterdir())
    for step, name in (("content", "paths"), ("check", "paths"), ("check", "budget")):
        finished = runner.run(step, {"paths": "gone.onnx", "args": nasty, "previous": nasty, name: nasty})
        assert finished.returncode == 0, finished.stderr
    assert runner.outputs["check"]["status"] in ("1", "2")
    assert sorted(path.name for path in runner.work.iterdir()) == before
    assert runner.run("install", {"extras": nasty}).returncode == 1


def test_a_broken_budget_is_an_annotation(runner: Runner) -> None:
    (runner.work / "wrong.toml").write_text("[limit]\n")
    told = runner.run("check", {"paths": "my models", "budget": "wrong.toml"})
    assert runner.outputs["check"]["status"] == "1"
    assert "markdown" not in runner.outputs["check"]
    assert (
        "::error title=hypsc check::`wrong.toml` is no budget: unknown key `limit`: did you mean `limits`?"
        in told.stdout
    )


@pytest.mark.parametrize(("extras", "wanted"), [("", "[compiler]"), ("tf,sklearn", "[compiler,tf,sklearn]")])
def test_hyps_is_installed_from_the_actions_own_folder(tmp_path: Path, extras: str, wanted: str) -> None:
    machine = Runner(tmp_path)
    (tmp_path / "temp" / "hypsc").unlink()
    tools, log = tmp_path / "tools", tmp_path / "pip.txt"
    tools.mkdir()
    pip = f'#!/bin/sh\nprintf "%s\\n" "$@" > {log}\n'
    (tools / "python").write_text(
        f'#!/bin/sh\nmkdir -p "$3/bin"\ncat > "$3/bin/pip" <<\'END\'\n{pip}END\nchmod +x "$3/bin/pip"\n'
    )
    (tools / "python").chmod(0o755)
    path = os.environ["PATH"]
    try:
        os.environ["PATH"] = f"{tools}:{path}"
        finished = machine.run("install", {"extras": extras})
    finally:
        os.environ["PATH"] = path
    assert finished.returncode == 0, finished.stderr
    assert log.read_text().split() == ["install", "--quiet", f"{ROOT}{wanted}"]


def test_the_workflow_checks_models_that_there_are_within_a_budget_that_fits() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (step,) = [one for one in workflow["jobs"]["models"]["steps"] if one.get("uses") == "./"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    paths = step["with"]["paths"].split()
    assert {path.removeprefix("zoo:") for path in paths} <= set(names())
    budget = read_budget(ROOT / step["with"]["budget"])
    assert budget.unused(paths) == []
    assert all(budget.rule(path).limits for path in paths)


@pytest.mark.slow
def test_the_reference_models_are_within_their_budget(tmp_path: Path) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (step,) = [one for one in workflow["jobs"]["models"]["steps"] if one.get("uses") == "./"]
    machine = Runner(tmp_path)
    (machine.work / "models").symlink_to(ROOT / "models")
    told = machine.run("check", step["with"])
    assert machine.outputs["check"]["status"] == "0", told.stdout


# GitLab


def test_the_gitlab_job_passes_each_line_as_one_argument(tmp_path: Path) -> None:
    head, jobs = yaml.safe_load_all((ROOT / "templates" / "hyps-check.yml").read_text())
    told = {name: str((one or {}).get("default", "")) for name, one in head["spec"]["inputs"].items()}
    told |= {"paths": "my models\n$(touch pwned)\n", "previous": "earlier.json", "args": "--trust\n"}
    (job,) = jobs.values()
    variables = {
        name: re.sub(r"\$\[\[ inputs\.([a-z-]+) \]\]", lambda match: told[match[1]], value)
        for name, value in job["variables"].items()
    }
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "hypsc").write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\nexit 3\n')
    (tools / "hypsc").chmod(0o755)
    (tmp_path / "earlier.json").write_text("{}")
    (script,) = job["script"]
    finished = subprocess.run(
        ["sh", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, **variables, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert finished.returncode == 3, "a passed limit fails the job"
    words = re.findall("<(.*)>", finished.stdout)
    assert words[:4] == ["check", "--budget", "budget.toml", "--cache"]
    assert words[-6:] == ["--previous", "earlier.json", "--trust", "--", "my models", "$(touch pwned)"]
    assert job["artifacts"]["reports"]["junit"] == words[words.index("--junit") + 1]
    assert set(job["artifacts"]["paths"]) == {words[words.index(f"--{form}") + 1] for form in ("markdown", "sarif")}
    assert job["cache"]["paths"] == [f"{words[words.index('--cache') + 1]}/"]


def test_every_gitlab_input_is_used() -> None:
    text = (ROOT / "templates" / "hyps-check.yml").read_text()
    head, _ = yaml.safe_load_all(text)
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(head["spec"]["inputs"])


# pre-commit


def hook() -> dict[str, Any]:
    (told,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert isinstance(told, dict)
    return told


def test_the_hook_takes_models_and_installs_the_compiler(tmp_path: Path) -> None:
    told = hook()
    pattern = re.compile(told["files"])
    assert all(pattern.search(name) for name in ("m.onnx", "a/b/M.ONNX", "k.keras", "t.tflite"))
    assert not any(pattern.search(name) for name in ("m.onnx.data", "readme.md", "onnx"))
    suffixes = re.findall("[a-z0-9]+", told["files"].partition("(onnx")[2])
    for suffix in suffixes:
        (tmp_path / f"m.{suffix}").write_bytes(b"")
    assert all(any(kind.accepts(tmp_path / f"m.{suffix}") for kind in KINDS) for suffix in suffixes)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["additional_dependencies"] == project["optional-dependencies"]["compiler"]
    assert told["language"] == "python"
    assert told["entry"].split()[0] in project["scripts"]
    assert told["require_serial"] is True


def test_the_hook_checks_the_files_that_changed(runner: Runner, red: "subprocess.CompletedProcess[str]") -> None:
    told, cache = hook(), runner.folder / "temp" / "hypsc-cache"
    words = [*shlex.split(told["entry"]), *told["args"], "--cache", str(cache), "my models/net.onnx"]
    finished = subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=runner.work, capture_output=True, text=True, timeout=WAIT_S
    )
    assert red.returncode == 0
    assert finished.returncode == 3
    assert "partition `p000` has 688 B of weights, more than the 500 B of budget.toml" in finished.stdout
