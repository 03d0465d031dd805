"""What `hypsc` and `hyps-worker` share at the terminal: options, errors, progress and tables."""

import contextlib
import errno
import functools
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import click

from hyps.adapters.guard import note_phase
from hyps.errors import HypsError, InternalError, OutputError, UsageError, printable
from hyps.formats.quantities import parse_count, parse_nbytes, parse_seconds

_VERBOSE, _QUIET, _JSON_LOGS = "hyps.verbose", "hyps.quiet", "hyps.json-logs"
_DELAY_S, _FRAME_S = 2.0, 0.2
_MESSAGE_CHARS = 1000
_LOGGERS = ("hyps", "hyps_compiler", "hyps_models", "hyps_passes")
_ONLY_TELLING = frozenset(("-h", "--help", "--version"))


class HypsCommand(click.Command):
    """A command whose every failure is `error: <sentence> [E_CODE]`, perhaps a `hint:` line, and the right exit status.

    It brings `-v`, `-q`, `--debug` and `--version`. An `int` that the command returns is its exit status. With `--json`
    among the arguments an error also goes to stdout as `{"error": {"code", "message", "hint"}}`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_standard_options())

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and leave the process with its exit status; see `click.Command.main`."""
        words = list(sys.argv[1:] if args is None else args)
        run = functools.partial(super().main, words, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        with _signals_as_exceptions():
            status = _reported(run, words)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function; an interrupt or a closed pipe leaves as click would not let it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped(signal.SIGINT) from error
        except BrokenPipeError as error:
            raise _Stopped(signal.SIGPIPE) from error


class HypsGroup(HypsCommand, click.Group):
    """A group of commands that report as `HypsCommand` does; its commands are of that class."""

    command_class = HypsCommand
    group_class = type

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help, as a usage error, when nothing was asked for."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(UsageError.exit_status)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with.

        Raises:
            UsageError: there is none; the hint is the nearest name.
        """
        if (
            args
            and not args[0].startswith("-")
            and self.get_command(ctx, args[0]) is None
            and not ctx.resilient_parsing
        ):
            message = f"there is no command `{printable(args[0])}`"
            raise UsageError(message, _nearest(args[0], self.list_commands(ctx)) or _see_help(ctx))
        return super().resolve_command(ctx, args)


class ContainedGroup(HypsGroup):
    """A group that, called as a program, does its work in a child: what kills the child ends in one line as well.

    `main` works in this process, as tests and other programs want it.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the program that the user started, and leave the process."""
        words = _options_of(sys.argv[1:])
        if not words or _ONLY_TELLING.intersection(words):
            return super().__call__(*args, **kwargs)
        from hyps.containment import contain

        def on_death(error: HypsError, said: str) -> int:
            if "--debug" in words and said:
                click.echo(said, err=True)
            with contextlib.suppress(BrokenPipeError):  # nobody reads what it says
                _report(error, debug=False, as_json="--json" in words)
            return error.exit_status

        return contain(lambda: super(ContainedGroup, self).__call__(*args, **kwargs), on_death, _stopped_status)


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """An option's value read by one of the parsers of `formats.quantities`."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number that `value` names; a number is itself."""
        if isinstance(value, (int, float)):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            where = f"option `{param.opts[0]}`: " if param is not None else ""
            raise UsageError(where + printable(error.message), error.hint) from error


NBYTES = _Quantity("size", parse_nbytes)
"""A click type for sizes: `256MB`, `1GiB`, `100000`."""

COUNT = _Quantity("count", parse_count)
"""A click type for counts: `30M`."""

_LONGEST_S = 1e8
"""Three years: a longer time is as good as none, and more than the system's timers take."""


def _parse_timeout(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise UsageError(f"time `{text}` is not above zero", "leave the option out, or give a long time such as 24h")
    return min(seconds, _LONGEST_S)


TIMEOUT = _Quantity("duration", _parse_timeout)
"""A click type for the longest that something may take: `30s`, `5m`."""


def verbosity() -> int:
    """Return how often `-v` was given to the running command, or -1 for `-q`."""
    meta = click.get_current_context().meta
    return -1 if meta.get(_QUIET) else meta.get(_VERBOSE, 0)


def say(text: str) -> None:
    """Print a line for people on stderr, unless `-q` was given; where logs are JSON, log it."""
    if verbosity() < 0:
        return
    if click.get_current_context().meta.get(_JSON_LOGS):
        import logging

        logging.getLogger("hyps").info("%s", text)
    else:
        click.echo(text, err=True)


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What is said on stderr: text for people, or a JSON object per line, for collectors.",
)

metrics_option = click.option(
    "--metrics",
    default="",
    help="Serve Prometheus metrics at HOST:PORT, such as 127.0.0.1:9464; see /metrics there.",
)


def log_in(log_format: str, device: str = "") -> None:
    """Have the running command log as `--log-format` says; in JSON it tells what an operator wants once, without `-v`.

    Args:
        log_format: `text` or `json`.
        device: what this process is called.
    """
    if log_format != "json":
        return
    import logging

    from hyps.adapters.logs import json_handler

    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity(), logging.DEBUG)
    click.get_current_context().meta[_JSON_LOGS] = True
    logging.captureWarnings(True)
    for name in (*_LOGGERS, "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [json_handler(sys.stderr, device)], False
        logger.setLevel(level)


class Progress:
    """How far a long piece of work is; drawn on stderr by a thread once the work has taken two seconds."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self._total = label, total
        note_phase(label)
        self._done, self._drawn = 0, 0
        self._ended = threading.Event()

    def enter(self, phase: str) -> None:
        """Say that something else is being done from now on."""
        self.label = phase
        note_phase(phase)

    def update(self, steps: int = 1) -> None:
        """Count `steps` more of the total as done."""
        self._done += steps

    def draw_until_ended(self) -> None:
        """Draw the bar, from two seconds after the call until `end` is called."""
        if self._ended.wait(_DELAY_S):
            return
        start_s = time.monotonic() - _DELAY_S
        endless = iter(int, 1)
        length = {"iterable": endless} if self._total is None else {"length": self._total}
        bar: Any = click.progressbar(
            **length, label=self.label, file=sys.stderr, fill_char="#", show_eta=self._total is not None, width=24
        )
        with bar:
            while not self._ended.wait(_FRAME_S):
                bar.label = f"{self.label} {time.monotonic() - start_s:.0f} s"
                bar.update(self._done - self._drawn if self._total is not None else 1)
                self._drawn = self._done
                bar.render_progress()

    def end(self) -> None:
        """Stop drawing."""
        self._ended.set()


@contextlib.contextmanager
def progress(label: str, total: int | None = None, quiet: bool = False) -> Iterator[Progress]:
    """Show on stderr how far a long piece of work is; the work calls `update` of what it is given.

    Nothing is drawn in the first two seconds, when `quiet`, or when stderr is no terminal. A `total` of None draws a
    bar that only moves.
    """
    bar = Progress(label, total)
    if quiet or not sys.stderr.isatty():
        yield bar
        return
    painter = threading.Thread(target=bar.draw_until_ended, name="progress", daemon=True)
    painter.start()
    try:
        yield bar
    finally:
        bar.end()
        painter.join()


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], align: str = "", width: int = 80) -> str:
    """Return `rows` under `headers` in columns; `align` has `l` or `r` per column, left where it is too short.

    A table wider than `width` characters has its widest left-aligned column cut, never a number.

    >>> print(table([["conv1", 64], ["fc", 4096]], ["layer", "width"], "lr"))
    layer  width
    conv1     64
    fc      4096
    """
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    sides = align.ljust(len(headers), "l")
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    _narrow(widths, sides, width)
    return "\n".join("  ".join(map(_cell, row, widths, sides)).rstrip() for row in cells)


def _cell(text: str, width: int, side: str) -> str:
    shown = text if len(text) <= width else text[: width - 1] + "…"
    return shown.rjust(width) if side == "r" else shown.ljust(width)


def _narrow(widths: list[int], sides: str, limit: int) -> None:
    left = [i for i, side in enumerate(sides[: len(widths)]) if side == "l"]
    excess = sum(widths) + 2 * (len(widths) - 1) - limit
    while excess > 0 and left:
        widest = max(left, key=lambda i: widths[i])
        if widths[widest] <= 8:
            return
        widths[widest] -= 1
        excess -= 1


def _standard_options() -> list[click.Parameter]:
    hidden = {"expose_value": False, "is_eager": True}
    return [
        click.Option(
            ["-v", "--verbose"], count=True, callback=_note_verbose, help="Say more; -vv for every step.", **hidden
        ),
        click.Option(["-q", "--quiet"], is_flag=True, callback=_note_quiet, help="Say nothing but errors.", **hidden),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.", **hidden),
        click.Option(["--version"], is_flag=True, callback=_show_version, help="Show the version and leave.", **hidden),
    ]


def _note_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    ctx.meta[_VERBOSE] = ctx.meta.get(_VERBOSE, 0) + value
    if value:
        _log_at(ctx.meta[_VERBOSE])


def _note_quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[_QUIET] = ctx.meta.get(_QUIET, False) or value


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{ctx.find_root().info_name} {version('hyps')}")
        ctx.exit()


def _log_at(verbose: int) -> None:
    """Let our own loggers speak on stderr: info with one `-v`, debug with more."""
    import logging

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(self.format(record), err=True)

    handler = Echo()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


class _Stopped(BaseException):
    """The process was told to stop; no Exception, so that only `finally` and `with` see it pass."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Raise `_Stopped` on SIGINT, SIGTERM and SIGHUP, so that half-written output is cleaned up on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    plain = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler in plain]
    stopped_by = []

    def stop(signum: int, _frame: object) -> NoReturn:
        for number in caught:
            signal.signal(number, signal.SIG_IGN)  # another one must not interrupt the cleaning up
        stopped_by.append(signum)
        raise _Stopped(signum)

    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            if not stopped_by and signal.getsignal(number) is stop:  # else this process is leaving, and says so once
                signal.signal(number, before[number])


def _options_of(words: Sequence[str]) -> list[str]:
    return list(words[: words.index("--")]) if "--" in words else list(words)


def _reported(run: Callable[[], Any], words: Sequence[str]) -> int:
    """Run a command; return its exit status, whatever happened having been said."""
    options = _options_of(words)
    try:
        result = run()
        _flush()
    except _Stopped as stop:
        return _stopped_status(stop.signum)
    except BrokenPipeError:
        return _stopped_status(signal.SIGPIPE)
    except click.Abort:
        return _stopped_status(signal.SIGINT)
    except Exception as error:  # the process's top: whatever arrives here must end in one line
        told = _of_stdout(error) if isinstance(error, OSError) else None
        return _report(told or _as_hyps_error(error), debug="--debug" in options, as_json="--json" in options)
    return result if isinstance(result, int) else 0


def _stopped_status(signum: int) -> int:
    if signum == signal.SIGPIPE:
        _drop_stdout()
    else:
        word = "interrupted" if signum == signal.SIGINT else "terminated"
        click.echo(f"error: {word} [E_{word.upper()}]", err=True)
    return 128 + signum


def _of_stdout(error: OSError) -> HypsError | None:
    """Return what to say of an error if it is that standard output takes nothing more, which is then let go of."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    frame = None if at is None else at.tb_frame
    # files that cannot be written raise the same errors, so that who was writing tells
    if frame is None or frame.f_code not in (click.echo.__code__, _flush.__code__) or frame.f_locals.get("err"):
        return None
    _drop_stdout()
    code = "E_DISKFULL" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    reason = (error.strerror or str(error)).lower()
    told = OutputError(f"cannot write to standard output: {reason}", "send it to another place", code=code)
    told.__cause__ = error
    return told


def _flush() -> None:
    if sys.stdout is not None:  # closed by whoever started us
        sys.stdout.flush()


def _drop_stdout() -> None:
    """Send what is still buffered nowhere: flushing it at exit would fail once more, with a traceback."""
    sink = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


def _report(error: HypsError, debug: bool, as_json: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error.__cause__ or error)
    message = printable(error.message, _MESSAGE_CHARS)
    if isinstance(error, InternalError):
        message = f"internal error: {message}"
    hint = error.hint
    if isinstance(error, InternalError) and not hint and not debug:
        hint = "this is a bug of ours: run it again with --debug and report what it shows"
    color = False if "NO_COLOR" in os.environ else None
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message} [{error.code}]", err=True, color=color)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {printable(hint, _MESSAGE_CHARS)}", err=True, color=color)
    if as_json:
        import json

        try:
            click.echo(json.dumps({"error": {"code": error.code, "message": message, "hint": hint}}))
        except OSError:  # nobody reads it, or there is no room for it; stderr has said it
            _drop_stdout()
    return error.exit_status


def _as_hyps_error(error: Exception) -> HypsError:
    if isinstance(error, HypsError):
        return error
    if isinstance(error, click.ClickException):
        converted = _from_click(error)
    elif isinstance(error, MemoryError) or _lacks_address_space(error):
        converted = HypsError(
            "there is not enough memory", "give `--memory`, or use smaller partitions", code="E_MEMORY"
        )
    else:
        converted = InternalError(f"{type(error).__name__}: {error}")
    converted.__cause__ = error
    return converted


def _lacks_address_space(error: Exception) -> bool:
    """Return whether a limit on the address space is the likely cause: libraries that run into it say all sorts."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and isinstance(error, (ImportError, RuntimeError, SystemError))


def _from_click(error: click.ClickException) -> HypsError:
    if not isinstance(error, click.UsageError):
        return HypsError(_sentence(error.format_message()))
    hint = _see_help(error.ctx) if error.ctx else "see `--help`"
    if isinstance(error, click.NoSuchOption):
        near = _nearest(error.option_name.lstrip("-"), [name.lstrip("-") for name in error.possibilities or []], "--")
        return UsageError(f"there is no option `{printable(error.option_name)}`", near or hint)
    return UsageError(_sentence(error.format_message()), hint)


def _sentence(text: str) -> str:
    plain = re.sub(r"'([^'`]*)'", r"`\1`", " ".join(text.split()).rstrip("."))
    return plain[:1].lower() + plain[1:]


def _nearest(word: str, names: Sequence[str], dashes: str = "") -> str:
    """Return a question for the name nearest to a word, or nothing; `dashes` go before it, which are not compared."""
    import difflib

    near = difflib.get_close_matches(word, names, 1)
    return f"did you mean `{dashes}{near[0]}`?" if near else ""


def _see_help(ctx: click.Context) -> str:
    return f"see `{ctx.command_path} --help`"
