"""Natural bottlenecks of EfficientNets and VGG16 beside the counts of *Dynamic Split Computing* (equations 3 to 6).

The counts need shapes only, so by default each network is a sketch: the graph without weights. `--whole` takes the
models themselves through the compiler's staging and measuring instead; the counts must be the same.

    python bench/bottlenecks.py             # seconds
    python bench/bottlenecks.py --whole     # minutes
"""

import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import onnx
import onnx_ir as ir
from onnx import ModelProto

import hyps_models
from common import machine, write_results
from hyps.terminal import table
from hyps_compiler.measure import measure
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from hyps_models.efficientnet import sketch_efficientnet
from hyps_models.vgg import sketch_vgg16
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.normalize import normalize
from hyps_passes.searches.split_points import Bottleneck, block_borders, bottlenecks, feature_borders, single_borders

PUBLISHED = {
    "efficientnet-b0": (15, 4),
    "efficientnet-b1": (21, 4),
    "efficientnet-b2": (21, 4),
    "efficientnet-b3": (24, 4),
    "efficientnet-b4": (30, 4),
    "efficientnet-b5": (36, 4),
    "efficientnet-b6": (42, 4),
    "efficientnet-b7": (44, 3),
    "efficientnetv2-b0": (20, 4),
    "efficientnetv2-b1": (25, 4),
    "efficientnetv2-b2": (26, 4),
    "efficientnetv2-b3": (30, 4),
    "efficientnetv2-s": (34, 3),
    "efficientnetv2-m": (49, 3),
    "efficientnetv2-l": (68, 3),
    "vgg16": (5, 2),
}
"""Natural and compressive. The paper says 15 to 68 natural and 3 or 4 compressive over 14 EfficientNets, and 5 natural
in VGG16; counting block outputs gave the numbers of each network, and two compressive in VGG16."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Count:
    """Natural bottlenecks by one choice of borders."""

    natural: int
    compressive: int


@dataclass(frozen=True, slots=True)
class Row:
    """One network."""

    model: str
    layers: int
    published: Count
    blocks: Count | None
    """Outputs of blocks only; null: it has none."""
    compressive_blocks: tuple[int, ...]
    """Counted from 0."""
    compressive_ratios: tuple[float, ...]
    """Compression ratios there, or of layers where there are no blocks."""
    single: Count
    """Borders that one feature map crosses."""
    all: Count
    """Borders that one or several feature maps cross."""
    is_chain: bool
    """Each layer needs the one before, so that there is no cut but the borders."""

    @property
    def counted(self) -> Count:
        """The counts to hold beside the published ones."""
        return self.blocks or self.all


@click.command()
@click.option("--whole", is_flag=True, help="Stage and measure the models themselves; their weights take 1.7 GB.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(PUBLISHED)), default=list(PUBLISHED))
def main(whole: bool, models: tuple[str, ...]) -> None:
    """Count, print, and end with 1 if a count is not the published one."""
    read = compiled_graph if whole else sketched_graph
    rows = []
    for name in models:
        print(name, file=sys.stderr)
        rows.append(count(name, read(name)))
    print(show(rows))
    if len(models) == len(PUBLISHED):
        write_results("bottlenecks", {"machine": machine(), "whole": whole, "results": [asdict(row) for row in rows]})
    different = [row.model for row in rows if row.counted != row.published]
    if different:
        raise click.ClickException(f"not as published: {', '.join(different)}")


def sketched_graph(name: str) -> CutGraph:
    """Return the layers of the network for one image, its weights left out."""
    return _cut_graph(sketch_vgg16() if name == "vgg16" else sketch_efficientnet(name))


def compiled_graph(name: str) -> CutGraph:
    """Return the layers as the compiler sees them."""
    with tempfile.TemporaryDirectory() as folder:
        path, stage = Path(folder) / "model.onnx", Path(folder) / "stage"
        hyps_models.save(name, path)
        stage.mkdir()
        staged = stage_model(open_source(path), stage, "none")
        measured = measure(staged.model, staged.path, shapes={}, feeds=None)
        return build_cut_graph(staged.model, measured.sizes, fused=staged.fused)


def count(name: str, graph: CutGraph) -> Row:
    """Return the counts of a network by each choice of borders."""
    features = feature_borders(graph)
    blocks = block_borders(graph, block_of)
    indices = {border: int(block) for block, border in blocks.items()}
    found = bottlenecks(graph, indices)
    counted = found if blocks else bottlenecks(graph)
    return Row(
        model=name,
        layers=len(graph.layers),
        published=Count(*PUBLISHED[name]),
        blocks=_count(found) if blocks else None,
        compressive_blocks=tuple(indices[point.border] for point in found if point.is_compressive),
        compressive_ratios=tuple(round(point.ratio, 4) for point in counted if point.is_compressive),
        single=_count(bottlenecks(graph, set(features) & set(single_borders(graph)))),
        all=_count(bottlenecks(graph)),
        is_chain=all(
            any(layer.index - 1 == value.producer for value in graph.used_by.get(layer.index, ()))
            for layer in graph.layers[1:]
        ),
    )


def block_of(layer: str) -> str | None:
    """Return the number of the MBConv or Fused-MBConv block that a layer belongs to."""
    match = _BLOCK.match(layer)
    return match[1] if match else None


def show(rows: list[Row]) -> str:
    """Return the results as a table."""
    cells = [
        (
            row.model.removeprefix("efficientnet").lstrip("-"),
            _shown(row.published),
            _shown(row.blocks),
            " ".join(map(str, row.compressive_blocks)),
            " ".join(f"{ratio:.3f}" for ratio in row.compressive_ratios),
            str(row.layers),
            _shown(row.single),
            _shown(row.all),
        )
        for row in rows
    ]
    header = ("model", "published", "blocks", "which", "ratios", "layers", "one tensor", "any cut")
    return table(cells, header, "lrrllrrr")


def _cut_graph(sketch: ModelProto) -> CutGraph:
    sketch.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(sketch, strict_mode=True).graph
    values = (*graph.value_info, *graph.input)
    sizes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    sketch.graph.value_info.extend(graph.value_info)
    return build_cut_graph(normalize(ir.from_proto(sketch)), sizes)


def _count(found: list[Bottleneck]) -> Count:
    return Count(len(found), sum(point.is_compressive for point in found))


def _shown(counted: Count | None) -> str:
    return f"{counted.natural}/{counted.compressive}" if counted else ""


if __name__ == "__main__":
    main()
