from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from cut_fixtures import is_same, plain_session, whole_answer
from hyps.errors import ModelError
from hyps.formats.plan import Optimization
from hyps_compiler.source import open_source
from hyps_compiler.stage import Staged, stage_model
from model_fixtures import floats, model_of, save

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 16)).astype(np.float32)
LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")


def staged(model: onnx.ModelProto, folder: Path, level: Optimization = "none", keep: tuple[str, ...] = ()) -> Staged:
    work = folder / "stage"
    work.mkdir()
    return stage_model(open_source(save(model, folder / "model.onnx")), work, level, keep)


def two_layers(**how: int) -> onnx.ModelProto:
    """Return Gemm, Relu, MatMul, Add; the first with weights of 64 KiB."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["y"]),
    ]
    weights = {
        "w1": RNG.standard_normal((16, 1024)).astype(np.float32),
        "b1": RNG.standard_normal(1024).astype(np.float32),
        "w2": RNG.standard_normal((1024, 4)).astype(np.float32),
        "b2": RNG.standard_normal(4).astype(np.float32),
    }
    return model_of(nodes, [floats("x", "N", 16)], [floats("y", "N", 4)], weights, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", LEVELS)
def test_the_staged_model_computes_what_the_model_computes(level: Optimization, tmp_path: Path) -> None:
    model = two_layers()
    result = staged(model, tmp_path, level)
    expected = whole_answer(model.SerializeToString(), {"x": X})["y"]
    actual = whole_answer(result.path, {"x": X})["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert level != "none" or is_same(expected, actual)


@pytest.mark.parametrize("level", LEVELS)
def test_large_weights_stay_on_disk(level: Optimization, tmp_path: Path) -> None:
    result = staged(two_layers(), tmp_path, level)
    tensors = {name: value.const_value for name, value in result.model.graph.initializers.items()}
    large = [tensor for tensor in tensors.values() if tensor is not None and tensor.nbytes >= 1024]
    assert len(large) == 3
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
    assert result.path.stat().st_size < 8192


def test_without_optimization_it_tells_what_onnxruntime_would_fuse(tmp_path: Path) -> None:
    result = staged(two_layers(), tmp_path)
    assert {node.op_type for node in result.model.graph} == {"Gemm", "Relu", "MatMul", "Add"}
    assert result.fused == {"h", "m"}


@pytest.mark.parametrize("level", ["portable", "native"])
def test_an_optimized_model_holds_no_more_fusions(level: Optimization, tmp_path: Path) -> None:
    result = staged(two_layers(), tmp_path, level)
    assert len(list(result.model.graph)) == 2
    assert result.fused == frozenset()


@pytest.mark.parametrize("level", LEVELS)
def test_a_tensor_to_cut_at_outlives_the_fusion(level: Optimization, tmp_path: Path) -> None:
    result = staged(two_layers(), tmp_path, level, keep=("h",))
    assert "h" in {value.name for node in result.model.graph for value in node.outputs}
    assert [value.name for value in result.model.graph.outputs] == ["y"]
    assert [output.name for output in plain_session(result.path).get_outputs()] == ["y"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["nonsense", "x", "w1"])
def test_a_tensor_to_cut_at_must_be_made_inside_the_model(level: Optimization, name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"`{name}`"):
        staged(two_layers(), tmp_path, level, keep=(name,))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_weights_that_are_inputs_become_constants(level: Optimization, ir_version: int, tmp_path: Path) -> None:
    model = two_layers(ir_version=ir_version)
    model.graph.node[2].input[1] = "folded"  # the optimized model has no w2 any more, and must have no input w2
    model.graph.node.insert(2, helper.make_node("Identity", ["w2"], ["folded"]))
    model.graph.input.extend(floats(weight.name, *weight.dims) for weight in model.graph.initializer)
    result = staged(model, tmp_path, level)
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    assert [value.name for value in plain_session(result.path).get_inputs()] == ["x"]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_inputs_are_fused_like_others(ir_version: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {"w": np.ones((2, 1, 3, 3), np.float32), **dict.fromkeys("sbmv", np.ones(2, np.float32))}
    images = [floats("x", 1, 1, 5, 5)], [floats("y", 1, 2, 3, 3)]
    model = model_of(nodes, *images, weights, ir_version=ir_version)
    model.graph.input.extend(floats(weight.name, *weight.dims) for weight in model.graph.initializer)
    assert [node.op_type for node in staged(model, tmp_path, "portable").model.graph] == ["Conv"]


def test_staging_does_not_touch_the_model_file(tmp_path: Path) -> None:
    model = two_layers()
    staged(model, tmp_path, "portable", keep=("h",))
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString()


@pytest.mark.parametrize("level", LEVELS)
def test_external_data_is_found_beside_the_model(level: Optimization, tmp_path: Path) -> None:
    model = two_layers()
    expected = whole_answer(model.SerializeToString(), {"x": X})["y"]
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=16)
    work = tmp_path / "stage"
    work.mkdir()
    result = stage_model(open_source(source / "model.onnx"), work, level)
    assert {path.name for path in source.iterdir()} == {"model.onnx", "weights.bin"}
    np.testing.assert_allclose(whole_answer(result.path, {"x": X})["y"], expected, rtol=0, atol=1e-4)


def test_half_floats_are_not_taken_for_fusions(tmp_path: Path) -> None:
    """onnxruntime computes them as float32 between values of other names, fused or not."""
    model = two_layers()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = staged(model, tmp_path)
    assert "r" not in result.fused


def test_many_strings_stay_in_the_file(tmp_path: Path) -> None:
    words = np.array([f"word{number}" for number in range(1000)], dtype=object)
    index = helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["N"])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.STRING, ["N"])
    model = model_of([helper.make_node("Gather", ["words", "i"], ["y"])], [index], [output], {"words": words})
    result = staged(model, tmp_path)
    assert whole_answer(result.path, {"i": np.array([999])})["y"].tolist() == ["word999"]
