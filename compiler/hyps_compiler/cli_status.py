"""`hypsc status`: how a running manager or worker fares, drawn again and again at a terminal."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hyps.errors import PeerError, UsageError, printable
from hyps.formats.quantities import parse_seconds
from hyps.terminal import HypsCommand
from hyps_compiler.cli_options import print_json

if TYPE_CHECKING:
    from hyps.formats.status import Report
    from hyps.observer import Observer
    from hyps_compiler.status_view import Line

_ASK_S = 5.0
_LEAST_INTERVAL_S = 0.1
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Go to the terminal's second screen and hide the cursor; and back."""

_TOP, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_STYLES: dict[str, dict[str, Any]] = {
    "title": {"bold": True},
    "warn": {"fg": "yellow"},
    "bad": {"fg": "red"},
    "dim": {"dim": True},
}


@click.command(cls=HypsCommand)
@click.argument("endpoint")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; with --watch a line per report.")
@click.option("--watch/--once", "watches", default=None, help="Go on until Ctrl-C; default: at a terminal.")
@click.option("--interval", default="1s", show_default=True, help="Between two reports.")
def status(endpoint: str, as_json: bool, watches: bool | None, interval: str) -> None:
    """Show how the manager or worker at ENDPOINT fares.

    Devices, partitions, queues and rates, and what was predicted against what is measured. Ratios are measured /
    predicted; rates are those of the last 10 seconds.

    \b
    Examples:
      hypsc status tcp://127.0.0.1:5757
      hypsc status tcp://127.0.0.1:5757 --json
      hypsc status tcp://127.0.0.1:5757 --watch --interval 5s
    """
    from hyps.observer import observe

    interval_s = parse_seconds(interval)
    if interval_s < _LEAST_INTERVAL_S:
        raise UsageError(f"--interval `{printable(interval)}` is shorter than 100ms", "give a longer one")
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
    if watches is None:
        watches = is_terminal and not as_json
    with observe(endpoint) as observer:
        report = observer.ask(_ASK_S)
        if not watches:
            _print(report, endpoint, as_json, is_terminal)
            return
        with _until_left():
            if is_terminal and not as_json:
                _draw_on(observer, report, endpoint, interval_s)
            else:
                _print_on(observer, report, endpoint, interval_s, as_json)


def _print(report: "Report", endpoint: str, as_json: bool, is_terminal: bool) -> None:
    import msgspec

    from hyps_compiler.status_view import show_report

    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    for line in show_report(report, endpoint):
        click.echo(_painted(line, has_color=is_terminal and "NO_COLOR" not in os.environ))


def _print_on(observer: "Observer", report: "Report", endpoint: str, interval_s: float, as_json: bool) -> NoReturn:
    """Print one report below the other, for files and pipes.

    Raises:
        PeerError: whoever was watched is gone.
    """
    import msgspec

    while True:
        if as_json:
            click.echo(json.dumps(msgspec.to_builtins(report), allow_nan=False))
        else:
            _print(report, endpoint, as_json=False, is_terminal=False)
            click.echo("")
        time.sleep(interval_s)
        report = observer.ask(_ASK_S)


def _draw_on(observer: "Observer", report: "Report", endpoint: str, interval_s: float) -> NoReturn:
    """Draw reports in place; while nobody answers the last one stays and says how old it is."""
    heard_s, trouble = time.monotonic(), ""
    with _second_screen():
        while True:
            _draw(report, endpoint, f"{trouble}; this was {time.monotonic() - heard_s:.0f} s ago" if trouble else "")
            time.sleep(interval_s)
            try:
                report, trouble = observer.ask(max(1.0, interval_s)), ""
                heard_s = time.monotonic()
            except PeerError as error:
                trouble = error.message


def _draw(report: "Report", endpoint: str, trouble: str) -> None:
    from hyps_compiler.status_view import Line, show_report

    columns, rows = shutil.get_terminal_size()
    lines = [Line(printable(trouble, columns), "bad")] if trouble else []
    lines += show_report(report, endpoint, width=min(columns, 100), rows=rows - len(lines))
    has_color = "NO_COLOR" not in os.environ
    text = "\r\n".join(_painted(line, has_color) + _REST_OF_LINE for line in lines)
    sys.stdout.write(_TOP + text + _REST_OF_SCREEN)
    sys.stdout.flush()


def _painted(line: "Line", has_color: bool) -> str:
    style = _STYLES.get(line.tone) if has_color else None
    return click.style(line.text, **style) if style else line.text


@contextlib.contextmanager
def _second_screen() -> Iterator[None]:
    """Draw on the terminal's second screen; whoever stops the process (Ctrl-Z) finds the first one again."""
    _switch(_ENTER)
    before = signal.signal(signal.SIGTSTP, _stop_for_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        _switch(_LEAVE)


def _stop_for_now(*_signal: object) -> None:
    _switch(_LEAVE)
    signal.raise_signal(signal.SIGSTOP)
    _switch(_ENTER)


def _switch(text: str) -> None:
    os.write(sys.stdout.fileno(), text.encode())  # not through the buffer, which may be in the middle of a write


class _Left(BaseException):
    """Whoever watched pressed Ctrl-C; no Exception, so that it passes whatever is being waited for."""


@contextlib.contextmanager
def _until_left() -> Iterator[None]:
    """End quietly at Ctrl-C, which is how one stops watching, and no failure.

    The terminal sends it to the process that the user started as well, which passes it on: a second one comes.
    """

    def leave(*_signal: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise _Left

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    except _Left:
        return
    finally:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, before)
