"""Places a model on a cluster as its own annotations say, in the place of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyps.errors import ClusterError, InfeasibleError, printable
from hyps_compiler.interop.dividing import Arranged, Divided, in_stages
from hyps_compiler.interop.wanted import Wanted
from hyps_compiler.partition import cut_at
from hyps_compiler.placement import Placed, PlacementRequest, objective_of
from hyps_passes.assignment import Assignment, Stage
from hyps_passes.estimate import estimate, violations
from hyps_passes.found import Found, judge
from hyps_passes.graph import CutGraph, reordered
from hyps_passes.overlay import overlay

STRATEGY = "annotations"
"""What such a plan calls its strategy, and its one variant."""


def place_as_wanted(
    graph: CutGraph, rewrites: tuple[str, ...], request: PlacementRequest, wanted: Wanted, divided: Divided
) -> Placed:
    """Return the division in stages, each on the device that the annotations give it.

    Args:
        graph: the layers, those that are to be divided divided already.
        rewrites: how that was done, for the limits too.
        request: the cluster; its strategy does not matter.
        wanted: the annotations.
        divided: what was divided for them.

    Raises:
        ClusterError: a stage's device cannot be told, or is none of the cluster's.
        InfeasibleError: the placement breaks a limit of the cluster, or two of its devices have no link.
    """
    arranged = in_stages(graph, wanted)
    problem = request.site.problem(arranged.graph, request.batches[0])
    names = [device.name for device in request.site.cluster.devices]
    place = {machine.name: index for index, machine in enumerate(problem.machines)}
    machines = {
        stage: place[names[device]] for stage, device in _devices(wanted, sorted(set(arranged.stages)), names).items()
    }
    of_parts = {
        layer: tuple(
            place[names[_device(wanted, one, f"a part of layer `{printable(layer)}`", names)]] for one in devices
        )
        for layer, devices in divided.devices.items()
    }
    assignment = Assignment(tuple(_stages(arranged, machines, of_parts)), is_pipeline=False)
    objective = objective_of(request.objective)
    score, told = judge(problem, objective, assignment)
    broken = violations(problem, told, assignment)
    if broken:
        raise InfeasibleError(
            f"placed as {wanted.origin} says, a limit is broken: {broken[0]}",
            "leave `annotations` out of --cut, so that the search decides",
        )
    found = Found(assignment, estimate(problem, assignment), score, 0.0, "placements", f"{wanted.origin} says so")
    covered = overlay(problem, [assignment])
    ends = [len(block) for block in covered.blocks]
    borders = [sum(ends[: index + 1]) - 1 for index in range(len(ends) - 1)]
    laid = reordered(arranged.graph, covered.order)
    division = cut_at(laid, borders, rewrites, f"placed by {wanted.origin}", arranged.reasons)
    asked = replace(request, strategy=STRATEGY)
    return Placed(division, found, problem, covered, (STRATEGY,), (), 0.0, asked)


def _devices(wanted: Wanted, stages: Sequence[int], names: Sequence[str]) -> dict[int, int]:
    """Return the cluster's device of each stage: the one that its nodes lie on, else the one of the stage's number.

    Devices without names are those of the cluster in their order, and so are Olive's splits.
    """
    found: dict[int, int] = {}
    told = wanted.devices_of or {}
    for place, stage in enumerate(stages):
        devices = told.get(stage, ())
        if len(devices) > 1:
            shown = " and ".join(str(device) for device in devices[:3])
            raise ClusterError(
                f"stage {stage} of {wanted.origin} lies on devices {shown}, and a stage runs on one",
                "give every device a stage of its own",
                "E_ANNOTATION",
            )
        index = devices[0] if devices else (place if wanted.num_devices is None else stage)
        found[stage] = _device(wanted, index, f"stage {stage}", names)
    return found


def _device(wanted: Wanted, device: int, what: str, names: Sequence[str]) -> int:
    """Return which of the cluster's devices, of these names, one of the configuration is."""
    if wanted.devices:
        name = wanted.devices[device] if device < len(wanted.devices) else None
        if name in names:
            return names.index(name)
        shown = f"`{printable(name)}`" if name is not None else f"number {device}, of {len(wanted.devices)},"
        raise ClusterError(
            f"{what} of {wanted.origin} is for device {shown} and the cluster has none of that name",
            f"call one of its devices so in the cluster file; it has {', '.join(map(printable, names))}",
            "E_ANNOTATION",
        )
    if device >= len(names):
        raise ClusterError(
            f"{what} of {wanted.origin} is for device {device}, counted from 0, and the cluster has {len(names)}",
            "add devices to the cluster file, or leave `annotations` out of --cut",
            "E_ANNOTATION",
        )
    return device


def _stages(arranged: Arranged, machines: Mapping[int, int], of_parts: Mapping[str, tuple[int, ...]]) -> list[Stage]:
    """Return the stages, and each H-partition as one of its own."""
    found: list[Stage] = []
    previous: object = None
    for layer, stage in zip(arranged.graph.layers, arranged.stages, strict=True):
        machine, key = machines[stage], (stage, layer.shard)
        if layer.shard is not None:
            parts = of_parts.get(layer.shard.layer, ())
            machine = parts[layer.shard.index] if len(parts) == layer.shard.count else machine
        if found and key == previous:
            found[-1] = Stage(found[-1].machines, (*found[-1].tasks, layer.index))
        else:
            found.append(Stage((machine,), (layer.index,)))
        previous = key
    return found
