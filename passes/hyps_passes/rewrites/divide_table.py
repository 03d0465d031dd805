"""Divides the table of a look-up by rows into H-partitions, each of which answers for the rows that it has."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import mark_new
from hyps_passes.division.reading import integer, operand
from hyps_passes.division.rule import Facts, IndivisibleError, Part, Span
from hyps_passes.division.spans import even_spans
from hyps_passes.graph import Layer, can_cross
from hyps_passes.layers import CUT, SHARD, constant_nodes
from hyps_passes.ops import STANDARD_DOMAINS, Shapes
from hyps_passes.rewrites.slice_dense import Refusal
from hyps_passes.rewrites.table_parts import find_grain, make_part, stored_table
from hyps_passes.rewrites.writing import Writer, replace_value

_WHERE = 9
"""The opset from which there is `Where`, and `Less` of integers."""

_ADDED_AS = {
    ir.DataType.FLOAT: ir.DataType.FLOAT,
    ir.DataType.DOUBLE: ir.DataType.DOUBLE,
    ir.DataType.FLOAT16: ir.DataType.FLOAT,
    ir.DataType.BOOL: ir.DataType.INT32,
    ir.DataType.INT8: ir.DataType.INT32,
    ir.DataType.UINT8: ir.DataType.INT32,
    ir.DataType.INT16: ir.DataType.INT32,
    ir.DataType.UINT16: ir.DataType.INT32,
    ir.DataType.INT32: ir.DataType.INT32,
    ir.DataType.UINT32: ir.DataType.INT64,
    ir.DataType.INT64: ir.DataType.INT64,
}
"""Element type of a table to the one in which pieces are added: onnxruntime adds it in every opset, and no value of
the table changes in it."""


@dataclass(frozen=True, slots=True)
class TableLayer:
    """A layer with a look-up whose table can be divided by rows."""

    layer: str
    node: str
    rows: int
    grain: int
    """Pieces begin at multiples of it."""

    @property
    def most(self) -> int:
        """The most pieces."""
        return self.rows // self.grain

    def rewrite(self, count: int, *, carry: bool = False) -> "DivideTable":
        """Return the rewrite into `count` pieces."""
        return DivideTable(self.layer, self.node, count, carry)


def find_table(model: ir.Model, layer: Layer, sizes: Mapping[str, tuple[int, ...]]) -> TableLayer | Refusal:
    """Return into how many pieces the largest table of the layer can be divided, or why it cannot.

    It applies to `Gather` where

    1. the table is constant: an initializer, or made of one by nodes that have rules (`DequantizeLinear`, `Cast`, ...);
    2. it has two rows or more that no block of a blocked quantization reaches over;
    3. its elements are numbers, and what is looked up may travel between partitions;
    4. the opset is 9 or newer;
    5. the layer is no H-partition already.
    """
    facts = Facts(Shapes(dict(sizes)), model.graph.opset_imports.get("", 0))
    constants = constant_nodes(model.graph)
    found = [node for node in layer.nodes if _is_gather(node)]
    tables = [node for node in found if _is_constant(node.inputs[0], constants) and node not in constants]
    if not tables:  # 1.
        return Refusal(layer.name, "its table is not constant" if found else f"{layer.kind} looks nothing up")
    node = max(tables, key=lambda node: _count(node, facts))
    if layer.shard or SHARD in node.meta:  # 5.
        return Refusal(layer.name, "it is an H-partition already")
    try:
        return _checked(layer, node, facts)
    except IndivisibleError as error:
        return Refusal(layer.name, error.reason)


@dataclass(frozen=True, slots=True)
class DivideTable:
    """Rewrites one look-up into `count` pieces, each with some rows of the table.

    A piece makes zero of an index that another piece has. Their sum is the whole, bit for bit, but for the sign of
    zeros. With `carry` each piece puts its rows into what the piece before hands on: nothing is added, and one result
    is in memory at a time, but the pieces run one after another.
    """

    layer: str
    node: str
    count: int
    carry: bool = False

    name = "divide-table"

    def __str__(self) -> str:
        carry = ",carry=true" if self.carry else ""
        return f"{self.name}{{layer={self.layer},count={self.count}{carry}}}"

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place and add the sizes of the new tensors.

        Raises:
            ValueError: `count` is not between 2 and what `find_table` tells.
        """
        node = next(node for node in model.graph if node.name == self.node)
        facts = Facts(Shapes(dict(sizes)), model.graph.opset_imports.get("", 0))
        table = node.inputs[0]
        rows, grain = _rows(node, facts), _grain(node, facts)
        if not 2 <= self.count <= rows // grain:
            raise ValueError(f"{self.count} pieces of {rows} rows at multiples of {grain}")
        spans = [span for span in even_spans(rows, self.count, grain) if span is not None]
        whole = _Pieces(Writer(model, sizes), node, facts, self).write(spans)
        if CUT in node.outputs[0].meta:
            whole.meta[CUT] = node.outputs[0].meta[CUT]
        replace_value(node.outputs[0], whole)
        model.graph.remove(node, safe=True)
        assert table is not None
        _drop_unused(model.graph, table)


def _is_gather(node: ir.Node) -> bool:
    return node.op_type == "Gather" and node.domain in STANDARD_DOMAINS


def _is_constant(value: ir.Value | None, constants: set[ir.Node]) -> bool:
    return value is not None and (value.is_initializer() or value.producer() in constants)


def _axis(node: ir.Node, facts: Facts) -> int:
    return integer(node, "axis") % len(facts.shape(node.inputs[0]))


def _rows(node: ir.Node, facts: Facts) -> int:
    return facts.shape(node.inputs[0])[_axis(node, facts)]


def _count(node: ir.Node, facts: Facts) -> int:
    try:
        return int(np.prod(facts.shape(node.inputs[0]), dtype=np.int64))
    except IndivisibleError:
        return 0


def _checked(layer: Layer, node: ir.Node, facts: Facts) -> TableLayer:
    output, indices = node.outputs[0], operand(node, 1)
    facts.shape(output)
    if output.dtype not in _ADDED_AS:  # 3.
        raise IndivisibleError(f"its elements are {output.dtype}")
    if indices is None or not can_cross(output) or not can_cross(indices):
        raise IndivisibleError("its values cannot travel between partitions")
    if facts.opset < _WHERE:  # 4.
        raise IndivisibleError(f"opset {facts.opset} has no Where")
    rows, grain = _rows(node, facts), _grain(node, facts)
    if rows // grain < 2:  # 2.
        raise IndivisibleError(f"its {rows} rows can only be divided at multiples of {grain}")
    return TableLayer(layer.name, str(node.name), rows, grain)


def _grain(node: ir.Node, facts: Facts) -> int:
    axis = _axis(node, facts)
    return find_grain(stored_table(node, axis, facts)[0], axis, facts)


def _drop_unused(graph: ir.Graph, table: ir.Value) -> None:
    """Remove the whole table, and what made it, unless something else reads it."""
    if table.uses() or table.is_graph_output():
        return
    node = table.producer()
    if node is None:
        graph.initializers.pop(str(table.name), None)
    elif all(not value.uses() and not value.is_graph_output() for value in node.outputs):
        sources = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        for source in sources:
            _drop_unused(graph, source)


class _Pieces:
    """Writes the pieces of one look-up."""

    def __init__(self, writer: Writer, node: ir.Node, facts: Facts, rewrite: DivideTable) -> None:
        self._writer, self._node, self._facts, self._rewrite = writer, node, facts, rewrite
        indices, output = node.inputs[1], node.outputs[0]
        assert indices is not None
        assert output.dtype is not None
        self._indices, self._whole, self._dtype = indices, output, output.dtype
        self._axis, self._rows = _axis(node, facts), _rows(node, facts)
        self._places = len(facts.shape(indices))
        self._behind = len(facts.shape(node.inputs[0])) - 1 - self._axis
        """Axes of an entry of the table that stand behind those of the indices."""
        self._suffix = ""
        self._nothing: ir.Value | None = None
        self._numbers: dict[str, ir.Value] = {}

    def write(self, spans: list[Span]) -> ir.Value:
        """Write all pieces and what merges them into the graph, and return the whole."""
        total: ir.Value | None = None
        parts: list[ir.Value] = []
        for index, span in enumerate(spans):
            self._suffix = f"{index}of{len(spans)}"
            self._writer.shard = self._shard(index, span, len(spans))
            total = self._piece(index, span, total if self._rewrite.carry else None)
            parts.append(total)
        if not self._rewrite.carry:
            self._writer.shard, self._suffix = None, "merge"
            total = self._sum(parts)
        assert total is not None
        made = self._cast(total, self._dtype, f"{self._whole.name}.cast")
        for node in self._writer.nodes:
            mark_new(node)
        self._writer.model.graph.insert_before(self._node, self._writer.nodes)
        return made

    def _shard(self, index: int, span: Span, count: int) -> Shard:
        axis = self._axis - len(self._facts.shape(self._whole))
        return Shard(
            layer=self._rewrite.layer, axis=axis, index=index, count=count, range=(span.start, span.stop), merge="sum"
        )

    def _piece(self, index: int, span: Span, handed: ir.Value | None) -> ir.Value:
        """Return the entries of the indices that the piece has, and elsewhere what was handed on, or nothing."""
        below = self._flags("Less", self._indices, 0, "negative")
        moved = self._index("Add", [self._indices, self._number(self._rows)], "moved")
        row = self._index("Where", [below, moved, self._indices], "row")
        local = self._index("Sub", [row, self._number(span.start)], "local")
        has = self._within(local, len(span), "here")
        fallback = self._number(0) if index else self._checked(row)
        place = self._index("Where", [has, local, fallback], "place")
        entries = self._entries(place, span)
        for extra in range(self._behind):
            dims = [*self._dims(self._indices), *[1] * (extra + 1)]
            has = self._writer.unsqueeze(has, self._places + extra, self._name(f"mask{extra}"), dims)
        otherwise = handed if handed is not None else self._none(entries)
        name = f"{self._whole.name}.{'carry.' if self._rewrite.carry else ''}{self._suffix}"
        return self._writer.make("Where", [has, entries, otherwise], entries, {}, name)

    def _checked(self, row: ir.Value) -> ir.Value:
        """Return 0 for each index; fail, as the whole does, at one beyond the table.

        The look-up in a table of one zero fails where it is asked for anything but 0.
        """
        outside = self._flag("Not", [self._within(row, self._rows, "inside")], "outside")
        asked = self._index("Cast", [outside], "asked", ir.AttrInt64("to", int(self._indices.dtype or 0)))
        return self._index("Gather", [self._number(0, rank=1), asked], "checked")

    def _within(self, value: ir.Value, size: int, name: str) -> ir.Value:
        """Return where `value` is from 0 to `size` - 1."""
        before = self._flags("Less", value, 0, f"{name}.before")
        reached = self._flags("Less", value, size, f"{name}.reached")
        return self._flag("And", [self._flag("Not", [before], f"{name}.from"), reached], name)

    def _entries(self, place: ir.Value, span: Span) -> ir.Value:
        """Return what the piece's part of the table has at each place, in the type in which it is added."""
        stored, scaling = stored_table(self._node, self._axis, self._facts)
        part = make_part(self._writer, stored, Part(self._axis, span), self._facts, self._suffix)
        axis = ir.AttrInt64("axis", self._axis)
        entries = self._writer.make("Gather", [part, place], self._whole, {}, self._name("entries"), axis)
        entries.type = stored.type
        if scaling is not None:
            entries = self._scaled(entries, scaling)
        return self._cast(entries, _ADDED_AS[self._dtype], self._name("wide"))

    def _scaled(self, entries: ir.Value, scaling: ir.Node) -> ir.Value:
        """Return the entries dequantized, with the scales of the columns where those are now."""
        attributes = dict(scaling.attributes)
        if self._facts.shape(scaling.inputs[1]):
            column = integer(scaling, "axis", 1) % (self._axis + 1 + self._behind)
            moved = column + (self._places - 1 if column > self._axis else 0)
            attributes["axis"] = ir.AttrInt64("axis", moved)
        inputs = [entries, *scaling.inputs[1:]]
        return self._writer.make(
            "DequantizeLinear", inputs, self._whole, {}, self._name("scaled"), *attributes.values()
        )

    def _sum(self, parts: list[ir.Value]) -> ir.Value:
        name = f"{self._whole.name}.added"
        if parts[0].dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return self._writer.make("Sum", parts, parts[0], {}, name)
        total = parts[0]
        for index, part in enumerate(parts[1:], 1):  # onnxruntime has no `Sum` of integers
            total = self._writer.make("Add", [total, part], part, {}, f"{name}{index}")
        return total

    def _none(self, like: ir.Value) -> ir.Value:
        """Return what adds nothing."""
        if self._nothing is None:
            assert like.dtype is not None
            self._nothing = self._writer.array(np.zeros((), like.dtype.numpy()), f"{self._whole.name}.nothing")
        return self._nothing

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        if value.dtype == dtype:
            return value
        made = self._writer.make("Cast", [value], value, {}, name, ir.AttrInt64("to", int(dtype)))
        made.type = ir.TensorType(dtype)
        return made

    def _index(self, op_type: str, inputs: list[ir.Value], name: str, *attributes: ir.Attr) -> ir.Value:
        """Return a new value that has a number for each index."""
        return self._writer.make(op_type, inputs, self._indices, {}, self._name(name), *attributes)

    def _flag(self, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
        """Return a new value that says yes or no for each index."""
        made = self._index(op_type, inputs, name)
        made.type = ir.TensorType(ir.DataType.BOOL)
        return made

    def _flags(self, op_type: str, value: ir.Value, number: int, name: str) -> ir.Value:
        return self._flag(op_type, [value, self._number(number)], name)

    def _number(self, number: int, rank: int = 0) -> ir.Value:
        """Return a constant of the indices' type, the same for the same number."""
        assert self._indices.dtype is not None
        array = np.full((1,) * rank, number, self._indices.dtype.numpy())
        kind = f"hyps.{array.dtype.name}.{'list.' if rank else 'scalar.'}{number}"
        if kind not in self._numbers:
            self._numbers[kind] = self._writer.array(array, kind)
        return self._numbers[kind]

    def _name(self, what: str) -> str:
        return f"{self._whole.name}.{what}.{self._suffix}"

    def _dims(self, value: ir.Value) -> list[int | ir.SymbolicDim]:
        return list(value.shape) if value.shape is not None else list(self._facts.shape(value))
