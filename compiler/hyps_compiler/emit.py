"""Writes the plan folder: each partition a valid ONNX model with just its own weights, and `plan.json`."""

import hashlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from hyps.formats.plan import (
    FileRef,
    NamedTensor,
    Partition,
    Plan,
    TensorInfo,
    encode_plan,
    partition_files,
)
from hyps.formats.sub_plan import sub_plan
from hyps_compiler.irfile import ORT_TYPE, serialize_value
from hyps_compiler.partition import Division
from hyps_passes.graph import MODEL, CutValue, Layer, is_parameter, nbytes_of
from hyps_passes.workspace import PARTITION_NBYTES

PARTITIONS = "partitions"
DEVICES = "devices"
_EXTERNAL_FROM_BYTES = 1024
"""Smaller weights stay in the file: shapes must be where onnxruntime infers from them."""
_NUMBERS_EXTERNAL_FROM_BYTES = 64
"""Of fractions, from which no shape follows: so that the shards of a layer differ in nothing but external data."""
_READ_FOR_SHAPES = frozenset({"Range", "Resize", "Upsample"})
"""Operators that have shapes follow from fractions after all."""
_INLINE_UP_TO_BYTES = 64 * 1024
"""A partition with less weight than this is one self-contained file."""
_PAGE = 4096
_CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Part:
    """One partition before it is written."""

    id: str
    window: tuple[int, int]
    layers: tuple[Layer, ...]
    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def emit_partitions(model: ir.Model, division: Division, folder: Path) -> tuple[Partition, ...]:
    """Write every partition of the division into `folder` and return them in running order.

    Weights of 1 KiB and more go into a file beside the model, aligned to pages so that they can be mapped; what the
    same partitions share goes into one file for them alone. Equal input gives equal bytes.

    Args:
        model: the staged and rewritten model.
        division: its layers and borders.
        folder: the plan folder.
    """
    (folder / PARTITIONS).mkdir(parents=True)
    parts = _parts(model, division)
    shared_places, shared_refs = _write_shared(parts, folder)
    emitted = []
    for part in parts:
        own = [w for w in part.weights if _is_large(w) and id(w) not in shared_places]
        if sum(nbytes_of(w) for w in own) <= _INLINE_UP_TO_BYTES:
            own = []
        places, ref = _write_weights(folder, f"{PARTITIONS}/{part.id}.weights", own)
        held = [id(w) for w in part.weights if id(w) in shared_places]
        mine = {**places, **{key: shared_places[key] for key in held}}
        refs = [*([ref] if ref else []), *dict.fromkeys(shared_refs[key] for key in held)]
        emitted.append(_write_model(model, division, part, folder, mine, tuple(refs)))
    return tuple(emitted)


def emit_devices(plan: Plan, folder: Path) -> None:
    """Write into `folder`/devices, for each device of the first variant, the plan of its own partitions alone.

    What other devices send is an input of that plan, and what they need an output.
    """
    placement = plan.variants[0].placement
    replicas = plan.variants[0].replicas
    for device in sorted({*placement.values(), *(name for names in replicas.values() for name in names)}):
        ids = [p.id for p in plan.partitions if placement[p.id] == device or device in replicas.get(p.id, ())]
        own = sub_plan(plan, device, ids)
        target = folder / DEVICES / _folder_name(device)
        target.mkdir(parents=True)
        for path in sorted({path for part in own.partitions for path in partition_files(part)}):
            (target / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / path, target / path)  # a reader refuses files that have another name
        (target / "plan.json").write_bytes(encode_plan(own))


def _folder_name(device: str) -> str:
    """Return the device's name as a folder's: letters, digits and dashes, told apart by a digest where it is more."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in device)[:64]
    return plain if plain == device else f"{plain}-{hashlib.sha256(device.encode()).hexdigest()[:8]}"


def tensor_infos(division: Division, partitions: Sequence[Partition]) -> dict[str, TensorInfo]:
    """Return dtype, shape and bytes of every tensor that crosses a border, and of the model's inputs and outputs."""
    crossing = {name for part in partitions for name in (*part.inputs, *part.outputs)}
    told = {v.name: v for v in division.graph.values if v.name in crossing or v.is_output or v.producer == MODEL}
    return {name: _info(value) for name, value in sorted(told.items())}


def named_tensors(values: Sequence[ir.Value]) -> tuple[NamedTensor, ...]:
    """Return name, dtype and shape of the model's inputs or outputs."""
    return tuple(NamedTensor(name=str(v.name), dtype=_dtype(v), shape=_shape(v)) for v in values)


def _parts(model: ir.Model, division: Division) -> list[_Part]:
    graph = division.graph
    used_in: dict[str, set[int]] = {}
    for index, (first, last) in enumerate(division.windows):
        for layer in graph.layers[first : last + 1]:
            for value in graph.used_by.get(layer.index, ()):
                used_in.setdefault(value.name, set()).add(index)
    parts = []
    for index, (first, last) in enumerate(division.windows):
        layers = graph.layers[first : last + 1]
        made = [value for layer in layers for value in graph.made_by.get(layer.index, ())]
        outputs = [v.value for v in made if v.is_output or used_in.get(v.name, set()) - {index}]
        weights = {id(w): w for layer in layers for w in layer.weights}
        parts.append(
            _Part(
                id=f"p{index:03d}",
                window=(first, last),
                layers=layers,
                nodes=_nodes(model.graph, layers),
                weights=tuple(sorted(weights.values(), key=lambda weight: str(weight.name))),
                inputs=tuple(_inputs(layers, graph.used_by, first)),
                outputs=tuple(outputs),
            )
        )
    return parts


def _inputs(layers: Sequence[Layer], used_by: dict[int, tuple[CutValue, ...]], first: int) -> Iterator[ir.Value]:
    seen = set()
    for layer in layers:
        for value in used_by.get(layer.index, ()):
            if value.producer < first and value.name not in seen:
                seen.add(value.name)
                yield value.value


def _nodes(graph: ir.Graph, layers: Sequence[Layer]) -> tuple[ir.Node, ...]:
    constants = dict.fromkeys(node for layer in layers for node in layer.constants)
    return (*constants, *(node for layer in layers for node in layer.nodes))


def _write_shared(parts: Sequence[_Part], folder: Path) -> tuple[dict[int, tuple[str, int, int]], dict[int, FileRef]]:
    """Write the large weights that several partitions use; return the place and the file of each."""
    users: dict[int, list[str]] = {}
    weights = {id(weight): weight for part in parts for weight in part.weights if _is_large(weight)}
    for part in parts:
        for weight in part.weights:
            if id(weight) in weights:
                users.setdefault(id(weight), []).append(part.id)
    groups: dict[tuple[str, ...], list[ir.Value]] = {}
    for key, weight in weights.items():
        if len(users[key]) > 1:
            groups.setdefault(tuple(users[key]), []).append(weight)
    places: dict[int, tuple[str, int, int]] = {}
    refs: dict[int, FileRef] = {}
    for index, held in enumerate(groups.values()):
        made, ref = _write_weights(folder, f"{PARTITIONS}/shared{index or ''}.weights", held)
        assert ref is not None
        places.update(made)
        refs.update(dict.fromkeys(made, ref))
    return places, refs


def _is_large(weight: ir.Value) -> bool:
    tensor = weight.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    users = {node.op_type for node, _ in weight.uses()}
    is_read = not tensor.dtype.is_floating_point() or users & _READ_FOR_SHAPES
    return tensor.nbytes >= (_EXTERNAL_FROM_BYTES if is_read else _NUMBERS_EXTERNAL_FROM_BYTES)


def _write_weights(
    folder: Path, path: str, weights: Sequence[ir.Value]
) -> tuple[dict[int, tuple[str, int, int]], FileRef | None]:
    """Write weights into one file; return for each its file name, offset and length, and the file's digest."""
    places: dict[int, tuple[str, int, int]] = {}
    if not weights:
        return places, None
    digest = hashlib.sha256()
    with (folder / path).open("xb") as file:
        for weight in weights:
            assert weight.const_value is not None
            start = file.tell()
            padding = bytes(-start % (_PAGE if weight.const_value.nbytes >= _PAGE else 64))
            offset = start + len(padding)
            for chunk in itertools.chain((padding,), _chunks(weight.const_value)):
                file.write(chunk)
                digest.update(chunk)
            places[id(weight)] = (Path(path).name, offset, file.tell() - offset)
        length = file.tell()
    return places, FileRef(path=path, sha256=digest.hexdigest(), nbytes=length)


def _chunks(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """Yield the tensor's bytes; data on disk is read piece by piece, so that it never stands in memory whole."""
    if not isinstance(tensor, ir.ExternalTensor):
        data = memoryview(tensor.tobytes())
        yield from (bytes(data[start : start + _CHUNK]) for start in range(0, len(data), _CHUNK))
        return
    left = tensor.nbytes
    file: BinaryIO
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left > 0:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"`{tensor.location}` ends {left} bytes early")
            left -= len(chunk)
            yield chunk


def _write_model(
    model: ir.Model,
    division: Division,
    part: _Part,
    folder: Path,
    places: dict[int, tuple[str, int, int]],
    refs: tuple[FileRef, ...],
) -> Partition:
    proto = onnx.ModelProto(ir_version=model.ir_version, producer_name="hyps")
    proto.opset_import.extend(
        onnx.OperatorSetIdProto(domain=domain, version=version)
        for domain, version in sorted(model.opset_imports.items())
    )
    proto.graph.name = part.id
    proto.graph.node.extend(ir.serde.serialize_node(node) for node in part.nodes)
    proto.graph.initializer.extend(_initializer(weight, places) for weight in part.weights)
    proto.graph.input.extend(serialize_value(value) for value in part.inputs)
    proto.graph.output.extend(serialize_value(value) for value in part.outputs)
    data = proto.SerializeToString(deterministic=True)
    path = f"{PARTITIONS}/{part.id}.onnx"
    (folder / path).write_bytes(data)
    window = division.graph.window(*part.window)
    macs = [layer.macs for layer in part.layers]
    return Partition(
        id=part.id,
        kind="horizontal" if part.layers[0].shard else "vertical",
        file=path,
        sha256=hashlib.sha256(data).hexdigest(),
        weights=refs,
        inputs=tuple(str(value.name) for value in part.inputs),
        outputs=tuple(str(value.name) for value in part.outputs),
        layers=tuple(layer.name for layer in part.layers),
        parameters=window.parameters,
        weight_bytes=window.weight_bytes,
        peak_memory_bytes=None if window.peak_bytes is None else window.peak_bytes + PARTITION_NBYTES,
        macs=None if None in macs else sum(count for count in macs if count is not None),
        shard=part.layers[0].shard,
    )


def _initializer(weight: ir.Value, places: dict[int, tuple[str, int, int]]) -> onnx.TensorProto:
    tensor = weight.const_value
    assert tensor is not None
    place = places.get(id(weight))
    if place is None:
        proto = ir.serde.serialize_tensor(_in_memory(tensor))
        proto.name = str(weight.name)
        return proto
    proto = onnx.TensorProto(
        name=str(weight.name),
        data_type=tensor.dtype.value,
        dims=tensor.shape.numpy(),
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        proto.external_data.add(key=key, value=str(value))
    return proto


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))
    return tensor


def _info(value: CutValue) -> TensorInfo:
    return TensorInfo(dtype=_dtype(value.value), shape=_shape(value.value), nbytes=value.nbytes)


def _dtype(value: ir.Value) -> str:
    if not isinstance(value.type, ir.TensorType):
        return str(value.meta.get(ORT_TYPE, value.type))
    return "string" if value.type.dtype == ir.DataType.STRING else str(value.type.dtype.numpy())


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape.dims)


def model_parameters(model: ir.Model) -> tuple[int, int]:
    """Return the parameters of the model and the bytes of its weights."""
    weights = list(model.graph.initializers.values())
    parameters = sum(w.const_value.size for w in weights if w.const_value is not None and is_parameter(w))
    return parameters, sum(nbytes_of(weight) for weight in weights)
