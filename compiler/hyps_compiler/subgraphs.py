"""Pieces of a serialized model: what makes a tensor, from given tensors on, as a model of its own.

It shares nothing with the code that cuts models into partitions, so that it can judge what that code wrote.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a model: the nodes that make some tensors out of others."""

    nodes: tuple[NodeProto, ...]
    """In the model's order."""
    inputs: tuple[str, ...]
    """What the nodes read that is neither made by them nor a weight, in order of first use."""
    weights: tuple[str, ...]
    outputs: tuple[str, ...]


class Model:
    """A serialized model, its weights left where they are, with a look-up of who makes what."""

    def __init__(self, proto: ModelProto, folder: Path) -> None:
        """Take the model whose external data lies in `folder`."""
        self.proto, self.folder = proto, folder
        self.makers = {name: node for node in proto.graph.node for name in node.output if name}
        self.weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self._position = {id(node): index for index, node in enumerate(proto.graph.node)}

    def made(self) -> list[str]:
        """Return every tensor that a node makes, in running order."""
        return list(self.makers)

    def piece(self, outputs: Collection[str], given: Collection[str]) -> Piece:
        """Return what makes `outputs`, going back no further than to the tensors in `given`."""
        nodes: dict[int, NodeProto] = {}
        inputs: dict[str, None] = {}
        weights: dict[str, None] = {}
        waiting, seen = list(reversed(list(outputs))), set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in given and name not in outputs:
                inputs[name] = None
            elif name in self.makers:
                node = self.makers[name]
                nodes[self._position[id(node)]] = node
                waiting.extend(reversed(list(reads(node))))
            elif name in self.weights or name in self.sparse:
                weights[name] = None
            else:
                inputs[name] = None
        ordered = tuple(node for _, node in sorted(nodes.items()))
        return Piece(ordered, tuple(inputs), tuple(sorted(weights)), tuple(outputs))

    def build(self, piece: Piece, values: Mapping[str, Any]) -> ModelProto:
        """Return the piece as a model; its inputs get the types and shapes of `values`."""
        model = ModelProto(ir_version=max(self.proto.ir_version, 4), producer_name="hyps")
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        model.graph.name = "piece"
        model.graph.node.extend(piece.nodes)
        model.graph.initializer.extend(self.weights[name] for name in piece.weights if name in self.weights)
        model.graph.sparse_initializer.extend(self.sparse[name] for name in piece.weights if name in self.sparse)
        model.graph.input.extend(value_info(name, values[name]) for name in piece.inputs)
        model.graph.output.extend(ValueInfoProto(name=name) for name in piece.outputs)
        return model

    def exposing(self, names: Collection[str]) -> ModelProto:
        """Return the whole model with `names` among its outputs."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in present)
        return model

    def weight(self, name: str) -> np.ndarray[Any, Any]:
        """Return the value of a weight."""
        if name in self.sparse:
            raise KeyError(name)
        return numpy_helper.to_array(self.weights[name], str(self.folder))


def merged(first: Model, second: Model) -> Model | None:
    """Return two models of one folder, the second fed by the first, as one; None where a name means two things.

    What both hold, such as a shared weight or a copy of a constant, is taken once.
    """
    if first.folder != second.folder:
        return None
    proto = ModelProto()
    proto.CopyFrom(first.proto)
    for name, node in second.makers.items():
        if name in first.makers and first.makers[name] != node:
            return None
    for name, weight in second.weights.items():
        if name in first.weights and first.weights[name] != weight:
            return None
    if first.sparse or second.sparse:
        return None
    held = {*first.makers, *(value.name for value in first.proto.graph.input)}
    proto.graph.node.extend(n for n in second.proto.graph.node if not held.intersection(filter(None, n.output)))
    proto.graph.initializer.extend(t for t in second.proto.graph.initializer if t.name not in first.weights)
    proto.graph.input.extend(value for value in second.proto.graph.input if value.name not in held)
    proto.graph.output.extend(second.proto.graph.output)
    return Model(proto, first.folder)


def reads(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads: its inputs, and what its nested graphs take from outside."""
    yield from filter(None, node.input)
    for graph in _nested(node):
        yield from _captures(graph)


def can_be_given(value: Any) -> bool:
    """Return whether a value can be handed to onnxruntime and kept in an .npz file: a plain tensor."""
    return isinstance(value, np.ndarray) and (value.dtype == object or value.dtype.kind in "biuf")


def value_info(name: str, value: Any) -> ValueInfoProto:
    """Return the declaration of a tensor that has the type and shape of `value`."""
    is_text = value.dtype.kind in "OUS"
    element = TensorProto.STRING if is_text else helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, element, value.shape)


def load_model(path: Path) -> Model:
    """Return the model in a file."""
    return Model(onnx.load(str(path), load_external_data=False), path.parent)


def _nested(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captures(graph: GraphProto) -> Iterator[str]:
    inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    inner |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        yield from (name for name in reads(node) if name not in inner)
        inner.update(node.output)
    yield from (value.name for value in graph.output if value.name not in inner)
