"""Sizes, counts, rates and times as people write them: `256MB`, `1GiB`, `30M`, `57Mbit/s`, `28ms`."""

import re

from hyps.errors import UsageError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
_NEXT_UNIT = 0.9995  # from here on three digits round up to 1 of the next unit
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-zµ/]*)\s*")


def parse_nbytes(text: str) -> int:
    """Return the bytes that `text` names: `256MB` is 256,000,000, `1GiB` is 2**30, `100000` is itself.

    Raises:
        UsageError: `text` is no size, or not above zero.
    """
    number, unit = _split(text, "size", "256MB, 1GiB or 100000")
    scale = {**_DECIMAL, **_BINARY}.get(unit.lower().removesuffix("b") if unit else "")
    if scale is None:
        raise _unreadable(text, "size", "256MB, 1GiB or 100000")
    return _positive(int(number * scale), text, "size")


def parse_count(text: str) -> int:
    """Return the count that `text` names: `30M` is 30,000,000.

    Raises:
        UsageError: `text` is no count, or not above zero.
    """
    number, unit = _split(text, "count", "30000000, 30M or 1.5G")
    scale = _DECIMAL.get(unit.lower())
    if scale is None:
        raise _unreadable(text, "count", "30000000, 30M or 1.5G")
    return _positive(int(number * scale), text, "count")


def parse_bytes_per_s(text: str) -> float:
    """Return the bytes per second that `text` names: `57Mbit/s` is 7,125,000, `7MB/s` is 7,000,000.

    Raises:
        UsageError: `text` is no rate.
    """
    number, unit = _split(text, "rate", "57Mbit/s or 7MB/s")
    stem = unit.lower().removesuffix("/s")
    if stem == unit.lower():
        raise _unreadable(text, "rate", "57Mbit/s or 7MB/s")
    bits = stem.endswith("bit")
    scale = {**_DECIMAL, **_BINARY}.get(stem.removesuffix("bit") if bits else stem.removesuffix("b"))
    if scale is None or number <= 0:
        raise _unreadable(text, "rate", "57Mbit/s or 7MB/s")
    return number * scale / (8 if bits else 1)


def parse_seconds(text: str) -> float:
    """Return the seconds that `text` names: `28ms` is 0.028, `1.5` is 1.5, `5m` is 300.

    Raises:
        UsageError: `text` is no time.
    """
    number, unit = _split(text, "time", "28ms, 1.5s or 5m")
    scale = _SECONDS.get(unit.lower() or "s")
    if scale is None:
        raise _unreadable(text, "time", "28ms, 1.5s or 5m")
    return number * scale


def format_nbytes(nbytes: int | float) -> str:
    """Return `nbytes` for people, three significant digits, decimal units: `553 MB`.

    >>> format_nbytes(553_430_000), format_nbytes(64), format_nbytes(25_700_000)
    ('553 MB', '64 B', '25.7 MB')
    """
    return _scaled(nbytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: int | float) -> str:
    """Return `count` for people, three significant digits: `138 M`.

    >>> format_count(138_357_544), format_count(12)
    ('138 M', '12')
    """
    return _scaled(count, 1000, ("", "k", "M", "G", "T"))


def format_seconds(seconds: float) -> str:
    """Return `seconds` for people: `12.3 ms`.

    >>> format_seconds(0.01234), format_seconds(75.2)
    ('12.3 ms', '75.2 s')
    """
    if seconds >= _NEXT_UNIT:
        return f"{seconds:.3g} s" if seconds < 100 * _NEXT_UNIT else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= _NEXT_UNIT / 1e3 else f"{seconds * 1e6:.3g} µs"


def _scaled(value: int | float, step: int, units: tuple[str, ...]) -> str:
    amount, index = float(value), 0
    while amount >= step * _NEXT_UNIT and index < len(units) - 1:
        amount, index = amount / step, index + 1
    digits = (
        f"{amount:.0f}" if amount >= 99.95 or index == 0 else f"{amount:.1f}" if amount >= 9.995 else f"{amount:.2f}"
    )
    return f"{digits} {units[index]}".rstrip()


def _split(text: str, what: str, examples: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise _unreadable(text, what, examples)
    return float(match[1]), match[2]


def _positive(value: int, text: str, what: str) -> int:
    if value <= 0:
        raise UsageError(f"{what} `{text}` is not above zero")
    return value


def _unreadable(text: str, what: str, examples: str) -> UsageError:
    return UsageError(f"`{text}` is no {what}", f"write it like {examples}")


def counted(number: int | float, noun: str) -> str:
    """Return a number with its noun, which is one of those that take an `s`.

    >>> counted(1, "node"), counted(2, "node"), counted(0.25, "step")
    ('1 node', '2 nodes', '0.25 steps')
    """
    shown = f"{number:.3g}" if isinstance(number, float) else str(number)
    return f"{shown} {noun}{'' if shown == '1' else 's'}"
