"""How a running cluster looks at the terminal: a report as lines of text, for any number of devices and rows.

Pure: the same report gives the same lines. `cli_status` prints them, or draws them again and again.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hyps.errors import printable
from hyps.formats.quantities import counted, format_count, format_nbytes, format_seconds
from hyps.formats.status import (
    CourseStatus,
    HubStatus,
    LinkStatus,
    NodeStatus,
    PartitionStatus,
    Report,
    RequestsStatus,
)
from hyps.terminal import table

Tone = Literal["plain", "title", "warn", "bad", "dim"]

WIDTH = 80
_SILENT_S, _SETTLED_S = 2.0, 2.0
_LABEL = 10
_BAR = 8
_GRID_NAME, _GRID_STATE = 10, 13
_LEAST_ROWS = 3
_MOST_NOTES, _NOTE_CHARS = 3, 150
_BADNESS: tuple[Tone, ...] = ("bad", "warn", "plain")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the screen, and how it is painted."""

    text: str
    tone: Tone = "plain"


def show_report(report: Report, where: str, *, width: int = WIDTH, rows: int | None = None) -> list[Line]:
    """Return the report of who answers at `where` as lines of at most `width` characters.

    With `rows`, there are at most that many lines: tables that do not fit are shortened and say by how much, and many
    devices stand several in a line.
    """
    head = [*_head(report, where, width), *_requests(report)]
    devices = _devices(report)
    tables = [_partition_table(report.partitions, width), _course_table(report.courses, width)]
    tables.append(_link_table(report.links, width))
    node_table = _node_table(devices, width)
    if rows is not None:
        room = rows - len(head)
        others = sum(len(lines) + 1 for lines in tables if lines)
        node_table = _fit_nodes(devices, node_table, max(room - others - 1, min(room - 1, room // 2)), width)
        room -= len(node_table) + 1
        tables = _fit_tables(tables, room)
    shown = [*head]
    for lines in (node_table, *tables):
        shown += [Line(""), *lines] if lines else []
    return [Line(line.text[:width], line.tone) for line in (shown if rows is None else shown[: max(rows, 0)])]


# What is always there.


def _head(report: Report, where: str, width: int) -> Iterator[Line]:
    name = printable(report.device, 24)
    up = f"up {_long_seconds(report.uptime_s)}"
    left = f"{printable(report.role, 12)} {name}{' ' if name else ''}at {printable(where, 40)}"
    yield Line(f"{left[: width - len(up) - 2]:<{width - len(up)}}{up}", "title")
    parts = [f"{printable(report.model, 30)}: {printable(report.state, 16)}"]
    parts += [f"variant {printable(report.variant, 24)}"] if report.variant else []
    parts += [f"placed by {printable(report.strategy, 16)}"] if report.strategy else []
    yield Line(", ".join(parts))
    for note in _notes(report):
        for text in textwrap.wrap(note, width, initial_indent="note: ", subsequent_indent="      "):
            yield Line(text, "warn")


def _notes(report: Report) -> Iterator[str]:
    for note in report.notes[:_MOST_NOTES]:
        yield printable(note, _NOTE_CHARS)
    refused = [(node.device, *refusal) for node in report.nodes for refusal in node.refused]
    for device, partition, reason in refused[:_MOST_NOTES]:
        yield printable(f"{device} cannot load {partition}: {reason}", _NOTE_CHARS)
    if report.is_cut:
        yield "too much to tell; the partitions and groups are left out"


def _requests(report: Report) -> Iterator[Line]:
    requests = report.requests
    yield Line("")
    yield Line(
        f"{'requests':<{_LABEL}}{_amount('queued', requests.queued, requests.max_queued)}   "
        f"{_amount('running', requests.running, requests.max_running)}   "
        f"{counted(requests.clients, 'client') if requests.clients else ''}".rstrip()
    )
    ended = [f"{format_count(requests.done)} done"]
    for count, word in (
        (requests.failed, "failed"),
        (requests.cancelled, "cancelled"),
        (requests.refused, "refused"),
        (requests.retried, "begun anew"),
    ):
        ended += [f"{format_count(count)} {word}"] if count else []
    yield Line(f"{'':<{_LABEL}}{', '.join(ended)}", "warn" if requests.failed else "plain")
    if requests.failures:
        codes = sorted(requests.failures.items(), key=lambda item: (-item[1], item[0]))[:3]
        shown = ", ".join(f"{format_count(count)} {printable(code, 20)}" for code, count in codes)
        yield Line(f"{'failures':<{_LABEL}}{shown}", "warn")
    if report.hub is not None:
        yield Line(f"{'hub':<{_LABEL}}{_hub(report.hub)}")
    yield from _figures(requests)


def _hub(hub: HubStatus) -> str:
    parts = [_amount("queue", hub.queued_nbytes, hub.max_queued_nbytes, is_nbytes=True)]
    if hub.held_nbytes or hub.max_held_nbytes:
        parts.append(_amount("held", hub.held_nbytes, hub.max_held_nbytes, is_nbytes=True))
    if hub.passed_nbytes:
        parts.append(f"passed on {format_nbytes(hub.passed_nbytes)}")
    return "   ".join(parts)


def _figures(requests: RequestsStatus) -> Iterator[Line]:
    """What is predicted against what is measured."""
    rate, expected = requests.done_per_s, requests.predicted_rps
    latency, predicted = requests.latency, requests.predicted_latency_s
    late = f"   p95 {_duration(latency.p95_s)}, p99 {_duration(latency.p99_s)}" if latency.n else ""
    yield Line(f"{'':<{_LABEL}}{'measured':>10}{'predicted':>12}{'ratio':>8}", "dim")
    yield Line(_figure("rate", _rate(rate), "-" if expected is None else _rate(expected), _ratio(rate, expected)))
    ratio = _ratio(latency.p50_s, predicted)
    yield Line(_figure("latency", _duration(latency.p50_s), _duration(predicted), ratio) + late)


def _figure(label: str, measured: str, predicted: str, ratio: str) -> str:
    return f"{label:<{_LABEL}}{measured:>10}{predicted:>12}{ratio:>8}"


# Devices: a table, or where there are too many for it, several in a line.


@dataclass(frozen=True, slots=True)
class _Device:
    node: NodeStatus
    name: str
    """With the branches of the tree that it stands in."""


def _devices(report: Report, indent: str = "") -> list[_Device]:
    """Return the devices, those of a group behind it."""
    found = []
    for place, node in enumerate(report.nodes):
        is_last = place == len(report.nodes) - 1
        branch = indent and indent[:-2] + ("└ " if is_last else "├ ")
        found.append(_Device(node, branch + printable(node.device or report.role, 60)))
        if node.group is not None:
            below = indent and indent[:-2] + ("  " if is_last else "│ ")
            found += _devices(node.group, below + "  ")
    return found


def _node_table(devices: Sequence[_Device], width: int) -> list[Line]:
    if not devices:
        return [Line("no device has joined yet", "warn")]
    headers = ["device", "state", "busy", "memory", "items/s", "waits", "now"]
    rows = [_node_row(device) for device in devices]
    texts = table(rows, headers, "llllrrl", width).splitlines()
    return [Line(texts[0], "dim"), *map(Line, texts[1:], [_tone(device.node) for device in devices])]


def _node_row(device: _Device) -> list[str]:
    node = device.node
    waiting = str(node.waiting) if node.state != "gone" else ""
    return [device.name, _state(node), _busy(node), _memory(node), _short_rate(node.items_per_s), waiting, _now(node)]


def _fit_nodes(devices: Sequence[_Device], lines: list[Line], room: int, width: int) -> list[Line]:
    if len(lines) <= room:
        return lines
    across = max(1, (width + 2) // (_GRID_NAME + _GRID_STATE + 3))
    if -(-len(devices) // across) <= room:
        return list(_grid(devices, across))
    shown = _worst_first(devices)[: max(1, room - 1) * across]
    return [*_grid(shown, across), Line(f"and {len(devices) - len(shown)} more devices", "dim")]


def _grid(devices: Sequence[_Device], across: int) -> Iterator[Line]:
    for start in range(0, len(devices), across):
        some = devices[start : start + across]
        tones = [_tone(device.node) for device in some]
        yield Line("  ".join(_cell(device) for device in some).rstrip(), min(tones, key=_BADNESS.index))


def _cell(device: _Device) -> str:
    name = device.name if len(device.name) <= _GRID_NAME else device.name[: _GRID_NAME - 1] + "…"
    node = device.node
    state = _busy(node) if node.state == "serving" and node.silent_s < _SILENT_S else _state(node)
    return f"{name:<{_GRID_NAME}} {state:<{_GRID_STATE}}"


def _worst_first(devices: Sequence[_Device]) -> list[_Device]:
    return sorted(devices, key=lambda device: _BADNESS.index(_tone(device.node)))


def _tone(node: NodeStatus) -> Tone:
    if node.state == "gone" or node.silent_s >= _SILENT_S or node.refused:
        return "bad"
    return "plain" if _state(node) in ("serving", "idle") and not node.unreachable else "warn"


def _state(node: NodeStatus) -> str:
    if node.state != "gone" and node.silent_s >= _SILENT_S:
        return f"silent {node.silent_s:.0f} s"
    if node.state == "joining" and not node.partitions and node.joined_s > _SETTLED_S:
        return "idle"
    return printable(node.state, 10)


def _busy(node: NodeStatus) -> str:
    return f"{_bar(node.utilisation)} {min(node.utilisation, 99.9):>4.0%}" if node.utilisation < 10 else "busy"


def _memory(node: NodeStatus) -> str:
    if node.resident_nbytes is None:
        return "" if node.memory_nbytes is None else f"of {format_nbytes(node.memory_nbytes)}"
    if node.memory_nbytes is None:
        return format_nbytes(node.resident_nbytes)
    share = node.resident_nbytes / max(node.memory_nbytes, 1)
    return f"{format_nbytes(node.resident_nbytes)} {share:.0%}"


def _now(node: NodeStatus) -> str:
    """What it computes, or why it does not."""
    if node.refused:
        return f"cannot load {printable(node.refused[0][0], 20)}"
    if node.unreachable:
        return f"cannot reach {printable(', '.join(node.unreachable), 40)}"
    if not node.running:
        missing = len(node.partitions) - len(node.loaded)
        return f"{missing} to load" if missing and node.state == "loading" else ""
    item = max(node.running, key=lambda item: item.elapsed_s)
    more = f" +{len(node.running) - 1}" if len(node.running) > 1 else ""
    name = printable(item.partition, 24) or "computing"
    return f"{name} {format_seconds(item.elapsed_s)}{more}"


# The other tables.


def _partition_table(partitions: Sequence[PartitionStatus], width: int) -> list[Line]:
    if not partitions:
        return []
    headers = ["partition", "state", "where", "runs", "waited", "measured", "p95", "predicted", "ratio"]
    rows = [
        [
            printable(partition.partition, 40),
            printable(partition.state, 10),
            _where(partition.devices),
            format_count(partition.run.n),
            _duration(partition.waited.p50_s),
            _duration(partition.run.p50_s),
            _duration(partition.run.p95_s),
            _duration(partition.predicted_s),
            _ratio(partition.run.p50_s, partition.predicted_s),
        ]
        for partition in partitions
    ]
    texts = table(rows, headers, "lllrrrrrr", width).splitlines()
    tones: list[Tone] = ["bad" if partition.failed else "plain" for partition in partitions]
    return [Line(texts[0], "dim"), *map(Line, texts[1:], tones)]


def _course_table(courses: Sequence[CourseStatus], width: int) -> list[Line]:
    if len(courses) < 2 and all(course.state == "ready" for course in courses):
        return []
    rows = [
        [c.id, printable(c.state, 10), printable(c.variant, 20), _where(c.devices, 5), c.requests, format_count(c.done)]
        for c in courses
    ]
    texts = table(rows, ["course", "state", "variant", "over", "at work", "done"], "rlllrr", width).splitlines()
    tones: list[Tone] = ["plain" if course.state == "ready" else "warn" for course in courses]
    return [Line(texts[0], "dim"), *map(Line, texts[1:], tones)]


def _link_table(links: Sequence[LinkStatus], width: int) -> list[Line]:
    if not links:
        return []
    rows: list[list[str]] = [
        [
            f"{printable(link.source, 24) or 'hub'} > {printable(link.target, 24) or 'hub'}",
            "-" if link.bytes_per_s is None else f"{format_nbytes(link.bytes_per_s)}/s",
            _duration(link.seconds),
        ]
        for link in links
    ]
    headers = ["link", "bandwidth", "latency"]
    if any(link.sent_nbytes for link in links):
        headers += ["sends", "sent"]
        for row, link in zip(rows, links, strict=True):
            row += [f"{format_nbytes(link.sent_per_s)}/s", format_nbytes(link.sent_nbytes)]
    texts = table(rows, headers, "lrrrr", width).splitlines()
    return [Line(texts[0], "dim"), *map(Line, texts[1:])]


def _fit_tables(tables: Sequence[list[Line]], room: int) -> list[list[Line]]:
    """Shorten the tables to `room` rows together, the empty one before each included; the last give way first."""
    fitted = []
    for place, lines in enumerate(tables):
        if not lines:
            continue
        later = sum(min(len(other), _LEAST_ROWS) + 1 for other in tables[place + 1 :] if other)
        mine = min(len(lines), max(room - later - 1, min(room - 1, _LEAST_ROWS)))
        if mine < min(len(lines), _LEAST_ROWS):
            break
        kept = lines[: mine - 1] if mine < len(lines) else lines
        dropped = len(lines) - len(kept)
        fitted.append([*kept, Line(f"and {dropped} more", "dim")] if dropped else kept)
        room -= mine + 1
    return fitted


# Words and figures.


def _where(devices: Sequence[str], most: int = 1) -> str:
    names = ", ".join(printable(name, 24) for name in devices[:most])
    return names + (f" +{len(devices) - most}" if len(devices) > most else "") if names else "-"


def _amount(word: str, amount: int, limit: int | None, *, is_nbytes: bool = False) -> str:
    shown = format_nbytes(amount) if is_nbytes else format_count(amount)
    if not limit:
        return f"{word} {shown}"
    of = format_nbytes(limit) if is_nbytes else format_count(limit)
    return f"{word} {shown} of {of} {_bar(amount / limit)}"


def _bar(share: float) -> str:
    filled = min(_BAR, max(0, round(share * _BAR)))
    filled = max(filled, 1) if share > 0.005 else filled
    return "#" * filled + "-" * (_BAR - filled)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def _rate(per_s: float) -> str:
    return f"{per_s:.3g}/s" if per_s < 1000 else f"{format_count(per_s)}/s"


def _short_rate(per_s: float) -> str:
    return f"{per_s:.3g}" if per_s < 1000 else format_count(per_s)


def _ratio(measured: float | None, predicted: float | None) -> str:
    return "-" if not measured or not predicted else f"{measured / predicted:.2f}"


def _long_seconds(seconds: float) -> str:
    """Return a long time in two units at most: `2 h 13 min`."""
    whole = int(seconds)
    for name, unit, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {smaller}"
    return f"{whole} s"
