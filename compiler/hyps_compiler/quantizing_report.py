"""What is told of a quantized plan: how it was quantized, and what it loses, when made and now."""

from typing import TYPE_CHECKING, Any, assert_never

import msgspec

from hyps.errors import printable
from hyps.formats.plan import OutputLoss, Quantization
from hyps.formats.quantities import format_nbytes
from hyps.terminal import table

if TYPE_CHECKING:
    from hyps_compiler.quantized_verification import LossCheck

_MOST_LOSSES = 4


def show_quantization(record: Quantization) -> list[str]:
    """Return lines on how the model was quantized and what that does to its answers."""
    before, after = (format_nbytes(nbytes) for nbytes in record.weight_bytes)
    ways = ", ".join(record.methods)
    lines = [f"quantized: {record.kind} ({ways}), weights {before} to {after}"]
    if record.left_bytes:
        lines[0] += f", {format_nbytes(record.left_bytes)} as before"
    if record.unmeasured:
        return [*lines, f"lossy:    not measured, {record.unmeasured}"]
    for loss in record.losses[:_MOST_LOSSES]:
        lines.append(
            f"lossy:    `{printable(loss.output, 24)}` is off by {show_share(loss.relative)} of its largest value"
        )
        top1 = "" if loss.same_top1 is None else f"; the same largest entry in {100 * loss.same_top1:.4g} %"
        lines.append(f"          at most, by {show_share(loss.mean)} on average{top1}")
    if len(record.losses) > _MOST_LOSSES:
        lines.append(f"          and {len(record.losses) - _MOST_LOSSES} outputs more; --json has all")
    return [*lines, f"          measured on {_measured_on(record)}"]


def _measured_on(record: Quantization) -> str:
    count, told = record.measured_requests, record.calibration_requests
    requests = f"{count} request{'s' * (count != 1)}"
    match record.measured_on:
        case "held-out":
            return (
                f"{count} of {count + told} requests; the others told the ranges" if told else f"the {requests} given"
            )
        case "calibration":
            return f"the {requests} that told the ranges too: give five or more"
        case "given":
            return f"the {requests} given"
        case "made-up":
            return f"{requests} with random values"
        case other:
            assert_never(other)


def show_share(value: float | None) -> str:
    """Return a relative difference in two digits; `?` where it is no number."""
    return "?" if value is None else f"{value:.2g}"


def show_loss(found: "LossCheck") -> str:
    """Return what a quantized plan loses now beside what it was measured to lose, and what that comes to."""
    known = {loss.output: loss for loss in found.record.losses}
    rows = [
        (
            printable(loss.output, 24),
            *(show_share(value) for made in (loss, known.get(loss.output)) for value in _figures(made)),
            show_share(found.allowed(loss.output)),
        )
        for loss in found.losses
    ]
    headers = ("output", "largest", "mean", "when made: largest", "mean", "mean allowed")
    lines = [table(rows, headers, "lrrrrr"), ""]
    if found.model_has_changed:
        lines.append("the model file has changed since the plan was made")
    told = f"quantized to {found.record.kind}: compared with the unquantized model, on its outputs"
    return "\n".join(
        [*lines, told, f"requests: {found.requests}; differences are relative to the output's largest value"]
    )


def _figures(loss: OutputLoss | None) -> tuple[float | None, float | None]:
    return (None, None) if loss is None else (loss.relative, loss.mean)


def loss_json(found: "LossCheck") -> dict[str, Any]:
    """Return the same as values, and what is wrong as an error is told."""
    error = found.difference()
    return {
        "quantization": msgspec.to_builtins(found.record),
        "losses": msgspec.to_builtins(found.losses),
        "allowed": {loss.output: found.allowed(loss.output) for loss in found.losses},
        "requests": found.requests,
        "model_has_changed": found.model_has_changed,
        "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
    }
