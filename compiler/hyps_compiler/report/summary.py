"""The first lines of a report: what the plan is, within which limits, and what may be changed by it."""

from hyps.errors import printable
from hyps.formats.plan import Plan, Prediction
from hyps.formats.quantities import format_count, format_nbytes, format_seconds
from hyps_compiler.inspection import describe_plan
from hyps_compiler.report.document import Fact
from hyps_compiler.report.partitions import shape_words, shown

_MOST_VARIANTS = 6


def facts_of(plan: Plan) -> tuple[Fact, ...]:
    """Return the facts, those that everybody asks for first."""
    model = plan.model
    opset = ", ".join(f"{printable(domain, 30)} {version}" for domain, version in sorted(model.opset.items()))
    facts = [
        Fact(
            label="Model",
            value=shown(model.name),
            note=f"{format_count(model.parameters)} parameters, {format_nbytes(model.weight_bytes)} of weights",
        ),
        Fact(label="Partitions", value=str(len(plan.partitions)), note=describe_plan(plan)),
        _limits(plan),
        _predicted(plan),
        _answers(plan),
        _quantized(plan),
        Fact(label="Split points", value=_points(plan), note="borders where the model is, or could be, cut"),
        *_placement(plan),
        Fact(label="Inputs", value=_named(plan, is_input=True)),
        Fact(label="Outputs", value=_named(plan, is_input=False)),
        *_assumed(plan),
        Fact(
            label="Optimized",
            value=plan.optimization + (f" for {printable(plan.cpu_family, 40)}" if plan.cpu_family else ""),
            note="fusions of onnxruntime before the cut",
        ),
        Fact(label="Digest", value=printable(model.sha256, 64), note="SHA-256 of the model file"),
        Fact(label="Made by", value=printable(plan.producer, 120) or "not said", note=f"opset {opset}"),
    ]
    return tuple(fact for fact in facts if fact.value)


def _limits(plan: Plan) -> Fact:
    told = []
    if plan.memory_bytes is not None:
        told.append(f"{format_nbytes(plan.memory_bytes)} per process")
    if plan.max_params is not None:
        told.append(f"{format_count(plan.max_params)} parameters per partition")
    worst = max(plan.partitions, key=lambda part: (part.peak_memory_bytes or 0, part.id), default=None)
    note = ""
    if worst is not None and worst.peak_memory_bytes is not None:
        how = "measured" if worst.memory_measured else "reckoned"
        note = (
            f"the largest partition, {printable(worst.id, 40)}, takes {format_nbytes(worst.peak_memory_bytes)} ({how})"
        )
    return Fact(label="Limits", value=", ".join(told) or "none", note=note)


def _predicted(plan: Plan) -> Fact:
    told: Prediction = plan.variants[0].prediction
    if told.latency_s is None:
        return Fact(label="Predicted", value="")
    notes = []
    if told.throughput_rps is not None:
        notes.append(f"{told.throughput_rps:.3g} requests/s sustained")
    if told.energy_joules is not None:
        notes.append(f"{told.energy_joules:.3g} J a request")
    if told.lower_bound_s is not None:
        notes.append(f"no placement is faster than {format_seconds(told.lower_bound_s)}")
    return Fact(label="Predicted", value=f"{format_seconds(told.latency_s)} a request", note=", ".join(notes))


def _answers(plan: Plan) -> Fact:
    if plan.lossy:
        told = ", ".join(printable(item, 60) for item in plan.lossy)
        return Fact(label="Answers", value=f"changed by: {told}", note="asked for when it was compiled")
    if any(part.shard is not None for part in plan.partitions):
        return Fact(
            label="Answers", value="nothing lossy", note="H-partitions add in another order: last digits differ"
        )
    return Fact(label="Answers", value="nothing lossy", note="the model's own answers")


def _quantized(plan: Plan) -> Fact:
    told = plan.quantization
    if told is None:
        return Fact(label="Quantized", value="")
    before, after = told.weight_bytes
    value = f"{told.kind}, {format_nbytes(before)} to {format_nbytes(after)} of weights"
    if not told.measured_requests:
        return Fact(label="Quantized", value=value, note=f"what it loses is not known: {shown(told.unmeasured)}")
    lost = [loss.relative for loss in told.losses if loss.relative is not None]
    same = [loss.same_top1 for loss in told.losses if loss.same_top1 is not None]
    notes = [f"answers differ by at most {max(lost):.2g} of the largest value"] if lost else []
    notes += [f"the same first choice in {min(same):.0%}"] if same else []
    notes.append(f"measured on {told.measured_requests} {told.measured_on} requests")
    return Fact(label="Quantized", value=value, note=", ".join(notes))


def _points(plan: Plan) -> str:
    if not plan.split_points:
        return ""
    cut = sum(point.chosen for point in plan.split_points)
    return f"{len(plan.split_points)} known, cut at {cut}"


def _placement(plan: Plan) -> list[Fact]:
    variants = plan.variants
    facts = []
    if plan.entry is not None:
        how = ", ".join(printable(word, 40) for word in (plan.strategy, plan.objective) if word)
        devices = ", ".join(printable(name, 40) for name in dict.fromkeys(variants[0].placement.values()))
        facts.append(Fact(label="Devices", value=devices, note=f"requests arise on {printable(plan.entry, 40)}"))
        facts.append(Fact(label="Placed by", value=how))
    if len(variants) > 1:
        names = ", ".join(printable(variant.name, 30) for variant in variants[:_MOST_VARIANTS])
        more = f" and {len(variants) - _MOST_VARIANTS} more" if len(variants) > _MOST_VARIANTS else ""
        facts.append(Fact(label="Variants", value=str(len(variants)), note=names + more))
    return facts


def _named(plan: Plan, *, is_input: bool) -> str:
    tensors = plan.model.inputs if is_input else plan.model.outputs
    told = [f"{printable(t.name, 60)} {printable(t.dtype, 20)} {shape_words(t.shape)}" for t in tensors[:4]]
    return ", ".join(told) + (f" and {len(tensors) - 4} more" if len(tensors) > 4 else "")


def _assumed(plan: Plan) -> list[Fact]:
    if not plan.assumed_dims:
        return []
    told = ", ".join(f"{printable(name, 40)} = {size}" for name, size in plan.assumed_dims.items())
    return [Fact(label="Sizes assume", value=told, note="open dimensions, as the bytes on this page count them")]
