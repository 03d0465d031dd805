"""Runs what a page of the documentation says: its files are written, its commands typed into one shell, in order.

* Blocks of `sh` are run as they stand; in those of `console` lines behind `$ ` are, and the others are what the command
  must print. Blocks of `python` are run as scripts.
* A block with `title="NAME"` is a file of that name.
* A line `...` stands for any lines, `...` within a line for anything, and spaces for any number of spaces.
* A comment before a block: `<!-- not run: WHY -->`, `<!-- slow: WHY -->` (only where slow things are run), and
  `<!-- numbers vary -->` (any number, with its unit, stands for any other).

Ports of the loopback are replaced by free ones, so that pages can be tried side by side.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<rest>[^`]*)")
_TITLE = re.compile(r'title="([^"]+)"')
_MARK = re.compile(r"<!-- (?P<word>not run|slow|numbers vary)(?:: (?P<why>.+))? -->")
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d{4,5}")
_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?(?: ?(?:µs|ms|s|min|[kMG]?B(?:/s)?|[kM]|/s))?(?![\w/])")
_SHELL_SAYS = re.compile(r".*: line \d+: +\d+ (?:Killed|Terminated|Done|Hangup).*")


@dataclass
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    lines: list[str]
    word: str = ""
    """What the comment before it says: `not run`, `slow`, `numbers vary`, or nothing."""
    why: str = ""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


@dataclass
class Step:
    """A command, and what it must print; None: anything."""

    block: Block
    command: str
    shown: list[str] | None = None


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page of the repository, in order."""
    found: list[Block] = []
    mark: re.Match[str] | None = None
    lines = iter(enumerate((ROOT / page).read_text().splitlines(), start=1))
    for number, line in lines:
        fence = _FENCE.fullmatch(line)
        if fence is None:
            mark = _MARK.search(line) or (mark if not line.strip() else None)
            continue
        indent, end = len(fence["indent"]), fence["indent"] + "```"
        inside = []
        for _, line in lines:
            if line.rstrip() == end:
                break
            inside.append(line[indent:])
        title = _TITLE.search(fence["rest"])
        words = (mark["word"], mark["why"] or "") if mark else ("", "")
        found.append(Block(page, number, fence["language"], title[1] if title else "", inside, *words))
        mark = None
    return found


def steps(block: Block) -> Iterator[Step]:
    """Yield what a block has done: a file written, a script or commands run; nothing for other languages."""
    text = "\n".join(block.lines)
    if block.title:
        yield Step(block, f"cat > '{block.title}' <<'END OF FILE'\n{text}\nEND OF FILE")
    elif block.language == "sh":
        yield Step(block, text)
    elif block.language == "python":
        yield Step(block, f"python - <<'END OF FILE'\n{text}\nEND OF FILE")
    elif block.language == "console":
        yield from _console(block)


def _console(block: Block) -> Iterator[Step]:
    step: Step | None = None
    for line in block.lines:
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(block, line[2:], [])
        elif step is not None and step.shown is not None and not step.shown and step.command.endswith("\\"):
            step.command += "\n" + line
        else:
            assert step is not None, f"{block.place}: output stands before the first `$ `"
            assert step.shown is not None, "made above"
            step.shown.append(line)
    assert step is not None, f"{block.place}: a console without a command"
    yield step


@dataclass
class Run:
    """What became of a page's steps."""

    folder: Path
    steps: list[Step] = field(default_factory=list)
    ports: dict[str, str] = field(default_factory=dict)

    def local(self, text: str) -> str:
        """Return `text` with free ports in the place of the page's."""
        return _PORT.sub(lambda found: self.ports.setdefault(found[0], _free_port()), text)

    def check(self, timeout_s: float) -> None:
        """Run all steps in one shell; each must end with 0 and print what the page shows."""
        inside = self.folder / ".steps"
        inside.mkdir(parents=True)
        script = ["set -euo pipefail"]
        for number, step in enumerate(self.steps):
            (inside / f"{number}.sh").write_text(self.local(step.command) + "\n")
            script.append(f"source .steps/{number}.sh > .steps/{number}.out 2>&1; echo {number} > .steps/last")
        (inside / "all.sh").write_text("\n".join(script) + "\n")
        status = self._run(timeout_s)
        last = inside / "last"
        done = int(last.read_text()) + 1 if last.exists() else 0
        if done < len(self.steps):
            said = (inside / f"{done}.out").read_text()
            step = self.steps[done]
            raise AssertionError(f"{step.block.place}: status {status} of\n{self.local(step.command)}\n\n{said}")
        for number, step in enumerate(self.steps):
            if step.shown is not None:
                self._compare(step, (inside / f"{number}.out").read_text())

    def _run(self, timeout_s: float) -> int | str:
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONWARNINGS")}
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        own = {"PATH": search, "HOME": str(self.folder), "NO_COLOR": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with (self.folder / ".steps/said").open("wb") as said:
            process = subprocess.Popen(
                ["bash", ".steps/all.sh"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**kept, **own},
                start_new_session=True,
            )
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return f"none after {timeout_s:.0f} s"
            finally:
                _end_group(process.pid)
                process.wait()

    def _compare(self, step: Step, said: str) -> None:
        assert step.shown is not None, "asked by the caller"
        lines = [line for line in said.splitlines() if not _SHELL_SAYS.fullmatch(line)]
        shown = [self.local(line) for line in step.shown]
        if not shown_is_said(shown, lines, numbers_vary=step.block.word == "numbers vary"):
            raise AssertionError(
                f"{step.block.place}: the page shows of\n{step.command}\n\n"
                + "\n".join(shown)
                + f"\n\nbut it said\n\n{said}"
            )


def shown_is_said(shown: list[str], said: list[str], *, numbers_vary: bool = False) -> bool:
    """Return whether what a page shows stands for what was said."""
    pattern = "".join(_line_pattern(line, numbers_vary) for line in _squeezed(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _squeezed(said))) is not None


def _squeezed(lines: list[str]) -> list[str]:
    squeezed = [" ".join(line.split()) for line in lines]
    return [line for line in squeezed if line]


def _line_pattern(line: str, numbers_vary: bool) -> str:
    if line == "...":
        return r"(?:.*\n)*"
    parts = []
    for part in line.split("..."):
        pieces = _NUMBER.split(part) if numbers_vary else [part]
        parts.append(_NUMBER.pattern.join(map(re.escape, pieces)))
    return ".*".join(parts) + "\n"


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _end_group(group: int) -> None:
    """Kill what the page has left running, as closing the terminal would."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
