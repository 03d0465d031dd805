"""Clean-up of converted models: what goes, what stays, and that onnxruntime computes the same bits before and after."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx_ir.passes.common import ShapeInferencePass

from hyps_compiler.convert.clean import clean
from hyps_compiler.convert.clean_shapes import fix_reshapes
from hyps_compiler.irfile import load_model

Array = np.ndarray[Any, Any]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    weights: dict[str, Array],
    shape: Sequence[int | str] = ("batch", 4, 6),
    kind: int = FLOAT,
) -> Path:
    """Write a model from `x` to `y`."""
    graph = make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", kind, shape)],
        [make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def answers(path: Path, *feeds: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": x})[0] for x in feeds]


def cleaned(path: Path, *feeds: Array) -> list[str]:
    """Clean a model, check that it answers the same bits as before, and return its operators."""
    before = answers(path, *feeds)
    clean(path)
    for left, right in zip(before, answers(path, *feeds), strict=True):
        np.testing.assert_array_equal(left, right)
    onnx.checker.check_model(str(path), full_check=True)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def flatten_like_tf2onnx(target: str) -> list[NodeProto]:
    """Return the nodes with which tf2onnx writes Keras' Flatten."""
    return [
        make_node("Shape", ["x"], ["shape"]),
        make_node("Cast", ["shape"], ["shape32"], to=TensorProto.INT32),
        make_node("Slice", ["shape32", "zero", "one"], ["batch"]),
        make_node("Concat", ["batch", "rest"], ["target32"], axis=0),
        make_node("Cast", ["target32"], ["target"], to=TensorProto.INT64),
        make_node("Reshape", [target, "target"], ["y"]),
    ]


FLATTEN = {"zero": ints(0), "one": ints(1), "rest": np.array([24], np.int32)}


def test_a_shape_that_keeps_the_batch_becomes_a_constant(path: Path) -> None:
    write(path, flatten_like_tf2onnx("x"), FLATTEN)
    assert cleaned(path, numbers(1, 4, 6), numbers(3, 4, 6)) == ["Reshape"]
    graph = onnx.load(path).graph
    assert onnx.numpy_helper.to_array(graph.initializer[0]).tolist() == [0, 24]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_it_does_so_through_a_transpose(path: Path) -> None:
    nodes = [make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), *flatten_like_tf2onnx("t")]
    write(path, nodes, FLATTEN)
    assert cleaned(path, numbers(1, 4, 6), numbers(3, 4, 6)) == ["Transpose", "Reshape"]


def test_a_dimension_from_elsewhere_becomes_minus_one(path: Path) -> None:
    nodes = [
        make_node("Shape", ["x"], ["shape"]),
        make_node("Gather", ["shape", "last"], ["width"]),
        make_node("Concat", ["width", "four"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]
    write(path, nodes, {"last": ints(1), "four": ints(4)}, shape=(4, "width"))
    assert cleaned(path, numbers(4, 3), numbers(4, 7)) == ["Reshape"]
    assert onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tolist() == [-1, 4]


def test_a_constant_shape_tells_the_batch(path: Path) -> None:
    write(path, [make_node("Reshape", ["x", "flat"], ["y"])], {"flat": ints(-1, 24)})
    assert cleaned(path, numbers(1, 4, 6), numbers(3, 4, 6)) == ["Reshape"]
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("target", [(-1, 12), (24, -1), (-1, 6), (4, -1, 6)])
def test_one_that_means_another_size_stays(path: Path, target: tuple[int, ...]) -> None:
    write(path, [make_node("Reshape", ["x", "target"], ["y"])], {"target": ints(*target)})
    cleaned(path, numbers(1, 4, 6), numbers(3, 4, 6))
    assert onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tolist() == list(target)


def einsum_like_tf2onnx(source: list[NodeProto], name: str) -> list[NodeProto]:
    """Return the nodes with which tf2onnx joins the first two dimensions for a product of matrices."""
    return [
        *source,
        make_node("Shape", [name], ["shape"]),
        make_node("Gather", ["shape", "firsts"], ["joined"]),
        make_node("ReduceProd", ["joined"], ["count"], keepdims=1),
        make_node("Gather", ["shape", "last"], ["width"]),
        make_node("Concat", ["count", "rest", "width"], ["target"], axis=0),
        make_node("Reshape", [name, "target"], ["y"]),
    ]


EINSUM = {"firsts": ints(0, 1), "last": ints(3), "rest": ints(-1)}
HEADS = {"split": ints(0, 4, 2, 3), "axis": ints(1), "bias": numbers(4, 1, 3), "square": numbers(6, 6)}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ([make_node("Reshape", ["x", "split"], ["a"])], "a"),
        ([make_node("Reshape", ["x", "split"], ["s"]), make_node("Add", ["s", "bias"], ["a"])], "a"),
        ([make_node("Reshape", ["x", "split"], ["s"]), make_node("Transpose", ["s"], ["a"], perm=[1, 0, 2, 3])], "a"),
        ([make_node("MatMul", ["x", "square"], ["m"]), make_node("Unsqueeze", ["m", "axis"], ["a"])], "a"),
        ([make_node("Softmax", ["x"], ["m"]), make_node("Reshape", ["m", "split"], ["a"])], "a"),
    ],
)
def test_products_of_dimensions_are_reckoned(path: Path, source: list[NodeProto], name: str) -> None:
    nodes = einsum_like_tf2onnx(source, name)
    used = {key: array for key, array in {**EINSUM, **HEADS}.items() if any(key in node.input for node in nodes)}
    write(path, nodes, used)
    assert cleaned(path, numbers(1, 4, 6), numbers(3, 4, 6)) == [*(node.op_type for node in source), "Reshape"]


def test_a_size_that_two_inputs_may_decide_is_not_taken_from_one(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        make_node("Add", ["x", "t"], ["sum"]),
        *flatten_like_tf2onnx("sum"),
    ]
    nodes[2] = make_node("Shape", ["x"], ["shape"])
    write(path, nodes, {"zero": ints(0), "one": ints(1), "rest": np.array([-1], np.int32)}, shape=("a", "b", 6))
    assert "Shape" in cleaned(path, numbers(4, 4, 6), numbers(1, 1, 6))


def test_two_open_dimensions_in_another_order_stay(path: Path) -> None:
    nodes = [
        make_node("Shape", ["x"], ["shape"]),
        make_node("Gather", ["shape", "swapped"], ["target"]),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]
    write(path, nodes, {"swapped": ints(1, 0)}, shape=("a", "b"))
    assert cleaned(path, numbers(4, 3), numbers(2, 7)) == ["Shape", "Gather", "Reshape"]


def test_an_empty_batch_works_as_before(path: Path) -> None:
    write(path, flatten_like_tf2onnx("x"), FLATTEN)
    cleaned(path, numbers(0, 4, 6))


def test_transposes_that_undo_each_other_go(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        make_node("Relu", ["b"], ["y"]),
    ]
    write(path, nodes, {})
    assert cleaned(path, numbers(2, 4, 6)) == ["Relu"]


def test_others_become_one(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
        make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        make_node("Relu", ["b"], ["y"]),
    ]
    write(path, nodes, {})
    assert cleaned(path, numbers(2, 4, 6)) == ["Transpose", "Relu"]


def test_one_that_another_node_reads_stays(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        make_node("MatMul", ["b", "a"], ["y"]),
    ]
    write(path, nodes, {})
    assert cleaned(path, numbers(2, 4, 6)) == ["Transpose", "MatMul"]


def test_outputs_keep_their_names(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        make_node("Transpose", ["a"], ["y"], perm=[0, 2, 1]),
    ]
    write(path, nodes, {})
    cleaned(path, numbers(2, 4, 6))
    assert [value.name for value in onnx.load(path).graph.output] == ["y"]


def test_what_depends_on_weights_alone_is_computed(path: Path) -> None:
    nodes = [
        make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        make_node("Mul", ["t", "two"], ["doubled"]),
        make_node("MatMul", ["x", "doubled"], ["y"]),
    ]
    write(path, nodes, {"w": numbers(5, 6), "two": np.array([2], np.float32)})
    assert cleaned(path, numbers(2, 4, 6)) == ["MatMul"]


@pytest.mark.parametrize(
    "node",
    [
        make_node("RandomNormalLike", ["w"], ["t"]),
        make_node("DequantizeLinear", ["q", "scale"], ["t"]),
        make_node("Expand", ["scale", "wide"], ["t"]),
    ],
    ids=lambda node: node.op_type,
)
def test_what_is_random_or_grows_is_not(path: Path, node: NodeProto) -> None:
    weights = {
        "w": numbers(6, 6),
        "q": np.ones((6, 6), np.int8),
        "scale": np.array(0.5, np.float32),
        "wide": ints(6, 50_000),
    }
    used = {name: weights[name] for name in node.input}
    write(path, [node, make_node("MatMul", ["x", "t"], ["y"])], used)
    clean(path)
    assert [node.op_type for node in onnx.load(path).graph.node] == [node.op_type, "MatMul"]


def test_a_weight_that_a_request_can_replace_is_none(path: Path) -> None:
    write(path, [make_node("Neg", ["w"], ["n"]), make_node("MatMul", ["x", "n"], ["y"])], {"w": numbers(6, 6)})
    model = onnx.load(path)
    model.graph.input.append(make_tensor_value_info("w", FLOAT, [6, 6]))
    onnx.save(model, path)
    assert cleaned(path, numbers(2, 4, 6)) == ["Neg", "MatMul"]


def lstm_with(states: list[NodeProto]) -> list[NodeProto]:
    nodes = [make_node("LSTM", ["x", "w", "r", "", "", "h", "h"], ["y"], hidden_size=3)]
    return [*states, *nodes]


LSTM = {
    "w": numbers(1, 12, 6),
    "r": numbers(1, 12, 3),
    "zero": np.zeros((1, 1, 1), np.float32),
    "one": np.ones((1, 1, 1), np.float32),
}


@pytest.mark.parametrize(("start", "inputs"), [("zero", 3), ("one", 7)])
def test_zero_states_go_and_others_stay(path: Path, start: str, inputs: int) -> None:
    states = [make_node("Identity", [start], ["same"]), make_node("Expand", ["same", "size"], ["h"])]
    used = {name: LSTM[name] for name in ("w", "r", start)}
    write(path, lstm_with(states), {**used, "size": ints(1, 4, 3)}, shape=("seq", 4, 6))
    cleaned(path, numbers(2, 4, 6))
    (layer,) = (node for node in onnx.load(path).graph.node if node.op_type == "LSTM")
    assert len([name for name in layer.input if name]) == inputs - (0 if start == "zero" else 2)


def wrapped_by_where(rows: int) -> list[NodeProto]:
    return [
        make_node("Less", ["x", "zero"], ["below"]),
        make_node("Add", ["x", "rows"], ["moved"]),
        make_node("Where", ["below", "moved", "x"], ["index"]),
        make_node("Gather", ["table", "index"], ["y"]),
    ]


def wrapped_by_products(rows: int) -> list[NodeProto]:
    return [
        make_node("Cast", ["x"], ["float"], to=FLOAT),
        make_node("Less", ["float", "zero_f"], ["below"]),
        make_node("Not", ["below"], ["above"]),
        make_node("Cast", ["above"], ["above_i"], to=INT),
        make_node("Cast", ["below"], ["below_i"], to=INT),
        make_node("Add", ["x", "rows"], ["moved"]),
        make_node("Mul", ["x", "above_i"], ["kept"]),
        make_node("Mul", ["below_i", "moved"], ["taken"]),
        make_node("Add", ["taken", "kept"], ["index"]),
        make_node("Gather", ["table", "index"], ["y"]),
    ]


@pytest.mark.parametrize("nodes", [wrapped_by_where, wrapped_by_products])
@pytest.mark.parametrize(("rows", "remaining"), [(5, 1), (4, None)])
def test_indices_that_gather_wraps_itself_are_not_wrapped(
    path: Path, nodes: Callable[[int], list[NodeProto]], rows: int, remaining: int | None
) -> None:
    weights = {"table": numbers(5, 2), "rows": ints(rows), "zero": ints(0), "zero_f": np.zeros(1, np.float32)}
    made = nodes(rows)
    used = {name: weights[name] for node in made for name in node.input if name in weights}
    write(path, made, used, shape=("batch", 3), kind=INT)
    operators = cleaned(path, np.array([[0, -1, 4], [-4, 2, -2]]))
    assert len(operators) == (remaining or len(made))


def test_weights_in_other_files_stay_there(path: Path) -> None:
    write(
        path,
        [
            *flatten_like_tf2onnx("x")[:-1],
            make_node("Reshape", ["x", "target"], ["f"]),
            make_node("MatMul", ["f", "w"], ["y"]),
        ],
        {**FLATTEN, "w": numbers(24, 5)},
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=100)
    assert cleaned(path, numbers(2, 4, 6)) == ["Reshape", "MatMul"]
    (weight,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == "w")
    assert weight.data_location == TensorProto.EXTERNAL


def test_cleaning_twice_changes_nothing(path: Path) -> None:
    write(path, flatten_like_tf2onnx("x"), FLATTEN)
    clean(path)
    once = path.read_bytes()
    clean(path)
    assert path.read_bytes() == once


def test_a_new_weight_takes_no_name_that_is_there(path: Path) -> None:
    write(path, [*flatten_like_tf2onnx("x"), make_node("Relu", ["x"], ["y_shape"])], FLATTEN)
    model = onnx.load(path)
    model.graph.output.append(make_tensor_value_info("y_shape", FLOAT, None))
    onnx.save(model, path)
    assert cleaned(path, numbers(2, 4, 6)) == ["Reshape", "Relu"]


@pytest.mark.parametrize(
    "pick",
    [
        make_node("Gather", ["table", "zero"], ["row"], axis=0),
        make_node("Slice", ["table", "zero", "one", "zero"], ["row"]),
    ],
    ids=lambda node: str(node.op_type),
)
def test_a_row_of_a_table_of_sizes_is_not_one_size(path: Path, pick: NodeProto) -> None:
    nodes = [
        make_node("Shape", ["x"], ["sizes"]),
        make_node("Unsqueeze", ["sizes", "zero"], ["table"]),
        pick,
        make_node("Squeeze", ["row", "zero"], ["target"]),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = load_model(write(path, nodes, {"zero": ints(0), "one": ints(1)}))
    ShapeInferencePass(data_prop=False)(model)
    assert not fix_reshapes(model.graph)


def test_eight_bit_floats_stay_floats(path: Path) -> None:
    nodes = [
        make_node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT8E4M3FN),
        make_node("Cast", ["narrow"], ["rounded"], to=FLOAT),
        make_node("Add", ["x", "rounded"], ["y"]),
    ]
    write(path, nodes, {"wide": np.array([3.1], np.float32)})
    model = onnx.load(path)
    model.opset_import[0].version, model.ir_version = 19, 9
    onnx.save(model, path)
    cleaned(path, numbers(2, 4, 6))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (("unk__40", 4, 6), ["batch", 4, 6]),
        (("unk__40", 4, "unk__41"), ["batch", 4, ""]),
        (("unk__40", 4, "unk__40"), ["", 4, ""]),
        (("rows", 4, "unk__41"), ["rows", 4, ""]),
        ((2, 4, 6), [2, 4, 6]),
    ],
)
def test_made_up_names_of_sizes_are_not_shown(
    tmp_path: Path, shape: tuple[int | str, ...], wanted: list[int | str]
) -> None:
    path = write(tmp_path / "m.onnx", [make_node("Relu", ["x"], ["y"])], {}, shape)
    clean(path)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] == wanted
