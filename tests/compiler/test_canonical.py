from collections.abc import Sequence

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from hyps_compiler.canonical import make_canonical

MADE = {"a": "conv", "b": "relu", "y": "add"}


def _graph(counters: Sequence[int], order: Sequence[int]) -> onnx.ModelProto:
    """Return what onnxruntime might save for `a = f(x); b = g(x); y = a + b` once it has added reorderings."""
    first, second, third = (f"reorder_token_{count}" for count in counters)
    weight = f"reorder_token_{counters[0] + counters[1] + counters[2] + 1}"
    nodes = [
        helper.make_node("ReorderInput", ["x"], [first], f"ReorderInput_token_{counters[0]}"),
        helper.make_node("Conv", [first, weight], [second], "a_nchwc"),
        helper.make_node("ReorderOutput", [second], ["a"], "ReorderOutput"),
        helper.make_node("Relu", ["x"], ["b"], "relu"),
        helper.make_node("Neg", ["b"], [third], f"Neg_token_{counters[2]}"),
        helper.make_node("Add", ["a", third], ["y"], "add"),
    ]
    init = helper.make_tensor(weight, onnx.TensorProto.FLOAT, [1], [1.0])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph([nodes[i] for i in order], "g", ends[:1], ends[1:], [init]))


@given(
    st.lists(st.integers(1, 500), min_size=3, max_size=3, unique=True),
    st.permutations([0, 3]),
    st.permutations([1, 4]),
)
def test_neither_counters_nor_order_show(counters: list[int], early: list[int], middle: list[int]) -> None:
    expected = _graph([1, 2, 3], [0, 1, 2, 3, 4, 5])
    model = _graph(counters, [*early, *middle, 2, 5])

    make_canonical(expected, MADE)
    make_canonical(model, MADE)

    assert model == expected


def test_names_of_the_model_stay_and_added_ones_tell_where_they_are() -> None:
    model = _graph([7, 8, 9], [0, 1, 2, 3, 4, 5])

    make_canonical(model, MADE)

    made = [name for node in model.graph.node for name in node.output]
    assert {"a", "b", "y"} < set(made)
    assert not any("token" in name for name in (*made, *(tensor.name for tensor in model.graph.initializer)))
    assert "x.ReorderInput" in made
    assert [node.name for node in model.graph.node if node.op_type == "Conv"] == ["conv"]
    assert [node.name for node in model.graph.node if node.op_type == "ReorderOutput"] == ["a.ReorderOutput"]


def test_nested_graphs_read_by_the_new_names() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["reorder_token_4"], ["in"])],
        "branch",
        [],
        [helper.make_tensor_value_info("in", onnx.TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["reorder_token_4"], "ReorderInput_token_5"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))

    make_canonical(model, {"y": "if"})

    assert model.graph.node[0].output == ["x.ReorderInput"]
    branch = model.graph.node[1].attribute[0].g
    assert branch.node[0].input == ["x.ReorderInput"]
