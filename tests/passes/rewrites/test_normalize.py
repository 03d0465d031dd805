from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from cut_fixtures import is_same, whole_answer
from hyps.errors import ModelError
from hyps_passes.rewrites.normalize import normalize
from model_fixtures import floats, model_of

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
WEIGHT = np.linspace(0, 1, 3, dtype=np.float32)


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the normalised model after making sure that it computes the same."""
    expected = whole_answer(model.SerializeToString(), {"x": X})
    result: onnx.ModelProto = ir.to_proto(normalize(ir.from_proto(model)))
    actual = whole_answer(result.SerializeToString(), {"x": X})
    assert list(expected) == list(actual)
    assert all(is_same(value, actual[name]) for name, value in expected.items())
    return result


def node(op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=name, **attributes)


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [info])


def test_unsorted_nodes_are_put_in_order() -> None:
    model = model_of(
        [node("Relu", "b", "y"), node("Neg", "a", "b"), node("Add", "x x", "a")], [floats("x", 2, 3)], [floats("y")]
    )
    assert [n.op_type for n in normalized(model).graph.node] == ["Add", "Neg", "Relu"]


def test_every_node_has_a_name_of_its_own() -> None:
    inner = branch(node("Neg", "a", "z", name="named"))
    nodes = [
        node("Relu", "x", "a", name="named"),
        node("Neg", "a", "b"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "c", to=TensorProto.BOOL),
        node("If", "c", "d", then_branch=inner, else_branch=inner),
        node("Add", "b d", "y"),
    ]
    result = normalized(model_of(nodes, [floats("x", 2, 3)], [floats("y")]))
    names = [n.name for n in result.graph.node]
    assert all(names)
    assert len(set(names)) == len(names) == 6


def test_nodes_of_equal_names_which_onnxruntime_refuses_are_renamed() -> None:
    nodes = [node("Relu", "x", "a", name="twice"), node("Neg", "a", "y", name="twice")]
    result = normalize(ir.from_proto(model_of(nodes, [floats("x", 2, 3)], [floats("y")])))
    assert len({n.name for n in result.graph}) == 2


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializers_are_no_inputs_afterwards(ir_version: int) -> None:
    nodes = [node("Constant", "", "c", value_float=2.0), node("Mul", "x w", "a"), node("Mul", "a c", "y")]
    model = model_of(nodes, [floats("x", 2, 3), floats("w", 3)], [floats("y")], {"w": WEIGHT}, ir_version=ir_version)
    result = normalized(model)
    assert [value.name for value in result.graph.input] == ["x"]
    assert result.ir_version >= 4  # before, an initializer had to be an input


def test_constants_become_initializers_in_nested_graphs_too() -> None:
    then = branch(node("Constant", "", "k", value_floats=[1.0, 2.0, 3.0]), node("Mul", "x k", "t"))
    nodes = [
        node("Constant", "", "zero", value_float=0.0),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m zero", "c"),
        node("If", "c", "y", then_branch=then, else_branch=branch(node("Neg", "x", "e"))),
    ]
    result = normalized(model_of(nodes, [floats("x", 2, 3)], [floats("y")]))
    assert "Constant" not in result.SerializeToString().decode("latin1")
    assert len(result.graph.initializer) == 2


def test_nodes_that_nobody_needs_are_gone_with_what_only_their_nested_graphs_use() -> None:
    nested = branch(node("Mul", "only_for_it x", "z"))
    deep = branch(
        node("If", "c", "z2", then_branch=branch(node("Neg", "only_deep", "z3")), else_branch=branch(*nested.node))
    )
    nodes = [
        node("Neg", "x", "only_for_it"),
        node("Abs", "x", "only_deep"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "c", to=TensorProto.BOOL),
        node("If", "c", "unused", then_branch=nested, else_branch=deep),
        node("Relu", "x", "y"),
    ]
    for order in (nodes, nodes[::-1]):
        result = normalized(model_of(order, [floats("x", 2, 3)], [floats("y")]))
        assert [n.op_type for n in result.graph.node] == ["Relu"]


def test_a_nested_node_that_nobody_needs_keeps_no_outer_value_alive() -> None:
    then = branch(
        node("If", "c", "unused", then_branch=branch(node("Neg", "a", "z")), else_branch=branch(node("Abs", "a", "z"))),
        node("Relu", "x", "t"),
    )
    nodes = [
        node("Neg", "x", "a"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "c", to=TensorProto.BOOL),
        node("If", "c", "y", then_branch=then, else_branch=branch(node("Abs", "x", "e"))),
    ]
    result = normalized(model_of(nodes, [floats("x", 2, 3)], [floats("y")]))
    assert [n.op_type for n in result.graph.node] == ["ReduceMax", "Cast", "If"]


def test_an_initializer_that_is_an_output_gets_a_node_and_keeps_its_name() -> None:
    model = model_of([node("Mul", "x w", "y")], [floats("x", 2, 3)], [floats("y"), floats("w", 3)], {"w": WEIGHT})
    result = normalized(model)
    assert [value.name for value in result.graph.output] == ["y", "w"]
    assert any(n.op_type == "Identity" and list(n.output) == ["w"] for n in result.graph.node)


def test_an_output_that_is_an_input_stays_one() -> None:
    model = model_of([node("Relu", "x", "y")], [floats("x", 2, 3)], [floats("y"), floats("x", 2, 3)])
    assert [value.name for value in normalized(model).graph.output] == ["y", "x"]


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["t"], domain="mine"), node("Relu", "t", "y")]
    model = model_of(nodes, [floats("x", 2, 3)], [floats("y")])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    result = normalized(model)
    assert [n.op_type for n in result.graph.node] == ["Add", "Relu"]
    assert not result.functions


def test_a_second_run_changes_nothing() -> None:
    nodes = [node("Constant", "", "k", value_float=2.0), node("Mul", "x k", "a"), node("Mul", "a w", "y")]
    model = model_of(nodes, [floats("x", 2, 3)], [floats("y"), floats("w", 3)], {"w": WEIGHT})
    once = ir.to_proto(normalize(ir.from_proto(model)))
    assert ir.to_proto(normalize(ir.from_proto(once))) == once


def test_a_cycle_is_refused() -> None:
    nodes = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")]
    with pytest.raises(ModelError, match="cannot be put in order") as caught:
        normalize(ir.from_proto(model_of(nodes, [floats("x", 2, 3)], [floats("y")])))
    assert caught.value.code == "E_GRAPH"
