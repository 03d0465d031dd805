"""What a check found, as values for machines and as text at the terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from hyps.errors import printable
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import table
from hyps_compiler.checking.growth import PartitionChange, partition_changes
from hyps_compiler.checking.limits import Checked, worst

FORMAT = "hyps-check"
VERSION = 1
_SIDES = "lrrrrrl"
_LEAST_NAME = 16
_UNBOUNDED = 10_000
_MOST_CHANGES = 10


def exit_status(checked: Sequence[Checked]) -> int:
    """Return the status of the whole check: that of the worst model."""
    return worst([one.exit_status for one in checked])


def as_json(checked: Sequence[Checked], budget: str) -> dict[str, Any]:
    """Return everything as values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "budget": budget,
        "exit_status": exit_status(checked),
        "models": [_model_json(one) for one in checked],
    }


def show(checked: Sequence[Checked], width: int | None = None) -> str:
    """Return a table of the models, and a sentence for each limit that is passed.

    Args:
        checked: what was found.
        width: of the terminal, in columns: names in the table are shortened to it and sentences wrapped; None: lines
            are as long as they are, as logs and other programs want them.
    """
    lines = [_table(checked, width)]
    for one in checked:
        told = [verdict.message for verdict in one.broken]
        told += [f"note: {printable(note, 500)}" for note in one.notes]
        told += change_lines(one)
        wrapped = [line for text in told for line in _wrapped(text, width)]
        lines += ["", f"{printable(one.model)}:", *wrapped] if told else []
    bad = sum(bool(one.broken) for one in checked)
    count = f"{len(checked)} model{'s' * (len(checked) != 1)}"
    return "\n".join(
        [*lines, "", f"{count} within the budget" if not bad else f"{bad} of {count} not as they should be"]
    )


def line(checked: Checked) -> str:
    """Return what came of a model in one line."""
    return f"{printable(checked.model)}: {', '.join((state(checked), _time(checked)))}"


def _table(checked: Sequence[Checked], width: int | None) -> str:
    headers = ("model", "partitions", "largest", "peak", "differs", "time", "")
    rows = [_row(one) for one in checked]
    if width is None:
        return table(rows, headers, _SIDES, _UNBOUNDED)
    others = table([row[1:] for row in rows], headers[1:], _SIDES[1:], _UNBOUNDED).splitlines()
    room = max(width - max(map(len, others)) - 2, _LEAST_NAME)
    return table([(shortened(row[0], room), *row[1:]) for row in rows], headers, _SIDES, _UNBOUNDED)


def shortened(path: str, most: int) -> str:
    """Return a path of `most` characters at most: the folders in its middle go first, its end stays longest.

    >>> shortened("models/vision/large/resnet.onnx", 22), shortened("a_very_long_name.onnx", 12)
    ('models/vi…/resnet.onnx', 'a_ve…me.onnx')
    """
    if len(path) <= most:
        return path
    tail = path[path.rfind("/", 0, len(path) - 1) :] if "/" in path else ""
    if not 0 < len(tail) < most:
        tail = path[-(2 * most // 3) + 1 :]
    return f"{path[: most - 1 - len(tail)]}…{tail}"


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [f"  {text}"]
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def state(checked: Checked) -> str:
    """Return one word, or two, on a model."""
    words = {0: "ok", 3: "limit passed", 4: "differs"}
    return words.get(checked.exit_status, "broken")


def change_lines(checked: Checked) -> list[str]:
    """Return what the model's partitions did since the previous plan, a phrase each; the first of many."""
    facts = checked.outcome.facts
    if facts is None or checked.previous is None:
        return []
    changes = partition_changes(facts.plan, checked.previous)
    lines = [_told(change) for change in changes[:_MOST_CHANGES]]
    return lines if len(changes) <= _MOST_CHANGES else [*lines, f"and {len(changes) - _MOST_CHANGES} more changes"]


def _told(change: PartitionChange) -> str:
    named = f"partition `{printable(change.id)}` {change.change}"
    before, after = format_nbytes(change.before_bytes), format_nbytes(change.after_bytes)
    if change.change == "appeared":
        return f"{named}, with {after} of weights"
    if change.change == "disappeared":
        return f"{named}, which had {before} of weights"
    if before == after:
        before, after = f"{change.before_bytes} B", f"{change.after_bytes} B"
    return f"{named} from {before} to {after} of weights"


def figures(checked: Checked) -> dict[str, str]:
    """Return the main figures for people, by their headings; `-` where one is not known."""
    facts = checked.outcome.facts
    if facts is None:
        return dict.fromkeys(("partitions", "largest", "peak", "difference"), "-")
    plan, peak = facts.plan, facts.plan.peak_memory_bytes
    largest = max((part.weight_bytes for part in plan.partitions), default=0)
    return {
        "partitions": str(len(plan.partitions)),
        "largest": format_nbytes(largest),
        "peak": "-" if peak is None else format_nbytes(peak.value),
        "difference": "-" if facts.difference is None else f"{facts.difference.value:.2g}",
    }


def _row(one: Checked) -> tuple[str, ...]:
    return (printable(one.model), *figures(one).values(), _time(one), state(one))


def _time(one: Checked) -> str:
    return "cached" if one.is_cached else format_seconds(one.seconds)


def _model_json(one: Checked) -> dict[str, Any]:
    facts, problem = one.outcome.facts, one.outcome.problem
    changes = partition_changes(facts.plan, one.previous) if facts and one.previous else []
    return {
        "model": one.model,
        "name": one.name,
        "exit_status": one.exit_status,
        "cached": one.is_cached,
        "seconds": one.seconds,
        "options": msgspec.to_builtins(one.rule.options),
        "patterns": list(one.rule.patterns),
        "verdicts": [asdict(verdict) for verdict in one.verdicts],
        "changes": [asdict(change) for change in changes],
        "facts": msgspec.to_builtins(facts),
        "problem": msgspec.to_builtins(problem),
        "notes": list(one.notes),
    }
