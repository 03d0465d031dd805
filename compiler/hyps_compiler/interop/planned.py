"""What a plan says of the nodes of its model: which partition each is in, and how the divided ones are divided."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from hyps.errors import printable
from hyps.formats.plan import Partition, Plan, Shard, Variant
from hyps.formats.quantities import counted
from hyps_compiler.interop.annotations import Configuration, ShardedAxis, Sharding
from hyps_compiler.interop.dag import Dag, spread
from hyps_compiler.interop.sharding import WEIGHTED, weight_axis

_MOST_STEPS = 64
_SEVERAL = ".."
"""In the name of what was divided together."""


@dataclass(frozen=True, slots=True)
class DividedNode:
    """A node that H-partitions compute."""

    index: int
    tensor: str
    """Which of its tensors is divided: its weight, or what it makes."""
    axis: int
    parts: tuple[Partition, ...]
    """In the order of what they compute."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan in terms of its model's nodes."""

    stages: Mapping[int, int]
    """By the node's position, counted from 0; H-partitions belong to the stage that puts them together."""
    stage_of: Mapping[str, int]
    """The stage of each V-partition that has nodes of the model."""
    divided: tuple[DividedNode, ...]
    untold: tuple[str, ...]
    """What cannot be said in terms of the model's nodes, each as a sentence."""

    def configuration(self, plan: Plan, variant: Variant, dag: Dag) -> Configuration:
        """Return the device configuration that says what a variant of the plan says."""
        names = tuple(dict.fromkeys(variant.placement[part.id] for part in plan.partitions))
        place = {name: index for index, name in enumerate(names)}
        device_of = {stage: place[variant.placement[part]] for part, stage in self.stage_of.items()}
        shardings: dict[int, tuple[Sharding, ...]] = {}
        for one in self.divided:
            devices = tuple((place[variant.placement[part.id]],) for part in one.parts)
            shardings[one.index] = (Sharding(one.tensor, devices, (ShardedAxis(one.axis, len(devices)),)),)
        if len(names) > 1:  # which stage runs where
            for index, stage in self.stages.items():
                tensor = next(filter(None, dag.nodes[index].output), "")
                if tensor and all(one.tensor != tensor for one in shardings.get(index, ())):
                    where = Sharding(tensor, ((device_of[stage],),), ())
                    shardings[index] = (*shardings.get(index, ()), where)
        return Configuration(variant.name, len(names), names, self.stages, shardings)


def planned(plan: Plan, models: Mapping[str, ModelProto], model: ModelProto, dag: Dag) -> Planned:
    """Return the plan in terms of the model that it was made from.

    What onnxruntime fused away is where its result is; what it did away with follows its neighbours.

    Args:
        plan: the plan.
        models: the file of each partition, by the partition's id, without its weights.
        model: the model.
        dag: the model's nodes.
    """
    stage_of: dict[str, int] = {}
    given: dict[int, int] = {}
    for part in plan.partitions:
        made = {name for node in models[part.id].graph.node for name in node.output} if part.shard is None else set()
        own = {dag.maker[name] for name in made if name in dag.maker} - dag.constants
        if own:
            stage_of[part.id] = len(stage_of)
            given.update(dict.fromkeys(own, stage_of[part.id]))
    for index in reversed(dag.sequence):
        if index not in given and index not in dag.constants:
            reached = [given[reader] for reader in dag.readers[index] if reader in given]
            if reached:
                given[index] = min(reached)
    stages, moved = spread(dag, given)
    divided, left = _divided(plan, models, model, dag)
    return Planned(stages, stage_of, divided, (*_untold(plan, dag, stages, len(moved)), *left))


def _untold(plan: Plan, dag: Dag, stages: Mapping[int, int], moved: int) -> Iterable[str]:
    """Yield what of the borders the model's nodes cannot say."""
    whole = [part for part in plan.partitions if part.shard is None]
    made = {name for part in whole for name in part.outputs}
    crossing = {name for part in whole for name in part.inputs if name in made}
    strange = sorted(crossing - set(dag.crossing(stages)))
    if strange:
        shown = ", ".join(f"`{printable(name, 40)}`" for name in strange[:3])
        yield f"{counted(len(strange), 'tensor')} between partitions, which no node of the model makes so: {shown}"
    more = sorted(set(dag.crossing(stages)) - {name for part in plan.partitions for name in part.outputs})
    if more:
        shown = ", ".join(f"`{printable(name, 40)}`" for name in more[:3])
        yield f"{counted(len(more), 'tensor')} more between stages, which the plan has under another name: {shown}"
    if moved:
        yield f"{counted(moved, 'node')} are in a later stage than their partition, which they share with others"


def _divided(
    plan: Plan, models: Mapping[str, ModelProto], model: ModelProto, dag: Dag
) -> tuple[tuple[DividedNode, ...], list[str]]:
    """Return the nodes that H-partitions compute, and the layers of which that cannot be said."""
    groups: dict[str, list[Partition]] = {}
    for part in plan.partitions:
        if part.shard is not None:
            groups.setdefault(part.shard.layer, []).append(part)
    readers: dict[str, list[NodeProto]] = {}
    for file in models.values():
        for node in file.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: list[DividedNode] = []
    left: list[str] = []
    for layer, parts in groups.items():
        one = _divided_node(layer, parts, readers, sizes, dag)
        if one is None:
            what = f"{counted(len(parts), 'H-partition')} of `{printable(layer, 60)}`"
            left.append(f"{what} are no division of one weight or output")
        else:
            found.append(one)
    return tuple(found), left


def _divided_node(
    layer: str,
    parts: Sequence[Partition],
    readers: Mapping[str, Sequence[NodeProto]],
    sizes: Mapping[str, tuple[int, ...]],
    dag: Dag,
) -> DividedNode | None:
    shards = [part.shard for part in parts if part.shard is not None]
    count, last = shards[0].count, shards[-1]
    if _SEVERAL in layer or [shard.index for shard in shards] != list(range(count)):
        return None
    merged = _merged(parts[0].outputs, readers, dag)
    index = None if merged is None else _contraction(layer, dag.maker[merged], sizes, dag)
    if index is None:
        return None
    node = dag.nodes[index]
    weight = node.input[1]
    axis = None if last.merge == "sum" else last.axis
    place = weight_axis(node, len(sizes[weight]), axis)
    if place is not None:
        return DividedNode(index, weight, place, tuple(parts)) if _fits(sizes[weight][place], last) else None
    return None if axis is None else DividedNode(index, node.output[0], axis, tuple(parts))


def _fits(length: int, last: Shard) -> bool:
    return last.range[1] == length


def _merged(outputs: Sequence[str], readers: Mapping[str, Sequence[NodeProto]], dag: Dag) -> str | None:
    """Return the tensor of the model that parts are put together to."""
    names = list(outputs)
    for _ in range(_MOST_STEPS):
        known = next((name for name in names if name in dag.maker), None)
        if known is not None or not names:
            return known
        names = [made for name in names for node in readers.get(name, ()) for made in node.output][:_MOST_STEPS]
    return None


def _contraction(layer: str, index: int, sizes: Mapping[str, tuple[int, ...]], dag: Dag) -> int | None:
    """Return the node with a constant weight that a node is or follows: of several the one that the layer is called by.

    onnxruntime calls what it makes of a node `NAME/` and what it did.
    """
    found: list[int] = []
    waiting, seen = [index], {index}
    while waiting and len(seen) < _MOST_STEPS:
        place = waiting.pop(0)
        node = dag.nodes[place]
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in sizes:
            found.append(place)
            continue
        before = sorted(dag.needs[place] - dag.constants - seen)
        waiting += before
        seen.update(before)
    called = [one for one in found if layer == dag.nodes[one].name or layer.startswith(f"{dag.nodes[one].name}/")]
    told = called if len(found) > 1 else found
    return told[0] if len(told) == 1 else None
