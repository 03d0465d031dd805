"""Plans against model files."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from hyps.errors import DifferenceError, ModelError, PlanError, TensorError
from hyps_compiler import compile as compile_plan
from hyps_compiler.findings import show_verified, verified_json
from hyps_compiler.verification import verify_folder
from model_fixtures import floats, model_of, save


def model(path: Path, scale: float = 1.0, output: str = "y", op: str = "Relu") -> Path:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(op, ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], [output]),
    ]
    weights = {"w": weight, "v": weight.T * np.float32(scale)}
    return Path(save(model_of(nodes, [floats("x", "n", 8)], [floats(output, "n", 8)], weights), path))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    compile_plan(model(tmp_path / "m.onnx"), tmp_path / "plan", cut="all", verify=False)
    return tmp_path / "plan"


def test_a_plan_computes_what_its_model_computes(tmp_path: Path, plan: Path) -> None:
    found = verify_folder(plan, str(tmp_path / "m.onnx"), None, 3)
    found.check()
    assert not found.model_has_changed
    assert found.difference() is None
    assert verified_json(found)["error"] is None
    text = show_verified(found)
    assert "borders:  2 of 2 tensors bit-identical to the uncut model's" in text
    assert "changed" not in text


def test_another_model_is_named_by_the_tensor_that_differs(tmp_path: Path, plan: Path) -> None:
    other = model(tmp_path / "other.onnx", scale=2.0)
    found = verify_folder(plan, str(other), None, 1)
    assert found.model_has_changed
    with pytest.raises(DifferenceError, match=r"border tensor `y` differs by 0\.5 of its largest value") as caught:
        found.check()
    assert "changed since" in caught.value.hint
    assert "the model file has changed since the plan was made" in show_verified(found)
    assert verified_json(found)["error"]["code"] == "E_DIFFERENT"


def test_a_model_with_other_outputs_is_another(tmp_path: Path, plan: Path) -> None:
    other = model(tmp_path / "other.onnx", output="z")
    with pytest.raises(ModelError, match="made from another model") as caught:
        verify_folder(plan, str(other), None, 1)
    assert "`m`" in caught.value.hint


def test_a_model_that_draws_lots_cannot_be_compared(tmp_path: Path) -> None:
    node = helper.make_node("RandomNormalLike", ["x"], ["y"])
    path = Path(save(model_of([node], [floats("x", 2)], [floats("y", 2)]), tmp_path / "r.onnx"))
    compile_plan(path, tmp_path / "plan")
    with pytest.raises(ModelError, match="random numbers"):
        verify_folder(tmp_path / "plan", str(path), None, 1)


def test_given_inputs_are_run(tmp_path: Path, plan: Path) -> None:
    feeds = {"x": np.full((5, 8), np.nan, np.float32)}
    verify_folder(plan, str(tmp_path / "m.onnx"), feeds, 1).check()


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "input `x` is missing"),
        ({"z": np.zeros((1, 8), np.float32)}, "there is no input `z`"),
        ({"x": np.zeros((1, 8))}, "`x` must be float32 and is float64"),
        ({"x": np.zeros((1, 9), np.float32)}, "`x` must have the shape n x 8 and has 1 x 9"),
    ],
)
def test_inputs_that_do_not_fit_are_said(tmp_path: Path, plan: Path, feeds: dict[str, object], says: str) -> None:
    with pytest.raises(TensorError, match=says):
        verify_folder(plan, str(tmp_path / "m.onnx"), feeds, 1)


def test_an_altered_file_is_not_run(tmp_path: Path, plan: Path) -> None:
    (plan / "partitions" / "p000.onnx").write_bytes(b"x")
    with pytest.raises(PlanError, match=r"`partitions/p000\.onnx`"):
        verify_folder(plan, str(tmp_path / "m.onnx"), None, 1)
