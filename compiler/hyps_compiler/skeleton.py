"""A model without its weights, as onnx infers shapes in it: light, sorted, functions inlined."""

import logging
from collections import ChainMap
from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, inliner

from hyps_compiler.ordering import order
from hyps_compiler.tensors import is_external, tensor_nbytes
from hyps_compiler.walk import bodies, graphs_in, initializer_names

logger = logging.getLogger(__name__)

Shape = tuple[tuple[int, ...], int]
"""Dimensions and element type of what no request changes."""
Shapes = ChainMap[str, Shape]
"""By name, inner graphs first."""

_SHORT_NBYTES = 4096
"""Weights up to here may be shapes; longer ones are left out."""
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64, "value_strings": TensorProto.STRING}
"""Attributes of a `Constant` that are lists, and the type of what it makes of them."""
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
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(map(_light_function, model.functions))
    graph = light.graph
    graph.name = "light"
    graph.node.extend(map(_light_node, model.graph.node))
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list(shapes[value.name])))
    given = {value.name for value in graph.input}
    graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output if value.name not in given)
    for tensor in model.graph.initializer:
        if _is_short(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in model.graph.sparse_initializer:
        kind = sparse.values.data_type
        graph.input.append(onnx.helper.make_tensor_value_info(sparse.values.name, kind, list(sparse.dims)))
    return light


def _light_node(node: NodeProto) -> NodeProto:
    """Return the node without the weights in it: those of a `Constant`, and those of nested graphs."""
    if not any(_may_weigh(attribute) for attribute in node.attribute):
        return node
    light = NodeProto(
        name=node.name,
        op_type=node.op_type,
        domain=node.domain,
        overload=node.overload,
        input=node.input,
        output=node.output,
    )
    light.attribute.extend(map(_light_attribute, node.attribute))
    return light


def _may_weigh(attribute: AttributeProto) -> bool:
    return attribute.name in _LISTS or any(attribute.HasField(field) for field in "tg") or bool(attribute.graphs)


def _light_attribute(attribute: AttributeProto) -> AttributeProto:
    if attribute.HasField("t") and not _is_short(attribute.t):
        return AttributeProto(name=attribute.name, type=attribute.type, t=_hollow(attribute.t))
    if attribute.HasField("g") or attribute.graphs:
        light = AttributeProto(name=attribute.name, type=attribute.type)
        if attribute.HasField("g"):
            light.g.CopyFrom(_light_graph(attribute.g))
        light.graphs.extend(map(_light_graph, attribute.graphs))
        return light
    count = max(len(attribute.floats), len(attribute.ints), len(attribute.strings))
    if attribute.name in _LISTS and count * 8 > _SHORT_NBYTES:
        listed = TensorProto(data_type=_LISTS[attribute.name], dims=[count])
        return AttributeProto(name="value", type=AttributeProto.TENSOR, t=_hollow(listed))
    return attribute


def _light_graph(graph: GraphProto) -> GraphProto:
    """Return the graph with hollow weights: nested ones cannot become inputs."""
    light = GraphProto(name=graph.name, input=graph.input, output=graph.output, value_info=graph.value_info)
    light.node.extend(map(_light_node, graph.node))
    light.initializer.extend(tensor if _is_short(tensor) else _hollow(tensor) for tensor in graph.initializer)
    light.sparse_initializer.extend(graph.sparse_initializer)
    return light


def _light_function(function: FunctionProto) -> FunctionProto:
    light = FunctionProto(
        name=function.name,
        domain=function.domain,
        overload=function.overload,
        input=function.input,
        output=function.output,
        attribute=function.attribute,
        opset_import=function.opset_import,
        value_info=function.value_info,
    )
    light.attribute_proto.extend(map(_light_attribute, function.attribute_proto))
    light.node.extend(map(_light_node, function.node))
    return light


def _hollow(tensor: TensorProto) -> TensorProto:
    """Return the tensor without its data, as if that lay in a file: onnx looks at type and shape alone."""
    return TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
    )


def _is_short(tensor: TensorProto) -> bool:
    """Return whether the tensor is here and may be a shape; strings are none."""
    nbytes = tensor_nbytes(tensor)
    return nbytes is not None and nbytes <= _SHORT_NBYTES and not is_external(tensor)


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
            if tensor is not None and _is_short(tensor):
                nested.initializer.append(tensor)
                nested.initializer[-1].name = name
        _repeat(nested, visible)
