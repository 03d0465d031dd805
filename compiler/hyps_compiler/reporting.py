"""What `hypsc compile` says at its end: for people, and as values for `--json`."""

from typing import Any

import msgspec

from hyps.errors import printable
from hyps.formats.quantities import format_nbytes
from hyps_compiler.convert.showing import notes, summary
from hyps_compiler.driver import Compiled
from hyps_compiler.findings import agreement, report_json
from hyps_compiler.inspection import summarize_plan


def show_compiled(compiled: Compiled) -> str:
    """Return the partitions as a table and one line per check, 80 columns wide."""
    folder = printable(str(compiled.folder))
    lines = [summarize_plan(compiled.plan, folder), ""]
    if compiled.placed is not None:
        from hyps_compiler.placement_report import show_placement  # with the searches, which are heavy

        lines += [*show_placement(compiled.plan, compiled.placed), ""]
    if compiled.conversion is not None:
        lines.append(f"converted: {summary(compiled.conversion)}")
        lines += [f"note:     {printable(note, 400)}" for note in notes(compiled.conversion)]
    lines += _verdicts(compiled)
    if compiled.peak_bytes is not None:
        budget = format_nbytes(compiled.plan.memory_bytes or 0)
        lines.append(f"memory:   {format_nbytes(compiled.peak_bytes)} resident at most in one request, of {budget}")
    if compiled.fixed_inputs:
        shown = ", ".join(printable(name, 20) for name in compiled.fixed_inputs[:2])
        more = ", ..." if len(compiled.fixed_inputs) > 2 else ""
        lines.append(f"fixed:    inputs with a default value keep it ({len(compiled.fixed_inputs)}): {shown}{more}")
    return "\n".join([*lines, f"wrote:    {folder}"])


def compiled_json(compiled: Compiled) -> dict[str, Any]:
    """Return what was compiled as values."""
    return {
        "folder": str(compiled.folder),
        "plan": msgspec.to_builtins(compiled.plan),
        "verification": report_json(compiled.report) if compiled.report else None,
        "unverified": compiled.unverified,
        "peak_bytes": compiled.peak_bytes,
        "fixed_inputs": list(compiled.fixed_inputs),
        "conversion": msgspec.to_builtins(compiled.conversion),
    }


def _verdicts(compiled: Compiled) -> list[str]:
    if compiled.report is None:
        return [f"verified: no, {compiled.unverified}"]
    return agreement(compiled.report)
