"""Makes the problem from a cut graph, a cluster and what layers cost on its devices."""

from collections.abc import Mapping, Sequence

from hyps.errors import InfeasibleError, UsageError, printable
from hyps.formats.cluster import TIERS, Cluster, Constraints, Device, Link
from hyps_passes.costs import Costs
from hyps_passes.graph import MODEL, CutGraph, CutValue, nbytes_of
from hyps_passes.problem import REQUEST, Channel, Flow, Limits, Machine, Problem, Task


def build_problem(
    graph: CutGraph, cluster: Cluster, costs: Mapping[str, Costs], *, base_bytes: int = 0, batch: int = 1
) -> Problem:
    """Return the problem of placing the layers of a graph on the devices of a cluster.

    Args:
        graph: the layers, with the sizes of a request of one.
        cluster: devices, links, constraints.
        costs: by the name of each device, at that batch.
        base_bytes: what a worker takes without any partition.
        batch: requests that are computed and sent together.

    Raises:
        InfeasibleError: a size is unknown, so that nothing can be said of transfers.
        UsageError: a constraint names a layer that the model does not have.
    """
    order = _machine_order(cluster)
    names = [device.name for device in order]
    _require_sizes(graph)
    _require_layers(graph, cluster.constraints)
    private = private_layers(graph, cluster.constraints)
    seconds = [
        [
            _slowed(costs[device.name].layer_s[layer.index], device)
            if _may_run(layer.name, layer.index in private, device, cluster.constraints)
            else float("inf")
            for device in order
        ]
        for layer in graph.layers
    ]
    flows = [_flow(value, batch) for value in graph.values]
    return Problem(
        tasks=tuple(_task(graph, index, batch) for index in range(len(graph.layers))),
        flows=tuple(flows),
        machines=tuple(_machine(device, costs[device.name], base_bytes) for device in order),
        channels=tuple(channel for link in cluster.links for channel in _channels(link, names)),
        seconds=tuple(map(tuple, seconds)),
        export_s=_borders([costs[d.name].export_s for d in order], order, flows),
        import_s=_borders([costs[d.name].import_s for d in order], order, flows),
        entry=names.index(cluster.entry),
        limits=Limits(
            deadline_s=cluster.constraints.deadline_s,
            joules=cluster.constraints.joules,
            wire_bytes=cluster.constraints.wire_bytes,
            throughput_rps=cluster.constraints.throughput_rps,
        ),
        is_private=cluster.constraints.is_private,
        arrival_rps=cluster.arrival_rps,
    )


def private_layers(graph: CutGraph, constraints: Constraints) -> set[int]:
    """Return the layers that must stay on trusted devices: those that read something private.

    Private are the request's tensors and, with `private_until`, all that the layers up to it make, in running order.
    """
    if not constraints.is_private:
        return set()
    depth = -1
    if constraints.private_until is not None:
        depth = next(layer.index for layer in graph.layers if layer.name == constraints.private_until)
    readers = {c for value in graph.values if value.producer <= depth for c in value.consumers}
    return readers | set(range(depth + 1))


def _machine_order(cluster: Cluster) -> list[Device]:
    """The entry first, then tier by tier, as the file has them."""
    return sorted(cluster.devices, key=lambda d: (d.name != cluster.entry, TIERS.index(d.tier)))


def _require_sizes(graph: CutGraph) -> None:
    unknown = next((value for value in graph.values if value.nbytes is None and value.can_cross), None)
    if unknown is not None:
        raise InfeasibleError(
            f"placing layers on devices needs all sizes, and that of tensor `{printable(unknown.name)}` is unknown",
            "give the shapes of the model's inputs with --input NAME:SHAPE",
            code="E_DYNAMIC_SHAPE",
        )


def _require_layers(graph: CutGraph, constraints: Constraints) -> None:
    names = {layer.name for layer in graph.layers}
    named = [*constraints.pins, *constraints.bans, *filter(None, [constraints.private_until])]
    for name in named:
        if name not in names:
            raise UsageError(
                f"a constraint names the layer `{printable(name)}`, which the model does not have",
                "`hypsc inspect MODEL` lists its layers",
                code="E_UNKNOWN_LAYER",
            )


def _may_run(name: str, is_private: bool, device: Device, told: Constraints) -> bool:
    """Return whether the device may run the layer of that name."""
    if told.pins.get(name, device.name) != device.name or device.name in told.bans.get(name, ()):
        return False
    return device.is_trusted or not is_private


def _slowed(seconds: float, device: Device) -> float:
    """Return the seconds where others use a part of the device; `speed` is in the costs already."""
    return seconds / (1 - device.load)


def _task(graph: CutGraph, index: int, batch: int) -> Task:
    layer = graph.layers[index]
    made = sum(value.nbytes or 0 for value in graph.made_by.get(index, ()))
    weights = {id(weight): nbytes_of(weight) for weight in layer.weights}
    return Task(
        name=layer.name,
        weights=tuple(weights.items()),
        work_bytes=max(0, layer.work_bytes - made) * batch + layer.constant_bytes,
        macs=layer.macs or 0,
        downsampling=layer.downsampling,
    )


def _flow(value: CutValue, batch: int) -> Flow:
    return Flow(
        name=value.name,
        nbytes=(value.nbytes or 0) * batch,
        producer=REQUEST if value.producer == MODEL else value.producer,
        consumers=value.consumers,
        is_output=value.is_output,
        can_cross=value.can_cross,
    )


def _machine(device: Device, costs: Costs, base_bytes: int) -> Machine:
    return Machine(
        name=device.name,
        memory_bytes=device.memory_bytes,
        base_bytes=base_bytes,
        run_s=_slowed(costs.session_s, device),
        active_w=device.active_w,
        idle_w=device.idle_w,
        joules_per_byte=device.joules_per_byte,
        is_trusted=device.is_trusted,
        max_share=device.max_share,
        tier=TIERS.index(device.tier),
    )


def _channels(link: Link, names: Sequence[str]) -> list[Channel]:
    first, second = (names.index(name) for name in link.between)
    return [
        Channel(
            source=source,
            target=target,
            s_per_byte=1 / rate + link.serialize_s_per_byte,
            latency_s=link.latency_s,
            message_s=link.message_s,
            max_bytes=link.max_bytes,
        )
        for source, target, rate in ((first, second, link.up_bytes_per_s), (second, first, link.down_bytes_per_s))
    ]


def _borders(
    per_device: Sequence[Mapping[str, float]], devices: Sequence[Device], flows: Sequence[Flow]
) -> tuple[tuple[float, ...], ...]:
    """Return what each flow costs at a border, by flow and machine; a request's own tensors cost nothing there."""
    return tuple(
        tuple(_slowed(seconds.get(flow.name, 0.0), device) for seconds, device in zip(per_device, devices, strict=True))
        for flow in flows
    )
