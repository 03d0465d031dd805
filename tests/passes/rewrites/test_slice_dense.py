"""Every operator and weight layout that can be sliced: the slices, cut out and run one by one, give the whole."""

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from cut_fixtures import Array, Cut, Feeds, distance, emit_cut, stage, whole_answer
from hyps.formats.plan import Optimization
from hyps_passes.graph import CutGraph, is_parameter
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import (
    DenseLayer,
    Refusal,
    SliceDense,
    find_dense,
    row_ranges,
)
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import floats, model_of, passes_checker, save

FLOAT, ROWS, DEPTH = TensorProto.FLOAT, 7, 8
CONTRIB = "com.microsoft"


def weight(*shape: int, scale: float = 0.3, seed: int = 0) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def whole_numbers(dtype: Any, low: int, high: int, *shape: int) -> Array:
    return np.random.default_rng(shape).integers(low, high, shape).astype(dtype)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), **attributes)


def dense_model(
    nodes: Sequence[NodeProto],
    weights: dict[str, Any],
    *,
    x: Sequence[int | str] = ("N", DEPTH),
    y: Sequence[int | str] = ("N", ROWS),
    x_type: int = FLOAT,
    y_type: int = FLOAT,
    opset: int = 17,
) -> ModelProto:
    """Return a model of the nodes from `x` to `y`, with those of the weights that they use."""
    used = {name for made in nodes for name in made.input}
    infos = [
        helper.make_tensor_value_info(name, kind, list(shape))
        for name, kind, shape in (("x", x_type, x), ("y", y_type, y))
    ]
    values = {name: np.asarray(value) for name, value in weights.items() if name in used}
    contrib = any(made.domain for made in nodes)
    return model_of(nodes, infos[:1], infos[1:], values, opset=opset, contrib=contrib)


def request(model: ModelProto) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 3 for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        made = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 200, shape)
        feeds[value.name] = made.astype(dtype)
    return feeds


def dense_layers(graph: CutGraph) -> list[tuple[str, DenseLayer]]:
    found = [(layer.name, find_dense(layer)) for layer in graph.layers if layer.shard is None]
    return [(name, dense) for name, dense in found if isinstance(dense, DenseLayer)]


def sliced(path: Path, folder: Path, count: int, level: Optimization, feeds: Feeds) -> tuple[Cut, DenseLayer, Any]:
    """Slice the first dense layer and cut the slices out; returns the staged model's own answer as well."""
    staged, measured = stage(path, folder / "stage", level, feeds)
    expected = whole_answer(staged.path, feeds)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    name, dense = dense_layers(graph)[0]
    fused = staged.fused - {value.name for value in dense.product.inputs if value is not None}
    SliceDense(name, min(count, dense.rows)).apply(staged.model, dense, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes, fused=fused)
    return emit_cut(staged, measured, graph, folder / "plan", shard_borders(graph)), dense, expected


def check_slices(model: ModelProto, folder: Path, levels: Sequence[Optimization] = ("none",)) -> None:
    """Slice in 2, in 3 and in single rows; each slice is a valid model and together they give the whole."""
    path, feeds = save(model, folder / "model.onnx"), request(model)
    for level, count in product(levels, (2, 3, 1000)):
        cut, dense, expected = sliced(path, folder / f"{level}{count}", count, level, feeds)
        shards = [part for part in cut.partitions if part.kind == "horizontal"]
        ranges = [part.shard.range for part in shards if part.shard is not None]
        assert len(shards) == min(count, dense.rows)
        assert (ranges[0][0], ranges[-1][1]) == (0, dense.rows)
        assert all(left[1] == right[0] for left, right in pairwise(ranges))
        for part in shards if passes_checker(model) and level == "none" else ():
            onnx.checker.check_model(str(cut.folder / part.file))
        assert_rows_are_counted(cut, dense)
        known = cut.run(feeds)
        for name, value in expected.items():
            assert distance(value, known[name]) <= 1e-5, (level, count, name)


def assert_rows_are_counted(cut: Cut, dense: DenseLayer) -> None:
    """What the dense layer says one row holds is what the files of the shards hold for each row more."""
    shards = [part for part in cut.partitions if part.shard is not None]
    for part in shards:
        layer = next(layer for layer in cut.graph.layers if layer.shard == part.shard)
        beside = layer.parameters - dense.row_parameters * (part.shard.range[1] - part.shard.range[0])  # type: ignore[union-attr]
        undivided = [w for w in layer.weights if is_parameter(w) and "of" not in str(w.name).rsplit(".", 1)[-1]]
        assert beside == sum(w.const_value.size for w in undivided if w.const_value is not None)


BIASES = {
    "none": None,
    "n": weight(ROWS),
    "1n": weight(1, ROWS),
    "mn": weight(3, ROWS),
    "scalar": np.float32(0.5),
    "one": weight(1),
    "m1": weight(3, 1),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(bias: str, turned: tuple[int, int], tmp_path: Path) -> None:
    inputs = "x w" if bias == "none" else "x w c"
    made = node("Gemm", inputs, "y", transA=turned[0], transB=turned[1], alpha=0.7, beta=1.3)
    weights = {"w": weight(ROWS, DEPTH) if turned[1] else weight(DEPTH, ROWS), "c": BIASES[bias]}
    model = dense_model([made], weights, x=(DEPTH, 3) if turned[0] else (3, DEPTH), y=(3, ROWS))
    check_slices(model, tmp_path)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize("form", ["gemm", "gemm turned", "matmul", "matmul of rank 3"])
def test_opsets(opset: int, form: str, tmp_path: Path) -> None:
    rank3 = form.endswith("3")
    if form.startswith("gemm"):
        turned = int("turned" in form)
        nodes = [node("Gemm", "x w b", "p", transB=turned), node("Relu", "p", "y")]
        weights = {"w": weight(ROWS, DEPTH) if turned else weight(DEPTH, ROWS), "b": weight(ROWS)}
    else:
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "p"), node("Relu", "p", "y")]
        weights = {"w": weight(DEPTH, ROWS), "b": weight(ROWS)}
    x, y = (("N", 3, DEPTH), ("N", 3, ROWS)) if rank3 else (("N", DEPTH), ("N", ROWS))
    check_slices(dense_model(nodes, weights, x=x, y=y, opset=opset), tmp_path, ("none", "portable"))


@pytest.mark.parametrize(("opset", "rank", "axis"), [(7, 2, 1), (10, 2, 1), (10, 3, 2), (11, 2, -1), (17, 3, -1)])
def test_the_merge_counts_its_axis_from_the_end_where_the_opset_may(
    opset: int, rank: int, axis: int, tmp_path: Path
) -> None:
    shape = ("N", 3)[: rank - 1]
    nodes, weights = [node("MatMul", "x w", "y")], {"w": weight(DEPTH, ROWS)}
    model = dense_model(nodes, weights, x=(*shape, DEPTH), y=(*shape, ROWS), opset=opset)
    cut, _, _ = sliced(save(model, tmp_path / "model.onnx"), tmp_path / "cut", 2, "none", request(model))
    (merge,) = (made for made in cut.staged.model.graph if made.op_type == "Concat")
    assert merge.attributes["axis"].as_int() == axis


def test_a_product_that_is_an_output_too_is_merged_before_what_follows(tmp_path: Path) -> None:
    model = dense_model([node("MatMul", "x w", "m"), node("Relu", "m", "y")], {"w": weight(DEPTH, ROWS)})
    model.graph.output.append(floats("m", "N", ROWS))
    check_slices(model, tmp_path)


ACTIVATIONS = {
    "none": [],
    "relu": [node("Relu", "p", "y")],
    "leaky": [node("LeakyRelu", "p", "y", alpha=0.2)],
    "prelu": [node("PRelu", "p slope", "y")],
    "clip": [node("Clip", "p low high", "y")],
    "clip above": [node("Clip", "p - high", "y")],
    "gelu of erf": [
        node("Div", "p root", "g1"),
        node("Erf", "g1", "g2"),
        node("Add", "g2 one", "g3"),
        node("Mul", "p g3", "g4"),
        node("Mul", "g4 half", "y"),
    ],
    "scale of each row": [node("Mul", "slope p", "q"), node("Sub", "q slope", "y")],
}
CONSTANTS: dict[str, Any] = {
    "slope": weight(ROWS, seed=1),
    "low": np.float32(-0.3),
    "high": np.float32(0.4),
    "root": np.float32(2**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", ["none", "right", "left", "full"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_matmul_with_bias_and_activation(rank: int, bias: str, activation: str, tmp_path: Path) -> None:
    fronts: dict[int, list[int | str]] = {1: [], 2: ["N"], 3: ["N", 3], 4: ["N", 2, 3]}
    front = fronts[rank]
    nodes = [node("MatMul", "x w", "p" if bias == "none" else "m")]
    if bias != "none":
        nodes.append(node("Add", "b m" if bias == "left" else "m b", "p"))
    nodes += ACTIVATIONS[activation] or [node("Identity", "p", "y")]
    wide = {1: (ROWS,), 2: (1, ROWS)}.get(rank, (3, ROWS))
    weights = {"w": weight(DEPTH, ROWS), "b": weight(*(wide if bias == "full" else (ROWS,))), **CONSTANTS}
    check_slices(dense_model(nodes, weights, x=[*front, DEPTH], y=[*front, ROWS]), tmp_path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_that_onnxruntime_fused(activation: str, tmp_path: Path) -> None:
    """FusedGemm, FusedMatMul, BiasGelu, Gelu."""
    for index, product_ in enumerate(
        ([node("Gemm", "x w b", "p")], [node("MatMul", "x w", "m"), node("Add", "m b", "p")])
    ):
        nodes = [*product_, *(ACTIVATIONS[activation] or [node("Identity", "p", "y")])]
        (tmp_path / str(index)).mkdir()
        model = dense_model(nodes, {"w": weight(DEPTH, ROWS), "b": weight(ROWS), **CONSTANTS})
        check_slices(model, tmp_path / str(index), ("portable", "native"))


CONTRIB_FORMS = {
    "FusedMatMul": (node("FusedMatMul", "x w", "y", domain=CONTRIB, alpha=0.5), (3, DEPTH), (DEPTH, ROWS)),
    "FusedMatMul transB": (
        node("FusedMatMul", "x w", "y", domain=CONTRIB, transB=1, alpha=0.5),
        (3, DEPTH),
        (ROWS, DEPTH),
    ),
    "FusedMatMul transA": (
        node("FusedMatMul", "x w", "y", domain=CONTRIB, transA=1, alpha=0.5),
        (DEPTH, 3),
        (DEPTH, ROWS),
    ),
    "TransposeMatMul": (node("TransposeMatMul", "x w", "y", domain=CONTRIB, transB=1), (3, DEPTH), (ROWS, DEPTH)),
    "FusedGemm": (
        node("FusedGemm", "x w b", "y", domain=CONTRIB, activation="LeakyRelu", activation_alpha=0.1),
        (3, DEPTH),
        (DEPTH, ROWS),
    ),
}


@pytest.mark.parametrize("form", CONTRIB_FORMS)
def test_fused_forms_in_the_file(form: str, tmp_path: Path) -> None:
    made, x, shape = CONTRIB_FORMS[form]
    check_slices(dense_model([made], {"w": weight(*shape), "b": weight(ROWS)}, x=x, y=(3, ROWS)), tmp_path)


def test_gelu_and_bias_gelu(tmp_path: Path) -> None:
    weights = {"w": weight(DEPTH, ROWS), "b": weight(ROWS)}
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "p"), node("Gelu", "p", "y")]
    check_slices(dense_model(nodes, weights, opset=20), tmp_path, ("none", "portable"))
    nodes = [node("MatMul", "x w", "m"), node("BiasGelu", "m b", "y", domain=CONTRIB)]
    (tmp_path / "fused").mkdir()
    check_slices(dense_model(nodes, weights), tmp_path / "fused")


def test_weight_behind_other_nodes(tmp_path: Path) -> None:
    turned = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "y")]
    cast = [node("Cast", "w", "wt", to=FLOAT), node("MatMul", "x wt", "y")]
    both = [node("Cast", "w", "wc", to=FLOAT), node("Transpose", "wc", "wt"), node("MatMul", "x wt", "y")]
    stacked = [node("MatMul", "x w", "y")]
    cases: list[tuple[Any, ...]] = [
        (turned, weight(ROWS, DEPTH), {}),
        (cast, weight(DEPTH, ROWS).astype(np.float16), {}),
        (both, weight(ROWS, DEPTH).astype(np.float16), {}),
        (stacked, weight(2, DEPTH, ROWS), {"x": ("N", 2, 3, DEPTH), "y": ("N", 2, 3, ROWS)}),
    ]
    for index, (nodes, value, shapes) in enumerate(cases):
        (tmp_path / str(index)).mkdir()
        check_slices(dense_model(nodes, {"w": value}, **shapes), tmp_path / str(index), ("none", "portable"))


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats(kind: str, tmp_path: Path) -> None:
    element = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[kind]
    weights = {"w": weight(DEPTH, ROWS).astype(kind), "b": weight(ROWS).astype(kind)}
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")]
    check_slices(dense_model(nodes, weights, x_type=element, y_type=element), tmp_path)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("scales", ["tensor", "of each row", "of each column", "of each row, axis from the end"])
def test_dequantized_weight(turned: int, scales: str, tmp_path: Path) -> None:
    shape = (ROWS, DEPTH) if turned else (DEPTH, ROWS)
    axis = {"tensor": None, "of each column": turned}.get(scales, 1 - turned)
    size = () if axis is None else (shape[axis],)
    at = {} if axis is None else {"axis": axis - 2 if "end" in scales else axis}
    weights = {
        "w": whole_numbers(np.int8, -100, 100, *shape),
        "s": np.abs(weight(*size, scale=0.02)),
        "z": whole_numbers(np.int8, -5, 5, *size),
        "b": weight(ROWS),
    }
    for form in ("Gemm", "MatMul") if not turned else ("Gemm",):
        last = node("Gemm", "x wd b", "y", transB=turned) if form == "Gemm" else node("MatMul", "x wd", "y")
        (tmp_path / form).mkdir()
        model = dense_model([node("DequantizeLinear", "w s z", "wd", **at), last], weights)
        check_slices(model, tmp_path / form, ("none", "portable"))


def test_dequantized_weight_of_four_bits(tmp_path: Path) -> None:
    weights = {
        "w": whole_numbers(np.int8, -8, 8, DEPTH, ROWS).astype(ml_dtypes.int4),
        "s": np.abs(weight(ROWS, scale=0.1)),
    }
    nodes = [node("DequantizeLinear", "w s", "wd", axis=1), node("MatMul", "x wd", "y")]
    check_slices(dense_model(nodes, weights, opset=21), tmp_path)


@pytest.mark.parametrize("block", [2, 3, 4])
def test_blocked_weight(block: int, tmp_path: Path) -> None:
    weights = {
        "w": whole_numbers(np.int8, -100, 100, DEPTH, ROWS),
        "s": np.abs(weight(-(-DEPTH // block), ROWS, scale=0.02)),
        "z": whole_numbers(np.int8, -5, 5, -(-DEPTH // block), ROWS),
    }
    nodes = [node("DequantizeLinear", "w s z", "wd", axis=0, block_size=block), node("MatMul", "x wd", "y")]
    check_slices(dense_model(nodes, weights, opset=21), tmp_path)


UINT8 = TensorProto.UINT8
PER_ROW: dict[str, dict[str, Any]] = {
    "one scale": {"bs": np.float32(0.01), "bz": np.int8(0)},
    "scale of each row": {"bs": np.abs(weight(ROWS, scale=0.02)), "bz": np.zeros(ROWS, np.int8)},
}
COMMON: dict[str, Any] = {
    "w": whole_numbers(np.int8, -100, 100, DEPTH, ROWS),
    "wt": whole_numbers(np.int8, -100, 100, ROWS, DEPTH),
    "as": np.float32(0.02),
    "az": np.uint8(100),
    "ys": np.float32(0.05),
    "yz": np.uint8(120),
    "c": weight(ROWS),
    "ci": whole_numbers(np.int32, -500, 500, ROWS),
    "rz": whole_numbers(np.int8, -5, 5, ROWS),
    "cs": np.abs(weight(ROWS, scale=0.02)),
}
QUANTIZED = {
    "MatMulInteger": ([node("MatMulInteger", "x w az", "y")], UINT8, TensorProto.INT32),
    "MatMulInteger, zero point": ([node("MatMulInteger", "x w az bz", "y")], UINT8, TensorProto.INT32),
    "MatMulInteger, zero points": ([node("MatMulInteger", "x w az rz", "y")], UINT8, TensorProto.INT32),
    "MatMulInteger, scaled": (
        [node("MatMulInteger", "x w az rz", "i"), node("Cast", "i", "f", to=FLOAT), node("Mul", "f cs", "y")],
        UINT8,
        FLOAT,
    ),
    "QLinearMatMul": ([node("QLinearMatMul", "x as az w bs bz ys yz", "y")], UINT8, UINT8),
    "QLinearMatMul, QLinearAdd": (
        [
            node("QLinearMatMul", "x as az w bs bz ys yz", "q"),
            node("QLinearAdd", "q ys yz rz8 bs0 yz ys yz", "y", domain=CONTRIB),
        ],
        UINT8,
        UINT8,
    ),
    "QGemm": ([node("QGemm", "x as az w bs bz ci ys yz", "y", domain=CONTRIB)], UINT8, UINT8),
    "QGemm turned": ([node("QGemm", "x as az wt bs bz ci ys yz", "y", domain=CONTRIB, transB=1)], UINT8, UINT8),
    "QGemm to float": ([node("QGemm", "x as az wt bs bz ci", "y", domain=CONTRIB, transB=1)], UINT8, FLOAT),
    "DynamicQuantizeMatMul": ([node("DynamicQuantizeMatMul", "x w bs bz c", "y", domain=CONTRIB)], FLOAT, FLOAT),
    "DynamicQuantizeMatMul, no zero": (
        [node("DynamicQuantizeMatMul", "x w bs - c", "y", domain=CONTRIB)],
        FLOAT,
        FLOAT,
    ),
    "MatMulIntegerToFloat": (
        [node("MatMulIntegerToFloat", "x w as bs az bz c", "y", domain=CONTRIB)],
        UINT8,
        FLOAT,
    ),
}


@pytest.mark.parametrize("scales", PER_ROW)
@pytest.mark.parametrize("form", QUANTIZED)
def test_quantized_products(form: str, scales: str, tmp_path: Path) -> None:
    nodes, x_type, y_type = QUANTIZED[form]
    more = {"rz8": whole_numbers(np.uint8, 0, 200, ROWS), "bs0": np.float32(0.03)}
    if form == "MatMulInteger, zero point":
        more["bz"] = np.int8(3)
    model = dense_model(nodes, {**COMMON, **PER_ROW[scales], **more}, x_type=x_type, y_type=y_type)
    check_slices(model, tmp_path, ("none", "portable"))


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_of_few_bits(bits: int, is_flat: bool, tmp_path: Path) -> None:
    depth, block, blocks = 64, 32, 2
    zeros = blocks if bits == 8 else (blocks + 1) // 2
    weights = {
        "w": whole_numbers(np.uint8, 0, 200, ROWS, blocks, block * bits // 8),
        "s": np.abs(weight(*([ROWS * blocks] if is_flat else [ROWS, blocks]), scale=0.02)),
        "z": whole_numbers(np.uint8, 0, 200, *([ROWS * zeros] if is_flat else [ROWS, zeros])),
        "b": weight(ROWS),
    }
    for index, inputs in enumerate(("x w s", "x w s z", "x w s - - b", "x w s z - b")):
        made = node("MatMulNBits", inputs, "y", domain=CONTRIB, K=depth, N=ROWS, bits=bits, block_size=block)
        (tmp_path / str(index)).mkdir()
        check_slices(dense_model([made], weights, x=("N", depth)), tmp_path / str(index))


def test_quantization_behind_goes_with_the_slices(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("QuantizeLinear", "m ys yz", "q"),
        node("DequantizeLinear", "q ys yz", "y"),
    ]
    check_slices(dense_model(nodes, {**COMMON, "w": weight(DEPTH, ROWS)}), tmp_path)


def test_what_looks_like_a_row_vector_and_is_none_is_left_whole(tmp_path: Path) -> None:
    """A column of as many entries as there are rows, a product that two nodes use, a bias that is computed."""
    column = [node("MatMul", "x w", "m"), node("Add", "m column", "y")]
    twice = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Add", "m r", "y")]
    weights = {"w": weight(DEPTH, ROWS), "column": weight(ROWS, 1)}
    cases: list[tuple[list[NodeProto], int | str]] = [(column, ROWS), (twice, "N")]
    for index, (nodes, batch) in enumerate(cases):
        (tmp_path / str(index)).mkdir()
        check_slices(dense_model(nodes, weights, x=(batch, DEPTH), y=(batch, ROWS)), tmp_path / str(index))


TIED = {
    "two layouts": [node("MatMul", "x w", "m"), node("Gemm", "m w", "y", transB=1)],
    "one layout": [node("MatMul", "x w", "m"), node("MatMul", "m w", "y")],
    "one transposed": [node("Transpose", "w", "wt"), node("MatMul", "x wt", "m"), node("MatMul", "m wt", "y")],
}


@pytest.mark.parametrize("form", TIED)
def test_tied_weights_of_two_sliced_layers(form: str, tmp_path: Path) -> None:
    model = dense_model(TIED[form], {"w": weight(DEPTH, DEPTH)}, y=("N", DEPTH))
    path, feeds = save(model, tmp_path / "model.onnx"), request(model)
    staged, measured = stage(path, tmp_path / "stage", "none", feeds)
    for _ in range(2):
        name, dense = dense_layers(build_cut_graph(staged.model, measured.sizes))[0]
        SliceDense(name, 2).apply(staged.model, dense, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes)
    cut = emit_cut(staged, measured, graph, tmp_path / "plan", shard_borders(graph))
    assert sum(part.kind == "horizontal" for part in cut.partitions) == 4
    assert distance(whole_answer(path, feeds)["y"], cut.run(feeds)["y"]) <= 1e-5


def refusal(model: ModelProto, folder: Path) -> str:
    staged, measured = stage(save(model, folder / "model.onnx"), folder / "stage", "none")
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    assert not dense_layers(graph)
    refusals = [find_dense(layer) for layer in graph.layers]
    return "; ".join(found.reason for found in refusals if isinstance(found, Refusal))


def test_a_product_of_two_inputs_is_refused(tmp_path: Path) -> None:
    model = model_of([node("MatMul", "x w", "y")], [floats("x", 3, 4), floats("w", 4, 5)], [floats("y", 3, 5)])
    assert refusal(model, tmp_path) == "the weight of MatMul is not constant"


def test_a_weight_on_the_left_is_refused(tmp_path: Path) -> None:
    model = dense_model([node("MatMul", "w x", "y")], {"w": weight(ROWS, DEPTH)}, x=(DEPTH, "N"), y=(ROWS, "N"))
    assert "not constant" in refusal(model, tmp_path)


def test_a_bias_that_is_computed_is_refused(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", "x", "c", axes=[1], keepdims=1), node("Gemm", "x w c", "y")]
    assert "input 2 of Gemm is not constant" in refusal(dense_model(nodes, {"w": weight(DEPTH, ROWS)}), tmp_path)


def test_blocks_of_several_rows_are_refused(tmp_path: Path) -> None:
    weights = {"w": whole_numbers(np.int8, -9, 9, DEPTH, ROWS), "s": weight(DEPTH, 4)}
    nodes = [node("DequantizeLinear", "w s", "wd", axis=1, block_size=2), node("MatMul", "x wd", "y")]
    assert "blocks of several output rows" in refusal(dense_model(nodes, weights, opset=21), tmp_path)


def test_a_single_row_and_a_vector_are_refused(tmp_path: Path) -> None:
    for index, (shape, y, reason) in enumerate((((DEPTH, 1), ("N", 1), "single"), ((DEPTH,), ("N",), "no matrix"))):
        (tmp_path / str(index)).mkdir()
        model = dense_model([node("MatMul", "x w", "y")], {"w": weight(*shape)}, y=y)
        assert reason in refusal(model, tmp_path / str(index))


def test_a_layer_without_a_product_is_refused(tmp_path: Path) -> None:
    assert "has no matrix product" in refusal(dense_model([node("Relu", "x", "y")], {}, y=("N", DEPTH)), tmp_path)


@pytest.mark.parametrize("count", [0, 1, ROWS + 1])
def test_impossible_counts_are_refused(count: int, tmp_path: Path) -> None:
    model = dense_model([node("MatMul", "x w", "y")], {"w": weight(DEPTH, ROWS)})
    staged, measured = stage(save(model, tmp_path / "model.onnx"), tmp_path / "stage", "none")
    name, dense = dense_layers(build_cut_graph(staged.model, measured.sizes))[0]
    with pytest.raises(ValueError, match=f"{count} slices of {ROWS} rows"):
        SliceDense(name, count).apply(staged.model, dense, measured.sizes)


@pytest.mark.parametrize(("rows", "count"), [(7, 2), (7, 7), (4096, 3), (4096, 50), (1000, 999), (5, 4)])
def test_ranges_tile_the_rows_evenly(rows: int, count: int) -> None:
    ranges = row_ranges(rows, count)
    lengths = [stop - start for start, stop in ranges]
    assert len(ranges) == count
    assert (ranges[0][0], ranges[-1][1]) == (0, rows)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) == -(-rows // count)
