"""Names of what PyTorch's exporters leave: given to inputs and outputs, and taken by nothing else."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from hyps_compiler.convert.tidying import tidy
from hyps_compiler.ort import open_session


def branching() -> onnx.ModelProto:
    """Return a model with a branch that holds a weight called `x` and makes a tensor called `y`."""
    inner = [onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "x")]
    made = [make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    add, subtract = (
        make_graph([make_node(kind, ["first", "x"], ["y"])], kind, [], made, inner) for kind in ("Add", "Sub")
    )
    nodes = [
        make_node("ReduceSum", ["first"], ["total"], keepdims=0),
        make_node("Greater", ["total", "zero"], ["is_positive"]),
        make_node("If", ["is_positive"], ["last"], then_branch=add, else_branch=subtract),
    ]
    graph = make_graph(
        nodes,
        "g",
        [make_tensor_value_info("first", TensorProto.FLOAT, [2])],
        [make_tensor_value_info("last", TensorProto.FLOAT, [2])],
        [onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("sign", [1, -1])
def test_names_of_inputs_and_outputs_hide_nothing_in_branches(sign: int) -> None:
    model = branching()
    feed = sign * np.array([3, 4], np.float32)
    (before,) = open_session(model.SerializeToString(), "none").run(None, {"first": feed})
    tidied = ir.serde.deserialize_model(model)
    tidy(tidied, inputs=["x"], outputs=["y"])
    (after,) = open_session(ir.serde.serialize_model(tidied).SerializeToString(), "none").run(["y"], {"x": feed})
    np.testing.assert_array_equal(after, before)
