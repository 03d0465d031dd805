"""Models whose loops run as long as they are asked to."""

import numpy as np
import onnx
from onnx import helper

from model_fixtures import floats, model_of


def integers(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape)


def looping(*, empty_body: bool = False, trips: int | None = 2**62) -> onnx.ModelProto:
    """A loop of so many trips, or of as many as the request asks for; onnxruntime cannot end one with an empty body."""
    flag = helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    state, trip = floats("v", 1, 4), integers("trip")
    nodes, outputs = [], [flag, state]
    if not empty_body:
        nodes = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["v"], ["w"])]
        outputs = [helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []), floats("w", 1, 4)]
    body = helper.make_graph(nodes, "body", [trip, flag, state], outputs)
    inputs = [floats("x", 1, 4)] if trips is not None else [floats("x", 1, 4), integers("trips")]
    weights = {"yes": np.array(True)} | ({} if trips is None else {"trips": np.array(trips)})
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["l"], body=body)
    return model_of([loop, helper.make_node("Relu", ["l"], ["y"])], inputs, [floats("y", 1, 4)], weights)
