from pathlib import Path

import pytest

import hyps_models
from cut_fixtures import stage
from graph_fixtures import layer, value, weight
from hyps.formats.plan import Shard
from hyps_compiler.partition import Request, divide
from hyps_passes.graph import MODEL, CutGraph, Layer
from hyps_passes.layers import build_cut_graph
from hyps_passes.searches.chain import Limits
from hyps_passes.searches.split_points import (
    bottlenecks,
    complex_layers,
    is_pooling_kind,
    mandatory_borders,
    pooling_borders,
    shard_borders,
)


def chain_of(nbytes: list[int | None], layers: list[Layer] | None = None, input_bytes: int = 100) -> CutGraph:
    """Return a chain of layers that pass on so many bytes; the last one's are the output."""
    count = len(nbytes)
    values = [value("x", MODEL, [0], input_bytes)]
    for index, size in enumerate(nbytes):
        is_last = index == count - 1
        values.append(value(f"v{index}", index, [] if is_last else [index + 1], size, is_output=is_last))
    return CutGraph(tuple(layers or [layer(index) for index in range(count)]), tuple(values))


def shard_of(index: int, name: str, number: int, count: int) -> Layer:
    made = layer(index)
    shard = Shard(layer=name, axis=-1, index=number, count=count, range=(number, number + 1))
    return Layer(**{field: getattr(made, field) for field in made.__slots__} | {"shard": shard})


def test_layers_above_a_limit_are_complex() -> None:
    layers = [layer(0, [weight("a", 5)]), layer(1, [weight("b", 6)]), layer(2, [weight("c", 7)])]
    graph = chain_of([1, 1, 1], layers, input_bytes=1)
    assert [found.index for found in complex_layers(graph, Limits(parameters=5))] == [1, 2]
    assert [found.index for found in complex_layers(graph, Limits(parameters=7))] == []
    assert [found.index for found in complex_layers(graph, Limits(peak_bytes=4 * 7 + 1))] == [2]  # its in- and output
    assert complex_layers(graph, Limits()) == []


def test_pooling_borders_lie_behind_layers_that_shrink_and_not_behind_the_last() -> None:
    kinds = ["pooling", None, "strided convolution", "global pooling", "pooling"]
    layers = [layer(index, downsampling=kind) for index, kind in enumerate(kinds)]
    found = pooling_borders(chain_of([1] * 5, layers))
    assert found == {0: "pooling", 2: "strided convolution", 3: "global pooling"}
    assert [is_pooling_kind(kind) for kind in found.values()] == [True, False, True]


def test_borders_of_slices() -> None:
    layers = [layer(0), *(shard_of(index, "fc", index - 1, 3) for index in (1, 2, 3)), layer(4), layer(5)]
    graph = chain_of([1] * 6, layers)
    assert shard_borders(graph) == [0, 1, 2, 3]
    assert mandatory_borders(graph) == [(0, "fc"), (3, "fc")]


def test_slices_at_the_ends_of_the_model_have_one_border_there() -> None:
    graph = chain_of([1, 1, 1], [shard_of(0, "fc", 0, 2), shard_of(1, "fc", 1, 2), layer(2)])
    assert mandatory_borders(graph) == [(1, "fc")]
    assert shard_borders(graph) == [0, 1]


def test_bottlenecks_are_smaller_than_the_input_and_compressive_if_smaller_than_all_before() -> None:
    found = bottlenecks(chain_of([120, 80, 90, 100, 40, 40, 10]))
    assert [(point.border, point.ratio, point.is_compressive) for point in found] == [
        (1, 0.8, True),
        (2, 0.9, False),
        (4, 0.4, True),
        (5, 0.4, False),
    ]


def test_no_bottlenecks_where_sizes_are_unknown() -> None:
    assert bottlenecks(chain_of([10, 10], input_bytes=0)) == []
    assert [point.border for point in bottlenecks(chain_of([None, 10, 10]))] == [1]


@pytest.mark.slow
def test_vgg16_is_divided_as_in_the_thesis(tmp_path: Path) -> None:
    """Two mandatory points, around FC1 only; five pooling points; FC1 in four H-partitions."""
    hyps_models.save("vgg16", tmp_path / "vgg16.onnx")
    for level in ("none", "portable"):
        staged, measured = stage(tmp_path / "vgg16.onnx", tmp_path / level, level)
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
        points = bottlenecks(graph)
        assert len(points) == 5
        assert [round(point.ratio, 3) for point in points if point.is_compressive] == [0.667, 0.167]
        assert [graph.layers[p.border].downsampling for p in points if p.is_compressive] == ["pooling"] * 2

        division = divide(staged.model, measured.sizes, staged.fused, Request(max_params=30_000_000))
        mandatory = [point for point in division.points if point.kind == "mandatory"]
        pooling = [point for point in division.points if point.reason == "pooling"]
        shards = [made.shard for made in division.graph.layers if made.shard is not None]
        assert len(mandatory) == 2
        assert len({point.reason for point in mandatory}) == 1
        assert len(pooling) == 5
        assert len(shards) == 4
        assert {shard.layer for shard in shards} == {mandatory[0].reason.removeprefix("around ")}
        assert [shard.range for shard in shards] == [(0, 1024), (1024, 2048), (2048, 3072), (3072, 4096)]
        sliced = [made.parameters for made in division.graph.layers if made.shard is not None]
        assert sliced == [1024 * (25088 + 1)] * 4
        windows = [division.graph.window(*window) for window in division.windows]
        assert max(window.parameters for window in windows) <= 30_000_000
        assert sum(window.parameters for window in windows) == 138_357_544
