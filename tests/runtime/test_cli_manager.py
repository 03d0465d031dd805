"""Options of `hyps-manager` that cannot be, and what it says of them."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hyps.cli_manager import manager
from plan_fixtures import cnn, mlp


@pytest.fixture
def plan(tmp_path: Path) -> str:
    cnn().write(tmp_path / "plan")
    return str(tmp_path / "plan")


@pytest.mark.parametrize(
    ("args", "status", "error", "hint"),
    [
        (["--keep", "a,gone"], 2, "`--keep gone`: no partition of the plan makes that tensor", "`all` or `none`"),
        (["--batch", "4"], 3, "no dimension leads all inputs and outputs", "leave --batch out"),
        (["--token-file", "gone"], 2, "the token file `gone` cannot be read", "long random word"),
        (["--bind", "nonsense"], 2, "`nonsense` is no address", "tcp://127.0.0.1:5757"),
        (["--bind", "tcp://0.0.0.0:0"], 2, "reach", "--insecure-lab"),
        (["--max-requests", "0"], 2, "--max-requests", "--help"),
    ],
)
def test_what_cannot_be_is_refused(plan: str, args: list[str], status: int, error: str, hint: str) -> None:
    result = CliRunner().invoke(manager, [plan, *args])
    assert result.exit_code == status
    assert error in result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        ([], "there is neither a plan nor a manager above", "`--manager ADDRESS`"),
        (["--manager", "tcp://127.0.0.1:9"], "a group needs a name", "`--device NAME`"),
        (["plan", "--manager", "tcp://127.0.0.1:9"], "a group gets its plan from the manager above", "leave the plan"),
        (["plan", "--cache-size", "1GB"], "`--cache-size` is for groups", "instead of a plan"),
        (
            ["--manager", "tcp://127.0.0.1:9", "--device", "g", "--batch", "2"],
            "`--batch` is the manager's above",
            "there",
        ),
        (
            ["--manager", "tcp://127.0.0.1:9", "--device", "g", "--bind", "nonsense"],
            "`nonsense` is no address",
            "tcp://",
        ),
        (["--manager", "nonsense", "--device", "g"], "`nonsense` is no address", "tcp://"),
        (
            ["--manager", "tcp://127.0.0.1:9", "--device", "g", "--upper-token-file", "gone"],
            "the token file `gone` cannot be read",
            "long random word",
        ),
    ],
)
def test_what_a_group_cannot_be_is_refused(args: list[str], error: str, hint: str) -> None:
    result = CliRunner().invoke(manager, args)
    assert result.exit_code == 2
    assert error in result.stderr
    assert hint in result.stderr


def test_an_altered_file_is_refused_before_anybody_is_served(plan: str) -> None:
    path = Path(plan) / "partitions" / "stem.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = CliRunner().invoke(manager, [plan])
    assert result.exit_code == 1
    assert "E_TAMPERED" in result.stderr


def test_there_must_be_a_plan(tmp_path: Path) -> None:
    result = CliRunner().invoke(manager, [str(tmp_path / "gone")])
    assert result.exit_code == 1
    assert "E_NO_PLAN" in result.stderr


def test_models_with_a_dynamic_first_dimension_can_be_batched(tmp_path: Path) -> None:
    mlp(4, 4).write(tmp_path / "plan")
    result = CliRunner().invoke(manager, [str(tmp_path / "plan"), "--batch", "4", "--bind", "nonsense"])
    assert "is no address" in result.stderr
