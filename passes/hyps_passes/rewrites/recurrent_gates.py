"""Takes the projection of a recurrent operator's inputs out of the recurrence.

What is left is a `Scan` over time that holds the recurrence weights alone: no partition holds both kinds of weights,
and the projection, which has no order in time, is a dense layer in as many pieces as wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import Claim, mark_new, write_claim
from hyps_passes.division.constants import slice_tensor
from hyps_passes.rewrites.recurrent_cell import Activation, Cell
from hyps_passes.rewrites.slice_dense import row_ranges
from hyps_passes.rewrites.writing import AXES_AS_INPUTS, Writer

_SCAN_OVER_ANY_AXIS = 9
_LIMITS_AS_INPUTS = 11
"""Opsets from which `Scan` has no batch of its own, and `Clip` takes its limits as inputs."""

_X, _W, _R, _B, _LENGTHS, _H, _C, _PEEPHOLES = range(8)
_OPERATORS = {
    "elu": "Elu",
    "hardsigmoid": "HardSigmoid",
    "leakyrelu": "LeakyRelu",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
    "thresholdedrelu": "ThresholdedRelu",
}


def gates_refusal(node: ir.Node, cell: Cell) -> str:
    """Return why the projection cannot be taken out; empty where it can."""
    opset = 0 if node.graph is None else node.graph.opset_imports.get("", 0)
    if opset < _SCAN_OVER_ANY_AXIS:
        return f"opset {opset} has no Scan over time"
    for index in (_W, _R, _B, _PEEPHOLES):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and (value.const_value is None or not value.is_initializer()):
            return f"its weight `{value.name}` is computed, not stored"
        if value is not None and value.dtype != ir.DataType.FLOAT:
            return f"its weights are {value.dtype}"
    unknown = [a.name for a in cell.activations if a.key not in _OPERATORS]
    if unknown:
        return f"there is no operator for the activation {unknown[0]}"
    x, lengths = node.inputs[_X], node.inputs[_LENGTHS] if len(node.inputs) > _LENGTHS else None
    if x is None or x.shape is None:
        return "the shape of its input is unknown"
    if lengths is not None and not isinstance(x.shape[0], int):
        return "its sequences have lengths of their own in an open number of time steps"
    return ""


def take_out_projection(writer: Writer, node: ir.Node, cell: Cell, layer: str, count: int) -> None:
    """Write the projections in `count` pieces for each direction, then the recurrences, then their merges.

    Raises:
        ValueError: `count` is not between 1 (2 where there is one direction) and the rows of one direction's weights.
    """
    rows = cell.gates * cell.hidden
    if not 3 - cell.directions <= count <= rows:
        raise ValueError(f"{count} pieces of {rows} rows")
    outer = writer.shard
    projected: list[list[ir.Value]] = []
    for direction in range(cell.directions):
        projected.append([])
        for piece, (start, stop) in enumerate(row_ranges(rows, count)):
            index, offset = direction * count + piece, direction * rows
            span = (offset + start, offset + stop)
            writer.shard = Shard(
                layer=f"{layer}.input", axis=-1, index=index, count=count * cell.directions, range=span
            )
            projected[-1].append(
                _project(writer, node, cell, direction, (start, stop), f"{index}of{writer.shard.count}")
            )
    used = [number for number, v in enumerate(node.outputs) if v.name and (v.uses() or v.is_graph_output())]
    made = []
    for direction in range(cell.directions):
        writer.shard = outer
        if cell.directions == 2:
            writer.shard = Shard(layer=layer, axis=-3, index=direction, count=2, range=(direction, direction + 1))
        made.append(_Recurrence(writer, node, cell, direction, projected[direction], used).write())
    writer.shard = outer
    for number in used if cell.directions == 2 else ():
        axis = ir.AttrInt64("axis", 1 if number == 0 else 0)
        whole = node.outputs[number]
        inputs = [outputs[number] for outputs in made]
        merge = writer.make("Concat", inputs, whole, {}, f"{whole.name}.merge", axis)
        merge.name = whole.name
        mark_new(writer.nodes[-1])


def _project(writer: Writer, node: ir.Node, cell: Cell, direction: int, span: tuple[int, int], suffix: str) -> ir.Value:
    """Return some rows of the gates for all time steps: the inputs' share and the bias."""
    x, weight, width = node.inputs[_X], node.inputs[_W], span[1] - span[0]
    assert x is not None
    assert x.shape is not None
    assert weight is not None
    assert weight.const_value is not None
    stored = weight.const_value

    def columns() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(_rows(stored, direction, *span).T))

    shape = ir.Shape([stored.shape.numpy()[2], width])
    part = writer.lazy(ir.LazyTensor(columns, dtype=stored.dtype, shape=shape), f"{weight.name}.{suffix}")
    bias = _input_bias(node, cell, direction)
    name = f"{node.name}.gates.{suffix}"
    product = writer.make("MatMul", [x, part], x, {2: width}, name if bias is None else f"{name}.product")
    if bias is None:
        return product
    piece = writer.array(np.ascontiguousarray(bias[slice(*span)]), f"{name}.bias")
    return writer.make("Add", [product, piece], product, {}, name)


def _rows(
    tensor: ir.TensorProtocol, direction: int, start: int, stop: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    one = slice_tensor(tensor, 0, direction, direction + 1).numpy()
    return np.asarray(one[0, start:stop])


def _input_bias(
    node: ir.Node, cell: Cell, direction: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None":
    """Return what is added to the gates whatever the state.

    Of a GRU that resets late the candidate's recurrence bias is not: the reset gate scales it.
    """
    both = _bias(node, direction)
    if both is None:
        return None
    rows = cell.gates * cell.hidden
    added = both[rows:].copy()
    if _resets_late(node, cell):
        added[2 * cell.hidden :] = 0
    return np.asarray(both[:rows] + added)


def _bias(node: ir.Node, direction: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None":
    value = node.inputs[_B] if len(node.inputs) > _B else None
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy()[direction])


def _resets_late(node: ir.Node, cell: Cell) -> bool:
    attribute = node.attributes.get("linear_before_reset")
    return cell.kind == "GRU" and attribute is not None and attribute.as_int() != 0


@dataclass
class _Recurrence:
    """Writes one direction: what prepares the scan, the scan, and what gives its outputs their shape."""

    writer: Writer
    node: ir.Node
    cell: Cell
    direction: int
    projected: Sequence[ir.Value]
    used: Sequence[int]

    def write(self) -> dict[int, ir.Value]:
        """Return the outputs by their number; one direction's take over the names of the node's."""
        self._name = f"{self.node.name}.{'reverse' if self.cell.is_reverse(self.direction) else 'forward'}"
        mask = self._mask()
        states = [self._state(_H), self._state(_C)][: 2 if self.cell.kind == "LSTM" else 1]
        body = _Body(self, masked=mask is not None).graph()
        scanned = [*self.projected, *([mask] if mask is not None else [])]
        attributes = [
            ir.AttrGraph("body", body),
            ir.AttrInt64("num_scan_inputs", len(scanned)),
        ]
        if self.cell.is_reverse(self.direction):
            attributes.append(ir.AttrInt64s("scan_input_directions", [1] * len(scanned)))
            if 0 in self.used:
                attributes.append(ir.AttrInt64s("scan_output_directions", [1]))
        outputs = len(states) + (0 in self.used)
        scan = ir.Node("", "Scan", [*states, *scanned], attributes, num_outputs=outputs, name=self._name)
        self.writer.add(scan)
        return self._shaped(scan, len(states))

    @property
    def x(self) -> ir.Value:
        """What the whole operator reads."""
        x = self.node.inputs[_X]
        assert x is not None
        return x

    @property
    def lengths(self) -> ir.Value | None:
        """How many time steps each sequence has; None: all."""
        return self.node.inputs[_LENGTHS] if len(self.node.inputs) > _LENGTHS else None

    @property
    def batch(self) -> "int | ir.SymbolicDim":
        """The number of sequences."""
        assert self.x.shape is not None
        return self.x.shape[1]

    def _shaped(self, scan: ir.Node, states: int) -> dict[int, ir.Value]:
        """Return the node's outputs, made of the scan's."""
        hidden, made = self.cell.hidden, {}
        assert self.x.shape is not None
        for index, output in enumerate(scan.outputs):
            is_state = index < states
            output.name = f"{self._name}.state{index}" if is_state else f"{self._name}.steps"
            self.writer.declare(output, self.x, {})
            steps = [] if is_state else [self.x.shape[0]]
            output.shape = ir.Shape([*steps, self.batch, hidden])
            self.writer.sizes[output.name] = (*([] if is_state else self._sizes[:1]), self._sizes[1], hidden)
        order = {index + 1: scan.outputs[index] for index in range(states)}
        if len(scan.outputs) > states:
            order[0] = scan.outputs[-1]
        for number in self.used:
            value = order[number] if number == 0 else self._kept(order[number])
            made[number] = self._unsqueezed(number, value)
        return made

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.writer.sizes[str(self.x.name)]

    def _unsqueezed(self, number: int, value: ir.Value) -> ir.Value:
        """Return an output with the axis of directions; named as the node's where there is one direction."""
        whole, axis = self.node.outputs[number], 1 if number == 0 else 0
        name = str(whole.name) if self.cell.directions == 1 else f"{whole.name}.{self.direction}of2"
        assert value.shape is not None
        dims = list(value.shape)
        dims.insert(axis, 1)
        made = self.writer.unsqueeze(value, axis, name, dims)
        sizes = list(self.writer.sizes[str(value.name)])
        sizes.insert(axis, 1)
        self.writer.sizes[name] = tuple(sizes)
        mark_new(self.writer.nodes[-1])
        if self.cell.directions == 2:
            write_claim(made, Claim(str(whole.name), axis, self.direction, self.direction + 1))
        return made

    def _kept(self, state: ir.Value) -> ir.Value:
        """Return a final state; that of a sequence of no time step is zero, as onnxruntime has it."""
        if self.lengths is None:
            return state
        zero = self.writer.numbers32(0)
        some = self.writer.make("Greater", [self.lengths, zero], self.lengths, {}, f"{state.name}.some")
        some.type = ir.TensorType(ir.DataType.BOOL)
        column = self.writer.unsqueeze(some, 1, f"{state.name}.kept", [self.batch, 1])
        return self.writer.make("Where", [column, state, self.writer.scalar(0.0)], state, {}, f"{state.name}.final")

    def _mask(self) -> ir.Value | None:
        """Return for each time step which sequences have not ended, one to a row; None where all last."""
        if self.lengths is None:
            return None
        steps = np.arange(self._sizes[0], dtype=np.int32)[:, None]
        counted = self.writer.array(steps, f"{self._name}.counted")
        dims = [self._sizes[0], self.batch]
        mask = self.writer.make("Less", [counted, self.lengths], self.lengths, dims, f"{self._name}.lasts")
        mask.type = ir.TensorType(ir.DataType.BOOL)
        self.writer.sizes[str(mask.name)] = self._sizes[:2]
        return mask

    def _state(self, index: int) -> ir.Value:
        """Return an initial state without the axis of directions; zeros where none is given."""
        given = self.node.inputs[index] if index < len(self.node.inputs) else None
        dims, name = [self.batch, self.cell.hidden], f"{self._name}.initial{index}"
        if given is None:
            return self._zeros(name, dims)
        one = given
        if self.cell.directions == 2:
            one = self.writer.part(given, 0, self.direction, self.direction + 1, f"{self.direction}of2")
        value = self.writer.make("Reshape", [one, self.writer.numbers([-1, self.cell.hidden])], one, dims, name)
        self.writer.sizes[name] = (self._sizes[1], self.cell.hidden)
        return value

    def _zeros(self, name: str, dims: "list[int | ir.SymbolicDim]") -> ir.Value:
        if isinstance(self.batch, int):
            return self.writer.array(np.zeros((self.batch, self.cell.hidden), np.float32), name)
        source = self.projected[0]
        shape = self.writer.make("Shape", [source], source, [3], f"{name}.of")
        shape.type = ir.TensorType(ir.DataType.INT64)
        batch = self.writer.make("Gather", [shape, self.writer.numbers([1])], shape, [1], f"{name}.batch")
        both = self.writer.make(
            "Concat",
            [batch, self.writer.numbers([self.cell.hidden])],
            shape,
            [2],
            f"{name}.shape",
            ir.AttrInt64("axis", 0),
        )
        value = self.writer.make("ConstantOfShape", [both], self.x, dims, name)
        self.writer.sizes[name] = (self._sizes[1], self.cell.hidden)
        return value


@dataclass
class _Body:
    """One time step as a graph: from the states and the projected inputs to the new states and the output."""

    of: _Recurrence
    masked: bool
    nodes: list[ir.Node] = field(default_factory=list)

    def graph(self) -> ir.Graph:
        """Return the body of the scan."""
        cell, dims = self.of.cell, [self.of.batch, self.of.cell.hidden]
        states = [self._input(f"state{index}", dims) for index in range(2 if cell.kind == "LSTM" else 1)]
        pieces = [
            self._input(f"gates{index}", [self.of.batch, value.shape[2] if value.shape else 0])
            for index, value in enumerate(self.of.projected)
        ]
        lasts = [self._input("lasts", [self.of.batch], ir.DataType.BOOL)] if self.masked else []
        gates = pieces[0] if len(pieces) == 1 else self._add("Concat", pieces, "gates", ir.AttrInt64("axis", 1))
        new = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[cell.kind](gates, states)
        step = new[0]
        if lasts:
            row = self._unsqueezed(lasts[0])
            step = self._add("Where", [row, new[0], self.of.writer.scalar(0.0)], "step")
            new = [
                self._add("Where", [row, value, before], f"next{index}")
                for index, (value, before) in enumerate(zip(new, states, strict=True))
            ]
        outputs = [*new, *([self._add("Identity", [step], "output")] if 0 in self.of.used else [])]
        for value in outputs:
            value.type, value.shape = self.of.x.type, ir.Shape(dims)
        imports = dict(self.of.writer.model.graph.opset_imports)
        return ir.Graph(
            [*states, *pieces, *lasts], outputs, nodes=self.nodes, opset_imports=imports, name=f"{self.of._name}.step"
        )

    def _lstm(self, gates: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
        before, memory = states
        f, g, h = self.of.cell.of_direction(self.of.direction)
        total = self._add("Add", [gates, self._times(before, 0, 4)], "total")
        raw_i, raw_o, raw_f, raw_c = self._split(total, 4)
        i = self._activated(self._peeped(raw_i, memory, 0), f, "i")
        if self._flag("input_forget"):
            forget = self._add("Sub", [self.of.writer.scalar(1.0), i], "f")
        else:
            forget = self._activated(self._peeped(raw_f, memory, 2), f, "f")
        kept = self._add("Mul", [forget, memory], "kept")
        fresh = self._add("Mul", [i, self._activated(raw_c, g, "c")], "fresh")
        new = self._add("Add", [kept, fresh], "memory")
        o = self._activated(self._peeped(raw_o, new, 1), f, "o")
        return [self._add("Mul", [o, self._function(new, h, "h")], "new"), new]

    def _gru(self, gates: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
        (before,) = states
        f, g = self.of.cell.of_direction(self.of.direction)
        raw_z, raw_r, raw_h = self._split(gates, 3)
        if _resets_late(self.of.node, self.of.cell):
            from_z, from_r, from_h = self._split(self._times(before, 0, 3), 3)
            z = self._activated(self._add("Add", [raw_z, from_z], "raw_z"), f, "z")
            r = self._activated(self._add("Add", [raw_r, from_r], "raw_r"), f, "r")
            reset = self._add("Mul", [r, self._with_late_bias(from_h)], "reset")
        else:
            from_z, from_r = self._split(self._times(before, 0, 2), 2)
            z = self._activated(self._add("Add", [raw_z, from_z], "raw_z"), f, "z")
            r = self._activated(self._add("Add", [raw_r, from_r], "raw_r"), f, "r")
            reset = self._times(self._add("Mul", [r, before], "remembered"), 2, 3)
        candidate = self._activated(self._add("Add", [raw_h, reset], "raw_h"), g, "h")
        fresh = self._add("Mul", [self._add("Sub", [self.of.writer.scalar(1.0), z], "open"), candidate], "fresh")
        return [self._add("Add", [fresh, self._add("Mul", [z, before], "kept")], "new")]

    def _rnn(self, gates: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
        (f,) = self.of.cell.of_direction(self.of.direction)
        total = self._add("Add", [gates, self._times(states[0], 0, 1)], "total")
        return [self._activated(total, f, "new")]

    def _with_late_bias(self, value: ir.Value) -> ir.Value:
        """Return the candidate's share of the state with the bias that the reset gate scales."""
        bias, hidden = _bias(self.of.node, self.of.direction), self.of.cell.hidden
        if bias is None:
            return value
        late = np.ascontiguousarray(bias[5 * hidden :])
        return self._add("Add", [value, self.of.writer.array(late, f"{self.of._name}.late")], "late")

    def _times(self, state: ir.Value, first: int, stop: int) -> ir.Value:
        """Return the state times the recurrence weights of gates `first` to `stop` - 1."""
        weight, hidden = self.of.node.inputs[_R], self.of.cell.hidden
        assert weight is not None
        assert weight.const_value is not None
        stored, direction = weight.const_value, self.of.direction

        def columns() -> ir.TensorProtocol:
            return ir.Tensor(np.ascontiguousarray(_rows(stored, direction, first * hidden, stop * hidden).T))

        shape = ir.Shape([hidden, (stop - first) * hidden])
        name = f"{weight.name}.{direction}of{self.of.cell.directions}"
        held = self.of.writer.lazy(ir.LazyTensor(columns, dtype=stored.dtype, shape=shape), name)
        return self._add("MatMul", [state, held], f"from{first}")

    def _peeped(self, value: ir.Value, memory: ir.Value, index: int) -> ir.Value:
        """Return a gate with what it sees of the memory; peepholes stand in the order input, output, forget."""
        inputs, hidden = self.of.node.inputs, self.of.cell.hidden
        weight = inputs[_PEEPHOLES] if len(inputs) > _PEEPHOLES else None
        if weight is None or weight.const_value is None:
            return value
        row = weight.const_value.numpy()[self.of.direction, index * hidden : (index + 1) * hidden]
        held = self.of.writer.array(np.ascontiguousarray(row), f"{self.of._name}.peephole{index}")
        seen = self._add("Mul", [memory, held], f"seen{index}")
        return self._add("Add", [value, seen], f"peeped{index}")

    def _activated(self, value: ir.Value, activation: Activation, name: str) -> ir.Value:
        """Return the activation of a gate, which is clipped before it."""
        clip = self.of.node.attributes.get("clip")
        return self._function(value if clip is None else self._clipped(value, clip.as_float(), name), activation, name)

    def _clipped(self, value: ir.Value, limit: float, name: str) -> ir.Value:
        if self.of.writer.opset < _LIMITS_AS_INPUTS:
            low, high = ir.AttrFloat32("min", -limit), ir.AttrFloat32("max", limit)
            return self._add("Clip", [value], f"{name}.clipped", low, high)
        limits = [self.of.writer.scalar(-limit), self.of.writer.scalar(limit)]
        return self._add("Clip", [value, *limits], f"{name}.clipped")

    def _function(self, value: ir.Value, activation: Activation, name: str) -> ir.Value:
        attributes = [ir.AttrFloat32(key, number) for key, number in activation.numbers.items()]
        return self._add(_OPERATORS[activation.key], [value], name, *attributes)

    def _split(self, value: ir.Value, count: int) -> list[ir.Value]:
        lengths = [self.of.cell.hidden] * count
        axis, inputs = ir.AttrInt64("axis", 1), [value]
        attributes = [axis]
        if self.of.writer.opset < AXES_AS_INPUTS:
            attributes.append(ir.AttrInt64s("split", lengths))
        else:
            inputs.append(self.of.writer.numbers(lengths))
        node = ir.Node("", "Split", inputs, attributes, num_outputs=count, name=f"{value.name}.split")
        self.nodes.append(node)
        for index, output in enumerate(node.outputs):
            output.name = f"{value.name}.{index}of{count}"
        return list(node.outputs)

    def _unsqueezed(self, value: ir.Value) -> ir.Value:
        if self.of.writer.opset < AXES_AS_INPUTS:
            return self._add("Unsqueeze", [value], "row", ir.AttrInt64s("axes", [1]))
        return self._add("Unsqueeze", [value, self.of.writer.numbers([1])], "row")

    def _flag(self, name: str) -> bool:
        attribute = self.of.node.attributes.get(name)
        return attribute is not None and attribute.as_int() != 0

    def _input(
        self, name: str, dims: "Sequence[int | ir.SymbolicDim]", dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        return ir.Value(name=self._inner(name), type=ir.TensorType(dtype), shape=ir.Shape(dims))

    def _add(self, op_type: str, inputs: Sequence[ir.Value], name: str, *attributes: ir.Attr) -> ir.Value:
        node = ir.Node("", op_type, list(inputs), attributes, num_outputs=1, name=self._inner(name))
        self.nodes.append(node)
        node.outputs[0].name = node.name
        return node.outputs[0]

    def _inner(self, name: str) -> str:
        """Return a name for inside, which none outside may have."""
        return f"{self.of._name}.step.{name}"
