"""Every figure of a model that a budget can limit: what it is, where it comes from, and how it begins a sentence."""

from collections.abc import Callable
from dataclasses import dataclass

from hyps.errors import DifferenceError, InfeasibleError, printable
from hyps.formats.quantities import format_seconds
from hyps_compiler.checking.facts import Facts, Layer, PartitionFacts, PlanFacts

_MEASURED_AGAIN_NBYTES = 3_000_000
"""By which a measured peak may be higher the next time, rounded up."""


@dataclass(frozen=True, slots=True)
class Found:
    """A figure of a plan, and where it comes from."""

    value: float
    subject: str
    """The beginning of a sentence that ends with the figure: "partition `p003` needs"."""
    what: str = ""
    """What the figure is: `of memory`."""
    partition: str = ""
    layers: tuple[Layer, ...] = ()
    """Among which the one is that did it; empty: no layer did."""
    told: str = ""
    """What stands between the limit and the layer, if anything."""
    layer: str = ""
    """The layer that did it, where it is not to be searched for."""
    slack: float = 0.0
    """By how much it may be higher the next time."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One figure that can be limited."""

    name: str
    title: str
    """For tables."""
    unit: str
    """`bytes`, `count`, `s` or `` for a plain number."""
    find: Callable[[Facts], Found | str | None]
    """A word of why the figure is unknown; None: it means nothing for this model."""
    exit_status: int = InfeasibleError.exit_status
    can_grow: bool = True


def _largest(plan: PlanFacts, key: Callable[[PartitionFacts], float]) -> PartitionFacts | None:
    return max(plan.partitions, key=key, default=None)


def _partition_bytes(facts: Facts) -> Found | None:
    part = _largest(facts.plan, lambda part: part.weight_bytes)
    if part is None:
        return None
    return Found(part.weight_bytes, f"{_named(part.id)} has", " of weights", part.id, part.layers)


def _partition_params(facts: Facts) -> Found | None:
    part = _largest(facts.plan, lambda part: part.parameters)
    if part is None:
        return None
    return Found(part.parameters, f"{_named(part.id)} has", " parameters", part.id, part.layers)


def _peak_memory(facts: Facts) -> Found | str:
    plan = facts.plan
    peak = plan.peak_memory_bytes
    if peak is None:
        return 'sizes are unknown; give shapes of its inputs in `input`, such as `input = { image = "1x3x224x224" }`'
    slack = float(_MEASURED_AGAIN_NBYTES if plan.is_memory_measured else 0)
    by_id = {part.id: part for part in plan.partitions}
    if peak.where in by_id:
        part = by_id[peak.where]
        return Found(peak.value, f"{_named(part.id)} needs", " of memory", part.id, part.layers, slack=slack)
    there = [part for part in plan.partitions if part.device == peak.where]
    layers = tuple(layer for part in there for layer in part.layers)
    return Found(peak.value, f"device `{printable(peak.where)}` needs", " of memory", layers=layers, slack=slack)


def _partitions(facts: Facts) -> Found:
    layers = tuple(layer for part in facts.plan.partitions for layer in part.layers)
    return Found(len(facts.plan.partitions), "the plan has", " partitions", layers=layers)


def _latency(facts: Facts) -> Found | str:
    plan = facts.plan
    if plan.latency_s is None:
        return "no latency is predicted without a `cluster`"
    slowest = _largest(plan, lambda part: part.latency_s or 0.0)
    told = ""
    if slowest is not None and slowest.latency_s:
        where = f" on `{printable(slowest.device)}`" if slowest.device else ""
        told = f"{_named(slowest.id)}{where} takes {format_seconds(slowest.latency_s)} of it"
    layers = slowest.layers if slowest else ()
    return Found(plan.latency_s, "a request is predicted to take", "", slowest.id if slowest else "", layers, told)


def _border_bytes(facts: Facts) -> Found | str:
    plan = facts.plan
    if plan.border_bytes is None:
        return "sizes are unknown; give shapes of its inputs in `input`"
    makers = [part for part in plan.partitions if plan.largest_border in part.outputs]
    if not makers:
        return Found(plan.border_bytes, "a request has", _ACROSS)
    told, layer = f"the largest is `{printable(plan.largest_border)}`", ""
    for last in makers[0].layers[-1:]:
        layer = last.name
        told += f", behind layer `{printable(layer)}` ({printable(last.kind)})"
    return Found(plan.border_bytes, "a request has", _ACROSS, makers[0].id, told=told, layer=layer)


def _difference(facts: Facts) -> Found | str:
    found = facts.difference
    if found is None:
        return f"outputs were not compared, {facts.unverified or 'for a reason that is not known'}"
    return Found(found.value, f"output `{printable(found.where)}` differs from the model's by", " of its largest value")


def _conversion_difference(facts: Facts) -> Found | str | None:
    made = facts.conversion
    if made is None:
        return None
    if made.difference is None:
        return f"the conversion was not compared, {made.unverified or 'for a reason that is not known'}"
    subject = f"output `{printable(made.difference.where)}` differs from that of {printable(made.framework)} by"
    return Found(made.difference.value, subject, " of its largest value")


def _quantization_loss(facts: Facts) -> Found | str | None:
    plan = facts.plan
    if not plan.quantization:
        return None
    loss = plan.quantization_loss
    if loss is None:
        return "what quantization loses could not be measured on every output"
    subject = f"output `{printable(loss.where)}` differs from the unquantized model's by"
    return Found(loss.value, subject, " of its largest value")


_ACROSS = " cross borders between partitions"


def _named(partition: str) -> str:
    return f"partition `{printable(partition)}`"


_DIFFERS = DifferenceError.exit_status

LIMITS: dict[str, Limit] = {
    row.name: row
    for row in (
        Limit("partition_bytes", "largest partition", "bytes", _partition_bytes),
        Limit("partition_params", "most parameters in one partition", "count", _partition_params),
        Limit("peak_memory", "peak memory of a worker", "bytes", _peak_memory),
        Limit("partitions", "number of partitions", "count", _partitions),
        Limit("latency", "predicted latency", "s", _latency),
        Limit("border_bytes", "bytes across borders", "bytes", _border_bytes),
        Limit("difference", "largest difference", "", _difference, _DIFFERS, can_grow=False),
        Limit(
            "conversion_difference",
            "largest difference of the conversion",
            "",
            _conversion_difference,
            _DIFFERS,
            can_grow=False,
        ),
        Limit(
            "quantization_loss",
            "largest difference of quantization",
            "",
            _quantization_loss,
            _DIFFERS,
            can_grow=False,
        ),
    )
}
"""Every figure that a budget can limit, by its name there."""

GROWING = tuple(name for name, limit in LIMITS.items() if limit.can_grow)
"""Those of them that can be compared with the previous plan's."""
