"""A converted model against the references of its source: what agrees, what is refused, what proves nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from hyps.errors import DifferenceError, ModelError, UsageError
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.convert.agreement import compare_with_references
from hyps_compiler.convert.conversion import OutputAgreement
from hyps_compiler.convert.request import Made, Request, answers_name, feeds_name
from hyps_compiler.convert.samples import BATCH, OPEN_SIZE, PICTURE_SIZE, Input, draw, leave_references

Array = np.ndarray[Any, Any]
MADE = Made(converter="made by hand 1", framework="numpy 2")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a model of y = 2 x."""
    two = onnx.numpy_helper.from_array(np.array(2, np.float32), "two")
    value = make_tensor_value_info
    graph = make_graph(
        [make_node("Mul", ["x", "two"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [two],
    )
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def refer(folder: Path, index: int, x: Array, y: Array, name: str = "y") -> None:
    write_npz(folder / feeds_name(index), {"x": x})
    write_npz(folder / answers_name(index), {name: y})


def numbers(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)


def compared(model: Path, samples: int = 1, made: Made = MADE) -> OutputAgreement:
    (found,) = compare_with_references(model.parent, model, made, samples)
    return found


def test_equal_answers_agree(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * 2)
    found = compared(model)
    assert (found.difference, found.equal_share, found.varies, found.rounding) == (0.0, 1.0, True, None)


def test_the_largest_difference_of_all_samples_is_told(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * 2)
    refer(model.parent, 1, numbers(2, 1), numbers(2, 1) * np.float32(2.00004))
    found = compared(model, samples=2)
    assert found.difference == pytest.approx(2e-5, rel=0.1)
    assert found.equal_share == pytest.approx(0.5)


def test_other_answers_are_refused(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * 2)
    refer(model.parent, 1, numbers(2, 1), numbers(2, 1) * np.float32(2.001))
    with pytest.raises(DifferenceError, match=r"computes in numpy: output `y` differs by 0\.0005") as caught:
        compared(model, samples=2)
    assert "--no-verify" in caught.value.hint


def test_answers_of_another_shape_are_refused(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(1) * 2)
    with pytest.raises(DifferenceError, match="has the shape 2 x 3 instead of 1 x 3"):
        compared(model)


def test_other_outputs_are_refused(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * 2, name="z")
    with pytest.raises(DifferenceError, match="do not have the same outputs"):
        compared(model)


def test_a_model_that_fails_is_refused(model: Path) -> None:
    refer(model.parent, 0, numbers(2)[:, :2], numbers(2) * 2)
    with pytest.raises(ModelError, match="fails where its source does not"):
        compared(model)


def test_equal_rows_prove_nothing(model: Path) -> None:
    refer(model.parent, 0, np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32))
    assert compared(model).varies is False


def test_one_row_cannot_tell(model: Path) -> None:
    refer(model.parent, 0, numbers(1), numbers(1) * 2)
    assert compared(model).varies is None
    refer(model.parent, 1, numbers(1, 1), numbers(1, 1) * 2)
    assert compared(model, samples=2).varies is True


def test_noise_among_samples_is_no_dependence(model: Path) -> None:
    x = np.ones((2, 3), np.float32)
    x[1] += np.float32(1e-6)
    refer(model.parent, 0, x, x * np.float32(2.00002))
    assert compared(model).varies is False


def test_quantized_answers_are_judged_by_steps(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * 2 + np.float32(0.2))
    found = compared(model, made=Made(converter="c 1", framework="numpy 2", steps={"y": 0.1}))
    assert found.steps == pytest.approx(2.0, rel=1e-3)
    with pytest.raises(DifferenceError):
        compared(model, made=Made(converter="c 1", framework="numpy 2", steps={"y": 0.05}))


@pytest.fixture
def shaky(tmp_path: Path) -> Path:
    """Write a model of y = sin(100000 x), which makes of a last bit what it likes."""
    factor = onnx.numpy_helper.from_array(np.array(1e5, np.float32), "factor")
    value = make_tensor_value_info
    graph = make_graph(
        [make_node("Mul", ["x", "factor"], ["large"]), make_node("Sin", ["large"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [factor],
    )
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_rounding_alone_does_is_no_difference(shaky: Path) -> None:
    x = numbers(2)
    refer(shaky.parent, 0, x, np.sin(np.nextafter(x, np.float32(-9)) * np.float32(1e5)))
    found = compared(shaky)
    assert found.rounding is not None
    assert 1e-4 < found.difference <= found.tolerance == pytest.approx(3 * found.rounding)


def test_what_is_further_off_is_one(shaky: Path) -> None:
    refer(shaky.parent, 0, numbers(2), np.sin(numbers(2) * np.float32(1.1e5)))
    with pytest.raises(DifferenceError):
        compared(shaky)


@pytest.mark.parametrize(
    ("node", "dtype"),
    [
        (make_node("RandomNormalLike", ["x"], ["moved"], scale=0.01), np.float32),
        (make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0), np.int64),
    ],
    ids=["random", "index"],
)
def test_what_rounding_has_no_part_in_is_a_difference(tmp_path: Path, node: onnx.NodeProto, dtype: type) -> None:
    is_index = dtype is np.int64
    nodes = [node] if is_index else [node, make_node("Add", ["x", "moved"], ["y"])]
    kind = TensorProto.INT64 if is_index else TensorProto.FLOAT
    x = make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    graph = make_graph(nodes, "g", [x], [make_tensor_value_info("y", kind, None)])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    tied = np.array([[0, 1, 1 + 2**-23], [0, 0, 1]], np.float32) if is_index else numbers(2)
    refer(tmp_path, 0, tied, np.array([1, 2]) if is_index else tied)
    with pytest.raises(DifferenceError, match="output `y` differs by"):
        compared(tmp_path / "m.onnx")


def test_a_tolerance_can_be_given(model: Path) -> None:
    refer(model.parent, 0, numbers(2), numbers(2) * np.float32(2.02))
    assert compared(model, made=Made(converter="c 1", framework="numpy 2", tolerances={"y": 0.02})).tolerance == 0.02


class TestSamples:
    def request(self, folder: Path, **fields: Any) -> Request:
        return Request(source="m", folder=str(folder), samples=2, **fields)

    def test_open_dimensions_are_closed(self) -> None:
        x = draw([Input("x", "float32", (None, None, 3))], seed=0)["x"]
        assert (x.shape, x.dtype) == ((BATCH, OPEN_SIZE, 3), np.float32)

    def test_open_pictures_are_of_a_usual_size(self) -> None:
        x = draw([Input("x", "float32", (None, None, None, 3))], seed=0)["x"]
        assert x.shape == (BATCH, PICTURE_SIZE, PICTURE_SIZE, 3)
        assert x.max() > 200

    def test_a_seed_gives_the_same_again(self) -> None:
        inputs = [Input("a", "int32", (5,)), Input("b", "bool", (9,)), Input("c", "uint8", (2, 32, 32, 3))]
        one, other, another = draw(inputs, seed=1), draw(inputs, seed=1), draw(inputs, seed=2)
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert not any(np.array_equal(one[name], another[name]) for name in one)

    def test_smaller_integers_are_tried_where_larger_are_no_rows(self, tmp_path: Path) -> None:
        table = numbers(10)

        def answer(feeds: Any) -> dict[str, Array]:
            return {"y": table[feeds["i"]]}

        reason = leave_references(self.request(tmp_path), [Input("i", "int64", (None, 40))], answer)
        assert reason == ""
        assert read_npz(tmp_path / feeds_name(1))["i"].max() < 10
        assert read_npz(tmp_path / answers_name(1))["y"].shape == (BATCH, 40, 3)

    def test_a_source_that_answers_nothing_is_told(self, tmp_path: Path) -> None:
        def answer(feeds: Any) -> dict[str, Array]:
            raise ValueError("not\nat all")

        reason = leave_references(self.request(tmp_path), [Input("x", "float32", (3,))], answer)
        assert reason == "the source framework answers no request that was made up (not); give one with --inputs"

    @pytest.mark.parametrize("value", [Input("x", "string", (3,)), Input("x", "float32", None)])
    def test_what_cannot_be_drawn_is_told(self, tmp_path: Path, value: Input) -> None:
        reason = leave_references(self.request(tmp_path), [value], lambda feeds: {})
        assert reason == "no request can be made up for the input `x`; give one with --inputs"

    def test_shapes_that_are_fixed_are_drawn(self, tmp_path: Path) -> None:
        request = self.request(tmp_path, inputs={"x": (1, 7)})
        leave_references(request, [Input("x", "float32", (None, None))], lambda feeds: {"y": feeds["x"]})
        assert read_npz(tmp_path / feeds_name(0))["x"].shape == (1, 7)

    def test_a_given_request_is_answered(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "x.npz", {"x": np.ones((4, 3), np.float32)})
        request = self.request(tmp_path, feeds=str(tmp_path / "x.npz"))
        leave_references(request, [Input("x", "float32", (None, 3))], lambda feeds: {"y": feeds["x"] * 2})
        assert read_npz(tmp_path / answers_name(0))["y"].tolist() == [[2.0] * 3] * 4

    def test_a_given_request_with_other_names_is_refused(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "x.npz", {"z": np.ones(3)})
        request = self.request(tmp_path, feeds=str(tmp_path / "x.npz"))
        with pytest.raises(UsageError, match="does not hold the model's inputs, which are `x`"):
            leave_references(request, [Input("x", "float32", (None, 3))], lambda feeds: {})


@pytest.mark.parametrize(("numbers_of", "is_blank"), [([np.nan] * 3, True), ([np.nan, 1, 2], False)])
def test_an_output_that_is_nan_everywhere_is_told(model: Path, numbers_of: list[float], is_blank: bool) -> None:
    x = np.array([numbers_of], np.float32)
    refer(model.parent, 0, x, x * 2)
    assert compared(model).is_blank == is_blank


def test_wrong_values_beside_a_mask_are_refused(model: Path) -> None:
    x = np.array([[-1.5e38, 1.0, 2.0]], np.float32)
    refer(model.parent, 0, x, np.array([[-3e38, 2.0, 4.0001]], np.float32))
    assert 1e-5 < compared(model).difference < 1e-4
    refer(model.parent, 0, x, np.array([[-3e38, 2.0, 5.0]], np.float32))
    with pytest.raises(DifferenceError, match=r"output `y` differs by 0\.2"):
        compared(model)
