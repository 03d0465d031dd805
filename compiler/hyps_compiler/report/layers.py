"""The model's layers in running order: what crosses behind each, how long it takes, where the plan is cut."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from hyps.errors import printable
from hyps.formats.plan import Partition, Plan, SplitPoint
from hyps.formats.profiles import Profile
from hyps_compiler.inspection import LayerRow, layer_rows
from hyps_compiler.report.document import LayerPoint, Layers
from hyps_compiler.report.partitions import shape_words, shown
from hyps_passes.costs import profile_costs
from hyps_passes.graph import MODEL, CutGraph

_PART = re.compile(r"(.+)\[\d+/\d+\]$")


def layers_of(plan: Plan, graph: CutGraph, profiles: Sequence[Profile]) -> Layers:
    """Return the layers of `graph`, the whole model before anything is divided, with the plan's split points marked.

    Args:
        plan: the plan.
        graph: the model's layers.
        profiles: what they take on devices; may be empty.
    """
    costs = [profile_costs(graph, profile, 1) for profile in profiles]
    rows = layer_rows(graph)
    points = _points_by_layer(plan, {row.name for row in rows[:-1]})
    inputs = [value.nbytes for value in graph.made_by.get(MODEL, ())]
    notes = [
        f"of {printable(profile.device, 40)}, {cost.modelled} of {len(rows)} layers are modelled, not measured"
        for profile, cost in zip(profiles, costs, strict=True)
        if cost.modelled
    ]
    if plan.quantization is not None:
        notes.append("these are the layers before the model was quantized")
    return Layers(
        rows=tuple(
            _point(row, tuple(cost.layer_s[index] for cost in costs), points.get(row.name))
            for index, row in enumerate(rows)
        ),
        profiles=tuple(shown(profile.device) for profile in profiles),
        input_bytes=None if None in inputs else sum(nbytes or 0 for nbytes in inputs),
        notes=tuple(notes),
    )


def partition_seconds(plan: Plan, graph: CutGraph, profile: Profile) -> dict[str, float]:
    """Return how long each partition takes on the profiled device, from its layers.

    A part of a layer takes its part of the layer's time. What has other layers than the model, as tiles have, takes
    such a part of the whole as its multiply-accumulates are of all.
    """
    costs = profile_costs(graph, profile, 1)
    known = {layer.name: costs.layer_s[layer.index] for layer in graph.layers}
    all_macs = sum(part.macs or 0 for part in plan.partitions)
    whole = sum(costs.layer_s)
    by_macs = {part.id: whole * (part.macs or 0) / all_macs if all_macs else 0.0 for part in plan.partitions}
    return {part.id: costs.session_s + _part_s(part, known, by_macs[part.id]) for part in plan.partitions}


def base_name(layer: str, known: Mapping[str, object] | set[str]) -> str | None:
    """Return the model's layer that a layer of a plan is, or is a part of; None where it is none of them.

    >>> base_name("fc1[2/4]", {"fc1"}), base_name("fc1.merge", {"fc1"})
    ('fc1', None)
    """
    if layer in known:
        return layer
    match = _PART.match(layer)
    return match[1] if match and match[1] in known else None


def _part_s(part: Partition, known: Mapping[str, float], otherwise: float) -> float:
    if part.shard is not None:
        layer_s = known.get(part.shard.layer)
        return otherwise if layer_s is None else layer_s / part.shard.count
    computing = [name for name in part.layers if not name.endswith(".merge")]
    if all(name in known for name in computing):
        return sum(known[name] for name in computing)
    return otherwise


def _points_by_layer(plan: Plan, known: set[str]) -> dict[str, SplitPoint]:
    """Return the split point behind each of the model's layers; where there are several, the one that is cut at.

    What the plan has beside the model's layers (a merge, a view that stands alone there) counts with the one before.
    """
    model_layer: dict[str, str | None] = {}
    before: str | None = None
    for name in (name for part in plan.partitions for name in part.layers):
        before = model_layer[name] = base_name(name, known) or before
    found: dict[str, SplitPoint] = {}
    for point in plan.split_points:
        layer = model_layer.get(point.after)
        if layer is not None and (layer not in found or point.chosen):
            found[layer] = point
    return found


def _point(row: LayerRow, seconds: tuple[float, ...], point: SplitPoint | None) -> LayerPoint:
    split: Literal["", "cut", "point"] = "" if point is None else "cut" if point.chosen else "point"
    return LayerPoint(
        name=shown(row.name),
        kind=printable(row.kind, 60),
        shape=shape_words(row.output_shape),
        parameters=row.parameters,
        weight_bytes=row.weight_bytes,
        macs=row.macs,
        cut_bytes=row.cut_bytes if row.cut_tensors else None,
        ratio=row.ratio,
        seconds=seconds,
        marks=row.marks,
        split=split,
        reason="" if point is None else printable(point.reason, 120),
    )
