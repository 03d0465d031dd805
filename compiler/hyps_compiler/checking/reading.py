"""Reads of a plan folder what checks compare: its figures, and the weights of each layer from its partitions' files.

Imports onnx: for the child process only. A plan's weights files are not opened, so that a plan that is kept to be
compared with needs none.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import NodeProto

from hyps.adapters.plan_files import PLAN_FILE, opened, read_plan
from hyps.errors import HypsError, PlanError, printable
from hyps.formats.plan import Partition, Plan, Variant
from hyps_compiler.checking.facts import (
    Layer,
    Measured,
    PartitionFacts,
    PlanFacts,
    measured_difference,
    partition_memory,
)
from hyps_compiler.source import read_proto
from hyps_compiler.walk import graphs_in, inside
from hyps_passes import ops

_FUSED = ("fused ", "Fused")
"""How onnxruntime's names of nodes and operators begin that it has made of several."""
_NO_PARAMETERS = frozenset((onnx.TensorProto.INT64, onnx.TensorProto.STRING, onnx.TensorProto.BOOL))
"""Shapes, axes and indices, as `hyps_passes.graph.is_parameter` has it."""
_KIND_CHARS = 60


def read_facts(folder: Path) -> PlanFacts:
    """Return what is known of the plan in a folder.

    Raises:
        PlanError: there is no plan, or the file of a partition is missing or no model.
    """
    plan = read_plan(folder)
    with opened(folder, PLAN_FILE) as descriptor, open(descriptor, "rb", closefd=False) as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    variant = plan.variants[0]
    memory = partition_memory(plan)
    partitions = tuple(_partition(folder, part, variant, memory, plan) for part in plan.partitions)
    nbytes, largest = _borders(plan)
    return PlanFacts(
        digest=digest,
        producer=plan.producer,
        partitions=partitions,
        peak_memory_bytes=_peak(variant, memory),
        is_memory_measured=any(part.memory_measured for part in plan.partitions),
        latency_s=variant.prediction.latency_s,
        border_bytes=nbytes,
        largest_border=largest,
        quantization=plan.quantization.kind if plan.quantization else "",
        quantization_loss=_loss(plan),
    )


def _partition(folder: Path, part: Partition, variant: Variant, memory: dict[str, int], plan: Plan) -> PartitionFacts:
    return PartitionFacts(
        id=part.id,
        layers=read_layers(folder, part),
        parameters=part.parameters,
        weight_bytes=part.weight_bytes,
        outputs=part.outputs,
        memory_bytes=memory.get(part.id),
        device=variant.placement[part.id] if plan.entry is not None else "",
        latency_s=variant.prediction.partition_s.get(part.id),
    )


def _peak(variant: Variant, memory: dict[str, int]) -> Measured | None:
    """Return the partition, or of a plan for several devices the device, that needs most."""
    told = memory or variant.prediction.memory_bytes
    if not told:
        return None
    where = max(told, key=lambda name: told[name])
    return Measured(value=told[where], where=where)


def _borders(plan: Plan) -> tuple[int | None, str]:
    """Return the bytes of all tensors between partitions, and the name of the largest."""
    made = {name for part in plan.partitions for name in part.outputs}
    crossing = sorted(made.intersection(name for part in plan.partitions for name in part.inputs))
    sizes = {name: plan.tensors[name].nbytes for name in crossing}
    known = {name: nbytes for name, nbytes in sizes.items() if nbytes is not None}
    largest = max(known, key=lambda name: known[name], default="")
    return (sum(known.values()) if len(known) == len(sizes) else None), largest


def _loss(plan: Plan) -> Measured | None:
    """Return what quantization does to the output that it changes most; None where that is not known of each."""
    losses = plan.quantization.losses if plan.quantization else ()
    known = [measured_difference(loss.relative, loss.output) for loss in losses if loss.relative is not None]
    return max(known, key=lambda loss: loss.value) if known and len(known) == len(losses) else None


# Layers


def read_layers(folder: Path, part: Partition) -> tuple[Layer, ...]:
    """Return the layers of a partition with the weights that its file holds of each, in running order.

    The parts of a divided layer carry the layer's name. A node that no layer is named after belongs to the layer before
    it; what computes from weights alone, to the layer that needs it.

    Raises:
        PlanError: the file is missing or no model.
    """
    nodes, weights = _read_nodes(folder, part)
    names = [part.shard.layer] if part.shard is not None and len(part.layers) == 1 else list(part.layers)
    owner = _owners(nodes, list(part.layers), weights)
    taken: set[str] = set()
    parameters, nbytes = [0] * len(names), [0] * len(names)
    for node, index in zip(nodes, owner, strict=True):
        for name in _reads(node):
            if name in weights and name not in taken:
                taken.add(name)
                parameters[index] += weights[name][0]
                nbytes[index] += weights[name][1]
    return tuple(
        Layer(
            name=name,
            kind=_kind([node for node, own in zip(nodes, owner, strict=True) if own == index], weights),
            parameters=parameters[index],
            weight_bytes=nbytes[index],
        )
        for index, name in enumerate(names)
    )


def _read_nodes(folder: Path, part: Partition) -> tuple[list[NodeProto], dict[str, tuple[int, int]]]:
    """Return a partition's nodes and, by name, parameters and bytes of its weights."""
    try:
        with opened(folder, part.file):  # no link on the way, nothing outside of the folder
            graph = read_proto(folder / part.file).graph
    except (OSError, HypsError) as error:
        raise PlanError(
            f"partition `{printable(part.id)}` of the plan `{printable(str(folder))}` cannot be read: {error}",
            "compile the model again, or copy the plan again from where it came",
        ) from error
    weights = {}
    for tensor in graph.initializer:
        count = math.prod(tensor.dims)
        parameters = 0 if tensor.data_type in _NO_PARAMETERS else count
        weights[tensor.name] = (parameters, _nbytes(tensor, count))
    return list(graph.node), weights


def _nbytes(tensor: onnx.TensorProto, count: int) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    told = next((entry.value for entry in tensor.external_data if entry.key == "length"), "")
    if told.isdecimal():
        return int(told)
    if tensor.raw_data:
        return len(tensor.raw_data)
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _owners(nodes: Sequence[NodeProto], layers: Sequence[str], weights: dict[str, tuple[int, int]]) -> list[int]:
    """Return the index of each node's layer."""
    from_weights = set(weights)
    constant = []
    for node in nodes:
        is_constant = all(name in from_weights for name in _reads(node))
        constant.append(is_constant)
        if is_constant:
            from_weights.update(node.output)
    places = _places(layers)
    current, owners = 0, []
    for node, is_constant in zip(nodes, constant, strict=True):
        current = current if is_constant else _named_after(node, places, current)
        owners.append(current)
    user: dict[str, int] = {}
    for index in reversed(range(len(nodes))):  # consumers come first, so that chains of constants follow them
        if constant[index]:
            owners[index] = min((user[name] for name in nodes[index].output if name in user), default=owners[index])
        user.update(dict.fromkeys(_reads(nodes[index]), owners[index]))
    return owners


def _places(layers: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the layers that may be named after a node, by the node's name."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(layers):
        for label in dict.fromkeys((name, name.partition("[")[0], _without_count(name))):
            places.setdefault(label, []).append(index)
    return places


def _named_after(node: NodeProto, places: dict[str, list[int]], start: int) -> int:
    """Return the index of the layer, from `start` on, that is named after a node; `start` where none is."""
    label = node.name.removeprefix(_FUSED[0]) or (node.output[0] if node.output else "")
    there = places.get(label, [])
    position = bisect_left(there, start)
    return there[position] if position < len(there) else start


def _without_count(name: str) -> str:
    """Return a layer's name without the number that tells it from others of that name."""
    stem, _, count = name.rpartition("~")
    return stem if count.isdecimal() else name


def _reads(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that graphs in it take from outside included."""
    yield from (name for name in node.input if name)
    for body, _ in inside(*graphs_in(node)):
        yield from (name for nested in body.node for name in nested.input if name)


def _kind(nodes: Sequence[NodeProto], weights: dict[str, tuple[int, int]]) -> str:
    told = [node for node in nodes if any(weights.get(name, (0, 0))[0] for name in _reads(node))] or list(nodes)
    working = [node for node in told if node.op_type not in ops.VIEWS] or told
    return printable("+".join(dict.fromkeys(node.op_type.removeprefix(_FUSED[1]) for node in working)), _KIND_CHARS)
