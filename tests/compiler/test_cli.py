"""The options of `hypsc`; what its commands do is tested with real processes in `integration`."""

import importlib.util
import pickle
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from hyps.cli import worker
from hyps.cli_manager import manager
from hyps.errors import UsageError
from hyps.terminal import HypsCommand
from hyps_compiler.cli import main
from hyps_compiler.cli_options import parse_shapes
from hyps_compiler.partition import CUTS


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args), prog_name="hypsc")


def test_shapes_are_read() -> None:
    assert parse_shapes(("image:1x3x224x224", "a:b:7")) == {"image": (1, 3, 224, 224), "a:b": (7,)}


@pytest.mark.parametrize(
    "text",
    ["", "image", "image:", ":1x2", "image:1x", "image:x", "image:0", "image:-1", "image:1,2", "image:²", "i:1X2"],
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no NAME:SHAPE") as caught:
        parse_shapes((text,))
    assert "image:1x3x224x224" in caught.value.hint


def test_a_number_of_a_million_digits_is_no_size() -> None:
    with pytest.raises(UsageError):
        parse_shapes(("image:" + "9" * 10**6,))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_a_sentence_and_examples(name: str) -> None:
    command = main.commands[name]
    assert isinstance(command, HypsCommand)
    assert command.help is not None
    assert f"hypsc {name}" in command.help
    assert all(param.help for param in command.params if isinstance(param, click.Option))


def test_the_help_of_cut_lists_every_word() -> None:
    text = " ".join(call("compile", "--help").stdout.split())
    assert all(word in text for word in CUTS)


@pytest.mark.parametrize(
    "args",
    [
        ("compile", "m", "-o", ""),
        ("compile", "m", "-o", "p", "--inputs", ""),
        ("run", ""),
        ("run", "p", "-o", ""),
        ("verify", "", "--model", "m"),
        ("convert", "", "-o", "m"),
    ],
)
def test_an_empty_path_is_no_path(args: tuple[str, ...]) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert "is empty [E_USAGE]" in result.stderr


@pytest.mark.parametrize("args", [("run",), ("verify", "--model", "m"), ("convert", "-o", "m")])
def test_a_path_too_long_for_the_system_is_said(args: tuple[str, ...]) -> None:
    result = call(*args, "x" * 300)
    assert result.exit_code == 2
    assert "is longer than a path may be [E_USAGE]" in result.stderr


def test_connect_takes_no_options_of_the_worker() -> None:
    result = call("run", "--connect", "tcp://127.0.0.1:1", "--threads", "2")
    assert result.exit_code == 2
    assert "hyps-worker" in result.stderr


def test_convert_never_replaces_a_file_unasked(tmp_path: Path) -> None:
    (tmp_path / "m.keras").touch()
    (tmp_path / "m.onnx").write_text("mine")
    result = call("convert", str(tmp_path / "m.keras"), "-o", str(tmp_path / "m.onnx"))
    assert (result.exit_code, "[E_EXISTS]" in result.stderr) == (1, True)
    assert (tmp_path / "m.onnx").read_text() == "mine"


@pytest.mark.parametrize("args", [("compile", "m", "-o", "p"), ("inspect", "m"), ("verify", "p", "--model", "m")])
def test_the_light_install_says_what_is_missing(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx_ir" else found(name))
    result = call(*args)
    assert result.exit_code == 1
    assert result.stderr == (
        'error: the compiler needs onnx_ir, which is not installed [E_DEPENDENCY]\nhint: pip install "hyps[compiler]"\n'
    )


def test_the_page_on_the_commands_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    others = {"hyps-worker": worker, "hyps-manager": manager}
    for name, command in (*main.commands.items(), *others.items()):
        heading = f"## `{name} " if name in others else f"## `hypsc {name}"
        section = "".join(part.split("\n## ")[0] for part in page.split(heading)[1:])
        own = [param for param in command.params if isinstance(param, click.Option) and not is_standard(param)]
        missing = [option.opts[-1] for option in own if option.opts[-1] not in section]
        assert (name, missing) == (name, [])


def is_standard(option: click.Option) -> bool:
    return option.opts[-1] in ("--verbose", "--quiet", "--debug", "--version", "--help", "--json")


@pytest.mark.parametrize("name", ["annotate", "compare", "compile", "inspect", "profile", "report", "verify"])
def test_every_command_that_takes_a_model_takes_what_converts_it(name: str) -> None:
    options = {word for param in main.commands[name].params for word in param.opts}
    assert {"--trust", "--module"} <= options


def test_a_pickle_is_compiled_with_trust_only(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps("a model"))
    refused = call("compile", str(tmp_path / "m.pkl"), "-o", str(tmp_path / "plan"))
    assert "[E_UNTRUSTED]\nhint: if you know who made it, run the same command with --trust" in refused.stderr
    for args in (("compile", "-o", str(tmp_path / "plan")), ("inspect",), ("profile",)):
        asked = call(args[0], str(tmp_path / "m.pkl"), *args[1:], "--trust", "--module", "no_such_module")
        assert (asked.exit_code, "the module `no_such_module` cannot be imported" in asked.stderr) == (2, True)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("report", "plan", "--json"), "see `hypsc report --help`"),
        (("report", "plan", "--profle"), "did you mean `--profile`?"),
    ],
)
def test_only_near_options_are_suggested(args: tuple[str, ...], hint: str) -> None:
    assert f"hint: {hint}\n" in call(*args).stderr
