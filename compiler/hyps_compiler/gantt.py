"""The first simulated requests as a Gantt chart: rows of characters for a terminal, or a picture (SVG)."""

import math
from collections.abc import Sequence
from html import escape

from hyps.errors import printable
from hyps.formats.quantities import format_seconds
from hyps_compiler.simulation_result import Simulated, Span

CHARTED = 6
"""Requests that the chart in a terminal shows: more would not fit."""

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL, _ROW, _TOP, _WIDTH, _RIGHT = 190, 26, 34, 860, 40
_TEXT = "#7d7d7d"
"""Reads on white and on black."""


def text_gantt(simulated: Simulated, requests: int = CHARTED, width: int = 80) -> str:
    """Return a row per device and link; a character is the last digit or letter of the request it is busy with.

    What is shorter than a character shows as one; `x` marks what a fault broke off.
    """
    spans, end_s = _shown(simulated, requests)
    rows = _rows(simulated, spans)
    if not rows or end_s <= 0:
        return ""
    label = min(24, max(len(name) for name in rows))
    columns = width - label - 2
    scale = columns / end_s
    lines = [" " * (label + 2) + _axis(end_s, columns)]
    for name in rows:
        cells = [" "] * columns
        for span in spans:
            if span.resource == name:
                first = min(int(span.start_s * scale), columns - 1)
                last = max(first + 1, min(round(span.end_s * scale), columns))
                cells[first:last] = _mark(span) * (last - first)
        shown = printable(name, label)
        lines.append(f"{shown:<{label}}  {''.join(cells)}".rstrip())
    return "\n".join(lines)


def svg_gantt(simulated: Simulated, requests: int = 20) -> str:
    """Return a picture of the same, one colour per request; it has no background, and reads on light and dark."""
    spans, end_s = _shown(simulated, requests)
    rows = _rows(simulated, spans)
    scale = _WIDTH / end_s if end_s > 0 else 0.0
    width, height = _LABEL + _WIDTH + _RIGHT, _TOP + _ROW * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        "<title>simulated requests</title>",
        *(_ticks(end_s, height) if end_s > 0 else ()),
    ]
    for row, name in enumerate(rows):
        top = _TOP + row * _ROW
        parts.append(
            f'<text x="{_LABEL - 8}" y="{top + 17}" text-anchor="end" fill="{_TEXT}">{_xml(name, 28)}</text>'
            f'<line x1="{_LABEL}" x2="{_LABEL + _WIDTH}" y1="{top + _ROW}" y2="{top + _ROW}" stroke="{_TEXT}" '
            f'stroke-opacity="0.25"/>'
        )
        parts += [_bar(span, top, scale) for span in spans if span.resource == name]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _shown(simulated: Simulated, requests: int) -> tuple[list[Span], float]:
    """Return what was done for the first requests, and when it ends."""
    first = {life.request for life in sorted(simulated.lives, key=lambda life: life.request)[:requests]}
    spans = [span for span in simulated.spans if span.request in first]
    return spans, max((span.end_s for span in spans), default=0.0)


def _rows(simulated: Simulated, spans: Sequence[Span]) -> list[str]:
    """Return the devices, then the links, that do something."""
    used = {span.resource for span in spans}
    return [use.name for use in (*simulated.devices, *simulated.links) if use.name in used]


def _mark(span: Span) -> list[str]:
    return ["x" if span.is_lost else _LETTERS[span.request % len(_LETTERS)]]


def _axis(end_s: float, columns: int) -> str:
    end = format_seconds(end_s)
    return "0" + " " * max(1, columns - 1 - len(end)) + end


def _ticks(end_s: float, height: int) -> list[str]:
    step_s, parts = _tick_step_s(end_s), []
    for number in range(int(end_s / step_s * (1 + 1e-9)) + 1):
        x = _LABEL + _WIDTH * number * step_s / end_s
        time = _xml(format_seconds(number * step_s), 20) if number else "0"
        parts.append(
            f'<text x="{x:.1f}" y="18" text-anchor="middle" fill="{_TEXT}">{time}</text>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 12}" stroke="{_TEXT}" '
            f'stroke-opacity="0.25"/>'
        )
    return parts


def _tick_step_s(end_s: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that four to ten of them make the whole."""
    power: float = 10.0 ** math.floor(math.log10(end_s))
    return next(step for step in (power / 10, power / 5, power / 2, power) if end_s / step <= 10)


def _bar(span: Span, top: int, scale: float) -> str:
    x, width = _LABEL + span.start_s * scale, max((span.end_s - span.start_s) * scale, 0.5)
    hue = span.request * 137 % 360  # neighbours far apart on the circle of hues
    paint = f'fill="none" stroke="hsl({hue},60%,50%)"' if span.is_lost else f'fill="hsl({hue},45%,52%)"'
    if span.kind == "load":
        paint += ' fill-opacity="0.45"'
    times = f"{format_seconds(span.start_s)} to {format_seconds(span.end_s)}"
    what = f"request {span.request}: {span.name}{' (loading)' if span.kind == 'load' else ''}, {times}"
    number = (
        f'<text x="{x + width / 2:.1f}" y="{top + 17}" text-anchor="middle" fill="#fff">{span.request}</text>'
        if width > 9 * len(str(span.request)) and not span.is_lost
        else ""
    )
    return (
        f'<g><title>{_xml(what, 200)}</title><rect x="{x:.2f}" y="{top + 3}" width="{width:.2f}" '
        f'height="{_ROW - 6}" rx="2" {paint}/>{number}</g>'
    )


def _xml(text: str, limit: int) -> str:
    return escape(printable(text, limit))
