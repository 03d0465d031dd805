"""Writes forms: each partition once more as a model with plain names whose large weights are inputs."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from msgspec.structs import replace
from onnx import helper

from hyps.adapters.tables import Table
from hyps.errors import HypsError
from hyps.formats.dtypes import ITEM_NBYTES
from hyps.formats.plan import MOST_AXES, Form, Partition, StreamedWeight
from hyps.formats.weight_blocks import rows_nbytes
from hyps_compiler.ort import open_session, run
from hyps_passes.layers import node_inputs
from hyps_passes.lookups import find_look_ups

FORMS = "forms"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A form before it is known to compute what its partition does."""

    form: Form
    model: bytes


def emit_forms(
    folder: Path, partitions: Sequence[Partition], outputs: Iterable[str], feeds: Mapping[str, Any] | None
) -> tuple[Partition, ...]:
    """Write the forms of emitted partitions into `folder` and return the partitions with them.

    A form is written only once a run has shown that it computes what its partition does, bit for bit: partitions with
    an element type that numpy lacks or values that are no tensors go without, and so do all where there is no request
    to try.

    Args:
        folder: the plan folder, in which the partitions lie.
        partitions: in an order in which they can run.
        outputs: names of the model's outputs.
        feeds: a request on which the model runs; None where there is none.
    """
    if feeds is None or not all(isinstance(value, np.ndarray) for value in feeds.values()):
        return tuple(partitions)
    trial = _Trial(folder, partitions, frozenset(outputs), dict(feeds))
    return tuple(trial.with_form(index) for index in range(len(partitions)))


class _Trial:
    """One request on its way through the partitions, and through the forms that were not tried before."""

    def __init__(
        self, folder: Path, partitions: Sequence[Partition], outputs: frozenset[str], store: dict[str, Any]
    ) -> None:
        self._folder, self._partitions, self._store = folder, partitions, store
        self._last_use = {name: index for index, part in enumerate(partitions) for name in part.inputs}
        self._last_use.update(dict.fromkeys(outputs, -1))
        self._tried: dict[str, bool] = {}
        """By digest of the form, whether it computes what the partition does."""

    def with_form(self, index: int) -> Partition:
        """Return the partition with its form, if it has one; they are asked for in running order."""
        partition = self._partitions[index]
        draft = _draft(self._folder, partition)
        made = self._run(partition)
        if draft is None or made is None:
            is_same = False
        else:
            if draft.form.sha256 not in self._tried:
                self._tried[draft.form.sha256] = self._is_same(partition, draft, made)
            is_same = self._tried[draft.form.sha256]
        peak_nbytes = None if draft is None else self._peak_nbytes(partition, draft.form)
        self._store.update(made or {})
        for name in dict.fromkeys((*partition.inputs, *partition.outputs)):
            if self._last_use.get(name, index) == index:
                self._store.pop(name, None)
        if draft is None or not is_same:
            return partition
        path = self._folder / draft.form.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draft.model)
        return replace(partition, form=draft.form, peak_memory_bytes=peak_nbytes)

    def _peak_nbytes(self, partition: Partition, form: Form) -> int | None:
        """Return the partition's peak where of its tables only rows are read that such a request looks up."""
        if partition.peak_memory_bytes is None:
            return None
        absent = 0
        for weight in form.weights:
            if weight.looked_up_by:
                count = sum(self._store[name].size for name in weight.looked_up_by if name in self._store)
                absent += weight.nbytes - rows_nbytes(weight.nbytes, weight.shape[0], count)
        return partition.peak_memory_bytes - absent

    def _run(self, partition: Partition) -> dict[str, Any] | None:
        """Return what the partition makes; None where it cannot be run here, or what it needs was not made."""
        if not all(name in self._store for name in partition.inputs):
            return None
        try:
            session = open_session(self._folder / partition.file, "none", lossless=True)
            return run(session, partition.outputs, {name: self._store[name] for name in partition.inputs})
        except HypsError:
            return None

    def _is_same(self, partition: Partition, draft: _Draft, made: Mapping[str, Any]) -> bool:
        form = draft.form
        feeds: dict[str, Array] = {f"x{i}": self._store[name] for i, name in enumerate(form.inputs)}
        with contextlib.ExitStack() as stack:
            weights = (self._read(partition, weight, stack) for weight in form.weights)
            feeds.update((f"w{i}", weight) for i, weight in enumerate(weights))
            try:
                session = open_session(draft.model, "none", lossless=True)
                again = run(session, [f"y{i}" for i in range(len(form.outputs))], feeds)
            except HypsError:
                return False
        return all(_same_bits(made[name], again[f"y{i}"]) for i, name in enumerate(form.outputs))

    def _read(self, partition: Partition, weight: StreamedWeight, stack: contextlib.ExitStack) -> Array:
        """Return the weight as the runtime would give it; of a table that the request reads rows of, just those."""
        if not weight.looked_up_by:
            return _read(self._folder, weight)
        file = next(ref for ref in partition.weights if ref.path == weight.path)
        table = Table(self._folder, file, weight)
        stack.callback(table.close)
        table.read(self._store)
        return table.array


def _same_bits(left: Any, right: Any) -> bool:
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        return False
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def _read(folder: Path, weight: StreamedWeight) -> Array:
    flat = np.fromfile(folder / weight.path, np.uint8, weight.nbytes, offset=weight.offset)
    return flat.view(weight.dtype).reshape(weight.shape)


def _draft(folder: Path, partition: Partition) -> _Draft | None:
    """Return the partition with plain names and its external weights as inputs; None where numpy lacks their types."""
    model = onnx.load(folder / partition.file, load_external_data=False)
    graph = model.graph
    large = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    weights = [_weight(folder, partition, tensor) for tensor in large]
    looked_up = _looked_up(model)
    told = [
        replace(weight, looked_up_by=looked_up.get(tensor.name, ()))
        for tensor, weight in zip(large, weights, strict=True)
        if weight is not None
    ]
    if len(told) < len(weights) or graph.sparse_initializer or not all(_is_tensor(v) for v in graph.output):
        return None
    names = {value.name: f"x{i}" for i, value in enumerate(graph.input)}
    names.update((tensor.name, f"w{i}") for i, tensor in enumerate(large))
    names.update((value.name, f"y{i}") for i, value in enumerate(graph.output) if value.name not in names)
    if len(names) < len(graph.input) + len(large) + len(graph.output):
        return None  # an output that is an input or a weight itself has two names
    kept = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    infos = [helper.make_tensor_value_info(names[t.name], t.data_type, list(t.dims)) for t in large]
    inputs, outputs = tuple(v.name for v in graph.input), tuple(v.name for v in graph.output)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    _rename(graph, names, (f"v{i}" for i in range(2**62)))
    graph.input.extend(infos)
    graph.name = "form"
    data = model.SerializeToString(deterministic=True)
    sha256 = hashlib.sha256(data).hexdigest()
    form = Form(file=f"{FORMS}/{sha256[:16]}.onnx", sha256=sha256, inputs=inputs, outputs=outputs, weights=tuple(told))
    return _Draft(form, data)


def _looked_up(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Return, of the weights that are tables of look-ups, by which inputs of the model."""
    graph = ir.serde.deserialize_model(model).graph
    found = find_look_ups(tuple(graph), node_inputs, lambda value: value.is_graph_input())
    return {str(one.table.name): tuple(str(value.name) for value in one.indices) for one in found}


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != onnx.TensorProto.STRING


def _weight(folder: Path, partition: Partition, tensor: onnx.TensorProto) -> StreamedWeight | None:
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if len(tensor.dims) > MOST_AXES:
        return None
    if ITEM_NBYTES.get(dtype, -1) * int(np.prod(tensor.dims, dtype=np.int64)) != int(place["length"]):
        return None  # an element type of less than a byte, or one that numpy lacks
    path = Path(partition.file).parent / place["location"]
    return StreamedWeight(
        path=path.as_posix(),
        offset=int(place["offset"]),
        nbytes=int(place["length"]),
        dtype=dtype,
        shape=tuple(tensor.dims),
    )


def _rename(graph: onnx.GraphProto, outer: Mapping[str, str], fresh: Iterator[str]) -> None:
    """Give every value in the graph, and in those inside it, the name in `outer` or the next fresh one."""
    names = dict(outer)
    own: list[onnx.ValueInfoProto | onnx.TensorProto] = [*graph.input, *graph.initializer]
    defined = [*(entry.name for entry in own), *(name for node in graph.node for name in node.output if name)]
    for name in defined:
        if name not in outer:
            names[name] = next(fresh)
    for entry in (*own, *graph.output):
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]  # what a piece claims to make differs between pieces of one shape
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _rename(inner, names, fresh)
