"""Memory that a model asks for, told from the file."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from hyps.errors import ModelError, UsageError
from hyps_compiler import compile as compile_plan
from hyps_compiler.sizes import SizeError, check_sizes
from hyps_compiler.skeleton import lighten
from model_fixtures import floats, model_of, save

LIMIT = 2**31


def node(kind: str, *names: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def ending(*nodes: NodeProto, shape: tuple[int | str, ...] = (1,), **weights: Any) -> onnx.ModelProto:
    """Return a model that gives the largest value of what the last node makes."""
    last = helper.make_node("ReduceMax", [nodes[-1].output[0]], ["y"], keepdims=0)
    return model_of([*nodes, last], [floats("x", *shape)], [floats("y")], weights)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_shape_that_the_file_holds_is_known(backwards: bool) -> None:
    nodes = [node("Abs", "x", "a"), node("Expand", "a", "s", "e"), node("ReduceMax", "e", "y", keepdims=0)]
    sides = {"s": whole(2**15, 2**15)}
    model = model_of(nodes[::-1] if backwards else nodes, [floats("x", 1)], [floats("y")], sides)
    with pytest.raises(SizeError, match=r"`e` of shape 32768 x 32768 needs 4\.29 GB") as caught:
        check_sizes(model, LIMIT)
    assert (caught.value.code, "--max-tensor-bytes 4295MB" in caught.value.hint) == ("E_LIMIT", True)
    check_sizes(model, 2**32)


def test_a_shape_that_is_worked_out_is_known_too() -> None:
    nodes = [
        node("Expand", "x", "s", "e"),
        node("Shape", "x", "n"),
        node("Mul", "n", "k", "side"),
        node("Gather", "side", "zero", "one"),
        node("Unsqueeze", "one", "zeros", "again"),
        node("Concat", "side", "again", "s", axis=0),
    ]
    weights = {"k": whole(2**15), "zero": np.array(0), "zeros": whole(0)}
    order = [*nodes, node("ReduceMax", "e", "y", keepdims=0)]
    model = model_of(order, [floats("x", 1)], [floats("y")], weights)
    with pytest.raises(SizeError, match="`e` of shape 32768 x 32768"):
        check_sizes(model, LIMIT)


def test_a_shape_that_follows_from_one_that_is_worked_out_is_known_too() -> None:
    nodes = [node("Shape", "x", "n0")]
    for i in range(3):
        nodes += [node("Mul", f"n{i}", "k", f"s{i}"), node("Expand", "x", f"s{i}", f"e{i}")]
        nodes += [node("Shape", f"e{i}", f"n{i + 1}")]
    with pytest.raises(SizeError, match="`e2` of shape 1073741824"):
        check_sizes(ending(*nodes, node("Abs", "e2", "a"), k=whole(2**10)), LIMIT)


def test_a_nested_graph_may_capture_a_shape_that_is_worked_out() -> None:
    choice = node(
        "If", "c", "i", then_branch=graph(node("Expand", "x", "s", "e")), else_branch=graph(node("Abs", "x", "a"))
    )
    nodes = [node("Shape", "x", "n"), node("Mul", "n", "k", "s"), choice]
    truth = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    model = model_of(nodes, [floats("x", 1), truth], [floats("i", None)], {"k": whole(2**30)})
    with pytest.raises(SizeError, match="`e` of shape 1073741824"):
        check_sizes(model, LIMIT)


def test_weights_may_be_larger_than_the_limit() -> None:
    weight = np.zeros((64, 64), np.float32)
    model = model_of([node("MatMul", "x", "w", "y")], [floats("x", 1, 64)], [floats("y", 1, 64)], {"w": weight})
    check_sizes(model, 256)
    with pytest.raises(SizeError, match="tensor `x`"):
        check_sizes(model, 255)


def test_weights_of_which_only_the_shape_is_known_may_be_larger_too() -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**20, 2**12], data_location=TensorProto.EXTERNAL)
    model = model_of([node("Gather", "w", "x", "y")], [floats("x", 4)], [floats("y", None, None)])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.initializer.append(weight)
    check_sizes(model, 4 * 2**12 * 4)


def test_an_open_dimension_is_known_at_a_request() -> None:
    model = ending(node("Concat", "x", "x", "e", axis=0), shape=("n", 4))
    check_sizes(model, LIMIT)
    check_sizes(model, LIMIT, {"x": (100, 4)})
    with pytest.raises(SizeError, match="of shape 200000000 x 4 needs"):
        check_sizes(model, LIMIT, {"x": (10**8, 4)})


def graph(*nodes: NodeProto, **weights: NDArray[np.generic]) -> GraphProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_graph(list(nodes), "g", [], [floats(nodes[-1].output[0], None)], tensors)


def test_nested_graphs_and_what_they_capture_are_looked_into() -> None:
    inner = graph(
        node("If", "c", "i", then_branch=graph(node("Expand", "x", "s", "e")), else_branch=graph(node("Abs", "x", "a")))
    )
    outer = node("If", "c", "y", then_branch=inner, else_branch=graph(node("Abs", "x", "b")))
    model = model_of(
        [outer],
        [floats("x", 1), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [floats("y", None)],
        {"s": whole(2**30)},
    )
    with pytest.raises(SizeError, match="`e` of shape 1073741824"):
        check_sizes(model, LIMIT)


def test_functions_are_looked_into() -> None:
    sizes = helper.make_node("Constant", [], ["s"], value_ints=[2**30])
    body = [sizes, node("Expand", "a", "s", "e"), node("ReduceMax", "e", "b", keepdims=0)]
    domains = [helper.make_opsetid("", 17)]
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="d")], [floats("x", 1)], [floats("y")])
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.functions.append(helper.make_function("d", "F", ["a"], ["b"], body, domains))
    with pytest.raises(SizeError, match="of shape 1073741824"):
        check_sizes(model, LIMIT)


@pytest.mark.parametrize("first", ["Shape", "weight"])
def test_a_list_that_doubles_is_refused_before_it_is_followed(first: str) -> None:
    start = [node("Shape", "x", "t0")] if first == "Shape" else [node("Identity", "w", "t0")]
    nodes = [node("Concat", f"t{i}", f"t{i}", f"t{i + 1}", axis=0) for i in range(40)]
    model = ending(*start, *nodes, node("Cast", "t40", "f", to=1), w=whole(1, 2, 3))
    tracemalloc.start()
    with pytest.raises(ModelError, match="numbers that follow from") as caught:
        check_sizes(model, 2**62)
    assert caught.value.code == "E_LIMIT"
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def constant(name: str, value: NDArray[np.generic] | TensorProto) -> NodeProto:
    tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(value)
    return helper.make_node("Constant", [], [name], value=tensor)


LONG = 1_100_000
"""More than a list may hold that shapes are computed from."""
ONES = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    "nodes",
    [
        [constant("e", np.ones(LONG, np.float32))],
        [constant("k", np.ones((1100, 1000), np.float32)), constant("s", whole(-1)), node("Reshape", "k", "s", "e")],
        [
            constant("k", TensorProto(data_type=TensorProto.STRING, dims=[LONG], string_data=[b"a"] * LONG)),
            node("Size", "k", "e"),
        ],
        [constant("k", np.arange(LONG)), constant("i", whole(3)), node("Gather", "k", "i", "e")],
        [constant("k", np.zeros(LONG, np.int64)), node("Gather", "x", "k", "e")],
        [helper.make_node("Constant", [], ["e"], value_ints=[1] * LONG)],
        [constant("s", whole(1100, 1000)), constant("k", np.ones(1, np.float32)), node("Expand", "k", "s", "e")],
    ],
)
def test_constants_may_hold_weights_and_texts_and_ids(nodes: list[NodeProto]) -> None:
    check_sizes(ending(*nodes), LIMIT)


def heavy(holder: str) -> onnx.ModelProto:
    """Return a model with 40 MB of constants where `holder` says, each of which is added to what is computed."""
    weights = [node("Abs", "x", "x0")]
    for i in range(5):
        weights += [constant(f"k{i}", np.ones((1, 2_000_000), np.float32)), node("Add", f"x{i}", f"k{i}", f"x{i + 1}")]
    body = [*weights, node("ReduceMax", "x5", "e")]
    if holder == "graph":
        return ending(*body)
    if holder == "nested graph":
        truth = helper.make_node("Constant", [], ["q"], value=helper.make_tensor("q", TensorProto.BOOL, [], [True]))
        return ending(truth, node("If", "q", "i", then_branch=graph(*body), else_branch=graph(*body[-1:], x5=ONES)))
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="d")], [floats("x", 1)], [floats("y")])
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.functions.append(helper.make_function("d", "F", ["x"], ["e"], body, [helper.make_opsetid("", 17)]))
    return model


@pytest.mark.parametrize("holder", ["graph", "nested graph", "function"])
def test_weights_in_constants_are_known_by_shape_and_cost_nothing(holder: str) -> None:
    model = heavy(holder)
    assert model.ByteSize() > 4 * 10**7
    assert lighten(model, {}).ByteSize() < 10**4
    check_sizes(model, 8 * 10**6)
    with pytest.raises(SizeError, match="of shape 1 x 2000000 needs"):
        check_sizes(model, 8 * 10**6 - 1)


def test_a_list_in_a_constant_that_doubles_is_refused_too() -> None:
    doubled = [node("Concat", f"t{i}", f"t{i}", f"t{i + 1}", axis=0) for i in range(40)]
    with pytest.raises(ModelError, match="numbers that follow from"):
        check_sizes(ending(constant("t0", whole(1, 2)), *doubled, node("Cast", "t40", "f", to=1)), 2**62)


def test_lists_of_values_may_be_long_and_cost_nothing() -> None:
    nodes = [node("Concat", f"t{i}", f"t{i}", f"t{i + 1}", axis=0) for i in range(28)]
    start_s = time.process_time()
    check_sizes(ending(node("Relu", "x", "t0"), *nodes), LIMIT)
    check_sizes(ending(node("Relu", "x", "t0"), *nodes, shape=("n",)), LIMIT)
    assert time.process_time() - start_s < 1


def test_constants_may_not_add_up_to_more_than_four_tensors() -> None:
    nodes = [node("ConstantOfShape", "s", f"c{i}") for i in range(5)]
    total = helper.make_node("Sum", [f"c{i}" for i in range(5)], ["e"])
    model = ending(*nodes, total, s=whole(2**20))
    with pytest.raises(
        SizeError, match=r"alone needs 21\.0 MB, more than the limit of 20\.0 MB, 4 times that"
    ) as caught:
        check_sizes(model, 5 * 10**6)
    assert "--max-tensor-bytes 6MB (Python: `max_tensor`)" in caught.value.hint
    check_sizes(model, 6 * 10**6)


def test_adapters_that_are_not_merged_may_make_several_large_weights() -> None:
    nodes: list[NodeProto] = []
    weights: dict[str, Any] = {}
    for i in range(8):
        weights |= {f"a{i}": np.zeros((900, 2), np.float32), f"b{i}": np.zeros((2, 900), np.float32)}
        nodes += [node("MatMul", f"a{i}", f"b{i}", f"w{i}"), node("MatMul", f"x{i}", f"w{i}", f"x{i + 1}")]
    check_sizes(ending(node("Abs", "x", "x0"), *nodes, shape=(1, 900), **weights), 7 * 10**6)


@pytest.mark.parametrize("limit", [5 * 10**6, "5MB"])
def test_the_limit_can_be_given_in_python(limit: int | str, tmp_path: Path) -> None:
    path = save(ending(node("Expand", "x", "s", "e"), s=whole(2**20)), tmp_path / "m.onnx")
    with pytest.raises(SizeError, match=r"`e` of shape 1048576 needs 4\.19 MB"):
        compile_plan(path, tmp_path / "plan", max_tensor="4MB", verify=False)
    compile_plan(path, tmp_path / "plan", max_tensor=limit, verify=False)
    with pytest.raises(UsageError):
        compile_plan(path, tmp_path / "plan", max_tensor=0)


def test_weights_that_are_cast_or_moved_are_no_new_constants() -> None:
    weights: dict[str, Any] = {f"w{i}": np.zeros((100, 100), np.float16) for i in range(5)}
    nodes = [node("Cast", f"w{i}", f"c{i}", to=1) for i in range(5)]
    nodes += [node("Transpose", f"c{i}", f"t{i}") for i in range(5)]
    total = helper.make_node("Sum", [f"t{i}" for i in range(5)], ["e"])
    check_sizes(ending(*nodes, total, **weights), 40_000)


def test_what_onnx_cannot_infer_is_left_to_onnxruntime() -> None:
    model = ending(node("Conv", "x", "x", "e"), shape=(2,))
    check_sizes(model, LIMIT)
