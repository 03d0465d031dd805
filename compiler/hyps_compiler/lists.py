"""Lists of numbers that shapes are computed from: how long they get, and what they are.

onnx and onnxruntime follow such numbers from node to node to infer a shape. That is a trap, as a list may double at
every node: a file of a kilobyte takes all memory before it is loaded. So their length is bounded first, and then they
are followed through short lists alone.
"""

from collections import ChainMap
from collections.abc import Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from hyps.errors import ModelError, printable
from hyps_compiler.skeleton import Shapes, infer, repeat_captured, told_shapes
from hyps_compiler.tensors import count_elements, is_external
from hyps_compiler.walk import graphs_in

_MOST_LISTED = 2**20
"""Most numbers of a list that shapes are computed from; onnxruntime takes 220 bytes for each, to load the model."""
_SHORT = 64
"""Most numbers of a list that is followed: no shape has more."""
_ANY_RANK = 64
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_NOT_FOLLOWED = frozenset({"Constant", "Shape"})
"""What makes a list that inference knows by itself."""


def check_lists(graph: GraphProto) -> dict[str, int]:
    """Refuse a list, known without a request, that is longer than a shape or a set of indices ever is.

    Returns:
        The most numbers of each list outside nested graphs.

    Raises:
        ModelError: as said (`E_LIMIT`).
    """
    return _lengths(graph, ChainMap(), ChainMap())


def settle_lists(light: ModelProto, shaped: ModelProto, lengths: Mapping[str, int]) -> bool:
    """Put the numbers in the place of nodes whose lists they are, and return whether there were any.

    Args:
        light: the model to change.
        shaped: the same with shapes.
        lengths: the most numbers of its lists.
    """
    numbers = _numbers(shaped, lengths)
    found = False
    for node in light.graph.node:
        if node.op_type not in _NOT_FOLLOWED and node.output and node.output[0] in numbers:
            value = numpy_helper.from_array(np.array(numbers[node.output[0]], np.int64))
            node.CopyFrom(helper.make_node("Constant", [], [node.output[0]], node.name, value=value))
            found = True
    repeat_captured(light.graph)
    return found


def _numbers(shaped: ModelProto, lengths: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the lists that are wholly known: each one's numbers are the shape of what a `ConstantOfShape` makes."""
    nodes = [node for node in shaped.graph.node if node.output and lengths.get(node.output[0], _SHORT + 1) <= _SHORT]
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in node.input} - made
    values = [*shaped.graph.value_info, *shaped.graph.input, *shaped.graph.output]
    weights = [t for t in shaped.graph.initializer if t.name in needed and lengths.get(t.name, _SHORT + 1) <= _SHORT]
    given = {value.name: value for value in values if value.name in needed}
    followed = [node.output[0] for node in nodes if node.op_type not in _NOT_FOLLOWED]
    if not followed:
        return {}
    small = ModelProto(ir_version=shaped.ir_version, opset_import=shaped.opset_import)
    small.graph.CopyFrom(GraphProto(name="numbers", node=nodes, input=given.values(), initializer=weights))
    sinks = {f"{name}/numbers": name for name in followed}
    small.graph.node.extend(helper.make_node("ConstantOfShape", [name], [sink]) for sink, name in sinks.items())
    small.graph.output.extend(ValueInfoProto(name=sink) for sink in sinks)
    found = told_shapes(infer(small, follow_numbers=True).graph)
    return {name: list(found[sink][0]) for sink, name in sinks.items() if sink in found}


def _lengths(graph: GraphProto, lengths: ChainMap[str, int], outer: Shapes) -> dict[str, int]:
    told = outer.new_child(told_shapes(graph))
    lengths = lengths.new_child()
    for tensor in graph.initializer:
        if _is_list(tensor):
            lengths[tensor.name] = count_elements(tensor.dims)
    for node in graph.node:
        length = _length(node, lengths, told)
        if length is not None and node.output:
            dims, _ = told.get(node.output[0], ((length,), 0))
            lengths[node.output[0]] = min(length, count_elements(dims))
            if lengths[node.output[0]] > _MOST_LISTED and len(dims) == 1:
                raise ModelError(
                    f"node `{printable(node.name or node.output[0])}` lists up to {length} numbers that follow from"
                    f" shapes and constants, more than the limit of {_MOST_LISTED}",
                    "it cannot be a model that someone trained: do not use it",
                    "E_LIMIT",
                )
        for nested in graphs_in(node):
            _lengths(nested, lengths, told)
    return dict(lengths.maps[0])


def _length(node: NodeProto, lengths: ChainMap[str, int], told: Shapes) -> int | None:
    """Return the most numbers in what the node makes, where onnx and onnxruntime would work them out."""
    inputs = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size"):
        return len(told[inputs[0]][0]) if inputs and inputs[0] in told else _ANY_RANK
    if node.op_type == "Constant":
        return max((_listed(attribute) for attribute in node.attribute if _is_listing(attribute)), default=None)
    if not inputs or any(name not in lengths for name in inputs):
        return None
    parts = [lengths[name] for name in inputs]
    return sum(parts) if node.op_type == "Concat" else max(parts)


def _is_listing(attribute: AttributeProto) -> bool:
    return _is_list(attribute.t) if attribute.HasField("t") else attribute.name in ("value_int", "value_ints")


def _is_list(tensor: TensorProto) -> bool:
    """Return whether the tensor is one that onnx and onnxruntime follow: whole numbers, not weights or texts."""
    return tensor.data_type in _WHOLE and len(tensor.dims) <= 1 and not is_external(tensor)


def _listed(attribute: AttributeProto) -> int:
    return count_elements(attribute.t.dims) if attribute.HasField("t") else max(1, len(attribute.ints))
