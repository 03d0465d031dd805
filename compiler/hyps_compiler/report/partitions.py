"""The picture of a plan's partitions and the tensors between them."""

from collections.abc import Mapping

from hyps.errors import printable
from hyps.formats.plan import Partition, Plan, TensorInfo
from hyps.formats.signature import shape_text
from hyps_compiler.report.document import ANSWER, REQUEST, Edge, Graph, Group, Node, TensorRow
from hyps_compiler.report.layout import NODE_HEIGHT, NODE_WIDTH, lay_out
from hyps_compiler.simulation_memory import hosts_of

NAME_CHARS = 160
"""Of a name from a model, at most."""


def shown(name: str) -> str:
    """Return a name from a model or plan as the page shows it."""
    return printable(name, NAME_CHARS)


def partition_graph(plan: Plan, seconds: Mapping[str, float]) -> Graph:
    """Return the partitions of a plan, laid out, placed as in its first variant.

    Args:
        plan: the plan.
        seconds: of a partition, by its id, as far as known.
    """
    variant = plan.variants[0]
    devices = list(dict.fromkeys(host for part in plan.partitions for host in hosts_of(variant, part.id)))
    tensors = {name: index for index, name in enumerate(plan.tensors)}
    edges = _edges(plan, tensors)
    groups = {
        index + 1: f"{part.shard.layer} in {part.shard.count}"
        for index, part in enumerate(plan.partitions)
        if part.shard is not None
    }
    layout = lay_out(len(plan.partitions) + 2, sorted(edges), groups)
    nodes = [Node(id=REQUEST, kind="request", x=layout.nodes[0].x, y=layout.nodes[0].y)]
    for part, box in zip(plan.partitions, layout.nodes[1:-1], strict=True):
        first, *others = (devices.index(host) for host in hosts_of(variant, part.id))
        nodes.append(
            Node(
                id=shown(part.id),
                kind="V" if part.shard is None else "H",
                x=box.x,
                y=box.y,
                layers=tuple(map(shown, part.layers)),
                device=first,
                replicas=tuple(others),
                parameters=part.parameters,
                weight_bytes=part.weight_bytes,
                peak_bytes=part.peak_memory_bytes,
                macs=part.macs,
                seconds=seconds.get(part.id),
                inputs=tuple(tensors[name] for name in part.inputs),
                outputs=tuple(tensors[name] for name in part.outputs),
                shard=_shard_words(part),
            )
        )
    nodes.append(Node(id=ANSWER, kind="answer", x=layout.nodes[-1].x, y=layout.nodes[-1].y))
    return Graph(
        nodes=tuple(nodes),
        edges=tuple(Edge(source=s, target=t, tensors=tuple(names)) for (s, t), names in sorted(edges.items())),
        tensors=tuple(_tensor_row(name, info) for name, info in plan.tensors.items()),
        groups=tuple(
            Group(
                label=shown(label),
                x=box.x,
                y=box.y,
                width=box.width,
                height=box.height,
                members=tuple(node for node, group in groups.items() if group == label),
            )
            for label, box in layout.groups.items()
        ),
        columns=layout.columns,
        devices=tuple(map(shown, devices)),
        width=layout.width,
        height=layout.height,
        node_width=NODE_WIDTH,
        node_height=NODE_HEIGHT,
    )


def _edges(plan: Plan, tensors: Mapping[str, int]) -> dict[tuple[int, int], list[int]]:
    """Return the tensors of each edge; node 0 is the request, the last one the answer."""
    made = {tensor.name: 0 for tensor in plan.model.inputs}
    edges: dict[tuple[int, int], list[int]] = {}
    for index, part in enumerate(plan.partitions, start=1):
        for name in dict.fromkeys(part.inputs):
            edges.setdefault((made[name], index), []).append(tensors[name])
        made.update(dict.fromkeys(part.outputs, index))
    answer = len(plan.partitions) + 1
    for tensor in plan.model.outputs:
        if tensor.name in tensors:
            edges.setdefault((made[tensor.name], answer), []).append(tensors[tensor.name])
    return edges


def _tensor_row(name: str, info: TensorInfo) -> TensorRow:
    return TensorRow(
        name=shown(name), dtype=printable(info.dtype, 20), shape=shape_words(info.shape), nbytes=info.nbytes
    )


def shape_words(shape: tuple[int | str | None, ...] | None) -> str:
    """Return a shape for people; `?` where it is not known."""
    return "?" if shape is None else shape_text(shape)


def _shard_words(part: Partition) -> str:
    told = part.shard
    if told is None:
        return ""
    what = "term" if told.merge == "sum" else "part"
    return f"{what} {told.index + 1} of {told.count} of {shown(told.layer)}"
