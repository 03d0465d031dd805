"""Plans whose cuts, slices and placement a benchmark decides itself, written exactly as `hypsc compile` writes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hyps.adapters.machine import cpu_family
from hyps.formats.plan import ModelInfo, Partition, Plan, Variant, decode_plan, encode_plan
from hyps_compiler import emit
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import measure
from hyps_compiler.partition import cut_at
from hyps_compiler.source import Source
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import DenseLayer, SliceDense, find_dense
from hyps_passes.searches.split_points import shard_borders

Placement = Callable[[Partition], str]
"""Which device runs a partition."""


@dataclass(frozen=True, slots=True)
class Model:
    """A reference model that is ready to be divided, at the speed of the whole on this machine."""

    source: Source
    staged: Staged
    sizes: dict[str, tuple[int, ...]]


def read_model(path: Path, folder: Path) -> Model:
    """Return a model, staged in `folder`."""
    for work in ("work", "stage"):
        (folder / work).mkdir()
    source = open_model(path, folder / "work", max_tensor_nbytes=MOST_TENSOR_NBYTES)
    staged = stage_model(source, folder / "stage", "native")
    measured = measure(staged.model, staged.path, shapes={}, feeds=None, max_tensor_nbytes=MOST_TENSOR_NBYTES)
    return Model(source, staged, measured.sizes)


def layer_names(model: Model) -> list[str]:
    """Return the layers in their order."""
    return [layer.name for layer in build_cut_graph(model.staged.model, model.sizes, fused=model.staged.fused).layers]


def write_plan(
    model: Model, folder: Path, place: Placement, *, behind: Sequence[str] = (), slices: tuple[str, int] | None = None
) -> Plan:
    """Write a plan into the new folder, cut behind the layers of these names, and around slices; return it.

    Args:
        model: what is divided.
        folder: the plan's.
        place: the device of each partition.
        behind: names of layers.
        slices: name of a dense layer, and in how many H-partitions it is.
    """
    whole, sizes, fused = model.staged.model.clone(), dict(model.sizes), model.staged.fused
    graph = build_cut_graph(whole, sizes, fused=fused)
    borders = set()
    if slices is not None:
        dense = find_dense(next(layer for layer in graph.layers if layer.name == slices[0]))
        assert isinstance(dense, DenseLayer)
        fused -= {str(value.name) for value in dense.product.inputs if value is not None}
        SliceDense(*slices).apply(whole, dense, sizes)
        graph = build_cut_graph(whole, sizes, fused=fused)
        borders.update(shard_borders(graph))
    borders.update(layer.index for layer in graph.layers if layer.name in behind)
    division = cut_at(graph, sorted(borders & set(graph.legal_borders())), ())
    partitions = emit.emit_partitions(whole, division, folder)
    source = model.source
    info = ModelInfo(
        name=source.name,
        sha256=source.sha256,
        ir_version=source.ir_version,
        opset=source.opset,
        inputs=emit.named_tensors(whole.graph.inputs),
        outputs=emit.named_tensors(whole.graph.outputs),
    )
    plan = Plan(
        model=info,
        optimization="native",
        cpu_family=cpu_family(),
        tensors=emit.tensor_infos(division, partitions),
        partitions=partitions,
        variants=(_variant(partitions, place),),
    )
    (folder / "plan.json").write_bytes(encode_plan(plan))
    return plan


def move_plan(folder: Path, place: Placement) -> Plan:
    """Place the plan in the folder otherwise; return it. Processes that serve it keep what they have read."""
    plan = decode_plan((folder / "plan.json").read_bytes())
    moved = msgspec.structs.replace(plan, variants=(_variant(plan.partitions, place),), entry=None, regimes=())
    (folder / "plan.json").write_bytes(encode_plan(moved))
    return moved


def _variant(partitions: Sequence[Partition], place: Placement) -> Variant:
    return Variant(name="by-hand", placement={partition.id: place(partition) for partition in partitions})
