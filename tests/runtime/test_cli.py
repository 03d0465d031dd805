"""Options of `hyps-worker` that do not go together, and how it names itself when it starts anew."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hyps.cli import _bound_to, worker


@pytest.mark.parametrize(
    ("args", "anew"),
    [
        (["plan"], ["plan", "--bind", "tcp://a:1"]),
        (["--threads", "2", "--", "plan"], ["--threads", "2", "--bind", "tcp://a:1", "--", "plan"]),
        (["--bind", "tcp://b:0", "plan"], ["plan", "--bind", "tcp://a:1"]),
        (["--bind=tcp://b:0", "plan", "--bind", "ipc://c"], ["plan", "--bind", "tcp://a:1"]),
        (["--", "--bind=plan"], ["--bind", "tcp://a:1", "--", "--bind=plan"]),
    ],
)
def test_the_address_takes_the_place_of_any_before(args: list[str], anew: list[str]) -> None:
    assert _bound_to("tcp://a:1", args) == anew
    assert _bound_to("tcp://a:1", anew) == anew


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        ([], "there is neither a plan nor a manager", "`--manager ADDRESS`"),
        (["--manager", "tcp://127.0.0.1:1"], "needs a name", "`--device NAME`"),
        (
            ["--manager", "tcp://127.0.0.1:1", "--device", "a", "--bind", "tcp://b:1"],
            "`--bind` is for clients",
            "--data-bind",
        ),
        (["plan", "--cache-size", "1GB"], "`--cache-size` is for workers of a manager", "--manager"),
        (["plan", "--token-file", "t"], "`--token-file` is for workers of a manager", "--manager"),
        (
            ["--manager", "tcp://127.0.0.1:1", "--device", "a", "--no-listen", "--data-bind", "tcp://b:0"],
            "contradict each other",
            "leave one",
        ),
        (["--manager", "nonsense", "--device", "a", "--no-listen"], "is no address", "tcp://127.0.0.1:5757"),
        (
            ["--manager", "tcp://127.0.0.1:1", "--device", "a", "--metrics", "x:1"],
            "`--metrics` is the manager's",
            "hyps-manager",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(args: list[str], error: str, hint: str) -> None:
    result = CliRunner().invoke(worker, args)
    assert result.exit_code == 2
    assert error in result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize(
    ("content", "error"), [(None, "cannot be read"), (b"  \n", "holds no token"), (b"\xff\xfe", "cannot be read")]
)
def test_a_token_file_must_hold_a_token(tmp_path: Path, content: bytes | None, error: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    args = ["--manager", "tcp://127.0.0.1:9", "--device", "a", "--token-file", str(path)]
    result = CliRunner().invoke(worker, args)
    assert result.exit_code == 2
    assert error in result.stderr


def test_a_folder_without_a_plan_is_refused_before_anything_is_connected(tmp_path: Path) -> None:
    result = CliRunner().invoke(worker, [str(tmp_path), "--manager", "tcp://127.0.0.1:9", "--device", "a"])
    assert result.exit_code == 1
    assert "[E_NO_PLAN]" in result.stderr
