"""What real models contain and small examples do not: each compiled at every level, run as a user runs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import FunctionProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

import hyps
from conformance.answers import distance, is_same
from cut_fixtures import plain_session
from hyps.formats.plan import Optimization
from hyps_compiler import compile as compile_plan
from hyps_compiler.verification import verify_folder

LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6)).astype(np.float32)


def floats(name: str, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight(name: str, *shape: int, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array((3 * RNG.standard_normal(shape)).astype(dtype), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    *,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[FunctionProto] = (),
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(*pair) for pair in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def answers(model: ModelProto, feeds: Mapping[str, Any], folder: Path, level: Optimization) -> tuple[Any, Any]:
    """Return what onnxruntime answers by default, and what a verified plan of the model does."""
    onnx.save(model, folder / "model.onnx")
    whole = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"]).run(None, dict(feeds))
    compile_plan(folder / "model.onnx", folder / "plan", optimize=level, cut="all", inputs=feeds)
    session = hyps.InferenceSession(folder / "plan")
    assert [output.name for output in session.get_outputs()] == [output.name for output in model.graph.output]
    assert verify_folder(folder / "plan", str(folder / "model.onnx"), feeds, 1).difference() is None
    return whole, session.run(None, dict(feeds))


@pytest.mark.parametrize("level", LEVELS)
def test_outputs_may_stand_twice_or_be_weights_or_inputs(level: Optimization, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    outputs = [floats(name, 2 if name != "w" else 6, 6) for name in "a y a w w x x y".split()]
    model = model_of(nodes, [floats("x", 2, 6)], outputs, [weight("w", 6, 6)])
    whole, parts = answers(model, {"x": X}, tmp_path, level)
    assert len(parts) == 8
    assert all(map(is_same, whole, parts))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_sparse_weights(level: Optimization, coordinates: bool, where: str, tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([2.0, -1.0, 3.0], np.float32), "w")
    positions = np.array([[0, 1], [3, 5], [5, 0]]) if coordinates else np.array([1, 23, 30])
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(positions, "w.indices"), [6, 6])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    if where == "attribute":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    model = model_of(nodes, [floats("x", 2, 6)], [floats("y", 2, 6)])
    if where == "initializer":
        model.graph.sparse_initializer.append(sparse)
    (whole,), (parts,) = answers(model, {"x": X}, tmp_path, level)
    assert distance(whole, parts) <= 1e-6
    assert np.abs(parts).max() > 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_map_as_output_and_one_as_input(level: Optimization, tmp_path: Path) -> None:
    """As scikit-learn's classifiers have them."""
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    nodes = [
        helper.make_node("DictVectorizer", ["m"], ["v"], domain="ai.onnx.ml", string_vocabulary=["b", "a", "c"]),
        helper.make_node("MatMul", ["v", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_strings=["no", "yes"]),
    ]
    outputs = [ValueInfoProto(name="z")]
    model = model_of(
        nodes, [helper.make_value_info("m", kind)], outputs, [weight("w", 3, 2)], domains={"ai.onnx.ml": 1}
    )
    (whole,), (parts,) = answers(model, {"m": {"a": 0.5, "c": -2.0}}, tmp_path, level)
    assert is_same(whole, parts)
    assert set(parts[0]) == {"no", "yes"}


@pytest.mark.parametrize("level", LEVELS)
def test_sequences_and_optional_values_come_in_and_go_out(level: Optimization, tmp_path: Path) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    sequence = helper.make_sequence_type_proto(element)
    nodes = [
        helper.make_node("OptionalHasElement", ["o"], ["there"]),
        helper.make_node("SequenceInsert", ["q", "x"], ["longer"]),
        helper.make_node("ConcatFromSequence", ["longer"], ["joined"], axis=0),
        helper.make_node("MatMul", ["joined", "w"], ["y"]),
    ]
    inputs = [
        floats("x", 2, 6),
        helper.make_value_info("q", sequence),
        helper.make_value_info("o", helper.make_optional_type_proto(element)),
    ]
    there = helper.make_tensor_value_info("there", TensorProto.BOOL, [])
    outputs = [there, helper.make_value_info("longer", sequence), floats("y", "n", 3)]
    model = model_of(nodes, inputs, outputs, [weight("w", 6, 3)])
    for optional in (None, np.ones(1, np.float32)):
        folder = tmp_path / str(optional is None)
        folder.mkdir()
        whole, parts = answers(model, {"x": X, "q": [X, X[:1]], "o": optional}, folder, level)
        assert parts[0] == (optional is not None)
        assert is_same(whole[1], parts[1])
        assert distance(whole[2], parts[2]) <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_strings_cross_borders(level: Optimization, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("StringNormalizer", ["t"], ["l"], case_change_action="LOWER", locale="C"),
        helper.make_node("Gather", ["l", "order"], ["g"]),
        helper.make_node("StringConcat", ["g", "g"], ["y"]),
    ]
    texts = [helper.make_tensor_value_info(name, TensorProto.STRING, [3]) for name in "ty"]
    order = numpy_helper.from_array(np.array([2, 0, 1]), "order")
    (whole,), (parts,) = answers(
        model_of(nodes, texts[:1], texts[1:], [order]), {"t": np.array(["A", "bC", ""], object)}, tmp_path, level
    )
    assert parts.tolist() == whole.tolist() == ["", "aa", "bcbc"]


def test_functions_within_functions_with_attributes_passed_down(tmp_path: Path) -> None:
    """181 of them, as an exporter of PyTorch writes one for each module."""
    domain, functions = "pkg.torch", []
    leak = helper.make_node("LeakyRelu", ["a"], ["b"])
    leak.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    functions.append(helper.make_function(domain, "f0", ["a"], ["b"], [leak], opsets, attributes=["slope"]))
    for index in range(1, 181):
        depth = index % 9  # of nesting; each calls the one before it, or starts anew
        inner = helper.make_node(f"f{index - 1 if depth else 0}", ["a"], ["h"], domain=domain)
        inner.attribute.add(name="slope", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
        body = [inner, helper.make_node("Tanh", ["h"], ["b"])]
        functions.append(helper.make_function(domain, f"f{index}", ["a"], ["b"], body, opsets, attributes=["slope"]))
    nodes = [
        helper.make_node(f"f{i}", ["x" if i == 0 else f"v{i - 1}"], [f"v{i}"], domain=domain, slope=0.5 + i / 1000)
        for i in range(181)
    ]
    model = model_of(nodes, [floats("x", 2, 6)], [floats("v180", 2, 6)], domains={domain: 1}, functions=functions)
    (whole,), (parts,) = answers(model, {"x": X}, tmp_path, "portable")
    assert distance(whole, parts) <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_weights_that_a_request_may_override_are_not_computed_with_less_accuracy(
    level: Optimization, tmp_path: Path
) -> None:
    """Where they are constants, onnxruntime fuses them into a kernel that quantizes the other factor too."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    w = numpy_helper.from_array(RNG.integers(-128, 127, (32, 48), np.int8), "w")
    s = numpy_helper.from_array(RNG.random(48).astype(np.float32), "s")
    z = numpy_helper.from_array(np.zeros(48, np.int8), "z")
    model = model_of(nodes, [floats("x", 4, 32)], [floats("y", 4, 48)], [w, s, z])
    for tensor in (w, s, z):
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    x = RNG.standard_normal((4, 32)).astype(np.float32)
    (whole,), (parts,) = answers(model, {"x": x}, tmp_path, level)
    assert distance(whole, parts) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
def test_random_numbers_with_a_seed_are_those_of_the_whole_and_are_drawn_once(
    level: Optimization, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], seed=7.0),
        helper.make_node("MatMul", ["r", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
        helper.make_node("Sub", ["r", "x"], ["z"]),
    ]
    outputs = [floats("r", 2, 6), floats("y", 2, 6), floats("z", 2, 6)]
    onnx.save(model_of(nodes, [floats("x", 2, 6)], outputs, [weight("w", 6, 6)]), tmp_path / "m.onnx")
    plan = compile_plan(tmp_path / "m.onnx", tmp_path / "plan", optimize=level, cut="all")
    assert len(plan.partitions) > 2
    whole = plain_session(tmp_path / "m.onnx").run(None, {"x": X})
    drawn, product, rest = hyps.InferenceSession(tmp_path / "plan").run(None, {"x": X})
    assert is_same(drawn, whole[0])
    assert distance(whole[1], product) <= 1e-5
    assert is_same(rest, drawn - X)


@pytest.mark.parametrize("level", LEVELS)
def test_a_cache_that_goes_round(level: Optimization, tmp_path: Path) -> None:
    """Past and present with a length of its own; the plan takes what it gave, as long as it grows."""
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["present"], axis=0),
        helper.make_node("MatMul", ["present", "w"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0),
    ]
    inputs, outputs = [floats("x", "new", 6), floats("past", "old", 6)], [floats("y"), floats("present", "all", 6)]
    model = model_of(nodes, inputs, outputs, [weight("w", 6, 6)])
    onnx.save(model, tmp_path / "m.onnx")
    compile_plan(tmp_path / "m.onnx", tmp_path / "plan", optimize=level, cut="all")
    session, whole = hyps.InferenceSession(tmp_path / "plan"), plain_session(tmp_path / "m.onnx", optimized=True)
    cache = np.zeros((0, 6), np.float32)
    for count in (1, 2, 3):
        feeds = {"x": X[:count], "past": cache}
        y, cache = session.run(None, feeds)
        expected, present = whole.run(None, feeds)
        assert is_same(present, cache)
        assert distance(expected, y) <= 1e-5
    assert cache.shape == (5, 6)
