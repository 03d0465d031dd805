"""What a check found, as values for machines and as text at the terminal."""

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
_WIDTH = 80
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


def show(checked: Sequence[Checked]) -> str:
    """Return a table of the models, and a sentence for each limit that is passed, 80 columns wide where it can be."""
    rows = [_row(one) for one in checked]
    headers = ("model", "partitions", "largest", "peak", "difference", "time", "")
    lines = [table(rows, headers, "lrrrrrl", _WIDTH)]
    for one in checked:
        told = [f"  {verdict.message}" for verdict in one.broken]
        told += [f"  note: {printable(note, 500)}" for note in one.notes]
        told += [f"  {line}" for line in change_lines(one)]
        lines += ["", f"{printable(one.model)}:", *told] if told else []
    bad = sum(bool(one.broken) for one in checked)
    count = f"{len(checked)} model{'s' * (len(checked) != 1)}"
    return "\n".join(
        [*lines, "", f"{count} within the budget" if not bad else f"{bad} of {count} not as they should be"]
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
    time = "cached" if one.is_cached else format_seconds(one.seconds)
    return (printable(one.model), *figures(one).values(), time, state(one))


def _model_json(one: Checked) -> dict[str, Any]:
    facts, problem = one.outcome.facts, one.outcome.problem
    changes = partition_changes(facts.plan, one.previous) if facts and one.previous else []
    return {
        "model": one.model,
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
