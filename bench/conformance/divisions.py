"""Ways of dividing a model into pieces other than rows of dense layers: regions, recurrent layers, tables."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from hyps_compiler.measure import Measured
from hyps_compiler.partition import Division
from hyps_compiler.stage import Staged
from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError, key_of
from hyps_passes.division.rules import CONTRACTIONS
from hyps_passes.graph import CutGraph, Layer
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.divide_recurrent import WAYS, find_recurrent
from hyps_passes.rewrites.divide_table import find_table
from hyps_passes.rewrites.slice_dense import Refusal
from hyps_passes.searches import split_points

COUNTS = (2, 3, 7)
_LENGTHS = (1, 1, 2, 3, 4, 8)
"""Layers in a region, as they are drawn; heads of attention need the last."""


class Rewrite(Protocol):
    """Divides something in a model."""

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to divide a model."""

    title: str
    rewrite: Rewrite
    inputs: frozenset[str]
    """Names of what the divided nodes read: a fusion with what makes them is given up."""

    def divide(self, staged: Staged, measured: Measured) -> tuple[ir.Model, Division]:
        """Return a divided copy of the model, cut around the pieces.

        Raises:
            IndivisibleError: it cannot be divided so.
        """
        model, sizes = staged.model.clone(), dict(measured.sizes)
        self.rewrite.apply(model, sizes)
        graph = build_cut_graph(model, sizes, fused=staged.fused - self.inputs)
        borders = sorted(set(split_points.shard_borders(graph)) & set(graph.legal_borders()))
        return model, Division(graph, tuple(borders), (), ())


def attempts(
    staged: Staged, measured: Measured, graph: CutGraph, rng: random.Random, most: int
) -> Iterator[Attempt | str]:
    """Yield ways to divide the model, `most` of regions and as many others at most, and why further ones cannot be."""
    own = list(_own_rewrites(staged, measured, graph))
    yield from (reason for reason in own if isinstance(reason, str))
    ways = [attempt for attempt in own if not isinstance(attempt, str)]
    yield from rng.sample(ways, min(most, len(ways)))
    if not graph.layers:
        return
    found = tried = 0
    while found < most and tried < 4 * most:
        tried += 1
        first = rng.randrange(len(graph.layers))
        layers = graph.layers[first : first + rng.choice(_LENGTHS)]
        attempt = _region(staged, measured, layers, rng)
        found += not isinstance(attempt, str)
        yield attempt


def _own_rewrites(staged: Staged, measured: Measured, graph: CutGraph) -> Iterator[Attempt | str]:
    """Yield divisions of recurrent layers and tables, which have rewrites of their own."""
    for layer in graph.layers:
        inputs = _inputs(layer.nodes)
        if any(node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM") for node in layer.nodes):
            for way in WAYS:
                found = find_recurrent(layer, way, measured.sizes)
                if isinstance(found, Refusal):
                    yield found.reason
                    continue
                for count in sorted({min(max(count, found.least), found.most) for count in COUNTS}):
                    yield Attempt(f"layer {layer.index} by {way} in {count}", found.rewrite(count), inputs)
        if any(node.op_type == "Gather" for node in layer.nodes):
            table = find_table(staged.model, layer, measured.sizes)
            if isinstance(table, Refusal):
                yield table.reason
                continue
            for count in sorted({min(count, table.most) for count in COUNTS if table.most > 1}):
                for carry in (False, True):
                    title = f"layer {layer.index} by rows of its table in {count}{', carrying' if carry else ''}"
                    yield Attempt(title, table.rewrite(count, carry=carry), inputs)


def _region(staged: Staged, measured: Measured, layers: Sequence[Layer], rng: random.Random) -> Attempt | str:
    """Return a way to divide consecutive layers, or some of the last one's nodes left out, or why it cannot be."""
    nodes = [node for layer in layers for node in layer.nodes]
    if rng.random() < 0.3:
        nodes = nodes[: rng.randint(len(nodes) - len(layers[-1].nodes) + 1, len(nodes))]
    axis = rng.choice(_axes(nodes[-1], measured.sizes))
    title = f"layers {layers[0].index} to {layers[-1].index}, {len(nodes)} nodes"
    region = Region(title, tuple(str(node.name) for node in nodes), axis)
    try:
        found = extent(staged.model, region, measured.sizes)
    except IndivisibleError as error:
        return error.reason
    count = min(rng.choice(COUNTS), found.most)
    if count < min(COUNTS):
        return f"it is divided at multiples of {found.grain} of {found.size}"
    along = "the sum" if axis is None else f"axis {axis}"
    carry = rng.random() < 0.5
    rewrite = Divide(replace(region, carry=carry), count)
    return Attempt(f"{title} along {along} in {count}{', carrying' if carry else ''}", rewrite, _inputs(nodes))


def _axes(node: ir.Node, sizes: Mapping[str, tuple[int, ...]]) -> list[int | None]:
    """Return the axes to choose from: those of size above 1, and the sum; an axis of size 1 where there is no other."""
    shape = sizes.get(str(node.outputs[0].name), ())
    axes: list[int | None] = [index - len(shape) for index, size in enumerate(shape) if size > 1]
    axes += [None] if key_of(node) in CONTRACTIONS else []
    return axes or [-1]


def _inputs(nodes: Sequence[ir.Node]) -> frozenset[str]:
    inside = set(nodes)
    values = (value for node in nodes for value in node.inputs if value is not None)
    return frozenset(str(value.name) for value in values if value.producer() not in inside)
