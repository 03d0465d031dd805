"""The plan folders of both sides of a cut, as each device of a cluster would get its own."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto, helper

import hyps_models
from hyps.formats.plan import ModelInfo, NamedTensor, Partition, Plan, TensorInfo, Variant, encode_plan
from hyps_compiler import emit
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import measure
from hyps_compiler.partition import Division, cut_at
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.graph import CutGraph, reordered
from hyps_passes.layers import build_cut_graph


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to be cut, exactly as `hypsc compile` and `hypsc profile` cut it."""

    name: str
    path: Path
    """Its file."""
    staged: Staged
    graph: CutGraph


@dataclass(frozen=True, slots=True)
class Sides:
    """The plan folders of a cut."""

    head: Path | None
    """None: nothing runs on the device."""
    tail: Path | None
    """None: everything does."""


def read_model(name: str, folder: Path) -> Model:
    """Return the reference model `name`, staged in the empty folder `folder`."""
    path = folder / f"{name}.onnx"
    hyps_models.save(name, path)
    (folder / "work").mkdir()
    (folder / "stage").mkdir()
    source = open_model(path, folder / "work", max_tensor_nbytes=MOST_TENSOR_NBYTES)
    staged = stage_model(source, folder / "stage", "portable")
    measured = measure(staged.model, staged.path, shapes={}, feeds=None, max_tensor_nbytes=MOST_TENSOR_NBYTES)
    return Model(name, path, staged, build_cut_graph(staged.model, measured.sizes, fused=staged.fused))


def write_sides(model: Model, head: Sequence[int], folder: Path) -> Sides:
    """Write the plans of both sides of a cut into `folder`, and return their folders.

    Args:
        model: what is cut.
        head: indices of the layers that the device runs: none, all, or any that no layer outside comes before.
        folder: a new folder.
    """
    inside = set(head)
    tail = [layer.index for layer in model.graph.layers if layer.index not in inside]
    graph = reordered(model.graph, [*sorted(inside), *tail])
    division = cut_at(graph, [len(inside) - 1] if inside and tail else [], ())
    both = emit.emit_partitions(model.staged.model, division, folder / "both")
    names = ("head", "tail") if inside and tail else ("head",) if inside else ("tail",)
    for name, partition in zip(names, both, strict=True):
        for path in (partition.file, *(ref.path for ref in partition.weights)):
            (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "both" / path, folder / name / path)
        _write_plan(model, division, partition, folder / name)
    shutil.rmtree(folder / "both")
    return Sides(folder / "head" if inside else None, folder / "tail" if tail else None)


def write_empty(folder: Path) -> Path:
    """Write a plan that hands back the one number it is given, and return its folder."""
    told = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "empty",
        [told("x", TensorProto.FLOAT, [1])],
        [told("y", TensorProto.FLOAT, [1])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (folder / "partitions").mkdir(parents=True)
    (folder / "partitions/p000.onnx").write_bytes(data)
    partition = Partition(
        id="p000",
        kind="vertical",
        file="partitions/p000.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=("x",),
        outputs=("y",),
        layers=("empty",),
        parameters=0,
        weight_bytes=0,
    )
    infos = {name: TensorInfo(dtype="float32", shape=(1,), nbytes=4) for name in "xy"}
    (folder / "plan.json").write_bytes(encode_plan(_plan("empty", partition, infos, {"ai.onnx": 17}, 8)))
    return folder


def _write_plan(model: Model, division: Division, partition: Partition, folder: Path) -> None:
    """Write the plan of one of the division's partitions, whose borders are its inputs and outputs."""
    infos = {
        name: info
        for name, info in emit.tensor_infos(division, [partition]).items()
        if name in (*partition.inputs, *partition.outputs)
    }
    told = model.staged.model
    opset = {domain or "ai.onnx": version for domain, version in told.opset_imports.items()}
    name = f"{model.name} {partition.layers[0]} .. {partition.layers[-1]}"
    (folder / "plan.json").write_bytes(encode_plan(_plan(name, partition, infos, opset, told.ir_version)))


def _plan(
    name: str, partition: Partition, infos: dict[str, TensorInfo], opset: dict[str, int], ir_version: int
) -> Plan:
    info = ModelInfo(
        name=name,
        sha256=partition.sha256,
        ir_version=ir_version,
        opset=opset,
        inputs=_named(partition.inputs, infos),
        outputs=_named(partition.outputs, infos),
    )
    variant = Variant(name="local", placement={partition.id: "local"})
    return Plan(model=info, optimization="portable", tensors=infos, partitions=(partition,), variants=(variant,))


def _named(names: Sequence[str], infos: dict[str, TensorInfo]) -> tuple[NamedTensor, ...]:
    return tuple(NamedTensor(name=name, dtype=infos[name].dtype, shape=infos[name].shape) for name in names)
