"""Large weights put back into a converted model: equal values, layouts folded, in one file or two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hyps_compiler.convert.weights import Weight, write_model

Array = np.ndarray[Any, Any]


def make_model() -> onnx.ModelProto:
    """Return y = x @ transpose(w), z = the same again through an If that captures w; w is an input."""
    make = onnx.helper.make_node
    floats, flag = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    value = onnx.helper.make_tensor_value_info
    branch = onnx.helper.make_graph([make("Identity", ["w_t"], ["b"])], "branch", [], [value("b", floats, [4, 3])])
    nodes = [
        make("Identity", ["w"], ["w_same"]),
        make("Transpose", ["w_same"], ["w_t"], perm=[1, 0]),
        make("MatMul", ["x", "w_t"], ["y"]),
        make("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch),
        make("MatMul", ["x", "chosen"], ["z"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", floats, ["n", 4]), value("w", floats, [3, 4]), value("flag", flag, [])],
        [value("y", floats, ["n", 3]), value("z", floats, ["n", 3])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def weight() -> Array:
    return np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def run(path: Path) -> tuple[Array, list[Array]]:
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return x, session.run(None, {"x": x, "flag": np.array(True)})


@pytest.fixture
def write(tmp_path: Path, weight: Array) -> Callable[[int], onnx.ModelProto]:
    def write_with_limit(file_nbytes: int) -> onnx.ModelProto:
        weights = {"w": Weight(lambda: weight, weight.nbytes)}
        write_model(make_model(), weights, tmp_path / "m.onnx", data_name="m.onnx.data", file_nbytes=file_nbytes)
        model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        onnx.checker.check_model(str(tmp_path / "m.onnx"))
        return model

    return write_with_limit


@pytest.mark.parametrize("file_nbytes", [10_000, 0])
def test_values_are_the_weights(
    tmp_path: Path, weight: Array, write: Callable[[int], onnx.ModelProto], file_nbytes: int
) -> None:
    write(file_nbytes)
    x, outputs = run(tmp_path / "m.onnx")
    for output in outputs:
        np.testing.assert_allclose(output, x @ weight.T, rtol=1e-6, atol=1e-6)


def test_weights_are_no_inputs(write: Callable[[int], onnx.ModelProto]) -> None:
    assert [value.name for value in write(10_000).graph.input] == ["x", "flag"]


def test_layout_nodes_are_folded(write: Callable[[int], onnx.ModelProto]) -> None:
    graph = write(10_000).graph
    assert [node.op_type for node in graph.node] == ["MatMul", "If", "MatMul"]
    assert [(tensor.name, list(tensor.dims)) for tensor in graph.initializer] == [("w_t", [4, 3])]


def test_small_models_are_one_file(tmp_path: Path, write: Callable[[int], onnx.ModelProto]) -> None:
    write(10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_weights_beside_the_model_start_at_pages(tmp_path: Path, weight: Array) -> None:
    model = make_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [3, 4]))
    model.graph.node.append(onnx.helper.make_node("Add", ["v", "w"], ["sum"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [3, 4]))
    weights = {name: Weight(lambda: weight, weight.nbytes) for name in ("w", "v")}
    write_model(model, weights, tmp_path / "m.onnx", data_name="m.onnx.data", file_nbytes=0)
    graph = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph
    offsets = [
        int(entry.value) for tensor in graph.initializer for entry in tensor.external_data if entry.key == "offset"
    ]
    assert offsets == [0, 4096, 8192]  # w itself, v, and w transposed
    _, (_, _, total) = run(tmp_path / "m.onnx")
    np.testing.assert_array_equal(total, weight + weight)
