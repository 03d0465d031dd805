"""Makes the nodes of one piece as the layout says."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import Claim, write_claim
from hyps_passes.division.constants import slice_tensor
from hyps_passes.division.layout import UNIT, Layout, Share
from hyps_passes.division.rule import Part, Piece, Span, piece_node
from hyps_passes.division.scene import Scene
from hyps_passes.division.spans import common
from hyps_passes.division.stock import Stock
from hyps_passes.layers import SHARD

Held = tuple[Span, ir.Value]
"""A part of a value of the region, and the value that holds it."""


class ConstantMaker:
    """Makes parts of constants, each once for all pieces."""

    def __init__(self, scene: Scene, layout: Layout, stock: Stock) -> None:
        self._scene, self._layout, self._stock = scene, layout, stock
        self._made: dict[tuple[ir.Value, Part], ir.Value] = {}
        self.nodes: list[ir.Node] = []
        """Nodes between initializers and the parts, in running order."""

    def part(self, value: ir.Value, part: Part | None, suffix: str) -> ir.Value:
        """Return a part of a constant; `suffix` goes into the names of what has to be made for it."""
        if part is None:
            return value
        if (value, part) not in self._made:
            self._made[value, part] = self._make(value, part, suffix)
        return self._made[value, part]

    def _make(self, value: ir.Value, part: Part, suffix: str) -> ir.Value:
        span, name = part.span, f"{value.name}.{suffix}"
        if value.is_initializer():
            assert value.const_value is not None
            return self._stock.constant(name, slice_tensor(value.const_value, part.axis, span.start, span.stop))
        node, answer = value.producer(), self._layout.constants[value, part]
        assert node is not None
        if answer is None:
            made = self._stock.slice_node(value, part.axis, span)
            made.name, output = self._stock.fresh(f"{name}.slice"), made.outputs[0]
        else:
            inputs = [
                self._stock.constant(f"{node.name}.{index}.{suffix}", answer.constants[index])
                if index in answer.constants
                else None
                if v is None or index in answer.absent
                else self.part(v, answer.parts.get(index), suffix)
                for index, v in enumerate(node.inputs)
            ]
            made = piece_node(node, answer, inputs, self._stock.fresh(f"{node.name}.{suffix}"))
            output = made.outputs[node.outputs.index(value)]
            if any(answer.surplus):
                before, behind = answer.surplus
                self._stock.describe(output, f"{name}.more", value, part.axis, before + len(span) + behind)
                self.nodes.append(made)
                made = self._stock.slice_node(output, part.axis, Span(before, before + len(span)))
                made.name, output = self._stock.fresh(f"{name}.slice"), made.outputs[0]
        self.nodes.append(made)
        return self._stock.describe(output, name, value, part.axis, len(span))


class PieceMaker:
    """Makes one piece; `nodes`, `parts` and `handed` are what it made."""

    def __init__(
        self, scene: Scene, layout: Layout, stock: Stock, constants: ConstantMaker, shard: Shard, suffix: str
    ) -> None:
        self._scene, self._layout, self._stock, self._constants = scene, layout, stock, constants
        self._shard, self._suffix = shard, suffix
        self._held: dict[ir.Value, list[Held]] = {}
        """Of each value of the region, what is there of it in turn: handed on first, then made."""
        self._joined: dict[ir.Value, list[Held]] = {}
        """What has been put together of them."""
        self._cut: dict[tuple[ir.Value, int, Span], ir.Value] = {}
        self.nodes: list[ir.Node] = []
        """In running order."""
        self.parts: dict[ir.Value, ir.Value] = {}
        """What it hands out of the values that leave the region."""
        self.handed: dict[ir.Value, Held] = {}
        """What it hands on to later pieces."""

    def make(self, handed: Sequence[Mapping[ir.Value, Held]]) -> None:
        """Make the nodes from what the pieces before hand on."""
        index = self._shard.index
        for node in self._scene.nodes:
            share = self._layout.shares.get(node)
            if share is None:
                continue
            for value in node.outputs:
                self._held[value] = [before[value] for before in handed if value in before]
            answer, made = share.answers[index], share.made[index]
            if answer is not None and made is not None:
                self._make(share, answer, made)
            for value in node.outputs:
                self._pass_on(value, share)

    def _make(self, share: Share, answer: Piece, made: Span) -> None:
        node, index = share.node, self._shard.index
        inputs = [self._input(node, answer, index) for index in range(len(node.inputs))]
        name = f"{node.name}.more.{self._suffix}" if any(answer.surplus) else f"{node.name}.{self._suffix}"
        new = self._add(piece_node(node, answer, inputs, ""), name)
        for whole, output in zip(node.outputs, new.outputs, strict=True):
            if whole not in self._layout.needs and not self._scene.is_output(whole):
                output.name = self._stock.fresh(f"{whole.name}.{self._suffix}") if whole.name else ""
                continue
            is_all = not self._scene.is_output(whole) or share.owned[index] == made
            name = f"{whole.name}.{self._suffix}" if is_all else f"{whole.name}.made.{self._suffix}"
            exact = self._without_surplus(output, name, whole, share, answer, made)
            if node is not self._scene.last or self._shard.merge == "concat":
                write_claim(exact, _claim(whole, share.axis, made))
            self._held[whole].append((made, exact))

    def _without_surplus(
        self, output: ir.Value, name: str, whole: ir.Value, share: Share, answer: Piece, made: Span
    ) -> ir.Value:
        """Return what the piece makes of `whole`, without what its node makes around it."""
        before, behind = answer.surplus
        if before or behind:
            assert share.axis is not None
            self._stock.describe(output, f"{name}.more", whole, share.axis, before + len(made) + behind)
            within = Span(before, before + len(made))
            cut = self._stock.slice_node(output, share.axis, within)
            output = self._add(cut, f"{share.node.name}.{self._suffix}").outputs[0]
        return self._stock.describe(output, name, whole, share.axis, len(made))

    def _pass_on(self, value: ir.Value, share: Share) -> None:
        """Cut out what leaves the region and what later pieces need.

        What is long is handed on for the part that is needed; what leaves the region anyway, as it is. What a piece
        makes little of is thus handed from each to several later ones, not copied into something larger by each.
        """
        index = self._shard.index
        own, handed = share.owned[index], self._layout.handed.get(value, ())
        if own is not None and self._scene.is_output(value):
            self.parts[value] = self._local(value, share, own, "")
        later = handed[index] if handed else None
        if later is not None:
            span = share.made[index] if self._scene.is_output(value) and own == share.made[index] else later
            assert span is not None
            self.handed[value] = span, self._local(value, share, span, "carry.")

    def _input(self, node: ir.Node, answer: Piece, index: int) -> ir.Value | None:
        value, part = node.inputs[index], answer.parts.get(index)
        if index in answer.constants:
            return self._stock.constant(f"{node.name}.{index}.{self._suffix}", answer.constants[index])
        if value is None or index in answer.absent:
            return None
        if self._scene.inside(value):
            return self._inside(value, part)
        if self._scene.is_constant(value):
            return self._constants.part(value, part, self._suffix)
        return value if part is None else self._slice(value, value, part.axis, part.span, "in.")

    def _inside(self, value: ir.Value, part: Part | None) -> ir.Value:
        producer = value.producer()
        assert producer is not None
        share = self._layout.shares[producer]
        if share.axis is None:
            whole = self._local(value, share, UNIT, "")
            return whole if part is None else self._slice(whole, value, part.axis, part.span, "in.")
        return self._local(value, share, Span(0, share.size) if part is None else part.span, "in.")

    def _local(self, value: ir.Value, share: Share, span: Span, use: str) -> ir.Value:
        """Return a span of a value of the region from what the piece has of it."""
        for having, source in self._held[value] + self._joined.get(value, []):
            if having.start <= span.start and span.stop <= having.stop:
                if share.axis is None or having == span:
                    return source
                within = Span(span.start - having.start, span.stop - having.start)
                part = self._slice(source, value, share.axis, within, use)
                write_claim(part, _claim(value, share.axis, span))
                return part
        return self._join(value, share, span)

    def _join(self, value: ir.Value, share: Share, span: Span) -> ir.Value:
        """Put together a span that no single part holds."""
        spans = [part for part in (common(having, span) for having, _ in self._held[value]) if part is not None]
        assert share.axis is not None
        assert sum(map(len, spans)) == len(span), (value.name, self._held[value], span)
        parts = [self._local(value, share, part, "end.") for part in spans]
        node = self._add(self._stock.concat_node(parts, share.axis), f"{value.name}.join.{self._suffix}")
        both = self._stock.describe(node.outputs[0], f"{value.name}.all.{self._suffix}", value, share.axis, len(span))
        write_claim(both, _claim(value, share.axis, span))
        self._joined.setdefault(value, []).append((span, both))
        return both

    def _slice(self, source: ir.Value, whole: ir.Value, axis: int, span: Span, use: str) -> ir.Value:
        key = (source, axis, span)
        if key not in self._cut:
            name = f"{whole.name}.{use}{self._suffix}"
            node = self._add(self._stock.slice_node(source, axis, span), f"{name}.slice")
            self._cut[key] = self._stock.describe(node.outputs[0], name, whole, axis, len(span))
            write_claim(node.outputs[0], _claim(whole, axis, span))
        return self._cut[key]

    def _add(self, node: ir.Node, name: str) -> ir.Node:
        node.name = self._stock.fresh(name)
        node.meta[SHARD] = self._shard
        self.nodes.append(node)
        return node


def _claim(whole: ir.Value, axis: int | None, span: Span) -> Claim:
    return Claim(str(whole.name)) if axis is None else Claim(str(whole.name), axis, span.start, span.stop)
