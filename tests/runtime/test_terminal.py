"""How commands speak: errors, exit statuses, sizes, tables."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from hyps.errors import BusyError, DifferenceError, HypsError, InfeasibleError, InternalError, PlanError
from hyps.terminal import COUNT, NBYTES, HypsCommand, HypsGroup, progress, table, verbosity

FAILURES: dict[str, BaseException] = {
    "plan": PlanError("file `a` is missing", "compile it again", code="E_MISSING"),
    "infeasible": InfeasibleError("layer `fc` needs 2 GB"),
    "different": DifferenceError("output `y` differs"),
    "bug": InternalError("impossible"),
    "surprise": KeyError("x"),
    "memory": MemoryError(),
    "interrupt": KeyboardInterrupt(),
    "pipe": BrokenPipeError(),
    "strange": HypsError("bad \x1b[31mname"),
}


@click.group(cls=HypsGroup)
def tool() -> None:
    """A tool."""


@tool.command()
@click.option("--memory", type=NBYTES)
@click.option("--count", type=COUNT)
@click.option("--json", "as_json", is_flag=True)
@click.option("--fail", type=click.Choice(sorted(FAILURES)))
def work(memory: int | None, count: int | None, as_json: bool, fail: str | None) -> int:
    """Do it."""
    if fail is not None:
        raise FAILURES[fail]
    click.echo(f"{memory} {count} {verbosity()}")
    return 4 if count == 4 else 0


def call(*args: str) -> Result:
    return CliRunner().invoke(tool, list(args), prog_name="tool")


@pytest.mark.parametrize(
    ("fail", "status", "line"),
    [
        ("plan", 1, "error: file `a` is missing [E_MISSING]\nhint: compile it again\n"),
        ("infeasible", 3, "error: layer `fc` needs 2 GB [E_INFEASIBLE]\n"),
        ("different", 4, "error: output `y` differs [E_DIFFERENT]\n"),
        ("interrupt", 130, "error: interrupted [E_INTERRUPTED]\n"),
        ("pipe", 141, ""),
        ("strange", 1, "error: bad \\x1b[31mname [E_FAILED]\n"),
    ],
)
def test_a_failure_is_a_sentence_and_a_status(fail: str, status: int, line: str) -> None:
    result = call("work", "--fail", fail)
    assert (result.exit_code, result.stderr, result.stdout) == (status, line, "")


@pytest.mark.parametrize(("fail", "text"), [("bug", "impossible"), ("surprise", "KeyError: 'x'")])
def test_a_bug_is_one_line_without_a_traceback(fail: str, text: str) -> None:
    result = call("work", "--fail", fail)
    assert result.exit_code == 70
    assert result.stderr.splitlines()[0] == f"error: internal error: {text} [E_INTERNAL]"
    assert result.stderr.splitlines()[1].startswith("hint: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("args", [("--debug", "work"), ("work", "--debug")])
def test_debug_anywhere_shows_the_traceback(args: tuple[str, ...]) -> None:
    result = call(*args, "--fail", "surprise")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr


def test_no_memory_is_no_bug() -> None:
    result = call("work", "--fail", "memory")
    assert result.exit_code == 1
    assert "[E_MEMORY]" in result.stderr


def test_json_gets_the_error_too() -> None:
    result = call("work", "--json", "--fail", "plan")
    assert json.loads(result.stdout) == {
        "error": {"code": "E_MISSING", "message": "file `a` is missing", "hint": "compile it again"}
    }
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("args", "first", "hint"),
    [
        (["wrk"], "error: there is no command `wrk` [E_USAGE]", "hint: did you mean `work`?"),
        (["zzz"], "error: there is no command `zzz` [E_USAGE]", "hint: see `tool --help`"),
        (["work", "--memry", "1"], "error: there is no option `--memry` [E_USAGE]", "hint: did you mean `--memory`?"),
        (["work", "--zz"], "error: there is no option `--zz` [E_USAGE]", "hint: see `tool work --help`"),
        (
            ["work", "--memory"],
            "error: option `--memory` requires an argument [E_USAGE]",
            "hint: see `--help`",
        ),
        (["work", "--memory", "x"], "error: option `--memory`: `x` is no size [E_USAGE]", "hint: write it like"),
        (["work", "--count", "x"], "error: option `--count`: `x` is no count [E_USAGE]", "hint: write it like"),
        (["work", "extra"], "error: got unexpected extra argument (extra) [E_USAGE]", "hint: see `tool work --help`"),
    ],
)
def test_wrong_usage_says_what_was_meant(args: list[str], first: str, hint: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == first
    assert result.stderr.splitlines()[1].startswith(hint)


def test_nothing_asked_shows_the_help() -> None:
    result = call()
    assert result.exit_code == 2
    assert "Usage: tool" in result.stderr


def test_options_are_read_and_a_returned_number_is_the_status() -> None:
    assert call("work", "--memory", "1GiB", "--count", "1.5k").stdout == f"{2**30} 1500 0\n"
    assert call("-v", "work", "-v").stdout == "None None 2\n"
    assert call("work", "-q").stdout == "None None -1\n"
    assert call("work", "--count", "4").exit_code == 4


def test_version_is_told_by_group_and_command() -> None:
    assert call("--version").stdout == call("work", "--version").stdout
    assert call("--version").stdout.startswith("tool 0.")


def test_busy_tells_when_to_come_back() -> None:
    assert BusyError("full", retry_after_s=0.5).retry_after_s == 0.5


def test_a_table_aligns_and_cuts_the_widest_name_only() -> None:
    text = table([["a" * 100, 5, "x"], ["b", 12345, "y"]], ["layer", "bytes", "kind"], "lrl")
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["layer", "bytes", "kind"]
    assert "…" in lines[1]
    assert lines[2].endswith("  12345  y")


def test_an_empty_table_is_its_headers() -> None:
    assert table([], ["layer", "bytes"]) == "layer  bytes"


def test_progress_is_silent_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("verify", 3) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_progress_is_drawn_on_a_terminal_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyps.terminal._DELAY_S", 0.0)
    monkeypatch.setattr("hyps.terminal._FRAME_S", 0.01)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        drawn = ""
        with progress("verify", 2) as bar:
            bar.update(2)
            deadline = time.monotonic() + 10
            while "100%" not in drawn and time.monotonic() < deadline:
                drawn += os.read(reader, 65536).decode()
    os.close(reader)
    assert "verify" in drawn
    assert "100%" in drawn


SCRIPT = """
import sys, time, click
from hyps.terminal import HypsCommand

@click.command(cls=HypsCommand)
@click.argument("what")
def main(what):
    try:
        if what == "print":
            while True:
                print("x" * 1000)
        print("started", flush=True)
        time.sleep(20)
    finally:
        print("cleaned up", file=sys.stderr)

main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up_and_says_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process = start(tmp_path, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == status
    word = "interrupted [E_INTERRUPTED]" if number == signal.SIGINT else "terminated [E_TERMINATED]"
    assert stderr == f"cleaned up\nerror: {word}\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    process = start(tmp_path, "print")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr is not None
    assert process.stderr.read() == "cleaned up\n"
    process.stderr.close()


def start(folder: Path, what: str) -> "subprocess.Popen[str]":
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_command_run_from_python_raises() -> None:
    with pytest.raises(PlanError):
        tool.main(["work", "--fail", "plan"], standalone_mode=False)


def test_commands_of_the_group_are_of_its_kind() -> None:
    assert isinstance(work, HypsCommand)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "args", [("doctor",), ("doctor", "--json"), ("--help",), ("--version",), ("run", "--help"), ("run", "--json")]
)
def test_a_full_standard_output_is_one_sentence(args: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hyps_compiler.cli", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
        )
    said = (
        "error: cannot write to standard output: no space left on device [E_DISKFULL]\nhint: send it to another place\n"
    )
    if args == ("run", "--json"):  # an error of its own, whose JSON has no place
        said = "error: give a plan folder or --connect, not both or neither [E_USAGE]\nhint: see `hypsc run --help`\n"
    assert (ended.stderr, ended.returncode) == (said, 2 if "E_USAGE" in said else 1)


@pytest.mark.parametrize("name", ["slow", "late"])
def test_an_interrupt_while_a_command_is_imported_is_quiet(tmp_path: Path, name: str) -> None:
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "slow.py").write_text(text + "def command():\n    raise SystemExit(7)\n")
    (tmp_path / "late.py").write_text("def command():\n    " + text.replace("\n", "\n    "))
    ended = subprocess.run(
        [sys.executable, "-c", f"from hyps.entry import start; start({name!r}, 'command')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("entry", ["hyps_compiler.entry:hypsc", "hyps.entry:worker", "hyps.entry:manager"])
def test_every_command_begins_there(entry: str) -> None:
    module, _, name = entry.partition(":")
    code = f"import sys; sys.argv[1:] = ['--version']; from {module} import {name}; {name}()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert entry in Path("pyproject.toml").read_text()
