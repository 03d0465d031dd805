"""Which layers device configurations divide, in the terms of H-partitions."""

from onnx import ModelProto, NodeProto

from hyps_compiler.interop.annotations import Configuration, ShardedAxis, Sharding
from hyps_compiler.interop.dag import Dag
from hyps_compiler.interop.wanted import WantedShards

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators whose second input is the weight along which they can be divided."""

_MOST_STEPS = 16


def wanted_shards(model: ModelProto, dag: Dag, configuration: Configuration) -> tuple[WantedShards, ...]:
    """Return the nodes with constant weights whose weight or output the configuration divides.

    1. A weight that is divided along what becomes the output's columns, rows or channels: these are divided.
    2. One that is divided along what is summed: the sum is.
    3. An output that is divided along one axis: that axis is.

    Other tensors that are divided say how activations lie on devices, which follows from the weights.
    """
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for index, shardings in sorted(configuration.shardings.items()):
        node = dag.nodes[index]
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
            divided = _divided(node, weights[node.input[1]], {one.tensor: one for one in shardings if one.axes})
            if divided is not None:
                axis, count, sharding = divided
                devices = tuple(group[0] for group in sharding.devices if group)
                parts = devices if len(devices) == count else ()
                found.append(WantedShards(dag.name(index), _followed(dag, index), axis, count, parts))
    return tuple(found)


def weight_axis(node: NodeProto, rank: int, axis: int | None) -> int | None:
    """Return the axis of a node's weight, of `rank` axes, that is divided with an axis of its output (None: its sum).

    The output's axis is counted from the end. None where the weight is not divided with it.
    """
    if rank < 2:  # all of a vector is summed, which no rule here divides
        return None
    if node.op_type == "Conv":
        return {None: 1, 1 - rank: 0}.get(axis)
    rows, summed = (0, 1) if _is_transposed(node) else (rank - 1, rank - 2)
    return {None: summed, -1: rows}.get(axis)


def _divided(node: NodeProto, rank: int, shardings: dict[str, Sharding]) -> tuple[int | None, int, Sharding] | None:
    """Return axis of the output, number of parts, and what says so."""
    weight, output = shardings.get(node.input[1]), shardings.get(node.output[0])
    if weight is not None and len(weight.axes) == 1:
        place = weight.axes[0].axis % rank
        for axis in (None, -1, 1 - rank):
            if weight_axis(node, rank, axis) == place:
                return axis, weight.axes[0].count, weight
    if output is not None and len(output.axes) == 1:
        return _from_end(node, rank, output.axes[0]), output.axes[0].count, output
    return None


def _from_end(node: NodeProto, rank: int, divided: ShardedAxis) -> int:
    """Return an axis of the output counted from the end; of a `MatMul` others than the last one must be written so."""
    if divided.axis < 0:
        return divided.axis
    return divided.axis - (2 if node.op_type == "Gemm" else rank)


def _is_transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _followed(dag: Dag, index: int) -> tuple[str, ...]:
    """Return what the node makes and what follows from it alone: fusion leaves the last of these or one before."""
    names = list(dag.nodes[index].output[:1])
    for _ in range(_MOST_STEPS):
        readers = dag.readers[index]
        if len(readers) != 1:
            break
        index = readers[0]
        names += list(dag.nodes[index].output[:1])
    return tuple(names)
