"""What users say of the course of time: a bandwidth trace as CSV, and when something is down."""

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from hyps.errors import UsageError, printable
from hyps.formats.quantities import parse_bytes_per_s, parse_seconds
from hyps_compiler.simulation_system import Down

_MAX_NBYTES = 64 * 2**20
_HINT = "its lines read `1.5, camera to server, 57Mbit/s`: seconds, the link's direction, its bandwidth from then on"
_HEADER = "time_s"


def read_trace(path: Path) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return, by link, from when on it moves how many bytes per second.

    The file has a line for every change: seconds, link, and bytes per second or a rate such as `57Mbit/s`; 0 where
    nothing moves. A first line `time_s,...`, empty lines and lines that begin with `#` are left out.

    Raises:
        UsageError: the file cannot be read, or is no such thing; names the line.
    """
    shown = printable(str(path))
    changes: dict[str, list[tuple[float, float]]] = {}
    for number, cells in enumerate(csv.reader(_text(path, shown).splitlines()), start=1):
        if not cells or cells[0].lstrip().startswith("#") or (number == 1 and cells[0].strip() == _HEADER):
            continue
        if len(cells) != 3:
            raise UsageError(f"line {number} of trace `{shown}` has {len(cells)} columns, not 3", _HINT)
        try:
            time_s, rate = parse_seconds(cells[0]), _rate(cells[2])
        except UsageError as error:
            raise UsageError(f"line {number} of trace `{shown}`: {error.message}", _HINT) from error
        changes.setdefault(cells[1].strip(), []).append((time_s, rate))
    if not changes:
        raise UsageError(f"trace `{shown}` has no lines", _HINT)
    return {link: _checked(link, rates, shown) for link, rates in changes.items()}


def parse_downs(texts: Sequence[str]) -> dict[str, tuple[Down, ...]]:
    """Return when devices or links are down, from texts such as `server:2s-3s`.

    Raises:
        UsageError: one of them is no such thing.
    """
    found: dict[str, list[Down]] = {}
    for text in texts:
        name, _, interval = text.rpartition(":")
        start, _, end = interval.partition("-")
        wrong = UsageError(f"--down `{printable(text)}` is no NAME:FROM-TO", "write it like server:2s-3s")
        if not name:
            raise wrong
        try:
            down = Down(parse_seconds(start), parse_seconds(end))
        except UsageError as error:
            raise wrong from error
        if down.from_s >= down.to_s:
            raise UsageError(f"--down `{printable(text)}` ends before it begins", "write it like server:2s-3s")
        found.setdefault(name, []).append(down)
    return {name: tuple(downs) for name, downs in found.items()}


def _text(path: Path, shown: str) -> str:
    try:
        if path.stat().st_size > _MAX_NBYTES:
            raise UsageError(f"trace `{shown}` has more than the {_MAX_NBYTES} bytes allowed")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"trace `{shown}` cannot be read: {reason}", _HINT) from error


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        return parse_bytes_per_s(text)
    if not 0 <= rate < math.inf:
        raise UsageError(f"`{printable(text)}` is no rate")
    return rate


def _checked(link: str, rates: list[tuple[float, float]], shown: str) -> tuple[tuple[float, float], ...]:
    for (before_s, _), (after_s, _) in itertools.pairwise(rates):
        if after_s <= before_s:
            raise UsageError(
                f"in trace `{shown}` the times of link `{printable(link)}` fall from {before_s:g} s to {after_s:g} s",
                "put its lines in the order of time",
            )
    if rates[-1][1] == 0:
        raise UsageError(
            f"in trace `{shown}` link `{printable(link)}` ends at 0, so that nothing would ever arrive",
            "add a line from which on it moves again",
        )
    return tuple(rates)
