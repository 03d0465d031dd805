"""One node, divided by its rule: the pieces that onnxruntime computes against the whole that it computes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from hyps_passes.division.rule import Facts, Piece, Span, key_of, piece_node
from hyps_passes.division.rules import CONTRACTIONS, RULES
from hyps_passes.ops import Shapes

Array = np.ndarray[Any, Any]


class OneNode:
    """A model of one node whose inputs are fed or constant, with the values that onnxruntime computes for it."""

    def __init__(
        self,
        node: onnx.NodeProto,
        feeds: dict[str, Array],
        constants: dict[str, Array] | None = None,
        opsets: dict[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Take the node, its fed inputs and its initializers by name; `opsets` has versions by domain.

        Of its outputs only `outputs` are used, all if none are named.
        """
        self.node, self.feeds, self.constants = node, feeds, constants or {}
        self.opsets = opsets or {"": 17, "com.microsoft": 1}
        self.outputs = list(outputs) or [name for name in node.output if name]
        self.whole = dict(zip(self.outputs, self._run(self._proto(node, self.feeds), self.feeds), strict=True))
        model = ir.serde.deserialize_model(self._proto(node, self.feeds))
        self.ir_node = next(iter(model.graph))
        sizes = {name: value.shape for name, value in {**self.feeds, **self.whole}.items()}
        self.facts = Facts(Shapes(sizes), self.opsets.get("", 17))

    def piece(self, axis: int, start: int, stop: int) -> Piece:
        """Return what the rule says of a span of the output."""
        piece = RULES[key_of(self.ir_node)](self.ir_node, axis, Span(start, stop), self.facts)
        assert all(self.ir_node.inputs[index] is not None for index in piece.parts), "a part of what is not there"
        return piece

    def made(self, axis: int, start: int, stop: int) -> list[Array]:
        """Return the outputs of the piece for a span of the output."""
        piece = self.piece(axis, start, stop)
        before, length = piece.surplus[0], stop - start
        made = self._run_piece(piece)
        assert all(value.shape[axis] == sum(piece.surplus) + length for value in made)
        return [np.take(value, range(before, before + length), axis) for value in made]

    def expected(self, axis: int, start: int, stop: int) -> list[Array]:
        """Return the spans of the whole's outputs."""
        return [np.take(self.whole[name], range(start, stop), axis) for name in self.outputs]

    def summed(self, edges: Sequence[int]) -> Array:
        """Return the sum of the pieces between `edges` of the contraction, in float64 or the outputs' integers."""
        contraction = CONTRACTIONS[key_of(self.ir_node)]
        total: Any = None
        for index, (start, stop) in enumerate(itertools.pairwise(edges)):
            piece = contraction.piece(self.ir_node, Span(start, stop), index, self.facts)
            made = self._run_piece(piece)[0]
            made = made.astype(np.float64) if made.dtype.kind == "f" else made
            total = made if total is None else total + made
        return np.asarray(total)

    def _run_piece(self, piece: Piece) -> list[Array]:
        feeds: dict[str, Array] = {}
        values: list[ir.Value | None] = []
        for index, value in enumerate(self.ir_node.inputs):
            if value is None or index in piece.absent:
                values.append(None)
                continue
            name, whole = str(value.name), {**self.feeds, **self.constants}[str(value.name)]
            if index in piece.constants:
                whole = piece.constants[index].numpy()
            elif index in piece.parts:
                part = piece.parts[index]
                whole = np.take(whole, range(part.span.start, part.span.stop), part.axis)
            key = f"{name}.{index}"
            feeds[key] = np.asarray(whole, order="C")
            values.append(ir.Value(name=key))
        made = piece_node(self.ir_node, piece, values, "piece")
        for output, name in zip(made.outputs, self.node.output, strict=True):
            output.name = name
        fed = {f"{v.name}.{i}" for i, v in enumerate(self.ir_node.inputs) if v is not None and v.name in self.feeds}
        proto = self._proto(ir.serde.serialize_node(made), feeds, held={k: v for k, v in feeds.items() if k not in fed})
        return self._run(proto, {name: value for name, value in feeds.items() if name in fed})

    def _proto(
        self, node: onnx.NodeProto, feeds: dict[str, Array], held: dict[str, Array] | None = None
    ) -> onnx.ModelProto:
        constants = self.constants if held is None else held
        inputs = [_info(name, value) for name, value in feeds.items() if name not in constants]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = onnx.helper.make_graph([node], "one", inputs, outputs, initializers)
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)

    @staticmethod
    def _run(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))


def _info(name: str, value: Array) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
