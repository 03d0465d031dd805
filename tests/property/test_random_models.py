"""Truths about cutting, over random models; the oracle is onnxruntime on the whole model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from cut_fixtures import cut_model, emit_cut, stage
from generated.answers import answer_of, gap, is_accepted, is_equal
from generated.checks import check_answers, check_cover, check_cut, check_open_dims, requests
from generated.grown import with_fixed_weights
from hyps.errors import InfeasibleError, TensorError
from hyps.formats.plan import Optimization
from hyps.local import LocalRunner
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import DenseLayer, SliceDense, find_dense
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import RECIPES, Choose, Grown, chooser, floats, grow, model_of, save

OPSETS = (7, 9, 11, 13, 15, 17, 19, 21, 23, 26)
"""From the oldest to the newest that onnxruntime runs."""
LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")
FEW = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=500, derandomize=False)


@st.composite
def grown_models(draw: st.DrawFn, most_steps: int = 14) -> Grown:
    """Draw a random model."""
    opset = draw(st.sampled_from(OPSETS))
    steps = draw(st.integers(1, most_steps))
    return grow(lambda count: draw(st.integers(0, count - 1)), steps=steps, opset=opset, recipes=RECIPES)


def some_borders(data: st.DataObject) -> Callable[[CutGraph], Sequence[int]]:
    return lambda graph: [border for border in graph.legal_borders() if data.draw(st.booleans(), f"cut {border}")]


@contextmanager
def saved(grown: Grown) -> Iterator[tuple[Path, Path]]:
    """Write the model and give a folder and the model's path; a model that onnxruntime refuses is discarded."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = grown.save(folder)
        is_refused = not is_accepted(grown, path)
        event("refused by onnxruntime" if is_refused else "accepted by onnxruntime")
        assume(not is_refused)
        yield folder, path


# what is checked of a model


def check_every_node(grown: Grown) -> None:
    with saved(grown) as (folder, path):
        cut = cut_model(path, folder / "cut", grouped=False, feeds=grown.feeds())
        assert len(cut.partitions) == max(1, len(cut.graph.legal_borders()) + 1)
        check_cut(cut, grown, path)


def check_some_layers(grown: Grown, borders: Callable[[CutGraph], Sequence[int]]) -> None:
    with saved(grown) as (folder, path):
        check_cut(cut_model(path, folder / "cut", borders, feeds=grown.feeds()), grown, path)


def check_two_parts(grown: Grown, most: int, choose: Choose) -> None:
    """Cut in two at each legal border, or at `most` of them."""
    with saved(grown) as (folder, path):
        staged, measured = stage(path, folder / "stage", "none", grown.feeds())
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused, grouped=bool(choose(2)))
        borders = graph.legal_borders()
        while len(borders) > most:
            del borders[choose(len(borders))]
        for border in borders:
            cut = emit_cut(staged, measured, graph, folder / f"plan{border}", [border])
            assert len(cut.partitions) == 2
            check_cut(cut, grown, path)


def check_optimized(grown: Grown, borders: Callable[[CutGraph], Sequence[int]], level: Optimization) -> None:
    """Parts of an optimized model give bit for bit what the optimized whole gives, and that is the model's answer."""
    with saved(grown) as (folder, path):
        cut = cut_model(path, folder / "cut", borders, grouped=False, optimization=level, feeds=grown.feeds())
        staged = onnx.load(cut.staged.path, load_external_data=False).graph
        check_cover(
            staged, [onnx.load(cut.folder / part.file, load_external_data=False).graph for part in cut.partitions]
        )
        runs = []
        for _, feeds in requests(grown, path):
            expected, actual = answer_of(cut.staged.path, feeds), cut.run(feeds)
            assert all(is_equal(value, actual[name]) for name, value in expected.items())
            runs.append(actual)
        check_open_dims(cut, runs)
        check_noise(grown, path, runs[0])


def check_noise(grown: Grown, path: Path, answer: dict[str, Any]) -> None:
    """The answer differs from the plain model's by no more than onnxruntime's own optimizations move it."""
    feeds = grown.feeds()
    plain = answer_of(path, feeds)
    optimized = answer_of(with_fixed_weights(path), feeds, optimized=True)
    for name, value in plain.items():
        noise = gap(value, optimized[name])
        assert gap(value, answer[name]) <= max(1e-4, 2 * noise), name


def check_runner(grown: Grown, level: Optimization, cuts: tuple[str, ...]) -> None:
    """The product's own way: compiled, then run by its runner, exact and as fast as it can."""
    with saved(grown) as (folder, path):
        options = Options(request=Request(cuts=cuts), optimization=level, feeds=grown.feeds(), verify=False)
        compile_model(path, folder / "plan", options)
        staged, _ = stage(path, folder / "stage", level, grown.feeds())
        with LocalRunner(folder / "plan", exact=True, threads=1) as parts:
            for _, feeds in requests(grown, path):
                expected, actual = answer_of(staged.path, feeds), parts.run(feeds)
                for name, value in expected.items():
                    close = level == "none" and name in grown.rounded
                    assert gap(value, actual[name]) <= 1e-2 if close else is_equal(value, actual[name]), name
        with LocalRunner(folder / "plan", threads=1) as parts:
            answer = parts.run(grown.feeds())
        if not grown.rounded:
            check_noise(grown, path, answer)


def check_shards(grown: Grown, choose: Choose) -> None:
    """Slice any dense layer into any number of shards; then cut there and at every other layer."""
    with saved(grown) as (folder, path):
        staged, measured = stage(path, folder / "stage", "none", grown.feeds())
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
        layers = [(layer.name, find_dense(layer)) for layer in graph.layers]
        dense = [(layer, found) for layer, found in layers if isinstance(found, DenseLayer)]
        assume(bool(dense))
        layer, found = dense[choose(len(dense))]
        count = 2 + choose(min(found.rows, 120) - 1)
        fused = staged.fused - {str(value.name) for value in found.product.inputs if value is not None}
        SliceDense(layer, count).apply(staged.model, found, measured.sizes)
        graph = build_cut_graph(staged.model, measured.sizes, fused=fused)
        borders = graph.legal_borders() if choose(2) else shard_borders(graph)
        cut = emit_cut(staged, measured, graph, folder / "plan", borders)
        shards = [part.shard for part in cut.partitions if part.shard]
        assert [shard.index for shard in shards] == list(range(count))
        tiled = [row for shard in shards for row in range(*shard.range)]
        assert tiled == list(range(found.rows))
        check_answers(cut, grown, path, 1e-5)


# the tests


@FEW
@given(grown_models())
def test_every_node_a_partition(grown: Grown) -> None:
    check_every_node(grown)


@FEW
@given(grown_models(), st.data())
def test_any_borders_between_layers(grown: Grown, data: st.DataObject) -> None:
    check_some_layers(grown, some_borders(data))


@FEW
@given(grown_models())
def test_every_layer_a_partition(grown: Grown) -> None:
    check_some_layers(grown, CutGraph.legal_borders)


@FEW
@given(grown_models(), st.data())
def test_two_parts_at_any_border(grown: Grown, data: st.DataObject) -> None:
    check_two_parts(grown, 3, lambda count: data.draw(st.integers(0, count - 1)))


@FEW
@given(grown_models(), st.data(), st.sampled_from(["portable", "native"]))
def test_cuts_of_optimized_models(grown: Grown, data: st.DataObject, level: Optimization) -> None:
    check_optimized(grown, some_borders(data), level)


@FEW
@given(grown_models(), st.sampled_from(["portable", "native"]))
def test_every_node_of_optimized_models(grown: Grown, level: Optimization) -> None:
    check_optimized(grown, CutGraph.legal_borders, level)


@FEW
@given(grown_models(), st.sampled_from(LEVELS), st.sampled_from(["all", "pooling", "bottleneck"]))
def test_the_products_own_runner(grown: Grown, level: Optimization, cut: str) -> None:
    check_runner(grown, level, (cut,))


@FEW
@given(grown_models(), st.data())
def test_shards_of_any_dense_layer(grown: Grown, data: st.DataObject) -> None:
    check_shards(grown, lambda count: data.draw(st.integers(0, count - 1)))


def test_a_value_that_is_no_tensor_may_be_an_output_twice(tmp_path: Path) -> None:
    node = onnx.helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    model = model_of([node], [floats("x", 2, 3)], [onnx.ValueInfoProto(name="z")] * 2)
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    path = save(model, tmp_path / "model.onnx")
    feeds = {"x": np.ones((2, 3), dtype=np.float32)}
    cut = cut_model(path, tmp_path / "cut", feeds=feeds)
    assert is_equal(answer_of(path, feeds)["z"], cut.run(feeds)["z"])


def test_a_product_that_cannot_be_taken_out_is_refused(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("SequenceConstruct", ["x"], ["list"]),
        onnx.helper.make_node("SequenceAt", ["list", "zero"], ["first"]),
        onnx.helper.make_node("MatMul", ["first", "w"], ["y"]),
        onnx.helper.make_node("SequenceInsert", ["list", "y"], ["longer"]),
        onnx.helper.make_node("ConcatFromSequence", ["longer"], ["z"], axis=1),
    ]
    weights = {"zero": np.array(0), "w": np.ones((12, 40), dtype=np.float32)}
    path = save(model_of(nodes, [floats("x", "N", 12)], [floats("z", "N", None)], weights), tmp_path / "model.onnx")
    with pytest.raises(InfeasibleError):
        compile_model(path, tmp_path / "plan", Options(request=Request(max_params=200), optimization="none"))


@settings(FEW, max_examples=15)
@given(st.integers(0, 500))
def test_a_given_default_is_used_or_refused(seed: int) -> None:
    """An initializer that is an input may be overridden by a request: never is the given value just ignored."""
    grown = grow(chooser(seed), steps=6, opset=OPSETS[seed % len(OPSETS)])
    weights = {t.name: t for t in grown.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    names = [value.name for value in grown.model.graph.input if value.name in weights]
    assume(bool(names) and grown.model.ir_version >= 4)
    with saved(grown) as (folder, path):
        options = Options(request=Request(cuts=("all",)), optimization="none", feeds=grown.feeds(), verify=False)
        compile_model(path, folder / "plan", options)
        feeds = {**grown.feeds(), names[0]: np.full(list(weights[names[0]].dims), 0.75, dtype=np.float32)}
        with LocalRunner(folder / "plan", exact=True, threads=1) as parts:
            if names[0] not in {given.name for given in parts.inputs}:
                with pytest.raises(TensorError, match=f"no input `{names[0]}`"):
                    parts.run(feeds)
                return
            answer = parts.run(feeds)
        assert all(is_equal(value, answer[name]) for name, value in answer_of(path, feeds).items())


@pytest.mark.slow
@MANY
@given(grown_models(), st.data(), st.sampled_from(["portable", "native"]))
def test_all_of_it_with_many_more_examples(grown: Grown, data: st.DataObject, level: Optimization) -> None:
    choose: Choose = lambda count: data.draw(st.integers(0, count - 1))  # noqa: E731
    check_every_node(grown)
    check_some_layers(grown, some_borders(data))
    check_two_parts(grown, 12, choose)
    check_optimized(grown, some_borders(data), level)
    check_runner(grown, level, ("all",))
    check_shards(grown, choose)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_large_random_models(seed: int) -> None:
    choose = chooser(seed)
    grown = grow(choose, steps=40, opset=OPSETS[seed % len(OPSETS)], recipes=RECIPES)
    with TemporaryDirectory() as folder:
        if not is_accepted(grown, grown.save(Path(folder))):
            pytest.skip("onnxruntime refuses this model")
    check_every_node(grown)
    check_some_layers(grown, lambda graph: [border for border in graph.legal_borders() if choose(2)])
    check_two_parts(grown, 1000, choose)
    check_optimized(grown, CutGraph.legal_borders, LEVELS[1 + seed % 2])
    check_runner(grown, LEVELS[seed % 3], ("all",))
