"""Large weights put back into a converted model: equal values, layouts folded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hyps.errors import ModelError
from hyps_compiler.convert.packing import pack
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
def written(tmp_path: Path, weight: Array) -> onnx.ModelProto:
    write_model(make_model(), {"w": Weight(lambda: weight, weight.nbytes)}, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    return onnx.load(tmp_path / "m.onnx", load_external_data=False)


@pytest.mark.usefixtures("written")
def test_values_are_the_weights(tmp_path: Path, weight: Array) -> None:
    x, outputs = run(tmp_path / "m.onnx")
    for output in outputs:
        np.testing.assert_allclose(output, x @ weight.T, rtol=1e-6, atol=1e-6)


def test_weights_are_no_inputs(written: onnx.ModelProto) -> None:
    assert [value.name for value in written.graph.input] == ["x", "flag"]


def test_layout_nodes_are_folded(written: onnx.ModelProto) -> None:
    assert [node.op_type for node in written.graph.node] == ["MatMul", "If", "MatMul"]
    assert [(tensor.name, list(tensor.dims)) for tensor in written.graph.initializer] == [("w_t", [4, 3])]


def test_weights_lie_beside_the_model_from_whole_pages_on(tmp_path: Path, weight: Array) -> None:
    model = make_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [3, 4]))
    model.graph.node.append(onnx.helper.make_node("Add", ["v", "w"], ["sum"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [3, 4]))
    weights = {name: Weight(lambda: weight, weight.nbytes) for name in ("w", "v")}
    write_model(model, weights, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph
    offsets = [
        int(entry.value) for tensor in graph.initializer for entry in tensor.external_data if entry.key == "offset"
    ]
    assert offsets == [0, 4096, 8192]  # w itself, v, and w transposed
    _, (_, _, total) = run(tmp_path / "m.onnx")
    np.testing.assert_array_equal(total, weight + weight)


class TestPack:
    @pytest.fixture
    def folder(self, tmp_path: Path, written: onnx.ModelProto) -> Path:
        assert written.graph.initializer
        (tmp_path / "packed").mkdir()
        return tmp_path / "packed"

    def same(self, one: Path, other: Path) -> None:
        for left, right in zip(run(one)[1], run(other)[1], strict=True):
            np.testing.assert_array_equal(left, right)

    def test_small_models_become_one_file(self, tmp_path: Path, folder: Path) -> None:
        pack(tmp_path / "m.onnx", folder / "a.onnx", "a.onnx.data")
        assert [path.name for path in folder.iterdir()] == ["a.onnx"]
        self.same(tmp_path / "m.onnx", folder / "a.onnx")

    def test_what_is_streamed_is_what_protobuf_would_write_in_another_order(self, tmp_path: Path, folder: Path) -> None:
        pack(tmp_path / "m.onnx", folder / "a.onnx", "a.onnx.data")
        whole = onnx.load(tmp_path / "m.onnx")
        packed = onnx.load(folder / "a.onnx")
        for tensor in (*whole.graph.initializer, *packed.graph.initializer):
            tensor.ClearField("data_location")
        assert packed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)

    def test_large_models_become_two(self, tmp_path: Path, folder: Path) -> None:
        pack(tmp_path / "m.onnx", folder / "a.onnx", "a.onnx.data", file_nbytes=0)
        assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "a.onnx.data"]
        self.same(tmp_path / "m.onnx", folder / "a.onnx")

    def test_a_weight_that_is_gone_is_refused(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "m.onnx.data").unlink()
        with pytest.raises(ModelError, match="the weight `w_t` is not where the converter says"):
            pack(tmp_path / "m.onnx", folder / "a.onnx", "a.onnx.data")

    def test_a_weight_that_is_cut_short_is_refused(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "m.onnx.data").write_bytes(bytes(4))
        with pytest.raises(ModelError, match="the weight `w_t` ends too early"):
            pack(tmp_path / "m.onnx", folder / "a.onnx", "a.onnx.data")
