"""What the page on installing says holds in a fresh environment: the light runtime by itself, then the compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

from page_fixtures import ROOT

pytestmark = pytest.mark.slow


def call(*argv: object, folder: Path, most_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(word) for word in argv], cwd=folder, capture_output=True, text=True, timeout=most_s)


def done(*argv: object, folder: Path, most_s: float = 60.0) -> str:
    finished = call(*argv, folder=folder, most_s=most_s)
    assert finished.returncode == 0, f"{argv}: {finished.stdout}{finished.stderr}"
    return finished.stdout


def test_a_clone_installs_as_the_page_says(tmp_path: Path) -> None:
    done("git", "clone", "--quiet", ROOT, "clone", folder=tmp_path)
    done(sys.executable, "-m", "venv", "fresh", folder=tmp_path)
    commands = tmp_path / "fresh/bin"
    done(commands / "pip", "install", "--quiet", "./clone", folder=tmp_path, most_s=600)
    assert "onnxruntime" in done(commands / "hyps-worker", "--doctor", folder=tmp_path)
    light = call(commands / "hypsc", "inspect", "zoo:digits", folder=tmp_path)
    assert (light.returncode, 'pip install "hyps[compiler]"' in light.stderr) == (1, True)

    done(commands / "pip", "install", "--quiet", "./clone[compiler]", folder=tmp_path, most_s=600)
    done(commands / "hypsc", "doctor", folder=tmp_path)
    done(commands / "hypsc", "compile", "zoo:digits", "-o", "plan", "--max-params", "10k", folder=tmp_path)
    assert "logits" in done(commands / "hypsc", "run", "plan", folder=tmp_path)
    assert "install" in done("make", "-C", "clone", "help", folder=tmp_path)
