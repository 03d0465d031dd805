"""Divides a recurrent layer (LSTM, GRU, RNN) into H-partitions: by direction, gates, batch or time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import Claim, mark_new, write_claim
from hyps_passes.graph import Layer, can_cross
from hyps_passes.layers import SHARD
from hyps_passes.rewrites.recurrent_cell import (
    Cell,
    activation_attributes,
    is_recurrent,
    read_cell,
)
from hyps_passes.rewrites.recurrent_gates import gates_refusal, take_out_projection
from hyps_passes.rewrites.slice_dense import Refusal, row_ranges
from hyps_passes.rewrites.writing import Writer, replace_value

Way = Literal["direction", "gates", "batch", "time"]
WAYS: tuple[Way, ...] = ("direction", "gates", "batch", "time")
"""`direction` halves weights, feature maps and work. `gates` takes the projection of the inputs out of the recurrence,
in as many pieces as wanted; what is left holds the recurrence weights alone, and runs as a `Scan`. `batch` and `time`
bound feature maps; each piece holds all weights."""

_X, _W, _R, _B, _LENGTHS, _H, _C = range(7)
_TIME, _SAMPLE = 0, 1
"""Axes of the input sequence."""
_DIRECTION_AXIS, _BATCH_AXIS, _TIME_AXIS = -3, -2, -4
"""Of all outputs, counted from the end; the final states have no time."""


@dataclass(frozen=True, slots=True)
class RecurrentLayer:
    """A layer with a recurrent node that can be divided in one way."""

    layer: str
    node: str
    way: Way
    least: int
    most: int
    """Into at least and at most so many pieces."""

    def rewrite(self, count: int) -> "DivideRecurrent":
        """Return the rewrite into `count` pieces."""
        return DivideRecurrent(self.layer, self.node, self.way, count)


def find_recurrent(layer: Layer, way: Way, sizes: Mapping[str, tuple[int, ...]]) -> RecurrentLayer | Refusal:
    """Return into how many pieces the layer can be divided that way, or why it cannot.

    It applies to `LSTM`, `GRU` and `RNN`, and by direction to `DynamicQuantizeLSTM`, where

    1. layout is 0: onnxruntime runs no other one;
    2. all sizes are known, those of the axis that is divided in every request;
    3. by direction: there are two;
    4. by gates: the weights are initializers of float32 and there are operators for the activations;
    5. by batch or time: nothing is quantized by the range of the whole sequence;
    6. by time: one direction, no lengths of single sequences, float32: states are handed on from piece to piece.
    """
    found = [node for node in layer.nodes if is_recurrent(node)]
    if not found:
        return Refusal(layer.name, f"{layer.kind} has no recurrent operator")
    if len(found) > 1:
        return Refusal(layer.name, f"it has {len(found)} recurrent operators")
    return _pieces(layer, found[0], way, sizes)


@dataclass(frozen=True, slots=True)
class DivideRecurrent:
    """Rewrites one recurrent node into pieces and what merges them.

    By `gates`, `count` is the pieces of each direction's projection, beside the recurrences.
    """

    layer: str
    node: str
    way: Way
    count: int

    name = "divide-recurrent"

    def __str__(self) -> str:
        return f"{self.name}{{layer={self.layer},way={self.way},count={self.count}}}"

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place and add the sizes of the new tensors.

        Raises:
            ValueError: `count` is not between the least and the most pieces that `find_recurrent` tells.
        """
        node = next(node for node in model.graph if node.name == self.node)
        hidden = sizes[str(_used(node)[0].name)][-1]
        cell = read_cell(node, hidden)
        writer = Writer(model, sizes, node.meta.get(SHARD))
        if self.way == "gates":
            take_out_projection(writer, node, cell, self.layer, self.count)
        else:
            _Pieces(writer, node, cell, self).write()
        model.graph.insert_before(node, writer.nodes)
        for output in node.outputs:
            made = next((v for n in writer.nodes for v in n.outputs if v.name == output.name), None)
            if output.name and made is not None:
                replace_value(output, made)
        model.graph.remove(node, safe=True)


def _used(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _pieces(layer: Layer, node: ir.Node, way: Way, sizes: Mapping[str, tuple[int, ...]]) -> RecurrentLayer | Refusal:
    x, used = _input(node, _X), _used(node)
    known = x is not None and str(x.name) in sizes and all(str(value.name) in sizes for value in used)
    layout = node.attributes.get("layout")
    if layout is not None and layout.as_int() != 0:  # 1.
        return Refusal(layer.name, f"layout={layout.as_int()}, which onnxruntime does not run")
    if x is None or not known or not used:  # 2.
        return Refusal(layer.name, "its sizes are unknown")
    cell = read_cell(node, sizes[str(used[0].name)][-1])
    reason = _REASONS[way](node, cell, x)
    if reason:
        return Refusal(layer.name, reason)
    time, batch = sizes[str(x.name)][:2]
    least = 1 if way == "gates" and cell.directions == 2 else 2
    most = {"direction": 2, "gates": cell.gates * cell.hidden, "batch": batch, "time": time}[way]
    if most < least:
        return Refusal(layer.name, f"there is nothing to divide: {way} is {most}")
    return RecurrentLayer(layer.name, str(node.name), way, least, most)


def _direction_refusal(node: ir.Node, cell: Cell, x: ir.Value) -> str:
    return "" if cell.directions == 2 else "it has one direction"  # 3.


def _batch_refusal(node: ir.Node, cell: Cell, x: ir.Value) -> str:
    return _quantized_refusal(cell) or _open_refusal(x, _SAMPLE, "batch")


def _time_refusal(node: ir.Node, cell: Cell, x: ir.Value) -> str:
    if cell.directions == 2:  # 6.
        return "it has two directions: they can be separated first"
    if _input(node, _LENGTHS) is not None:
        return "its sequences have lengths of their own"
    if x.dtype != ir.DataType.FLOAT:
        return f"states of {x.dtype} would be rounded between the pieces"
    return _quantized_refusal(cell) or _open_refusal(x, _TIME, "number of time steps")


def _gates_refusal(node: ir.Node, cell: Cell, x: ir.Value) -> str:
    if not can_cross(x):
        return "its input cannot travel between partitions"
    return _quantized_refusal(cell) or gates_refusal(node, cell)


_REASONS = {
    "direction": _direction_refusal,
    "gates": _gates_refusal,
    "batch": _batch_refusal,
    "time": _time_refusal,
}


def _quantized_refusal(cell: Cell) -> str:
    return "it is quantized by the range of the whole sequence" if cell.kind == "DynamicQuantizeLSTM" else ""  # 5.


def _open_refusal(x: ir.Value, axis: int, what: str) -> str:
    if x.shape is not None and isinstance(x.shape[axis], int):
        return ""
    return f"its {what} differs between requests; `--input` can fix the size of an input"


_DIRECTION_OF = dict.fromkeys((_W, _R, _B, _H, _C, 7, 8, 9, 10, 11), 0)
"""Axis of the directions, by input: of all but the sequences and their lengths; from 7 on are peepholes, scales and
zero points."""
_BATCH_OF = {_X: _SAMPLE, _LENGTHS: 0, _H: 1, _C: 1}
_TIME_OF = {_X: _TIME}


class _Pieces:
    """Writes pieces that are the same operator on a part of what the whole one reads."""

    def __init__(self, writer: Writer, node: ir.Node, cell: Cell, rewrite: DivideRecurrent) -> None:
        self._writer, self._node, self._cell, self._rewrite = writer, node, cell, rewrite
        self._used = {value.name for value in _used(node)}
        self._states: tuple[ir.Value | None, ...] = ()
        """What the piece before handed on."""

    def write(self) -> None:
        """Write all pieces and the merges, which take over the names of the node's outputs."""
        way, count = self._rewrite.way, self._rewrite.count
        axis_of, axis = {
            "direction": (_DIRECTION_OF, _DIRECTION_AXIS),
            "batch": (_BATCH_OF, _BATCH_AXIS),
            "time": (_TIME_OF, _TIME_AXIS),
        }[way]
        x = self._node.inputs[_X]
        assert x is not None
        total = 2 if way == "direction" else self._writer.sizes[str(x.name)][axis_of[_X]]
        if not 2 <= count <= total:
            raise ValueError(f"{count} pieces of {total} along {way}")
        ranges = list(enumerate(row_ranges(total, count)))
        backwards = way == "time" and self._cell.is_reverse(0)
        made: dict[int, ir.Node] = {}
        outer = self._writer.shard
        for index, span in reversed(ranges) if backwards else ranges:
            self._writer.shard = Shard(layer=self._rewrite.layer, axis=axis, index=index, count=count, range=span)
            made[index] = self._piece(index, span, axis_of, axis, is_last=index == (0 if backwards else count - 1))
        self._writer.shard = outer
        for number, output in enumerate(self._node.outputs):
            if output.name in self._used and not (way == "time" and number > 0):
                self._merge(number, output, [made[index] for index in range(count)], axis)

    def _piece(
        self, index: int, span: tuple[int, int], axis_of: Mapping[int, int], axis: int, *, is_last: bool
    ) -> ir.Node:
        writer, node, suffix = self._writer, self._node, f"{index}of{self._rewrite.count}"
        inputs = [
            value if value is None or number not in axis_of else writer.part(value, axis_of[number], *span, suffix)
            for number, value in enumerate(node.inputs)
        ]
        if self._states:
            inputs += [None] * (_H + len(self._states) - len(inputs))
            inputs[_H : _H + len(self._states)] = self._states
        piece = ir.Node(
            node.domain, node.op_type, inputs, self._attributes(index), num_outputs=self._outputs(), name=suffix
        )
        piece.name = f"{node.name}.{suffix}"
        writer.add(piece)
        for number, output in enumerate(piece.outputs):
            self._declare(output, number, index, span, axis, is_last=is_last)
        if self._rewrite.way == "time":
            self._states = tuple(piece.outputs[1:])
        return piece

    def _outputs(self) -> int:
        """Return how many outputs a piece has: those that hand on states are there in any case."""
        states = 2 if self._cell.gates == 4 else 1
        return 1 + states if self._rewrite.way == "time" else len(self._node.outputs)

    def _attributes(self, index: int) -> list[ir.Attr]:
        attributes: dict[str, ir.Attr | None] = dict(self._node.attributes)
        if self._rewrite.way == "direction":
            attributes["direction"] = ir.AttrString("direction", "reverse" if index else "forward")
            if "activations" in attributes:
                attributes.update(activation_attributes(self._cell.of_direction(index)))
        return [attribute for attribute in attributes.values() if attribute is not None]

    def _declare(
        self, output: ir.Value, number: int, index: int, span: tuple[int, int], axis: int, *, is_last: bool
    ) -> None:
        """Name an output of a piece and tell its shape; the last piece in time makes the final states themselves."""
        count, way = self._rewrite.count, self._rewrite.way
        whole = self._node.outputs[number] if number < len(self._node.outputs) else None
        is_used = whole is not None and whole.name in self._used
        if way == "time" and number > 0:
            name = str(whole.name) if is_used and whole is not None else f"{self._node.name}.state{number}"
            output.name = name if is_used and is_last else f"{name}.carry.{index}of{count}"
            if is_last and not is_used:
                output.name = ""
            self._declare_state(output)
        elif is_used and whole is not None:
            output.name = f"{whole.name}.{index}of{count}"
            rank = 4 if number == 0 else 3
            self._writer.declare(output, whole, {rank + axis: span[1] - span[0]})
            write_claim(output, Claim(str(whole.name), rank + axis, *span))
        else:
            output.name = ""

    def _declare_state(self, output: ir.Value) -> None:
        x = self._node.inputs[_X]
        assert x is not None
        dims = [1, self._writer.sizes[str(x.name)][_SAMPLE], self._cell.hidden]
        batch = dims[1] if x.shape is None else x.shape[_SAMPLE]
        output.type = x.type
        output.shape = ir.Shape([1, batch, self._cell.hidden])
        if output.name:
            self._writer.sizes[output.name] = tuple(dims)

    def _merge(self, number: int, output: ir.Value, pieces: list[ir.Node], axis: int) -> None:
        rank = 4 if number == 0 else 3
        merge = ir.Node(
            "",
            "Concat",
            [piece.outputs[number] for piece in pieces],
            [ir.AttrInt64("axis", rank + axis)],
            num_outputs=1,
            name=f"{output.name}.merge",
        )
        self._writer.add(merge)
        mark_new(merge)
        merge.outputs[0].name = output.name
        self._writer.declare(merge.outputs[0], output, {})
