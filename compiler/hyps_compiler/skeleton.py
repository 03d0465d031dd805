"""A model without its weights, as onnx infers shapes in it: light, sorted, functions inlined."""

import logging
from collections import ChainMap
from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, inliner

from hyps_compiler.ordering import order
from hyps_compiler.tensors import is_external
from hyps_compiler.walk import bodies, graphs_in, initializer_names

logger = logging.getLogger(__name__)

Shape = tuple[tuple[int, ...], int]
"""Dimensions and element type of what no request changes."""
Shapes = ChainMap[str, Shape]
"""By name, inner graphs first."""

_SHORT_NBYTES = 4096
"""Weights up to here may be shapes; longer ones are left out."""
_ONNX_ERRORS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError)


def lighten(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Return the model as it is for shapes; its inputs have those of `shapes`, which are by name."""
    light = _without_weights(model, shapes)
    _sort(light)
    if light.functions:
        light = _inlined(light)
    repeat_captured(light.graph)
    return light


def repeat_captured(graph: GraphProto) -> None:
    """Give nested graphs the short constants that they capture as their own: onnx does not look for them outside."""
    _repeat(graph, ChainMap())


def infer(light: ModelProto, *, follow_numbers: bool = False) -> ModelProto:
    """Return the model with the shapes that onnx infers.

    With `follow_numbers` it computes shapes too, and takes 150 bytes for each element of any list to do so, be it a
    flattened image: only for models in which all lists are known to be short.
    """
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=follow_numbers)
    except _ONNX_ERRORS as error:
        logger.debug("onnx cannot infer shapes, so sizes are checked later: %s", error)
        return light


def told_shapes(graph: GraphProto) -> dict[str, Shape]:
    """Return the shapes that no request changes, of what the graph's own nodes, inputs and weights are."""
    found = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        if tensor.HasField("shape") and all(size >= 0 for size in dims):
            found[value.name] = dims, tensor.elem_type
    return found


def _without_weights(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Return the model without what could only mislead or weigh: long weights, declared types of what nodes make."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list(shapes[value.name])))
    given = {value.name for value in graph.input}
    graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output if value.name not in given)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SHORT_NBYTES and not is_external(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in model.graph.sparse_initializer:
        kind = sparse.values.data_type
        graph.input.append(onnx.helper.make_tensor_value_info(sparse.values.name, kind, list(sparse.dims)))
    return light


def _sort(model: ModelProto) -> None:
    for body, _ in bodies(model):
        sequence, _ = order(body)
        if sequence != list(range(len(sequence))):
            nodes = [body.node[index] for index in sequence]
            copies = GraphProto(node=nodes)
            del body.node[:]
            body.node.extend(copies.node)


def _inlined(light: ModelProto) -> ModelProto:
    try:
        return inliner.inline_local_functions(light)
    except _ONNX_ERRORS as error:
        logger.debug("onnx cannot inline the functions, so sizes inside are not checked: %s", error)
        return light


def _repeat(graph: GraphProto, outer: ChainMap[str, TensorProto | None]) -> None:
    found: dict[str, TensorProto | None] = dict.fromkeys(name for node in graph.node for name in node.output)
    found |= dict.fromkeys(value.name for value in graph.input)
    found |= {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found |= dict.fromkeys(node.output, node.attribute[0].t)
    visible = outer.new_child(found)
    for nested in (nested for node in graph.node for nested in graphs_in(node)):
        own = {name for node in nested.node for name in node.output} | initializer_names(nested)
        for name in {name for node in nested.node for name in node.input} - own:
            tensor = visible.get(name)
            if tensor is not None and tensor.ByteSize() <= _SHORT_NBYTES:
                nested.initializer.append(tensor)
                nested.initializer[-1].name = name
        _repeat(nested, visible)
