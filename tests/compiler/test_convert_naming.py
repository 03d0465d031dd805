"""Names of converted models made shorter: what they compute stays."""

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from hyps_compiler.convert.naming import simplify_names
from hyps_compiler.ort import open_session

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def looping() -> onnx.ModelProto:
    """Return a model whose loop's body reads an outer tensor that would be called like its own input."""
    body = make_graph(
        [make_node("Identity", ["go"], ["going"]), make_node("Add", ["state", "net/state:0"], ["net/next:0"])],
        "body",
        [
            make_tensor_value_info("turn", INT, []),
            make_tensor_value_info("go", BOOL, []),
            make_tensor_value_info("state", FLOAT, [2]),
        ],
        [make_tensor_value_info("going", BOOL, []), make_tensor_value_info("net/next:0", FLOAT, [2])],
    )
    graph = make_graph(
        [
            make_node("Mul", ["x", "x"], ["net/state:0"], name="net/square"),
            make_node("Loop", ["turns", "", "x"], ["net/last:0"], name="net/loop", body=body),
            make_node("Identity", ["net/last:0"], ["y"]),
        ],
        "g",
        [make_tensor_value_info("x", FLOAT, [2])],
        [make_tensor_value_info("y", FLOAT, [2])],
        [onnx.numpy_helper.from_array(np.array(2), "turns")],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def test_shorter_names_change_no_answer() -> None:
    model, feeds = looping(), {"x": np.array([2, 3], np.float32)}
    (before,) = open_session(model.SerializeToString(), "none").run(None, feeds)
    simplify_names(model)
    (after,) = open_session(model.SerializeToString(), "none").run(None, feeds)
    np.testing.assert_array_equal(after, before)
    assert [node.output[0] for node in model.graph.node] == ["net/state:0", "last", "y"]
