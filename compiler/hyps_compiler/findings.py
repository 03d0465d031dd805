"""What a verification found: for people, 80 columns wide, and as values for `--json`."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from hyps.errors import printable
from hyps.formats.plan import Shard
from hyps.formats.quantities import counted
from hyps.formats.signature import shape_text
from hyps.terminal import table
from hyps_compiler.compare import Difference
from hyps_compiler.narrow import LayerRef, Place
from hyps_compiler.verification import Reproduction, Verification
from hyps_compiler.verify import Fault, Report

_WIDTH = 80
_ROWS = 30
_NAMES = 8
"""As many names stand in a list; of longer ones the first and the last."""
_PLACES_SHOWN = 4


def show_verified(verification: Verification) -> str:
    """Return every compared tensor as a table, what it comes to, and where the plan goes wrong."""
    report = verification.report
    lines = [_table(report), ""]
    if verification.model_has_changed:
        lines.append("the model file has changed since the plan was made")
    lines += agreement(report, verification.samples)
    if report.problems():
        lines += _diagnosis(verification)
    return "\n".join(lines)


def verified_json(verification: Verification) -> dict[str, Any]:
    """Return every compared tensor as values, where the plan goes wrong, and what is wrong as an error is told."""
    error = verification.difference()
    told = error and {"code": error.code, "message": error.message, "hint": error.hint}
    return {
        **report_json(verification.report),
        "requests": verification.samples,
        "model_has_changed": verification.model_has_changed,
        "first_difference": verification.first and _place_json(verification.first),
        "wrong_partitions": _faults_json(verification),
        "reproduction": verification.reproduction and _reproduction_json(verification.reproduction),
        "error": told,
    }


def agreement(report: Report, requests: int = 1) -> list[str]:
    """Return a line on the borders and one on the outputs, and what was not looked at."""
    lines = []
    if report.borders:
        identical = sum(border.is_identical for border in report.borders)
        lines.append(f"borders:  {identical} of {len(report.borders)} tensors bit-identical to the uncut model's")
        lines += [] if identical == len(report.borders) else [f"          others {_within(report.borders)} off"]
    if report.not_compared:
        names = _listed(map(printable, report.not_compared))
        lines += _wrapped("          ", f"not compared, being no tensors of the model: {names}")
    same = all(output.is_identical for output in report.outputs)
    outputs = "bit-identical to" if same else f"{_within(report.outputs)} off"
    lines.append(f"outputs:  {outputs} whole-model onnxruntime's")
    return lines if requests == 1 else [*lines, f"requests: {requests}, of which each tensor's worst counts"]


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as values."""
    return {
        "borders": [{**_difference_json(d), "made_by": report.made_by.get(d.tensor)} for d in report.borders],
        "outputs": [{**_difference_json(d), "reasons": _reasons_json(report, d)} for d in report.outputs],
        "not_compared": list(report.not_compared),
        "problems": report.problems(),
    }


def _table(report: Report) -> str:
    rows = [("border", d, report.made_by.get(d.tensor, ""), report.is_right(d)) for d in report.borders]
    wrong = report.wrong_outputs()
    rows += [("output", d, "", d not in wrong) for d in report.outputs]
    shown = _chosen([is_right for *_, is_right in rows])
    cells = []
    for index, (where, difference, maker, _) in enumerate(rows):
        if index in shown:
            cells.append(_row(where, difference, maker))
        elif index - 1 in shown:
            cells.append(("…", "", "", "", "", "", ""))
    headers = ("where", "tensor", "by", "dtype", "shape", "relative", "largest")
    text = table(cells, headers, "lllllrr", _WIDTH)
    left = len(rows) - len(shown)
    return f"{text}\n({left} more that {'is' if left == 1 else 'are'} right; --json has all)" if left else text


def _chosen(right: Sequence[bool]) -> set[int]:
    """Return which rows to show: all of few; of many those that are wrong, and their neighbours and the last rows."""
    if len(right) <= _ROWS:
        return set(range(len(right)))
    wrong = [index for index, is_right in enumerate(right) if not is_right][: _ROWS // 2]
    near = {near for index in wrong for near in (index - 1, index, index + 1) if 0 <= near < len(right)}
    return near | set(range(4)) | set(range(len(right) - 4, len(right)))


def _row(where: str, difference: Difference, maker: str) -> tuple[str, ...]:
    shape = "" if difference.shape is None else shape_text(difference.shape)
    name, by = printable(difference.tensor, 40), printable(maker, 16)
    if difference.problem:
        return where, name, by, difference.dtype, shape, "unlike" if difference.is_unlike else "NaN/inf", ""
    relative = "identical" if difference.is_identical else f"{difference.relative:.2g}"
    return where, name, by, difference.dtype, shape, relative, f"{difference.largest:.2g}"


def _diagnosis(verification: Verification) -> list[str]:
    report = verification.report
    first = report.first()
    lines: list[str] = []
    if first is not None and verification.first is not None:
        lines += ["", *_first_border(first, verification.first, verification.samples)]
    if report.faults:
        lines += ["", *_faults(verification)]
    elif first is not None:
        makers = dict.fromkeys(report.made_by[d.tensor] for d in report.borders if not d.is_identical)
        lines += ["", *_wrapped("", f"no partition is wrong by itself: it builds up over {_listed(makers)}")]
    else:
        lines += ["", *_outputs_only(report)]
    if verification.reproduction is not None:
        lines += ["", *_reproduction(verification.reproduction)]
    return lines


def _first_border(first: Difference, place: Place, samples: int) -> list[str]:
    shape = "" if first.shape is None else f" {shape_text(first.shape)}"
    lines = _wrapped(
        "first difference: ",
        f"border `{printable(first.tensor)}`, {first.dtype}{shape}, made by {_partition(place.partition, place.shard)}",
    )
    lines += _wrapped("  ", _sentence(first, samples))
    lines += _wrapped(
        "  last good before it: ", _listed(map(printable, place.good)) or "nothing, it is of weights alone"
    )
    return lines + _wrapped("  layers between:      ", _listed(map(str, place.layers)))


def _faults(verification: Verification) -> list[str]:
    report = verification.report
    count = len(report.faults)
    told = "1 partition is" if count == 1 else f"{count} partitions are, independently of each other,"
    lines = _wrapped("", f"{told} wrong even when given the uncut model's own activations:")
    for fault, place in list(zip(report.faults, verification.places, strict=False))[:_PLACES_SHOWN]:
        lines += _fault(fault, place, verification.samples)
    rest = report.faults[min(len(verification.places), _PLACES_SHOWN) :]
    return lines + (_wrapped("  and ", _listed(printable(fault.partition) for fault in rest)) if rest else [])


def _fault(fault: Fault, place: Place, samples: int) -> list[str]:
    head = f"  {_partition(fault.partition, place.shard)}: "
    if fault.failure:
        lines = _wrapped(head, f"onnxruntime fails: {fault.failure}")
    elif fault.seen_in:
        lines = _wrapped(
            head, f"what it makes is no tensor of the model; in {printable(fault.seen_in)}, which reads it,"
        )
        lines += _wrapped("    ", f"`{printable(fault.outputs[0].tensor)}` {_sentence(fault.outputs[0], samples)}")
    else:
        lines = _wrapped(head, f"`{printable(fault.outputs[0].tensor)}` {_sentence(fault.outputs[0], samples)}")
    if place.tensor:
        of = "" if place.layer is None else f", layer {place.layer}"
        node = f"node `{printable(place.node)}` ({printable(place.op, 40)})" if place.node else printable(place.op, 40)
        lines += _wrapped("    begins at ", f"`{printable(place.tensor)}`, made by {node}{of}")
        if place.difference is not None and place.tensor != fault.outputs[0].tensor:
            lines += _wrapped("    which ", _sentence(place.difference, 1))
    for change in place.changes:
        lines += _wrapped("    ", change)
    return lines


def _outputs_only(report: Report) -> list[str]:
    lines = ["all borders agree; only outputs of the plan as a worker runs it differ:"]
    for output in report.wrong_outputs():
        lines += _wrapped("  ", f"`{printable(output.tensor)}` {output}; it is moved")
        reasons = report.reasons.get(output.tensor)
        if reasons is not None:
            steps = (
                (reasons.preparation, "by what the model went through before the cut"),
                (reasons.running, "by how a worker runs the partitions"),
                (reasons.optimization, "by onnxruntime's own optimizations of the whole model"),
            )
            lines += [f"    {moved:<8.2g} {step}" for moved, step in steps if moved is not None]
    return lines


def _reproduction(found: Reproduction) -> list[str]:
    reduced = found.reduced
    nodes = f"{reduced.nodes} of {reduced.nodes_before} nodes"
    end = "no smaller one differs" if reduced.is_minimal else "the time was up, there may be a smaller one"
    folder = printable(str(found.folder), 200)
    lines = _wrapped("reduced: ", f"to {nodes} in {counted(reduced.trials, 'trial')}; {end}")
    if found.still_differs is None:
        lines += _wrapped("         ", "running it again by itself took too long")
    elif not found.still_differs:
        lines += _wrapped("         ", "it did not differ when it was run again by itself")
    return [*lines, f"wrote:   {folder}", f"run:     python {folder}/reproduce.py"]


def _sentence(difference: Difference, samples: int) -> str:
    text = str(difference)
    if not difference.problem:
        text += f", by {difference.largest:.2g} at most"
    if difference.different and not difference.problem and difference.elements is not None:
        text += f", in {difference.different} of {difference.elements} elements"
    return text if samples == 1 else f"{text} (request {difference.request + 1} of {samples})"


def _partition(name: str, shard: Shard | None) -> str:
    if shard is None:
        return printable(name)
    span = f"{shard.range[0]} to {shard.range[1] - 1}"
    held = f"terms {span} of its sum" if shard.merge == "sum" else f"outputs {span}"
    if shard.merge == "concat" and shard.axis != -1:
        held = f"{span} of axis {shard.axis}"
    return f"{printable(name)} (shard {shard.index + 1} of {shard.count} of {printable(shard.layer)}, {held})"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every if len(every) <= _NAMES else [*every[: _NAMES - 2], "…", every[-1]])


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * (len(head) if len(head) <= 22 else 6)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [head.rstrip()]


def _within(differences: Sequence[Difference]) -> str:
    worst = max(differences, key=lambda difference: difference.relative)
    return "more than a number tells" if worst.problem else f"at most {worst.relative:.1g} of the largest value"


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "tensor": difference.tensor,
        "identical": difference.is_identical,
        "largest": _finite(difference.largest),
        "relative": _finite(difference.relative),
        "dtype": difference.dtype,
        "shape": None if difference.shape is None else list(difference.shape),
        "different": difference.different,
        "elements": difference.elements,
        "problem": difference.problem,
        "request": difference.request,
    }


def _reasons_json(report: Report, output: Difference) -> dict[str, float | None] | None:
    reasons = report.reasons.get(output.tensor)
    if reasons is None:
        return None
    parts = {"preparation": reasons.preparation, "running": reasons.running, "optimization": reasons.optimization}
    return {name: None if value is None else _finite(value) for name, value in parts.items()}


def _place_json(place: Place) -> dict[str, Any]:
    return {
        "partition": place.partition,
        "shard": _shard_json(place.shard),
        "border": place.border,
        "last_good": list(place.good),
        "layers": [_layer_json(layer) for layer in place.layers],
    }


def _faults_json(verification: Verification) -> list[dict[str, Any]]:
    places = {place.partition: place for place in verification.places}
    return [_fault_json(fault, places.get(fault.partition)) for fault in verification.report.faults]


def _fault_json(fault: Fault, place: Place | None) -> dict[str, Any]:
    told = {
        "partition": fault.partition,
        "failure": fault.failure,
        "seen_in": fault.seen_in or None,
        "outputs": [_difference_json(difference) for difference in fault.outputs],
    }
    if place is None:
        return told
    return {
        **told,
        **_place_json(place),
        "tensor": place.tensor,
        "difference": place.difference and _difference_json(place.difference),
        "node": place.node,
        "op": place.op,
        "layer": place.layer and _layer_json(place.layer),
        "changes": list(place.changes),
    }


def _reproduction_json(found: Reproduction) -> dict[str, Any]:
    reduced = found.reduced
    return {
        "folder": str(found.folder),
        "tensor": reduced.target,
        "nodes": reduced.nodes,
        "nodes_before": reduced.nodes_before,
        "partitions": len(reduced.trial.parts),
        "trials": reduced.trials,
        "is_minimal": reduced.is_minimal,
        "still_differs": found.still_differs,
    }


def _layer_json(layer: LayerRef) -> dict[str, str]:
    return {"name": layer.name, "kind": layer.kind}


def _shard_json(shard: Shard | None) -> dict[str, Any] | None:
    if shard is None:
        return None
    return {
        "layer": shard.layer,
        "axis": shard.axis,
        "index": shard.index,
        "count": shard.count,
        "range": list(shard.range),
        "merge": shard.merge,
    }


def _finite(value: float) -> float | None:
    """Return the value, or None for infinity, which JSON does not have."""
    return value if value < float("inf") else None
