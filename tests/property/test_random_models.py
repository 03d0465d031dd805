"""Truths about cutting, over random models; the oracle is onnxruntime on the whole model."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

from cut_fixtures import Cut, Feeds, cut_model, distance, emit_cut, is_same, plain_session, stage, whole_answer
from hyps.formats.plan import Optimization
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import DenseLayer, SliceDense, find_dense
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import BATCH, RECIPES, Grown, chooser, grow, operators, passes_checker, save

OPSETS = (11, 13, 17, 21)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=500)


@st.composite
def grown_models(draw: st.DrawFn) -> Grown:
    """Draw a random model."""
    opset = draw(st.sampled_from(OPSETS))
    return grow(lambda count: draw(st.integers(0, count - 1)), steps=draw(st.integers(1, 14)), opset=opset)


def some_borders(data: st.DataObject) -> Callable[[CutGraph], Sequence[int]]:
    return lambda graph: [border for border in graph.legal_borders() if data.draw(st.booleans(), f"cut {border}")]


# what must hold of every cut


def check_cut(cut: Cut, grown: Grown) -> None:
    """Check all that can be seen in the files, then what they compute."""
    files = [onnx.load(cut.folder / part.file, load_external_data=False) for part in cut.partitions]
    staged = onnx.load(cut.staged.path, load_external_data=False)
    check_cover(staged.graph, [file.graph for file in files])
    check_dataflow(cut, [file.graph for file in files], staged.graph)
    check_weights(cut, files)
    for part, file in zip(cut.partitions, files, strict=True) if passes_checker(grown.model) else ():
        if has_ranks(file.graph):
            onnx.checker.check_model(str(cut.folder / part.file), full_check=True)
    check_answers(cut, grown)


def check_cover(whole: GraphProto, parts: Sequence[GraphProto]) -> None:
    """Every node is in one partition; those that compute from weights alone in each that needs them."""
    constants = constant_outputs(whole)
    nodes = {output_name(node): node for node in whole.node}
    found = Counter(output_name(node) for part in parts for node in part.node)
    assert set(found) <= set(nodes)
    assert all(found[name] == 1 for name in nodes if name not in constants)
    for part in parts:
        read = {name for node in part.node for name in reads(node)} | {value.name for value in part.output}
        assert all(read & set(node.output) for node in part.node if output_name(node) in constants)
        assert all(nodes[output_name(node)].op_type == node.op_type for node in part.node)


def check_dataflow(cut: Cut, parts: Sequence[GraphProto], whole: GraphProto) -> None:
    """A partition takes just what it reads and gives just what others read, and what it takes was made before it."""
    wanted = {value.name for value in whole.output}
    known = {value.name for value in whole.input}
    all_reads = [{name for node in part.node for name in reads(node)} for part in parts]
    for index, (part, plan) in enumerate(zip(parts, cut.partitions, strict=True)):
        made = {name for node in part.node for name in node.output if name}
        weights = {tensor.name for tensor in part.initializer}
        elsewhere = set().union(*(names for other, names in enumerate(all_reads) if other != index)) | wanted
        local = {name for node in part.node if output_name(node) in constant_outputs(whole) for name in node.output}
        assert set(plan.inputs) == all_reads[index] - made - weights
        assert set(plan.outputs) == (made & elsewhere) - (local - wanted)
        assert set(plan.inputs) <= known
        assert not set(plan.outputs) & known
        assert [value.name for value in part.input] == list(plan.inputs)
        assert weights <= all_reads[index]
        known.update(plan.outputs)
    assert wanted <= known


def check_weights(cut: Cut, files: Sequence[ModelProto]) -> None:
    """Each partition has its own weights and no others, bit for bit; together they are the model's."""
    whole = onnx.load(cut.staged.path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    found: dict[str, Any] = {}
    for file, part in zip(files, cut.partitions, strict=True):
        loaded = onnx.load(cut.folder / part.file)
        mine = {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
        assert sum(value.nbytes for value in mine.values()) == part.weight_bytes
        assert {tensor.name for tensor in file.graph.initializer} == set(mine)
        found.update(mine)
    assert set(found) == set(values)
    assert all(is_same(value, found[name]) for name, value in values.items())


def check_answers(cut: Cut, grown: Grown, tolerance: float = 0.0) -> None:
    """The partitions compute what the whole computes, for other batch sizes too, and their shapes stay open."""
    is_open = any(BATCH in tensor.shape for tensor in grown.inputs)
    shapes: list[dict[str, tuple[int, ...]]] = []
    for batch in (2, 3) if is_open else (2,):
        feeds = grown.feeds(batch)
        expected, actual = whole_answer(grown.model.SerializeToString(), feeds), cut.run(feeds)
        for name, value in expected.items():
            assert is_same(value, actual[name]) if not tolerance else distance(value, actual[name]) <= tolerance, name
        shapes.append({name: value.shape for name, value in actual.items()})
    for part in cut.partitions if is_open else ():
        session = plain_session(cut.folder / part.file)
        for info in (*session.get_inputs(), *session.get_outputs()):
            sizes = zip(info.shape, shapes[0][info.name], shapes[1][info.name], strict=bool(info.shape))
            assert not any(isinstance(dim, int) and small != large for dim, small, large in sizes), info.name


def has_ranks(graph: GraphProto) -> bool:
    """Return whether all ranks are known; some depend on the request, which ONNX has no words for."""
    return all(value.type.tensor_type.HasField("shape") for value in (*graph.input, *graph.output))


def output_name(node: NodeProto) -> str:
    return next(name for name in node.output if name)


def reads(node: NodeProto) -> set[str]:
    """Return all outer names that the node reads, nested graphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= free_names(attribute.g)
    return names


def free_names(graph: GraphProto) -> set[str]:
    bound = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    free: set[str] = set()
    for node in graph.node:
        free |= reads(node) - bound
        bound |= set(node.output)
    return free | ({value.name for value in graph.output} - bound)


def constant_outputs(graph: GraphProto) -> set[str]:
    """Return the first output names of nodes that compute from weights alone."""
    fixed = {tensor.name for tensor in graph.initializer}
    wanted = {value.name for value in graph.output}
    found = set()
    for node in graph.node:
        if reads(node) <= fixed and not set(node.output) & wanted:
            fixed |= set(node.output)
            found.add(output_name(node))
    return found


# the tests


def cut_at_every_node(grown: Grown, folder: Path) -> Cut:
    return cut_model(save(grown.model, folder / "model.onnx"), folder / "cut", grouped=False, feeds=grown.feeds())


def check_every_node(grown: Grown) -> None:
    with TemporaryDirectory() as folder:
        cut = cut_at_every_node(grown, Path(folder))
        assert len(cut.partitions) == len(cut.graph.layers)
        check_cut(cut, grown)


def check_some_layers(grown: Grown, borders: Callable[[CutGraph], Sequence[int]]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = save(grown.model, folder / "model.onnx")
        check_cut(cut_model(path, folder / "cut", borders, feeds=grown.feeds()), grown)


def check_optimized(grown: Grown, borders: Callable[[CutGraph], Sequence[int]], level: Optimization) -> None:
    """Parts of an optimized model give bit for bit what the optimized whole gives."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = save(grown.model, folder / "model.onnx")
        cut = cut_model(path, folder / "cut", borders, optimization=level, feeds=grown.feeds())
        staged = onnx.load(cut.staged.path, load_external_data=False).graph
        check_cover(staged, [onnx.load(cut.folder / part.file).graph for part in cut.partitions])
        expected, actual = whole_answer(cut.staged.path, grown.feeds()), cut.run(grown.feeds())
        assert all(is_same(value, actual[name]) for name, value in expected.items())
        plain = whole_answer(path, grown.feeds())
        assert all(distance(value, actual[name]) < 1e-3 for name, value in plain.items())


def check_shards(grown: Grown, choose: Callable[[int], int]) -> None:
    """Slice any dense layer into any number of shards; then cut there and at every other layer."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        staged, measured = stage(save(grown.model, folder / "model.onnx"), folder / "stage", "none", grown.feeds())
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
        layers = [(layer.name, find_dense(layer)) for layer in graph.layers]
        dense = [(layer, found) for layer, found in layers if isinstance(found, DenseLayer)]
        assume(bool(dense))
        layer, found = dense[choose(len(dense))]
        count = 2 + choose(found.rows - 1)
        fused = staged.fused - {str(value.name) for value in found.product.inputs if value is not None}
        SliceDense(layer, count).apply(staged.model, found, measured.sizes)
        graph = build_cut_graph(staged.model, measured.sizes, fused=fused)
        borders = graph.legal_borders() if choose(2) else shard_borders(graph)
        cut = emit_cut(staged, measured, graph, folder / "plan", borders)
        shards = [part.shard for part in cut.partitions if part.shard]
        assert [shard.index for shard in shards] == list(range(count))
        tiled = [row for shard in shards for row in range(*shard.range)]
        assert tiled == list(range(found.rows))
        check_answers(cut, grown, 1e-5)


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
@given(grown_models(), st.data(), st.sampled_from(["portable", "native"]))
def test_cuts_of_optimized_models(grown: Grown, data: st.DataObject, level: Optimization) -> None:
    check_optimized(grown, some_borders(data), level)


@FEW
@given(grown_models(), st.data())
def test_shards_of_any_dense_layer(grown: Grown, data: st.DataObject) -> None:
    check_shards(grown, lambda count: data.draw(st.integers(0, count - 1)))


@pytest.mark.slow
@MANY
@given(grown_models(), st.data(), st.sampled_from(["portable", "native"]))
def test_all_of_it_with_many_more_examples(grown: Grown, data: st.DataObject, level: Optimization) -> None:
    check_every_node(grown)
    check_some_layers(grown, some_borders(data))
    check_optimized(grown, some_borders(data), level)
    check_shards(grown, lambda count: data.draw(st.integers(0, count - 1)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_large_random_models(seed: int) -> None:
    choose = chooser(seed)
    grown = grow(choose, steps=40, opset=OPSETS[seed % 4])
    check_every_node(grown)
    check_some_layers(grown, lambda graph: [border for border in graph.legal_borders() if choose(2)])
    check_optimized(grown, CutGraph.legal_borders, "portable")


def test_the_generator_reaches_all_it_is_for() -> None:
    """What the properties above hold of: at least these operators, and every oddity of real models."""
    models = [grow(chooser(seed), steps=14, opset=OPSETS[seed % 4]) for seed in range(100)]
    reached = set().union(*(operators(grown.model) for grown in models))
    wanted = """
        Add AveragePool BatchNormalization Cast Clip Concat Conv DequantizeLinear Erf Flatten Gather Gemm
        GlobalAveragePool HardSigmoid If LSTM LeakyRelu Loop MatMul MaxPool Mul QuantizeLinear ReduceMean Relu Reshape
        Scan Shape Sigmoid Softmax Split SplitToSequence Tanh TopK Transpose Unsqueeze Where
    """
    assert set(wanted.split()) <= reached
    assert {recipe for grown in models for recipe in grown.recipes} == set(RECIPES)
    assert len({oddity for grown in models for oddity in grown.oddities}) == 4
    assert {grown.model.ir_version for grown in models} == {3, 4, 8}


def test_onnxruntime_takes_what_the_generator_makes() -> None:
    for seed in range(60):
        grown = grow(chooser(seed), steps=14, opset=OPSETS[seed % 4])
        plain_session(grown.model.SerializeToString(), optimized=True).run(None, grown.feeds())


def test_feeds_depend_on_the_batch() -> None:
    grown = next(made for made in (grow(chooser(seed), steps=3) for seed in range(9)) if BATCH in made.inputs[0].shape)
    feeds: list[Feeds] = [grown.feeds(batch) for batch in (2, 3)]
    assert [made["input0"].shape[0] for made in feeds] == [2, 3]
