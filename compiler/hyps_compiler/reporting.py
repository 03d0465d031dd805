"""What `hypsc compile` and `hypsc verify` say at their end: for people, and as values for `--json`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hyps.errors import printable
from hyps.formats.quantities import format_nbytes
from hyps.terminal import table
from hyps_compiler.compare import Difference
from hyps_compiler.driver import Compiled
from hyps_compiler.inspection import summarize_plan
from hyps_compiler.verification import Verification
from hyps_compiler.verify import Report


def show_compiled(compiled: Compiled) -> str:
    """Return the partitions as a table and one line per check, 80 columns wide."""
    folder = printable(str(compiled.folder))
    lines = [summarize_plan(compiled.plan, folder), "", *_verdicts(compiled)]
    if compiled.peak_bytes is not None:
        budget = format_nbytes(compiled.plan.memory_bytes or 0)
        lines.append(f"memory:   {format_nbytes(compiled.peak_bytes)} resident at most in one request, of {budget}")
    return "\n".join([*lines, f"wrote:    {folder}"])


def compiled_json(compiled: Compiled) -> dict[str, Any]:
    """Return what was compiled as values."""
    return {
        "folder": str(compiled.folder),
        "plan": msgspec.to_builtins(compiled.plan),
        "verification": _report_json(compiled.report) if compiled.report else None,
        "unverified": compiled.unverified,
        "peak_bytes": compiled.peak_bytes,
    }


def show_verified(verification: Verification) -> str:
    """Return every compared tensor as a table, 80 columns wide, and what it comes to."""
    report = verification.report
    rows = [
        (
            where,
            printable(d.tensor, 40),
            "identical" if d.is_identical else f"{d.relative:.2g}",
            f"{d.largest:.2g}",
            d.dtype,
        )
        for where, differences in (("border", report.borders), ("output", report.outputs))
        for d in differences
    ]
    lines = [table(rows, ("where", "tensor", "relative", "largest", "dtype"), "llrrl"), ""]
    if verification.model_has_changed:
        lines.append("the model file has changed since the plan was made")
    return "\n".join([*lines, *_agreement(report)])


def verified_json(verification: Verification) -> dict[str, Any]:
    """Return every compared tensor as values, and what is wrong as other commands tell an error."""
    error = verification.difference()
    told = error and {"code": error.code, "message": error.message, "hint": error.hint}
    return {
        **_report_json(verification.report),
        "model_has_changed": verification.model_has_changed,
        "error": told,
    }


def _verdicts(compiled: Compiled) -> list[str]:
    if compiled.report is None:
        return [f"verified: no, {compiled.unverified}"]
    return _agreement(compiled.report)


def _agreement(report: Report) -> list[str]:
    """Return a line on the borders and one on the outputs."""
    lines = []
    if report.borders:
        identical = sum(border.is_identical for border in report.borders)
        rest = "" if identical == len(report.borders) else f", others {_within(report.borders)} off"
        lines.append(f"borders:  {identical} of {len(report.borders)} tensors bit-identical to the uncut model's{rest}")
    same = all(output.is_identical for output in report.outputs)
    outputs = "bit-identical to" if same else f"{_within(report.outputs)} off"
    return [*lines, f"outputs:  {outputs} whole-model onnxruntime's"]


def _within(differences: Sequence[Difference]) -> str:
    worst = max(difference.relative for difference in differences)
    return f"at most {worst:.1g} of the largest value"


def _report_json(report: Report) -> dict[str, Any]:
    return {
        "borders": [_difference_json(difference) for difference in report.borders],
        "outputs": [_difference_json(difference) for difference in report.outputs],
        "problems": report.problems(),
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "tensor": difference.tensor,
        "identical": difference.is_identical,
        "largest": _finite(difference.largest),
        "relative": _finite(difference.relative),
        "dtype": difference.dtype,
    }


def _finite(value: float) -> float | None:
    """Return the value, or None for infinity, which JSON does not have."""
    return value if value < float("inf") else None
