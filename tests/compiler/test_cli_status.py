"""`hypsc status`: against a service that always answers the same, without and with a terminal."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fcntl import ioctl

import psutil
import pytest
from click.testing import CliRunner, Result

from command_fixtures import SCRIPTS
from hyps.adapters.transport import Delivery, ZmqServer
from hyps.formats.messages import AskStatus, Failed, Status, decode_from_client, encode
from hyps.formats.status import Report, encode_report, to_level
from hyps_compiler.cli import main
from status_fixtures import manager, nested

pytestmark = pytest.mark.network

WAIT_S = 20.0
_WATCH = ["--watch", "--interval", "100ms"]


@dataclass
class Scripted:
    """A service that knows nothing but to answer `AskStatus` with `report`; None: it refuses."""

    server: ZmqServer
    report: Report | None
    asked: list[AskStatus] = field(default_factory=list)
    is_over: bool = False

    def run(self) -> None:
        while not self.is_over:
            delivery = self.server.receive(0.2)
            if not isinstance(delivery, Delivery):
                continue
            message = decode_from_client(memoryview(delivery.parts[0]))
            assert isinstance(message, AskStatus)
            self.asked.append(message)
            if self.report is None:
                self.server.send(delivery.peer, [encode(Failed("", "E_PROTOCOL", "not a message of HyPS"))])
            else:
                report = encode_report(to_level(self.report, message.levels))
                self.server.send(delivery.peer, [encode(Status(message.request)), report])


@contextlib.contextmanager
def telling(report: Report | None) -> Iterator[Scripted]:
    with ZmqServer("tcp://127.0.0.1:0", max_nbytes=2**20) as server:
        scripted = Scripted(server, report)
        thread = threading.Thread(target=scripted.run)
        thread.start()
        try:
            yield scripted
        finally:
            scripted.is_over = True
            server.wake()
            thread.join(WAIT_S)


def call(*args: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["status", *args], prog_name="hypsc")
    assert result.exit_code == status, result.output
    return result


def test_without_a_terminal_it_prints_once_and_plainly() -> None:
    with telling(manager(3)) as scripted:
        text = call(scripted.server.address).stdout
    assert "\x1b" not in text
    assert len(scripted.asked) == 1
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("pi-")]
    assert rows == ["pi-1", "pi-2", "pi-3", "pi-1", "pi-2"]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("report", [manager(1), manager(20), nested()], ids=["1", "20", "nested"])
def test_json_is_the_whole_report(report: Report) -> None:
    with telling(report) as scripted:
        told = json.loads(call(scripted.server.address, "--json").stdout)
    assert [node["device"] for node in told["nodes"]] == [node.device for node in report.nodes]
    assert told["requests"]["latency"]["p50_s"] == report.requests.latency.p50_s
    assert set(told) == set(Report.__struct_fields__)


def test_whoever_does_not_tell_is_named() -> None:
    with telling(None) as scripted:
        error = call(scripted.server.address, status=1).stderr
    assert f"`{scripted.server.address}` does not tell how it is: not a message of HyPS [E_PROTOCOL]" in error


def test_nobody_there_is_one_sentence() -> None:
    with telling(manager(1)) as scripted:
        address = scripted.server.address
    assert "no worker answers at" in call(address, status=1).stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [(["nonsense"], "nonsense"), (["tcp://127.0.0.1:9", "--interval", "1ms"], "shorter than 100ms")],
)
def test_what_is_no_address_or_interval_is_refused(args: list[str], text: str) -> None:
    assert text in call(*args, status=2).stderr


class Screen:
    """As much of a terminal as is written to here; anything else fails."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.is_second = self.is_cursor_hidden = self.has_color = False
        self.is_cut = False
        """Whether Ctrl-C was pressed, at which the system drops what it has not shown yet, wherever that ends."""
        self.first: list[str] = [""]
        self.lines = [""] * rows
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+|\x1b", text):
            if not self.is_second and token != "\x1b[?1049h":
                self.is_cursor_hidden = self.is_cursor_hidden and token != "\x1b[?25h"
                self.first.append(token)
                continue
            self._take(token)

    def _take(self, token: str) -> None:
        match token:
            case "\x1b[?1049h" | "\x1b[?1049l":
                self.is_second = token.endswith("h")
                self.lines = [""] * self.rows
            case "\x1b[?25l" | "\x1b[?25h":
                self.is_cursor_hidden = token.endswith("l")
            case "\x1b[H":
                self._row = self._column = 0
            case "\x1b[K":
                self.lines[self._row] = self.lines[self._row][: self._column]
            case "\x1b[J":
                self.lines[self._row] = self.lines[self._row][: self._column]
                self.lines[self._row + 1 :] = [""] * (self.rows - self._row - 1)
            case "\r":
                self._column = 0
            case "\n":
                self._row += 1
                assert self._row < self.rows or self.is_cut, "the screen would scroll"
                self._row = min(self._row, self.rows - 1)
            case _ if token.endswith("m") and token.startswith("\x1b["):
                self.has_color = True
            case _:
                assert "\x1b" not in token or self.is_cut, f"{token!r}"
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + token + line[self._column + len(token) :]
                self._column += len(token)
                assert self._column <= self.columns or self.is_cut, "a line would wrap"


class Terminal:
    """`hypsc status` on a pseudo-terminal."""

    def __init__(self, args: list[str], *, columns: int = 80, rows: int = 24, **env: str) -> None:
        self.screen = Screen(columns, rows)
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "LINES", "COLUMNS")
        }
        self.process = subprocess.Popen(
            [SCRIPTS / "hypsc", "status", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm", **env},
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._decoder = ""

    def see(self, text: str) -> None:
        """Wait until the screen has `text`."""
        self.until(lambda screen: text in "\n".join(screen.lines))

    def until(self, holds: Callable[[Screen], bool]) -> None:
        """Go on with what is written until something holds."""
        deadline_s = time.monotonic() + WAIT_S
        while not holds(self.screen):
            assert time.monotonic() < deadline_s, "\n".join(self.screen.lines)
            assert self._read(), self.screen.first

    def wait_until_stopped(self) -> None:
        """Wait until the process that draws has stopped, as a shell does."""
        deadline_s = time.monotonic() + WAIT_S
        (drawing,) = psutil.Process(self.process.pid).children()
        while drawing.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def press_control_c(self) -> None:
        self.screen.is_cut = True
        os.write(self._master, b"\x03")

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        while self._read():
            pass
        status = self.process.wait(WAIT_S)
        os.close(self._master)
        return status

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], WAIT_S)
        assert ready, "nothing was written for too long"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the last one that had it open is gone
            return False
        text = self._decoder + data.decode("utf-8", "surrogateescape")
        cut = re.search(r"\x1b(\[[?0-9;]*)?\Z", text)
        self._decoder = cut.group() if cut else ""
        self.screen.write(text[: cut.start()] if cut else text)
        return True


@pytest.mark.parametrize("devices", [1, 3, 20])
def test_at_a_terminal_it_draws_in_place_until_ctrl_c(devices: int) -> None:
    with telling(manager(devices)) as scripted:
        terminal = Terminal([scripted.server.address, "--interval", "100ms"])
        terminal.see("block1 ")
        assert terminal.screen.is_second
        assert terminal.screen.is_cursor_hidden
        assert terminal.screen.has_color
        assert all(f"pi-{number} " in "\n".join(terminal.screen.lines) for number in range(1, devices + 1))
        scripted.report = manager(devices + 1)
        terminal.see(f"pi-{devices + 1} ")
        terminal.press_control_c()
        assert terminal.end() == 0
    assert not terminal.screen.is_second
    assert not terminal.screen.is_cursor_hidden


def test_no_color_is_respected() -> None:
    with telling(manager(3)) as scripted:
        terminal = Terminal([scripted.server.address, *_WATCH], NO_COLOR="1")
        terminal.see("block1 ")
        terminal.press_control_c()
        assert terminal.end() == 0
    assert not terminal.screen.has_color


def test_sigterm_restores_the_terminal_too() -> None:
    with telling(manager(3)) as scripted:
        terminal = Terminal([scripted.server.address, *_WATCH])
        terminal.see("block1 ")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
    assert not terminal.screen.is_second
    assert not terminal.screen.is_cursor_hidden


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on() -> None:
    with telling(manager(3)) as scripted:
        terminal = Terminal([scripted.server.address, *_WATCH])
        terminal.see("block1 ")
        os.killpg(terminal.process.pid, signal.SIGTSTP)
        terminal.until(lambda screen: not screen.is_second)
        assert not terminal.screen.is_cursor_hidden
        terminal.wait_until_stopped()
        os.killpg(terminal.process.pid, signal.SIGCONT)
        terminal.see("block1 ")
        assert terminal.screen.is_second
        terminal.press_control_c()
        assert terminal.end() == 0


def test_while_nobody_answers_the_last_report_stays_and_says_how_old_it_is() -> None:
    with telling(manager(3)) as scripted:
        terminal = Terminal([scripted.server.address, *_WATCH])
        terminal.see("block1 ")
    terminal.see("s ago")
    assert "block1 " in "\n".join(terminal.screen.lines)
    terminal.press_control_c()
    assert terminal.end() == 0


def test_once_at_a_terminal_prints_and_leaves() -> None:
    with telling(manager(3)) as scripted:
        terminal = Terminal([scripted.server.address, "--once"])
        assert terminal.end() == 0
    text = "".join(terminal.screen.first)
    assert "block1 " in text
    assert "\x1b[?1049h" not in text


def test_watching_into_a_pipe_prints_one_report_after_another() -> None:
    with telling(manager(1)) as scripted:
        command = [str(SCRIPTS / "hypsc"), "status", scripted.server.address, "--json", *_WATCH]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        process.communicate(timeout=WAIT_S)
    assert {report["model"] for report in told} == {"vgg16"}
