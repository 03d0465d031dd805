"""What `hypsc compile --cluster` says of its placement: devices, prediction, proof, and when which variant is best."""

import textwrap
from collections.abc import Sequence

from hyps.errors import printable
from hyps.formats.plan import Plan, Prediction, Variant
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import table
from hyps_compiler.placement import Placed

_MOST_VARIANTS = 12


def show_placement(plan: Plan, placed: Placed) -> list[str]:
    """Return lines on where the partitions run and what that is predicted to cost, 80 columns wide."""
    best = plan.variants[0]
    lines = [_devices(plan, best), "", *_prediction(best.prediction), *_proof(placed)]
    if len(plan.variants) > 1:
        lines += ["", *_variants(plan)]
    return lines


def _devices(plan: Plan, variant: Variant) -> str:
    told = variant.prediction
    rows = []
    for device in dict.fromkeys(variant.placement.values()):
        own = [part.id for part in plan.partitions if variant.placement[part.id] == device]
        sends = sum(nbytes for link, nbytes in told.link_bytes.items() if link.startswith(f"{device} to "))
        rows.append(
            (
                printable(device, 24),
                f"{own[0]} .. {own[-1]}" if len(own) > 1 else own[0],
                format_seconds(sum(told.partition_s.get(part, 0.0) for part in own)),
                format_nbytes(told.memory_bytes.get(device, 0)),
                format_nbytes(sends),
            )
        )
    return table(rows, ("device", "partitions", "computes", "memory", "sends"), "llrrr", 80)


def _prediction(told: Prediction) -> list[str]:
    parts = [f"{format_seconds(told.latency_s)} a request"] if told.latency_s is not None else []
    if told.throughput_rps is not None:
        parts.append(f"{told.throughput_rps:.3g} requests/s sustained")
    if told.energy_joules is not None:
        parts.append(f"{told.energy_joules:.3g} J a request")
    return [f"predicted: {', '.join(parts)}"]


def _proof(placed: Placed) -> list[str]:
    found, objective = placed.found, placed.request.objective
    modelled = placed.request.site.modelled(placed.division.graph)
    notes = []
    if modelled:
        count = len(placed.division.graph.layers)
        notes = [f"note:      the seconds of {modelled} of {count} layers are modelled, not measured"]
    if placed.request.strategy != "exact":
        return [*_wrapped("why:", f"{found.reason} (strategy `{placed.request.strategy}`)"), *notes]
    over = f"of all {found.space}"
    if found.is_proven:
        proof = f"proven optimal for {objective}, {over}"
    elif found.bound > 0:
        proof = f"at most {found.gap:.1%} above the best {objective} {over}"
    else:
        proof = "not known"
    return [*_wrapped("why:", found.reason), f"proof:     {proof}", *notes]


def _wrapped(head: str, text: str) -> list[str]:
    lines = textwrap.wrap(printable(text, 400), 80, initial_indent=f"{head:<11}", subsequent_indent=" " * 11)
    return lines or [head]


def _variants(plan: Plan) -> list[str]:
    rows = [_variant_row(plan, variant) for variant in plan.variants[:_MOST_VARIANTS]]
    more = len(plan.variants) - len(rows)
    head = "variants, and the bandwidth at which each is best (one request, no load):"
    shown = table(rows, ("variant", "first away", "predicted", "from", "to"), "llrrr", 80)
    return [head, shown, *([f"and {more} more"] if more > 0 else [])]


def _variant_row(plan: Plan, variant: Variant) -> tuple[str, ...]:
    away = [part for part in plan.partitions if variant.placement[part.id] != plan.entry]
    first = printable(away[0].layers[0], 30) if away else "nothing"
    latency = variant.prediction.latency_s
    return (
        variant.name,
        first,
        "?" if latency is None else format_seconds(latency),
        *_interval(variant.bytes_per_s),
    )


def _interval(bytes_per_s: Sequence[float | None] | None) -> tuple[str, str]:
    if bytes_per_s is None:
        return "-", "-"
    low, high = bytes_per_s
    return format_rate(low or 0.0), "any" if high is None else format_rate(high)


def format_rate(bytes_per_s: float) -> str:
    """Return a rate for people: `57 Mbit/s`."""
    return "0" if bytes_per_s <= 0 else format_nbytes(bytes_per_s * 8).replace("B", "bit") + "/s"
