"""Plans whose H-partitions a test chooses: regions divided by the engine, recurrent layers by their own rewrite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from hyps.formats.plan import ModelInfo, Plan, Variant, encode_plan
from hyps_compiler import emit
from hyps_compiler.measure import Feeds, measure
from hyps_compiler.partition import Division
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from hyps_passes.layers import build_cut_graph


class Rewrite(Protocol):
    """Divides something in a model."""

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place."""


def write_plan(model: Path, folder: Path, rewrites: Sequence[Rewrite], feeds: Feeds | None = None) -> Plan:
    """Write the plan of a model after `rewrites`, cut at every legal border, and return it."""
    source, stage = open_source(model), folder.with_name(f"{folder.name}.stage")
    stage.mkdir()
    staged = stage_model(source, stage, "none")
    measured = measure(staged.model, staged.path, shapes={}, feeds=feeds)
    for rewrite in rewrites:
        rewrite.apply(staged.model, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes)
    division = Division(graph, tuple(graph.legal_borders()), tuple(map(str, rewrites)), ())
    partitions = emit.emit_partitions(staged.model, division, folder)
    plan = Plan(
        model=ModelInfo(
            name=source.name,
            sha256=source.sha256,
            ir_version=source.ir_version,
            opset=source.opset,
            inputs=emit.named_tensors(staged.model.graph.inputs),
            outputs=emit.named_tensors(staged.model.graph.outputs),
        ),
        assumed_dims=dict(measured.assumed_dims),
        tensors=emit.tensor_infos(division, partitions),
        partitions=partitions,
        variants=(Variant(name="local", placement={part.id: "local" for part in partitions}),),
    )
    (folder / "plan.json").write_bytes(encode_plan(plan))
    return plan
