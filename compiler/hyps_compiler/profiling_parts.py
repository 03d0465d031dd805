"""Consecutive layers of a staged model as files that onnxruntime opens, all on the staged model's own weights."""

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from hyps_compiler.irfile import serialize_value
from hyps_compiler.profiling_jobs import Piece
from hyps_compiler.stage import Staged
from hyps_passes.graph import CutGraph, CutValue

_MIB = 2**20


class PieceWriter:
    """Writes windows of one model's layers beside its weights, which no file copies."""

    def __init__(self, staged: Staged, graph: CutGraph) -> None:
        """Take the model and its layers."""
        self._model, self._graph, self._folder = staged.model, graph, staged.path.parent

    def write(self, first: int, last: int) -> Piece:
        """Write layers `first` to `last` and return what was written."""
        graph = self._graph
        layers = graph.layers[first : last + 1]
        inputs = list(_inputs(graph, first, last))
        outputs = list(_outputs(graph, first, last))
        constants = dict.fromkeys(node for layer in layers for node in layer.constants)
        weights = {id(weight): weight for layer in layers for weight in layer.weights}
        proto = onnx.ModelProto(ir_version=self._model.ir_version, producer_name="hyps")
        proto.opset_import.extend(
            onnx.OperatorSetIdProto(domain=domain, version=version)
            for domain, version in sorted(self._model.opset_imports.items())
        )
        proto.graph.name = f"{first}-{last}"
        nodes = (*constants, *(node for layer in layers for node in layer.nodes))
        proto.graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
        proto.graph.initializer.extend(_initializer(weight) for weight in weights.values())
        proto.graph.input.extend(serialize_value(value.value) for value in inputs)
        proto.graph.output.extend(serialize_value(value.value) for value in outputs)
        path = self._folder / f"piece-{first}-{last}.onnx"
        path.write_bytes(proto.SerializeToString())
        return Piece(
            file=path.name,
            first=first,
            last=last,
            inputs=tuple(value.name for value in inputs),
            outputs=tuple(value.name for value in outputs),
            weight_bytes=graph.window(first, last).weight_bytes,
            activation_bytes=_activation_bytes(graph, first, last),
        )

    def write_empty(self) -> str:
        """Write a model that does nothing to speak of, and return its name: what any partition takes."""
        value = onnx.helper.make_tensor_value_info
        shape, kind = [1], onnx.TensorProto.FLOAT
        node = onnx.helper.make_node("Neg", ["x"], ["y"])
        body = onnx.helper.make_graph([node], "empty", [value("x", kind, shape)], [value("y", kind, shape)])
        opsets = [onnx.helper.make_opsetid("", 17)]
        path = self._folder / "empty.onnx"
        path.write_bytes(onnx.helper.make_model(body, opset_imports=opsets, ir_version=8).SerializeToString())
        return path.name


def _inputs(graph: CutGraph, first: int, last: int) -> Iterator[CutValue]:
    for value in graph.values:
        if value.producer < first and any(first <= consumer <= last for consumer in value.consumers):
            yield value


def _outputs(graph: CutGraph, first: int, last: int) -> Iterator[CutValue]:
    for value in graph.values:
        is_made_here = first <= value.producer <= last
        if is_made_here and (value.is_output or any(consumer > last for consumer in value.consumers)):
            yield value


def _activation_bytes(graph: CutGraph, first: int, last: int) -> int:
    window = graph.window(first, last)
    return max(_MIB, (window.peak_bytes or window.weight_bytes) - window.weight_bytes)


def _initializer(weight: ir.Value) -> onnx.TensorProto:
    assert weight.const_value is not None
    proto = ir.serde.serialize_tensor(weight.const_value)  # one on disk stays there
    proto.name = str(weight.name)
    return proto


def pick_borders(graph: CutGraph, most: int | None) -> tuple[int, ...]:
    """Return the borders to measure: all legal ones, or at most `most` that halve the work between them, and so on.

    Work is multiply-accumulates and bytes; without either, layers.
    """
    legal: Sequence[int] = graph.legal_borders()
    if most is None or len(legal) <= most:
        return tuple(legal)
    done, total = [], 0.0
    for layer in graph.layers:
        made = sum(value.nbytes or 0 for value in graph.made_by.get(layer.index, ()))
        total += 1 + (layer.macs or 0) + made
        done.append(total)
    wanted = [total * (step + 1) / (most + 1) for step in range(most)]
    return tuple(sorted({min(legal, key=lambda border: abs(done[border] - goal)) for goal in wanted}))
