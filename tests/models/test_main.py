"""`python -m hyps_models` writes models and says what is wrong in one sentence."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import hyps_models
from hyps_models.__main__ import main


def test_model_is_written_as_saved_from_python(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lstm", "-o", str(tmp_path / "lstm.onnx"), "--seed", "5"])

    assert (result.exit_code, result.output) == (0, "")
    assert onnx.load(tmp_path / "lstm.onnx") == hyps_models.build("lstm", seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["lstm.onnx"]


def test_list_shows_every_model_and_its_parameters() -> None:
    result = CliRunner().invoke(main, ["--list"])

    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == hyps_models.names()
    assert "138,357,544" in result.stdout


def test_unknown_model_ends_with_2_and_lists_the_names(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["vgg61", "-o", str(tmp_path / "model.onnx")])

    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "error: no reference model is called `vgg61`"
    assert all(name in result.stderr.splitlines()[1] for name in hyps_models.names())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["missing/model.onnx", "."])
def test_unwritable_file_ends_with_1_and_one_sentence(target: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lstm", "-o", str(tmp_path / target)])

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot write `{tmp_path / target}`: ")
    assert result.stderr.splitlines()[1].startswith("hint: ")
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("arguments", [[], ["lstm"], ["lstm", "-o", "x", "--seed", "-1"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "hyps_models", "--help"]

    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)

    assert "python -m hyps_models vgg16 -o vgg16.onnx" in result.stdout
