"""Tells whether two layers cost the same: by operators, attributes, element types and shapes, not names or weights."""

import hashlib

import onnx_ir as ir

from hyps_passes import ops
from hyps_passes.graph import CutGraph, Layer

_DIGEST_CHARACTERS = 16
_SHORT_ELEMENTS = 16
"""Integers up to so many may be axes, sizes or pads, which decide what a layer costs."""


def layer_signature(graph: CutGraph, layer: Layer) -> str:
    """Return a digest that layers of equal cost share, in this model and in others.

    Open dimensions count as open; the bytes that go in and out tell for which sizes the layer was looked at.
    """
    numbers = {id(value): index for index, value in enumerate(_values(layer))}
    used = [value.nbytes for value in graph.used_by.get(layer.index, ())]
    made = [value.nbytes for value in graph.made_by.get(layer.index, ())]
    nodes = [_node(node, numbers) for node in layer.nodes]
    text = repr((nodes, sorted(used, key=str), made))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _values(layer: Layer) -> list[ir.Value]:
    """Return all values that the nodes touch, once each, in their order: where they stand replaces their names."""
    touched = (value for node in layer.nodes for value in (*node.inputs, *node.outputs) if value is not None)
    return list({id(value): value for value in touched}.values())


def _node(node: ir.Node, numbers: dict[int, int]) -> tuple[object, ...]:
    attributes = sorted((name, _attribute(attribute)) for name, attribute in node.attributes.items())
    values = [_value(value, numbers) for value in (*node.inputs, None, *node.outputs)]
    inner = [_node(each, numbers) for graph in ops.subgraphs(node) for each in graph]
    return (node.domain, node.op_type, attributes, values, inner)


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "graph"  # its nodes are told beside
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor(attribute.as_tensor())
    return repr(attribute.value)


def _value(value: ir.Value | None, numbers: dict[int, int]) -> object:
    if value is None:
        return None
    if value.const_value is not None:
        return _tensor(value.const_value)
    shape = None if value.shape is None else [dim if isinstance(dim, int) else "?" for dim in value.shape.dims]
    dtype = value.type.dtype.name if isinstance(value.type, ir.TensorType) else str(value.type)
    return (numbers.get(id(value)), dtype, shape)


def _tensor(tensor: ir.TensorProtocol) -> str:
    shape = list(tensor.shape.numpy())
    if tensor.dtype == ir.DataType.INT64 and tensor.size <= _SHORT_ELEMENTS:
        return f"{shape}{tensor.numpy().tolist()}"
    return f"{tensor.dtype.name}{shape}"
