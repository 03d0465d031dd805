"""Carries out on layers what annotations want: divides some, and puts all in the order of their stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from hyps.errors import ModelError, printable
from hyps_compiler.choice_cuts import Cut, DenseRows, Sizes, dense_rows, region_ways
from hyps_compiler.interop.wanted import Moved, Wanted, WantedShards
from hyps_passes.graph import CutGraph, Layer, reordered
from hyps_passes.layers import build_cut_graph

_MOST_PARTS = 1024


@dataclass(frozen=True, slots=True)
class Arranged:
    """Layers in the order of their stages."""

    graph: CutGraph
    stages: tuple[int, ...]
    """Of each layer, never falling."""
    reasons: Mapping[int, str]
    """Why there is a border behind a layer, by the layer's place."""


@dataclass(frozen=True, slots=True)
class Divided:
    """What became of the layers that were to be divided."""

    rewrites: tuple[str, ...]
    fused: frozenset[str]
    """Names of values that are still inside layers."""
    devices: Mapping[str, tuple[int, ...]]
    """Of the parts of each layer, where they are told."""


def divide_as_wanted(model: ir.Model, sizes: Sizes, fused: frozenset[str], shards: Sequence[WantedShards]) -> Divided:
    """Divide layers in place.

    Raises:
        ModelError: one cannot be divided so; says which and why.
    """
    if not shards:
        return Divided((), fused, {})
    layer_of = {
        str(value.name): layer
        for layer in build_cut_graph(model, sizes, fused=fused).layers
        for node in layer.nodes
        for value in node.outputs
    }
    cuts: dict[int, tuple[Cut, int]] = {}
    devices: dict[str, tuple[int, ...]] = {}
    for wanted in shards:
        layer = next((layer_of[name] for name in wanted.outputs if name in layer_of), None)
        if layer is None:
            raise _indivisible(wanted, "nothing of it is left once what is constant is computed")
        if layer.index not in cuts:  # a layer is divided once, as its first node wants it
            cuts[layer.index] = (_cut(model, layer, sizes, wanted), wanted.count)
            devices[layer.name] = wanted.devices
    done = []
    for _, (cut, count) in sorted(cuts.items()):
        done.append(cut.apply(model, sizes, count))
        fused -= cut.inputs
    return Divided(tuple(done), fused, devices)


def in_stages(graph: CutGraph, wanted: Wanted) -> Arranged:
    """Return the layers in the order of their stages, with a border behind each stage.

    A layer whose nodes are of several stages, since nothing may separate them, runs in the last of these; one of which
    nothing is said (a rewrite made it) in the first that needs it; and none before a layer that it needs.
    """
    own = [_own_stages(layer, wanted) for layer in graph.layers]
    stages = _stages(graph, own)
    order = sorted(range(len(stages)), key=lambda layer: (stages[layer], layer))
    sorted_stages = tuple(stages[layer] for layer in order)
    arranged = reordered(graph, order)
    mixed = [
        Moved(printable(layer.name), min(o), stages[layer.index])
        for layer, o in zip(graph.layers, own, strict=True)
        if len(o) > 1
    ]
    reasons = {
        place: _reason(stage, behind, wanted, mixed)
        for place, (stage, behind) in enumerate(pairwise(sorted_stages))
        if stage != behind
    }
    return Arranged(arranged, sorted_stages, reasons)


def _cut(model: ir.Model, layer: Layer, sizes: Sizes, wanted: WantedShards) -> Cut:
    if layer.shard is not None or wanted.count > _MOST_PARTS:
        raise _indivisible(wanted, f"{_MOST_PARTS} parts are the most")
    rows = dense_rows(layer) if wanted.axis == -1 else ""
    if isinstance(rows, DenseRows):
        if wanted.count > rows.units:
            raise _indivisible(wanted, f"it has {rows.units} rows")
        return rows
    ways, reasons = region_ways(model, [layer], sizes, carry=False, opened=False)
    fitting = [way for way in ways if way.axis == wanted.axis]
    if not fitting:
        raise _indivisible(wanted, "; ".join((*filter(None, [rows]), *reasons[:1])) or "it has no such axis")
    if wanted.count > fitting[0].units:
        raise _indivisible(wanted, f"there it has {fitting[0].units} units")
    return fitting[0].cut([layer])


def _own_stages(layer: Layer, wanted: Wanted) -> set[int]:
    names = (str(value.name) for node in layer.nodes for value in node.outputs)
    return {wanted.stage_of[name] for name in names if name in wanted.stage_of}


def _stages(graph: CutGraph, own: Sequence[set[int]]) -> list[int]:
    """Return the stage of each layer, none below that of a layer that it needs."""
    made_by, used_by = graph.made_by, graph.used_by
    wished: list[int | None] = [max(stages, default=None) for stages in own]
    for layer in reversed(range(len(own))):
        needed = [wished[consumer] for value in made_by.get(layer, ()) for consumer in value.consumers]
        told = [stage for stage in (wished[layer], *needed) if stage is not None]
        wished[layer] = min(told, default=None)
    first = min((stage for stage in wished if stage is not None), default=0)
    stages: list[int] = []
    for layer, stage in enumerate(wished):
        needs = [stages[value.producer] for value in used_by.get(layer, ()) if value.producer >= 0]
        stages.append(max((first if stage is None else stage), *needs, first))
    return stages


def _reason(stage: int, behind: int, wanted: Wanted, mixed: Sequence[Moved]) -> str:
    """Return why a border lies between two stages, and what else would have been before it."""
    told = f"end of stage {stage} of {wanted.origin}"
    moved = [one for one in wanted.moved if one.wanted <= stage < one.stage == behind]
    if moved:
        others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        told += f"; `{moved[0].node}`{others} of stage {moved[0].wanted} moved behind it, needing what comes there"
    tied = [one for one in mixed if one.wanted <= stage < one.stage == behind]
    if tied:
        told += f"; nothing may separate layer `{tied[0].node}`, which begins in stage {tied[0].wanted}"
    return told


def _indivisible(wanted: WantedShards, reason: str) -> ModelError:
    along = "its sum" if wanted.axis is None else f"axis {wanted.axis} of what it makes"
    return ModelError(
        f"node `{wanted.node}` cannot be divided in {wanted.count} parts along {along}: {printable(reason, 200)}",
        "name a device configuration that leaves it whole with --configuration, or say with --cut where to cut",
        "E_ANNOTATION",
    )
