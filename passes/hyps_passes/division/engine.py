"""Divides a region of a model into pieces that are computed one by one, and puts their results together again."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import mark_new
from hyps_passes.division.layout import Extent, Layout, contraction_of, find_extent, lay_out
from hyps_passes.division.making import ConstantMaker, PieceMaker
from hyps_passes.division.region import Region
from hyps_passes.division.rule import Span
from hyps_passes.division.scene import Scene, find_scene
from hyps_passes.division.stock import Stock
from hyps_passes.layers import CUT

_SUMMED = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
"""Element types that onnxruntime has `Sum` for."""

_ADDS_BY_SHAPE = 7
"""The opset from which onnxruntime has `Add`."""


def extent(model: ir.Model, region: Region, sizes: Mapping[str, tuple[int, ...]]) -> Extent:
    """Return into how many pieces the region can be divided at most.

    Args:
        model: normalised; it stays as it is.
        region: what to divide.
        sizes: concrete shapes by name.

    Raises:
        IndivisibleError: it cannot be divided; says why.
    """
    return find_extent(find_scene(model, region, sizes))


@dataclass(frozen=True, slots=True)
class Divide:
    """Rewrites a region into `count` pieces and what merges them: a `Concat` per output, or the pieces' sum.

    It applies where

    1. each node has a rule for the axis that its readers want it divided along, or is wanted whole;
    2. no node outside the region stands between its nodes, and none is random, holds a graph or is divided already;
    3. the divided axes have the same size in every request;
    4. with `carry`: pieces need everything in the order in which they run.

    What leaves the region is merged; what the region reads is cut by `Slice`, constants when the plan is made.
    """

    region: Region
    count: int

    name = "divide"

    def __str__(self) -> str:
        axis = "sum" if self.region.axis is None else self.region.axis
        carry = ",carry=true" if self.region.carry else ""
        return f"{self.name}{{region={self.region.name},axis={axis},count={self.count}{carry}}}"

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place and add the sizes of the new values.

        Raises:
            IndivisibleError: it cannot be divided so; the model is as it was.
            ValueError: `count` is below 2, or a node is not in the model.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} pieces")
        scene = find_scene(model, self.region, sizes)
        layout = lay_out(scene, self.count)
        stock = Stock(model.graph, scene.facts, sizes)
        constants = ConstantMaker(scene, layout, stock)
        makers = [
            PieceMaker(scene, layout, stock, constants, self._shard(index, span), f"{index}of{self.count}")
            for index, span in enumerate(layout.ranges)
        ]
        for index, maker in enumerate(makers):
            maker.make([before.handed for before in makers[:index]])
        _Placing(model.graph, scene, layout, stock).place(constants, makers)

    def _shard(self, index: int, span: Span) -> Shard:
        is_sum = self.region.axis is None
        return Shard(
            layer=self.region.name,
            axis=-1 if self.region.axis is None else self.region.axis,
            index=index,
            count=self.count,
            range=(span.start, span.stop),
            merge="sum" if is_sum else "concat",
        )


class _Placing:
    """Puts pieces and merges into the graph in place of the region."""

    def __init__(self, graph: ir.Graph, scene: Scene, layout: Layout, stock: Stock) -> None:
        self._graph, self._scene, self._layout, self._stock = graph, scene, layout, stock
        self._nodes: list[ir.Node] = []
        """All new ones, in running order."""

    def place(self, constants: ConstantMaker, makers: list[PieceMaker]) -> None:
        used = {value: None for node in self._scene.nodes for value in node.inputs if value is not None}
        self._nodes += constants.nodes
        merged = {}
        is_sum = self._scene.region.axis is None
        if is_sum:
            total = self._scene.last.outputs[0]
            merged[total] = self._summed(total, makers)
        else:
            for maker in makers:
                self._nodes += maker.nodes
        for node, share in self._layout.shares.items():
            for value in node.outputs:
                if self._scene.is_output(value) and value not in merged:
                    parts = [maker.parts[value] for maker in makers if value in maker.parts]
                    merged[value] = self._side_by_side(value, parts, share.axis)
        self._insert()
        for whole, new in merged.items():
            _replace(whole, new)
        self._graph.remove(self._scene.nodes, safe=True)
        self._drop_unused(list(used))

    def _side_by_side(self, value: ir.Value, parts: list[ir.Value], axis: int | None) -> ir.Value:
        if len(parts) == 1:
            return parts[0]
        assert axis is not None
        return self._merge(self._stock.concat_node(parts, axis), value)

    def _summed(self, value: ir.Value, makers: list[PieceMaker]) -> ir.Value:
        """Add up the pieces: one by one as they come where they are many at once otherwise, or no `Sum` takes them."""
        parts = [maker.parts[value] for maker in makers]
        node = self._scene.last
        if self._scene.region.carry or value.dtype not in _SUMMED:
            add = "Add" if value.dtype not in _SUMMED or self._scene.facts.opset >= _ADDS_BY_SHAPE else "Sum"
            total = parts[0]
            for maker, part in zip(makers, parts, strict=True):
                self._nodes += maker.nodes
                if part is not total:
                    total = self._merge(ir.Node("", add, [total, part]), value)
        else:
            for maker in makers:
                self._nodes += maker.nodes
            total = self._merge(ir.Node("", "Sum", parts), value)
        for (domain, op_type), attributes in contraction_of(node).tail(node):
            total = self._merge(ir.Node(domain, op_type, [total], list(attributes.values())), value)
        return total

    def _merge(self, node: ir.Node, like: ir.Value) -> ir.Value:
        node.name = self._stock.fresh(f"{like.name}.merge")
        mark_new(node)
        self._nodes.append(node)
        return self._stock.describe(node.outputs[0], f"{like.name}.merged", like, None, 0)

    def _insert(self) -> None:
        """Put the new nodes where the region's last one was, and behind them what needs them."""
        anchor = self._scene.nodes[-1]
        self._graph.insert_before(anchor, self._nodes)
        if self._scene.behind:
            self._graph.remove(self._scene.behind)
            self._graph.insert_after(anchor, self._scene.behind)

    def _drop_unused(self, values: list[ir.Value]) -> None:
        """Remove constants that only the region used."""
        while values:
            value = values.pop()
            node = value.producer()
            if value.uses() or value.is_graph_output():
                continue
            if value.is_initializer():
                self._graph.initializers.pop(str(value.name), None)
            elif node in self._scene.constants and node.graph is not None and not _is_used(node):
                values += [source for source in node.inputs if source is not None]
                self._graph.remove(node, safe=True)


def _is_used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _replace(whole: ir.Value, new: ir.Value) -> None:
    """Let `new` be what `whole` was, by name too."""
    whole.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, whole.name = whole.name, None
    if CUT in whole.meta:
        new.meta[CUT] = whole.meta[CUT]
