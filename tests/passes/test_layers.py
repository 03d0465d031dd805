"""What belongs together stays together, and not everything does."""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import hyps_models
from cut_fixtures import Array, stage
from hyps.formats.plan import Optimization
from hyps_passes.graph import CutGraph
from hyps_passes.layers import CUT, build_cut_graph, captured_values, constant_nodes
from hyps_passes.rewrites.normalize import normalize
from model_fixtures import floats, model_of, save

RNG = np.random.default_rng(0)
SHARED = Path(os.environ.get("HYPS_SHARED", Path(__file__).parents[2].parent / "shared")) / "models"


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def graph_of(model: ModelProto, folder: Path, level: Optimization = "none", *, grouped: bool = True) -> CutGraph:
    staged, measured = stage(save(model, folder / "model.onnx"), folder / "stage", level)
    return build_cut_graph(staged.model, measured.sizes, fused=staged.fused, grouped=grouped)


def kinds(graph: CutGraph) -> list[str]:
    """Return the operators of each layer."""
    return ["+".join(n.op_type for n in layer.nodes) for layer in graph.layers]


def image_model(nodes: Sequence[NodeProto], values: dict[str, Array], *outputs: str) -> ModelProto:
    return model_of(nodes, [floats("x", "N", 4, 8, 8)], [floats(name, *[None] * 4) for name in outputs], values)


def conv(source: str, output: str, weight: str = "k") -> NodeProto:
    return node("Conv", f"{source} {weight}", output, pads=[1, 1, 1, 1])


KERNELS = weights(k=(4, 4, 3, 3), s=(4,), b=(4,), m=(4,))
KERNELS["v"] = np.ones(4, np.float32)


def test_convolution_normalisation_residual_and_activation(tmp_path: Path) -> None:
    nodes = [
        conv("x", "c1"),
        node("BatchNormalization", "c1 s b m v", "n1"),
        node("Relu", "n1", "r1"),
        conv("r1", "c2"),
        node("BatchNormalization", "c2 s b m v", "n2"),
        node("Add", "n2 x", "a"),
        node("Relu", "a", "y"),
    ]
    graph = graph_of(image_model(nodes, KERNELS, "y"), tmp_path)
    assert kinds(graph) == ["Conv+BatchNormalization+Relu", "Conv+BatchNormalization+Add+Relu"]


def test_a_residual_sum_goes_with_the_latest_layer_that_feeds_it(tmp_path: Path) -> None:
    nodes = [conv("x", "c1"), conv("x", "c2"), conv("c2", "c3"), node("Add", "c1 c3", "y")]
    assert kinds(graph_of(image_model(nodes, KERNELS, "y"), tmp_path)) == ["Conv", "Conv", "Conv+Add"]


@pytest.mark.parametrize("form", ["x * clip(x + 3) / 6", "HardSigmoid", "HardSwish"])
def test_hard_swish(form: str, tmp_path: Path) -> None:
    values = {**KERNELS, **{n: np.array(v, np.float32) for n, v in {"three": 3, "zero": 0, "six": 6}.items()}}
    tails = {
        "x * clip(x + 3) / 6": [
            node("Add", "c three", "a"),
            node("Clip", "a zero six", "l"),
            node("Mul", "c l", "p"),
            node("Div", "p six", "y"),
        ],
        "HardSigmoid": [node("HardSigmoid", "c", "h"), node("Mul", "c h", "y")],
        "HardSwish": [node("HardSwish", "c", "y")],
    }
    nodes = [conv("x", "c"), *tails[form], conv("y", "z")]
    assert len(graph_of(image_model(nodes, values, "z"), tmp_path).layers) == 2


def test_squeeze_and_excite(tmp_path: Path) -> None:
    values = {**KERNELS, **weights(k1=(2, 4, 1, 1), k2=(4, 2, 1, 1))}
    nodes = [
        conv("x", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Conv", "p k1", "e1"),
        node("Relu", "e1", "r"),
        node("Conv", "r k2", "e2"),
        node("Sigmoid", "e2", "g"),
        node("Mul", "c g", "y"),
    ]
    graph = graph_of(image_model(nodes, values, "y"), tmp_path)
    assert kinds(graph) == ["Conv", "GlobalAveragePool", "Conv+Relu", "Conv+Sigmoid+Mul"]


def test_layers_that_would_need_each_other_stay_apart(tmp_path: Path) -> None:
    """The product cannot go with the convolution: the pooling between them is a layer of its own."""
    nodes = [conv("x", "c"), node("GlobalAveragePool", "c", "p"), node("Mul", "c p", "y")]
    graph = graph_of(image_model(nodes, KERNELS, "y"), tmp_path)
    assert kinds(graph) == ["Conv", "GlobalAveragePool", "Mul"]


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"])
def test_pooling_is_a_layer_of_its_own(pool: str, tmp_path: Path) -> None:
    how = {} if pool.startswith("Global") else {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        conv("x", "c"),
        node(pool, "c", "p", **how),
        node("Relu", "p", "r"),
        node("Transpose", "r", "t"),
        node("Flatten", "t", "f"),
    ]
    graph = graph_of(model_of(nodes, [floats("x", 1, 4, 8, 8)], [floats("f", None, None)], KERNELS), tmp_path)
    assert kinds(graph)[:2] == ["Conv", pool]
    assert graph.layers[1].downsampling == ("global pooling" if pool.startswith("Global") else "pooling")


def test_a_view_of_a_pooled_map_goes_with_the_layer_that_reads_it(tmp_path: Path) -> None:
    nodes = [
        conv("x", "c"),
        node("MaxPool", "c", "p", kernel_shape=[8, 8]),
        node("Flatten", "p", "f"),
        node("MatMul", "f w", "y"),
    ]
    graph = graph_of(image_model(nodes, {**KERNELS, **weights(w=(4, 3))}, "y"), tmp_path)
    assert kinds(graph) == ["Conv", "MaxPool", "Flatten+MatMul"]


def test_a_strided_convolution_is_told(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "c", strides=[2, 2]), node("Conv", "c k", "y", strides=[1, 1])]
    graph = graph_of(image_model(nodes, KERNELS, "y"), tmp_path)
    assert [layer.downsampling for layer in graph.layers] == ["strided convolution", None]


def test_channels_last_with_transposes(tmp_path: Path) -> None:
    there, back = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
    nodes = [
        node("Transpose", "x", "t0", **back),
        conv("t0", "c1"),
        node("Transpose", "c1", "t1", **there),
        node("Add", "t1 b", "a1"),
        node("Relu", "a1", "r1"),
        node("Transpose", "r1", "t2", **back),
        conv("t2", "c2"),
        node("Transpose", "c2", "y", **there),
    ]
    graph = graph_of(model_of(nodes, [floats("x", 1, 8, 8, 4)], [floats("y", *[None] * 4)], KERNELS), tmp_path)
    assert kinds(graph) == ["Transpose+Conv+Transpose+Add+Relu+Transpose", "Conv+Transpose"]


GELU = [
    node("Div", "h root", "g1"),
    node("Erf", "g1", "g2"),
    node("Add", "g2 one", "g3"),
    node("Mul", "h g3", "g4"),
    node("Mul", "g4 half", "g"),
]
LAYER_NORM = [
    node("ReduceMean", "g", "mean", axes=[-1]),
    node("Sub", "g mean", "gap"),
    node("Pow", "gap two", "square"),
    node("ReduceMean", "square", "variance", axes=[-1]),
    node("Add", "variance tiny", "stable"),
    node("Sqrt", "stable", "spread"),
    node("Div", "gap spread", "unit"),
    node("Mul", "unit scale", "scaled"),
    node("Add", "scaled shift", "n"),
]
SCALARS: dict[str, Array] = {
    name: np.array(value, np.float32)
    for name, value in {"root": 2**0.5, "one": 1, "half": 0.5, "two": 2, "tiny": 1e-5}.items()
}


def test_dense_layers_gelu_and_layer_norm(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w1", "m"),
        node("Add", "m b1", "h"),
        *GELU,
        *LAYER_NORM,
        node("MatMul", "n w2", "m2"),
        node("Add", "b2 m2", "a2"),
        node("Tanh", "a2", "y"),
    ]
    values = {**SCALARS, **weights(w1=(8, 16), b1=(16,), scale=(16,), shift=(16,), w2=(16, 4), b2=(4,))}
    graph = graph_of(model_of(nodes, [floats("x", "N", 3, 8)], [floats("y", "N", 3, 4)], values), tmp_path)
    assert kinds(graph) == [
        "MatMul+Add+Div+Erf+Add+Mul+Mul",
        "ReduceMean+Sub+Pow+ReduceMean+Add+Sqrt+Div+Mul+Add",
        "MatMul+Add+Tanh",
    ]


def quantized_model() -> ModelProto:
    """Return Q, then two groups DQ, Conv or MatMul, Relu, Q, then DQ."""
    nodes = [
        node("QuantizeLinear", "x s z", "q0"),
        node("DequantizeLinear", "q0 s z", "d0"),
        node("DequantizeLinear", "kq s kz", "kd"),
        conv("d0", "c", "kd"),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s z", "q1"),
        node("DequantizeLinear", "q1 s z", "d1"),
        conv("d1", "c2", "kd"),
        node("QuantizeLinear", "c2 s z", "q2"),
        node("DequantizeLinear", "q2 s z", "y"),
    ]
    values: dict[str, Array] = {
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "kz": np.array(0, np.int8),
        "kq": RNG.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8),
    }
    return image_model(nodes, values, "y")


def test_quantized_groups(tmp_path: Path) -> None:
    """What crosses is what is quantized; the weight's DequantizeLinear is copied into both."""
    graph = graph_of(quantized_model(), tmp_path)
    assert kinds(graph) == [
        "QuantizeLinear+DequantizeLinear+Conv+Relu+QuantizeLinear",
        "DequantizeLinear+Conv+QuantizeLinear+DequantizeLinear",
    ]
    assert [n.op_type for layer in graph.layers for n in layer.constants] == ["DequantizeLinear"] * 2
    crossing = [value.value.dtype for border in graph.borders for value in border]
    assert set(crossing) == {ir.DataType.UINT8}


def test_quantized_products_with_their_sums(tmp_path: Path) -> None:
    nodes = [
        node("QLinearMatMul", "x s z w s wz s z", "m"),
        node("QLinearAdd", "m s z b s z s z", "y", domain="com.microsoft"),
    ]
    values: dict[str, Array] = {
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "wz": np.array(0, np.int8),
        "w": RNG.integers(-9, 9, (8, 4)).astype(np.int8),
        "b": RNG.integers(0, 99, 4).astype(np.uint8),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, ["N", 4])]
    assert kinds(graph_of(model_of(nodes, inputs, outputs, values, contrib=True), tmp_path)) == [
        "QLinearMatMul+QLinearAdd"
    ]


def test_shape_arithmetic_goes_with_what_it_is_for(tmp_path: Path) -> None:
    nodes = [
        conv("x", "c"),
        node("Shape", "c", "shape"),
        node("Gather", "shape zero", "n"),
        node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 rest", "target", axis=0),
        node("Reshape", "c target", "flat"),
        node("MatMul", "flat w", "y"),
    ]
    values = {**KERNELS, **weights(w=(256, 3))}
    values |= {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    graph = graph_of(image_model(nodes, values, "y"), tmp_path)
    assert all(value.value.dtype == ir.DataType.FLOAT for border in graph.borders for value in border)
    assert len(graph.layers) <= 3


def test_recurrent_layers(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t w1 r1", "h1", hidden_size=4),
        node("Squeeze", "h1 axis", "s1"),
        node("LSTM", "s1 w2 r1", "h2", hidden_size=4),
        node("Squeeze", "h2 axis", "y"),
    ]
    values = {**weights(w1=(1, 16, 5), r1=(1, 16, 4), w2=(1, 16, 4)), "axis": np.array([1])}
    graph = graph_of(model_of(nodes, [floats("x", "N", 6, 5)], [floats("y", 6, "N", 4)], values), tmp_path)
    assert kinds(graph) == ["Transpose+LSTM+Squeeze", "LSTM+Squeeze"]


def test_values_that_cannot_travel_keep_their_users_together(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("SplitToSequence", "a", "parts", axis=1),
        node("Softmax", "a", "s"),
        node("ConcatFromSequence", "parts", "joined", axis=1),
        node("MatMul", "joined w", "m"),
        node("Add", "m s", "y"),
    ]
    model = model_of(nodes, [floats("x", "N", 4)], [floats("y", "N", 4)], weights(w=(4, 4)))
    for grouped in (True, False):
        (tmp_path / str(grouped)).mkdir()
        graph = graph_of(model, tmp_path / str(grouped), grouped=grouped)
        (home,) = (kind for kind in kinds(graph) if "SplitToSequence" in kind)
        assert "ConcatFromSequence" in home
        assert graph.legal_borders() == list(range(len(graph.layers) - 1))


def test_what_lies_between_nodes_that_a_sequence_ties_joins_them(tmp_path: Path) -> None:
    """A layer of its own it would need theirs, and theirs would need it."""
    nodes = [
        node("SequenceConstruct", "x", "first"),
        node("SequenceAt", "first zero", "a"),
        node("Softmax", "a", "s"),
        node("SequenceInsert", "first s", "second"),
        node("ConcatFromSequence", "second", "y", axis=0),
    ]
    model = model_of(nodes, [floats("x", "N", 4)], [floats("y", "M", 4)], {"zero": np.array(0)})
    for grouped in (True, False):
        (tmp_path / str(grouped)).mkdir()
        assert len(graph_of(model, tmp_path / str(grouped), grouped=grouped).layers) == 1


def test_ungrouped_every_node_is_a_layer(tmp_path: Path) -> None:
    graph = graph_of(quantized_model(), tmp_path, grouped=False)
    assert len(graph.layers) == 9
    assert all(len(layer.nodes) == 1 for layer in graph.layers)


def test_no_layer_reaches_over_a_value_at_which_the_user_cuts(tmp_path: Path) -> None:
    nodes = [
        conv("x", "c"),
        node("BatchNormalization", "c s b m v", "n"),
        node("Relu", "n", "r"),
        node("Add", "r n", "y"),
    ]
    model = image_model(nodes, KERNELS, "y")
    staged, measured = stage(save(model, tmp_path / "model.onnx"), tmp_path / "stage")
    assert len(build_cut_graph(staged.model, measured.sizes, fused=staged.fused).layers) == 1
    for value in (value for made in staged.model.graph for value in made.outputs):
        if value.name == "n":
            value.meta[CUT] = True
    for twin in (staged.model, staged.model.clone()):
        graph = build_cut_graph(twin, measured.sizes, fused=staged.fused - {"n"})
        assert kinds(graph) == ["Conv+BatchNormalization", "Relu+Add"]


def test_random_numbers_are_drawn_once(tmp_path: Path) -> None:
    """A copy in each partition would draw others."""
    nodes = [
        node("RandomNormal", "", "noise", shape=[4]),
        node("Add", "x noise", "a"),
        node("MatMul", "a w", "m"),
        node("MatMul", "m w", "m2"),
        node("Add", "m2 noise", "y"),
    ]
    graph = graph_of(model_of(nodes, [floats("x", 2, 4)], [floats("y", 2, 4)], weights(w=(4, 4))), tmp_path)
    assert sum(kind.split("+").count("RandomNormal") for kind in kinds(graph)) == 1
    assert not any(layer.constants for layer in graph.layers)


def test_what_is_made_of_weights_alone_is_copied_where_it_is_used(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "w", "wt"),
        node("MatMul", "x wt", "m"),
        node("Softmax", "m", "s"),
        node("MatMul", "s wt", "y"),
    ]
    graph = graph_of(model_of(nodes, [floats("x", 2, 4)], [floats("y", 2, 4)], weights(w=(4, 4))), tmp_path)
    assert [[n.op_type for n in layer.constants] for layer in graph.layers] == [["Transpose"], [], ["Transpose"]]
    assert [layer.parameters for layer in graph.layers] == [16, 0, 16]
    assert [layer.constant_bytes for layer in graph.layers] == [64, 0, 64]


def test_a_node_of_weights_alone_that_makes_an_output_runs_once() -> None:
    nodes = [node("Transpose", "w", "wt"), node("MatMul", "x wt", "y")]
    model = model_of(nodes, [floats("x", 2, 4)], [floats("y", 2, 4), floats("wt", 4, 4)], weights(w=(4, 4)))
    assert constant_nodes(normalize(ir.from_proto(model)).graph) == set()


def test_captured_values_are_found_at_any_depth() -> None:
    def branch(name: str, *inner: NodeProto) -> Any:
        return helper.make_graph(list(inner), name, [], [helper.make_tensor_value_info(inner[-1].output[0], 1, None)])

    deepest = branch("deepest", node("Mul", "a b", "z"))
    middle = branch(
        "middle", node("Neg", "c", "local"), node("If", "k", "z2", then_branch=deepest, else_branch=deepest)
    )
    nodes = [
        *(node("Relu", "x", name) for name in "abcd"),
        node("ReduceMax", "x", "most", keepdims=0),
        node("Cast", "most", "k", to=TensorProto.BOOL),
        node("If", "k", "y", then_branch=middle, else_branch=branch("other", node("Abs", "d", "z3"))),
    ]
    model = normalize(ir.from_proto(model_of(nodes, [floats("x", 2)], [floats("y", None)])))
    (outer,) = (n for n in model.graph if n.op_type == "If")
    assert sorted(str(value.name) for value in captured_values(outer)) == ["a", "b", "d", "k"]  # c serves nobody


def test_a_branch_that_hands_on_an_outer_value_reads_it() -> None:
    passing = helper.make_graph([], "passing", [], [floats("a", 2)])
    negated = helper.make_graph([node("Neg", "b", "z")], "negated", [], [floats("z", 2)])
    nodes = [
        node("Relu", "x", "a"),
        node("Abs", "x", "b"),
        node("If", "c", "y", then_branch=passing, else_branch=negated),
    ]
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    (outer,) = (
        n
        for n in ir.from_proto(model_of(nodes, [floats("x", 2), condition], [floats("y", 2)])).graph
        if n.op_type == "If"
    )
    assert sorted(str(value.name) for value in captured_values(outer)) == ["a", "b"]


def test_what_a_loop_hands_its_body_is_not_captured() -> None:
    told = [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("k", 9, [])]
    inner = [node("Add", "h a", "h2"), node("Identity", "k", "k2")]
    kept = helper.make_tensor_value_info("k2", TensorProto.BOOL, [])
    body = helper.make_graph(inner, "body", [*told, floats("h", 2)], [kept, floats("h2", 2)])
    nodes = [node("Relu", "x", "a"), helper.make_node("Loop", ["m", "", "x"], ["y"], body=body)]
    trips = helper.make_tensor_value_info("m", TensorProto.INT64, [])
    graph = ir.from_proto(model_of(nodes, [floats("x", 2), trips], [floats("y", 2)])).graph
    (loop,) = (n for n in graph if n.op_type == "Loop")
    assert [str(value.name) for value in captured_values(loop)] == ["a"]


def test_layers_have_names_of_their_own(tmp_path: Path) -> None:
    nodes = [node("Softmax", "x", "a"), node("Softmax", "a", "b"), node("Softmax", "b", "y")]
    for made in nodes:
        made.name = ""
    graph = graph_of(model_of(nodes, [floats("x", 2, 4)], [floats("y", 2, 4)]), tmp_path)
    assert len({layer.name for layer in graph.layers}) == 3


def test_layers_keep_the_order_of_the_model(tmp_path: Path) -> None:
    nodes = [node("Softmax", f"{'x' if i % 2 else 'x2'}", f"y{i}", name=f"n{i}") for i in range(6)]
    outputs = [floats(f"y{i}", 2, 4) for i in range(6)]
    graph = graph_of(model_of(nodes, [floats("x", 2, 4), floats("x2", 2, 4)], outputs), tmp_path)
    assert [layer.name for layer in graph.layers] == [f"n{i}" for i in range(6)]


ZOO = {"digits": (5, 7), "encoder-small": (25, 34), "lstm": (4, 5), "mobilenetv2": (52, 56)}
LARGE_ZOO = {"alexnet": (11, 13), "densenet169": (240, 350), "googlenet": (75, 85), "resnet50": (54, 58)}


@pytest.mark.parametrize("level", ["none", "portable"])
@pytest.mark.parametrize("name", [*ZOO, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE_ZOO)])
def test_reference_models_have_sensible_layers(name: str, level: Optimization, tmp_path: Path) -> None:
    """Neither one giant layer nor a layer for every node, and nothing that onnxruntime fuses is cut."""
    hyps_models.save(name, tmp_path / "model.onnx")
    staged, measured = stage(tmp_path / "model.onnx", tmp_path / "stage", level)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    fewest, most = {**ZOO, **LARGE_ZOO}[name]
    assert fewest <= len(graph.layers) <= most
    assert max(len(layer.nodes) for layer in graph.layers) <= 8
    assert not {value.name for border in graph.borders for value in border} & staged.fused


SHARED_LAYERS = {
    "deeplabv3_dm05_nhwc": (55, 65),
    "fsmn_vad_online": (18, 25),
    "gpt2_tiny_random_kv": (30, 35),
    "micro_kws_qoperator": (11, 14),
    "ppocr_rec_crnn_lstm": (60, 75),
    "silero_vad_v6": (1, 1),  # all of it lies inside one If
    "squeezenet_fp16": (36, 42),
    "ultraface_rfb320_op9": (55, 70),
    "voicevox_intonation_loop": (12, 18),
    "voicevox_spectrogram_tf": (90, 115),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of shared models is not there")
@pytest.mark.parametrize("level", ["none", "portable"])
@pytest.mark.parametrize("name", SHARED_LAYERS)
def test_real_models_have_sensible_layers(name: str, level: Optimization, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("shared_inputs", SHARED / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries = json.loads((SHARED / "manifest.json").read_text())["models"]
    feeds = module.make_inputs(next(entry for entry in entries if entry["name"] == name))
    staged, measured = stage(SHARED / f"{name}.onnx", tmp_path / "stage", level, feeds)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    fewest, most = SHARED_LAYERS[name]
    assert fewest <= len(graph.layers) <= most
    assert max(len(layer.nodes) for layer in graph.layers) <= 20
