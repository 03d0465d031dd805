from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, combinations
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import hyps_models
from bottlenecks import PUBLISHED, Count, block_of, compiled_graph, count, sketched_graph
from cut_fixtures import stage
from graph_fixtures import cut_graphs, layer, value, weight
from hyps.formats.plan import Shard
from hyps_compiler.partition import Request, divide
from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer
from hyps_passes.layers import build_cut_graph
from hyps_passes.searches.chain import Limits
from hyps_passes.searches.split_points import (
    block_borders,
    bottlenecks,
    complex_layers,
    compression_ratio,
    feature_borders,
    is_pooling_kind,
    mandatory_borders,
    pooling_borders,
    shard_borders,
    single_borders,
)

QUICK = ("efficientnet-b0", "efficientnet-b4", "efficientnetv2-s", "vgg16")


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
    found = bottlenecks(chain_of([120, 80, 90, 85, 100, 40, 40, 10]))
    assert [(point.border, point.ratio, point.is_compressive) for point in found] == [
        (1, 0.8, True),
        (2, 0.9, False),
        (3, 0.85, False),
        (5, 0.4, True),
        (6, 0.4, False),
    ]


def test_no_bottlenecks_where_sizes_are_unknown() -> None:
    assert bottlenecks(chain_of([10, 10], input_bytes=0)) == []
    assert [point.border for point in bottlenecks(chain_of([None, 10, 10]))] == [1]


def test_a_value_that_several_layers_read_travels_once() -> None:
    values = (value("x", MODEL, [0], 10), value("a", 0, [1, 2], 6), value("b", 1, [2], 3), value("y", 2, [], 1))
    graph = CutGraph(tuple(layer(index) for index in range(3)), values)
    assert [(point.border, point.ratio) for point in bottlenecks(graph)] == [(0, 0.6), (1, 0.9)]


def test_an_input_that_layers_behind_the_border_read_travels_too() -> None:
    values = (value("x", MODEL, [0], 10), value("mask", MODEL, [0, 2], 2), value("a", 0, [1], 4), value("b", 1, [2], 9))
    graph = CutGraph(tuple(layer(index) for index in range(3)), values)
    assert [(point.border, point.ratio) for point in bottlenecks(graph)] == [(0, 0.5), (1, 11 / 12)]
    assert single_borders(graph) == []


def test_behind_flattened_images_there_is_no_feature_map_left_to_split() -> None:
    graph = replace(chain_of([50, 40, 30, 20]), values=tuple(shaped(chain_of([50, 40, 30, 20]), [4, 4, 4, 2, 2])))
    assert feature_borders(graph) == [0, 1]
    assert [point.border for point in bottlenecks(graph)] == [0, 1]
    assert [point.border for point in bottlenecks(graph, graph.legal_borders())] == [0, 1, 2]


def test_every_border_counts_where_the_input_is_no_image() -> None:
    graph = replace(chain_of([50, 40, 30]), values=tuple(shaped(chain_of([50, 40, 30]), [3, 3, 2, 2])))
    assert feature_borders(graph) == [0, 1]


def test_every_border_counts_where_a_second_input_stands_beside_the_image() -> None:
    values = (value("x", MODEL, [0], 9), value("z", MODEL, [0], 1), value("a", 0, [1], 5), value("y", 1, [], 1))
    graph = CutGraph((layer(0), layer(1)), values)
    assert feature_borders(replace(graph, values=tuple(shaped(graph, [4, 2, 2, 2])))) == [0]


def test_a_block_ends_at_its_smallest_lone_tensor() -> None:
    """Between the blocks `a` and `b` stand two layers of neither."""
    names = ["stem", "a/conv", "a/add", "identity", "wide", "b/conv", "b/add", "head", "pool"]
    layers = [replace(layer(index), name=name) for index, name in enumerate(names)]
    layers[-1] = replace(layers[-1], downsampling="global pooling")
    graph = chain_of([90, 80, 50, 50, 70, 60, 40, 60, 1], layers)
    assert block_borders(graph, of_block) == {"a": 2, "b": 6}
    assert block_borders(chain_of([90, 80, 50, 30, 70, 60, 40, 60, 1], layers), of_block) == {"a": 3, "b": 6}


def test_a_block_that_several_tensors_leave_has_no_border() -> None:
    names = ["a/one", "b/one", "c/one"]
    values = (value("x", MODEL, [0], 9), value("a", 0, [1, 2], 1), value("b", 1, [2], 1), value("y", 2, [], 1))
    graph = CutGraph(tuple(replace(layer(index), name=name) for index, name in enumerate(names)), values)
    assert block_borders(graph, of_block) == {"a": 0}


def test_blocks_that_mix_have_no_border() -> None:
    names = ["a/one", "b/one", "a/two", "b/two", "c/one", "tail"]
    layers = [replace(layer(index), name=name) for index, name in enumerate(names)]
    assert block_borders(chain_of([5, 4, 3, 2, 1, 1], layers), of_block) == {"c": 4}


chains = st.lists(st.integers(0, 120), min_size=1, max_size=12).map(lambda nbytes: chain_of([*nbytes]))
"""Most have several bottlenecks, which graphs of a few random layers seldom have."""


@given(cut_graphs() | chains, st.data())
def test_bottlenecks_are_what_equation_3_says(graph: CutGraph, data: st.DataObject) -> None:
    borders = data.draw(st.sets(st.sampled_from(graph.legal_borders())) if graph.legal_borders() else st.just(set()))
    for found, asked in ((bottlenecks(graph), graph.legal_borders()), (bottlenecks(graph, borders), sorted(borders))):
        known = {border: by_definition(graph, range(border + 1)) for border in asked}
        natural = {border: ratio for border, ratio in known.items() if ratio is not None and ratio < 1}
        compressive = [j for j in natural if all(natural[j] < natural[i] for i in natural if i < j)]
        assert [point.border for point in found] == list(natural)
        assert [point.ratio for point in found] == [pytest.approx(float(ratio)) for ratio in natural.values()]
        assert [point.border for point in found if point.is_compressive] == compressive


@given(cut_graphs(most_layers=6))
def test_ratio_of_any_cut_is_what_travels_over_the_input(graph: CutGraph) -> None:
    for size in range(len(graph.layers) + 1):
        for members in combinations(range(len(graph.layers)), size):
            if any(v.producer not in (MODEL, *members) and set(v.consumers) & set(members) for v in graph.values):
                with pytest.raises(ValueError, match="predecessors"):
                    compression_ratio(graph, members)
                continue
            expected = by_definition(graph, members)
            assert compression_ratio(graph, members) == (None if expected is None else pytest.approx(float(expected)))


@given(cut_graphs(all_cross=True) | chains, st.data())
def test_no_other_border_is_better_where_the_server_is_faster(graph: CutGraph, data: st.DataObject) -> None:
    """Equation 6 over every border finds nothing better than over the compressive ones, full offloading and none."""
    count_of = len(graph.layers)
    total = sum(v.nbytes or 0 for v in graph.values if v.producer == MODEL)
    assume(total > 0)
    seconds = st.lists(st.integers(0, 50), min_size=count_of, max_size=count_of)
    server = data.draw(seconds)
    device = [own + more for own, more in zip(server, data.draw(seconds), strict=True)]
    s_per_byte = data.draw(st.integers(0, 20))
    head, tail = [0, *accumulate(device)], [*accumulate(reversed(server), initial=0)][::-1]

    latency = {0: total * s_per_byte + tail[0], count_of: head[-1]}
    for border in graph.legal_borders():
        ratio = by_definition(graph, range(border + 1))
        if ratio is not None:
            latency[border + 1] = head[border + 1] + int(total * ratio) * s_per_byte + tail[border + 1]
    compressive = [point.border + 1 for point in bottlenecks(graph) if point.is_compressive]

    assert min(latency.values()) == min(latency[place] for place in (0, count_of, *compressive))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PUBLISHED])
def test_published_counts_come_out(name: str) -> None:
    row = count(name, sketched_graph(name))
    assert row.counted == Count(*PUBLISHED[name])
    if name == "efficientnet-b4":
        assert row.compressive_blocks == (2, 6, 10, 22)
    if name == "vgg16":
        assert row.compressive_ratios == (0.6667, 0.1667)


@pytest.mark.parametrize("name", ["efficientnet-b0", "vgg16"])
def test_only_blocks_are_blocks(name: str) -> None:
    graph = sketched_graph(name)
    borders = block_borders(graph, block_of)
    assert [int(block) for block in borders] == list(range(16 if name == "efficientnet-b0" else 0))
    for block, border in borders.items():
        (crossing,) = graph.borders[border]
        assert crossing.name.startswith(f"blocks.{block}.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnetv2-b0"])
def test_compiler_sees_the_same_bottlenecks_as_a_sketch(name: str) -> None:
    assert count(name, compiled_graph(name)) == count(name, sketched_graph(name))


def of_block(name: str) -> str | None:
    return name.split("/")[0] if "/" in name else None


def shaped(graph: CutGraph, ranks: Sequence[int]) -> list[CutValue]:
    """Return the values with shapes of so many dimensions."""
    pairs = zip(graph.values, ranks, strict=True)
    return [replace(v, value=ir.Value(name=v.name, shape=ir.Shape([1] * rank))) for v, rank in pairs]


def by_definition(graph: CutGraph, members: Sequence[int]) -> Fraction | None:
    """Return the compression ratio of a set of layers, from the definition; None where nothing travels."""
    total = sum(v.nbytes or 0 for v in graph.values if v.producer == MODEL)
    travels = [v for v in graph.values if v.producer in (MODEL, *members) and set(v.consumers) - set(members)]
    return Fraction(sum(v.nbytes or 0 for v in travels), total) if total and travels else None


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
