"""ONNX's multi-device annotations (IR version 11): a model's device configurations, and what its nodes say of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, NodeDeviceConfigurationProto, NodeProto, ShardingSpecProto

from hyps.errors import ModelError, printable
from hyps_compiler.interop.dag import Dag
from hyps_compiler.walk import bodies

IR_VERSION = 11
"""The first that has annotations."""

_MOST_DEVICES = 4096
_EXPORT_AGAIN = "write the annotations again, or leave out what asks for them"


@dataclass(frozen=True, slots=True)
class ShardedAxis:
    """How one axis of a tensor is divided."""

    axis: int
    """Negative: counted from the end."""
    count: int


@dataclass(frozen=True, slots=True)
class Sharding:
    """How one input or output of a node lies on devices."""

    tensor: str
    devices: tuple[tuple[int, ...], ...]
    """For each part, where it is; several devices hold the same."""
    axes: tuple[ShardedAxis, ...]
    """Those that are divided; none: each device has all of it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A device configuration with all that the nodes of the graph say of it."""

    name: str
    num_devices: int
    devices: tuple[str, ...]
    """Their names; empty: they have none."""
    stages: Mapping[int, int] = field(default_factory=dict)
    """Pipeline stages, by the node's position."""
    shardings: Mapping[int, tuple[Sharding, ...]] = field(default_factory=dict)
    """By the node's position."""

    def devices_of_stages(self) -> dict[int, tuple[int, ...]]:
        """Return the devices that nodes name which lie on one alone, by pipeline stage."""
        found: dict[int, set[int]] = {}
        for index, stage in self.stages.items():
            for sharding in self.shardings.get(index, ()):
                if not sharding.axes and len(sharding.devices) == 1 and len(sharding.devices[0]) == 1:
                    found.setdefault(stage, set()).add(sharding.devices[0][0])
        return {stage: tuple(sorted(devices)) for stage, devices in sorted(found.items())}


def read_configurations(model: ModelProto, dag: Dag) -> tuple[Configuration, ...]:
    """Return the device configurations of a model in their order.

    What nodes inside functions and nested graphs say is left aside: they run where the node runs that holds them.

    Raises:
        ModelError: one has no name or another one's, or has not the devices that it says; a node refers to none of
            them, or twice to one, has a negative stage, or divides a tensor that is not its own, in no number of parts,
            or among devices that there are not.
    """
    found: dict[str, Configuration] = {}
    for proto in model.configuration:
        if not proto.name or proto.name in found:
            what = f"two device configurations are called `{printable(proto.name)}`"
            raise _error(what if proto.name else "a device configuration has no name")
        if not 1 <= proto.num_devices <= _MOST_DEVICES or len(proto.device) not in (0, proto.num_devices):
            raise _error(
                f"device configuration `{printable(proto.name)}` says {proto.num_devices} devices and names"
                f" {len(proto.device)}"
            )
        found[proto.name] = Configuration(proto.name, proto.num_devices, tuple(proto.device), {}, {})
    stages: dict[str, dict[int, int]] = {name: {} for name in found}
    shardings: dict[str, dict[int, tuple[Sharding, ...]]] = {name: {} for name in found}
    ranks = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for index, node in enumerate(dag.nodes):
        shown = f"node `{dag.name(index)}`"
        for said in _each_once(node, found, shown):
            if said.HasField("pipeline_stage"):
                if said.pipeline_stage < 0:
                    raise _error(f"{shown} is in pipeline stage {said.pipeline_stage}, and stages count from 0")
                stages[said.configuration_id][index] = said.pipeline_stage
            if said.sharding_spec:
                devices = found[said.configuration_id].num_devices
                shardings[said.configuration_id][index] = _shardings(node, said, devices, ranks, shown)
    return tuple(
        Configuration(name, known.num_devices, known.devices, stages[name], shardings[name])
        for name, known in found.items()
    )


def has_annotations(model: ModelProto) -> bool:
    """Return whether the model or one of its nodes has annotations, right or wrong."""
    return bool(model.configuration) or any(node.device_configurations for node in model.graph.node)


def drop_annotations(model: ModelProto) -> None:
    """Remove every annotation, from functions and nested graphs too.

    They speak of a whole model: in its parts, and behind rewrites, names of tensors and configurations are gone.
    """
    del model.configuration[:]
    for body, _ in bodies(model):
        for node in body.node:
            del node.device_configurations[:]


def write_configuration(model: ModelProto, configuration: Configuration) -> None:
    """Add a configuration that the model does not have, and raise the model's IR version to one that has them."""
    if model.ir_version < IR_VERSION:
        model.ir_version = IR_VERSION
    model.configuration.add(
        name=configuration.name, num_devices=configuration.num_devices, device=configuration.devices
    )
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        stage, shardings = configuration.stages.get(index), configuration.shardings.get(index, ())
        if stage is not None or shardings:
            said = node.device_configurations.add(configuration_id=configuration.name)
            if stage is not None:
                said.pipeline_stage = stage
            for sharding in shardings:
                _write_sharding(said.sharding_spec.add(), sharding, sizes.get(sharding.tensor))


def _write_sharding(spec: ShardingSpecProto, sharding: Sharding, sizes: Sequence[int] | None) -> None:
    spec.tensor_name = sharding.tensor
    for part, devices in enumerate(sharding.devices):
        if len(devices) == 1:
            spec.device.append(devices[0])
        else:  # a key below 0 stands for several
            spec.device.append(-part - 1)
            spec.index_to_device_group_map.add(key=-part - 1, value=devices)
    for divided in sharding.axes:
        simple = spec.sharded_dim.add(axis=divided.axis).simple_sharding.add(num_shards=divided.count)
        if sizes is not None:
            simple.dim_value = sizes[divided.axis]


def _each_once(
    node: NodeProto, known: Mapping[str, Configuration], shown: str
) -> Iterable[NodeDeviceConfigurationProto]:
    """Yield what a node says, of each configuration once."""
    seen: set[str] = set()
    for said in node.device_configurations:
        name = printable(said.configuration_id)
        if said.configuration_id not in known:
            raise _error(f"{shown} refers to the device configuration `{name}`, which the model does not have")
        if said.configuration_id in seen:
            raise _error(f"{shown} refers to the device configuration `{name}` twice")
        seen.add(said.configuration_id)
        yield said


def _shardings(
    node: NodeProto,
    said: NodeDeviceConfigurationProto,
    num_devices: int,
    weights: Mapping[str, tuple[int, ...]],
    shown: str,
) -> tuple[Sharding, ...]:
    own = {name for name in (*node.input, *node.output) if name}
    found: dict[str, Sharding] = {}
    for spec in said.sharding_spec:
        name = printable(spec.tensor_name)
        if spec.tensor_name not in own:
            raise _error(f"{shown} divides the tensor `{name}`, which it neither reads nor makes")
        if spec.tensor_name in found:
            raise _error(f"{shown} says twice how the tensor `{name}` is divided")
        groups = {entry.key: tuple(entry.value) for entry in spec.index_to_device_group_map}
        devices = tuple(groups.get(device, (device,)) for device in spec.device)
        wrong = [device for group in devices for device in group if not 0 <= device < num_devices]
        if wrong:
            raise _error(f"{shown} puts the tensor `{name}` on device {wrong[0]}, and there are {num_devices}")
        axes = tuple(_axes(spec, weights.get(spec.tensor_name), f"{shown} divides the tensor `{name}`"))
        found[spec.tensor_name] = Sharding(spec.tensor_name, devices, axes)
    return tuple(found.values())


def _axes(spec: ShardingSpecProto, sizes: Sequence[int] | None, shown: str) -> Iterable[ShardedAxis]:
    """Yield the axes that are divided in two parts or more."""
    seen: set[int] = set()
    for divided in spec.sharded_dim:
        axis = divided.axis
        if sizes is not None and not -len(sizes) <= axis < len(sizes):
            raise _error(f"{shown} along axis {axis}, and it has {len(sizes)} axes")
        place = axis % len(sizes) if sizes else axis
        if place in seen:
            raise _error(f"{shown} along axis {axis} twice")
        seen.add(place)
        count = 1
        for simple in divided.simple_sharding:
            length = simple.dim_value if simple.HasField("dim_value") else None
            if simple.num_shards < 1 or (length is not None and not simple.num_shards <= length):
                raise _error(f"{shown} along axis {axis}, of length {length}, in {simple.num_shards} parts")
            count *= simple.num_shards
        if len(divided.simple_sharding) > 1 and count > 1:
            raise _error(f"{shown} along axis {axis} within axes that a reshape has joined, which is not known here")
        if count > 1:
            yield ShardedAxis(axis, count)


def _error(message: str) -> ModelError:
    return ModelError(message, _EXPORT_AGAIN, "E_ANNOTATION")
