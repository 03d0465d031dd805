"""Weights stored as half floats and widened where they are used: half the bytes, computed as before."""

from collections import Counter

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hyps_compiler.walk import inside

_LEAST_ELEMENTS = 256
"""Of a smaller weight a node more takes what its bytes would save."""
_STORED = "_float16"


def halve_weights(model: ModelProto) -> int:
    """Store the float32 weights of the main graph as float16, in place; return how many.

    1. A weight that is only looked up in stays narrow, and the looked-up rows are widened: a table is not read whole.
    2. Any other is widened by a Cast, under the weight's own name, so that nested graphs see it as before.
    3. A weight that float16 cannot hold stays: one with finite values beyond its largest, or that is an output.
    """
    graph = model.graph
    uses, suffix = _uses(graph), _free_suffix(graph)
    casts: list[NodeProto] = []
    lookups: list[NodeProto] = []
    count = 0
    for tensor in graph.initializer:
        if not _can_be_halved(tensor, graph):
            continue
        name, readers = tensor.name, _lookups(graph, tensor.name)
        _store(tensor, suffix)
        if len(readers) == uses[name]:  # 1.
            lookups += [_widen_after(node, tensor.name, suffix) for node in readers]
        else:  # 2.
            casts.append(_cast(tensor.name, name))
        count += 1
    nodes = [*casts]
    behind = {node.input[0]: node for node in lookups}
    for node in graph.node:
        nodes.append(node)
        nodes += [behind[name] for name in node.output if name in behind]
    copied = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    return count


def _can_be_halved(tensor: TensorProto, graph: GraphProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT or any(value.name == tensor.name for value in graph.output):
        return False
    array = numpy_helper.to_array(tensor)
    if array.size < _LEAST_ELEMENTS:
        return False
    finite = np.abs(array[np.isfinite(array)])
    return bool(finite.max(initial=0.0) <= np.finfo(np.float16).max)  # 3.


def _free_suffix(graph: GraphProto) -> str:
    """Return what no name ends with, in nested graphs neither."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for body, _ in inside(graph):
        names.update(name for node in body.node for name in (*node.input, *node.output))
    suffix = _STORED
    while any(name.endswith(suffix) for name in names):
        suffix += "_"
    return suffix


def _store(tensor: TensorProto, suffix: str) -> None:
    narrow = numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(narrow, tensor.name + suffix))


def _uses(graph: GraphProto) -> Counter[str]:
    """Return how often each value is read, in nested graphs too."""
    uses: Counter[str] = Counter()
    for body, _ in inside(graph):
        uses.update(name for node in body.node for name in node.input)
        if isinstance(body, GraphProto):
            uses.update(value.name for value in body.output)
    return uses


def _lookups(graph: GraphProto, name: str) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type == "Gather" and node.input[0] == name]


def _widen_after(node: NodeProto, stored: str, suffix: str) -> NodeProto:
    made = node.output[0]
    node.input[0], node.output[0] = stored, made + suffix
    return _cast(node.output[0], made)


def _cast(narrow: str, wide: str) -> NodeProto:
    return helper.make_node("Cast", [narrow], [wide], name=f"{wide}_widened", to=TensorProto.FLOAT)
