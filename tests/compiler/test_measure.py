from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

from cut_fixtures import cut_model, is_same, whole_answer
from hyps.errors import ExecutionError, TensorError
from hyps_compiler.measure import Measured, measure, sample_request
from hyps_compiler.ort import open_session
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from model_fixtures import floats, model_of, save

WEIGHT = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def measured(
    model: ModelProto, folder: Path, shapes: dict[str, tuple[int, ...]] | None = None, feeds: Any = None
) -> tuple[Measured, dict[str, ir.Value]]:
    """Return what was measured, and the annotated values by name."""
    folder.mkdir(exist_ok=True)
    work = folder / "stage"
    work.mkdir()
    staged = stage_model(open_source(save(model, folder / "model.onnx")), work, "none")
    found = measure(staged.model, staged.path, shapes=shapes or {}, feeds=feeds)
    values = [*staged.model.graph.inputs, *(value for n in staged.model.graph for value in n.outputs)]
    return found, {str(value.name): value for value in values}


def dims(value: ir.Value) -> list[int | str | None] | None:
    return None if value.shape is None else [dim if isinstance(dim, int) else dim.value for dim in value.shape.dims]


def open_batch() -> ModelProto:
    nodes = [node("MatMul", "x w", "y"), node("Softmax", "y", "z")]
    return model_of(nodes, [floats("x", "N", 8)], [floats("z", "N", 8)], WEIGHT)


def test_open_dimensions_stay_open_and_get_a_size(tmp_path: Path) -> None:
    found, values = measured(open_batch(), tmp_path)
    assert dims(values["y"]) == ["N", 8]
    assert found.assumed_dims == {"N": 1}
    assert found.sizes["y"] == (1, 8)
    assert found.feeds is not None
    assert found.feeds["x"].shape == (1, 8)


def test_given_shapes_and_requests_give_the_sizes(tmp_path: Path) -> None:
    found, values = measured(open_batch(), tmp_path / "shape", shapes={"x": (5, 8)})
    assert (found.sizes["y"], found.assumed_dims) == ((5, 8), {"N": 5})
    feeds = {"x": np.ones((3, 8), np.float32)}
    found, values = measured(open_batch(), tmp_path / "feeds", feeds=feeds)
    assert (found.sizes["y"], found.assumed_dims) == ((3, 8), {"N": 3})
    assert dims(values["y"]) == ["N", 8]


@pytest.mark.parametrize(
    ("shapes", "feeds", "text"),
    [
        ({"q": (1,)}, None, "`q` is no input"),
        ({"x": (1, 9)}, None, "shape 1 x 9 does not fit input `x`"),
        ({"x": (1,)}, None, "shape 1 does not fit"),
        ({}, {"q": np.zeros(1)}, "`q` is no input"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(shapes: Any, feeds: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=text):
        measured(open_batch(), tmp_path, shapes, feeds)


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    model = model_of([node("Add", "x y", "z")], [floats("x", 2), floats("y", 2)], [floats("z", 2)])
    with pytest.raises(TensorError, match="`y` is missing"):
        measured(model, tmp_path, feeds={"x": np.zeros(2, np.float32)})


def test_a_request_that_fails_is_the_users(tmp_path: Path) -> None:
    model = model_of([node("Add", "x y", "z")], [floats("x", "N"), floats("y", "M")], [floats("z", None)])
    with pytest.raises(ExecutionError, match="onnxruntime cannot run"):
        measured(model, tmp_path, feeds={"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})


def test_a_model_that_runs_on_no_size_tried_is_measured_as_far_as_can_be(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x shape", "y"), node("Relu", "y", "z")]
    model = model_of(nodes, [floats("x", "N")], [floats("z", 7, 11)], {"shape": np.array([7, 11])})
    found, _ = measured(model, tmp_path)
    assert found.feeds is None
    assert found.problem
    assert found.sizes["y"] == (7, 11)
    found, _ = measured(model, tmp_path / "told", shapes={"x": (77,)})
    assert found.feeds is not None


def test_scalars_are_told_from_unknown_ranks(tmp_path: Path) -> None:
    """onnxruntime reports [] for both."""
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")]
    _, values = measured(model_of(nodes, [floats("x", "N", 8)], [floats("y", "N", 8)]), tmp_path)
    assert dims(values["s"]) == []
    assert dims(values["z"]) == []


def test_a_scalar_made_by_a_node_that_may_change_ranks_is_declared(tmp_path: Path) -> None:
    nodes = [node("ReduceSum", "x", "sum"), node("Squeeze", "sum", "s"), node("Sqrt", "s", "y")]
    _, values = measured(model_of(nodes, [floats("x", "N", 8)], [floats("y")]), tmp_path)
    assert dims(values["s"]) == []
    assert dims(values["y"]) == []


def test_ranks_that_depend_on_the_request_stay_unknown(tmp_path: Path) -> None:
    flat = helper.make_graph([node("Flatten", "x", "t")], "then", [], [floats("t")])
    same = helper.make_graph([node("Identity", "x", "e")], "else", [], [floats("e")])
    for graph in (flat, same):
        graph.output[0].type.tensor_type.ClearField("shape")
    nodes = [
        node("Size", "x", "n"),
        node("Constant", "", "many", value_int=100),
        node("Greater", "n many", "c"),
        node("If", "c", "y", then_branch=flat, else_branch=same),
        node("Relu", "y", "r"),
        node("ReduceMax", "r", "m", keepdims=0),
        node("Abs", "m", "a"),
    ]
    model = model_of(nodes, [floats("x", "N", 2, 4)], [floats("a")])
    _, values = measured(model, tmp_path)
    assert dims(values["y"]) is None
    assert dims(values["r"]) is None
    path = tmp_path / "model.onnx"
    cut = cut_model(path, tmp_path / "cut", grouped=False)
    for batch in (2, 30):  # three dimensions, then two
        feeds = {"x": np.full((batch, 2, 4), 0.5, np.float32)}
        assert is_same(whole_answer(path, feeds)["a"], cut.run(feeds)["a"])


LIES: dict[str, tuple[tuple[int | str | None, ...], tuple[int | str | None, ...]]] = {
    "a fixed batch": ((1, 8), (1, 8)),
    "another rank": ((8,), (8,)),
    "another size": (("N", 9), ("N", 9)),
}


@pytest.mark.parametrize("where", ["outputs", "value_info"])
@pytest.mark.parametrize("lie", LIES)
def test_stale_shapes_do_not_reach_the_partitions(lie: str, where: str, tmp_path: Path) -> None:
    """onnxruntime runs such models with a warning; an input that declares the wrong shape it refuses."""
    model, (inner, last) = open_batch(), LIES[lie]
    if where == "outputs":
        del model.graph.output[:]
        model.graph.output.extend([floats("y", *inner), floats("z", *last)])
    else:
        model.graph.value_info.append(floats("y", *inner))
    _, values = measured(model, tmp_path)
    assert dims(values["y"]) == ["N", 8]
    path = tmp_path / "model.onnx"
    cut = cut_model(path, tmp_path / "cut")
    assert len(cut.partitions) == 2
    for batch in (1, 3):
        feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 8)).astype(np.float32)}
        assert is_same(whole_answer(path, feeds)["z"], cut.run(feeds)["z"])


def test_what_inference_leaves_open_is_declared_as_the_model_does(tmp_path: Path) -> None:
    model = model_of([node("NonZero", "x", "y")], [floats("x", "N", 8)], [])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"]))
    _, values = measured(model, tmp_path)
    assert dims(values["y"]) == [2, "found"]


def test_sizes_that_only_a_run_tells_are_observed(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "i"), node("Transpose", "i", "t"), node("Cast", "t", "y", to=1)]
    model = model_of(nodes, [floats("x", 4)], [floats("y", None, 1)])
    found, values = measured(model, tmp_path, feeds={"x": np.array([0, 1, 0, 2], np.float32)})
    assert found.sizes["t"] == (2, 1)
    assert dims(values["t"]) == [None, 1]


def test_one_name_of_a_dimension_gets_one_size(tmp_path: Path) -> None:
    model = model_of([node("Add", "x y", "z")], [floats("x", 2, "L"), floats("y", "L")], [floats("z", 2, "L")])
    found, _ = measured(model, tmp_path)
    assert found.feeds is not None
    assert found.feeds["x"].shape[1] == found.feeds["y"].shape[0] == found.assumed_dims["L"]


def test_unnamed_open_dimensions_are_told_by_input_and_axis(tmp_path: Path) -> None:
    found, _ = measured(model_of([node("Relu", "x", "y")], [floats("x", None, 8)], [floats("y", None, 8)]), tmp_path)
    assert found.assumed_dims == {"x:0": 1}


def test_another_sample_has_the_same_shapes_and_other_values(tmp_path: Path) -> None:
    session = open_session(save(open_batch(), tmp_path / "model.onnx"), "none")
    first = {"x": np.zeros((4, 8), np.float32)}
    second, third = sample_request(session, first, 1), sample_request(session, first, 2)
    assert second["x"].shape == (4, 8)
    assert not np.array_equal(second["x"], third["x"])
    assert np.array_equal(second["x"], sample_request(session, first, 1)["x"])
