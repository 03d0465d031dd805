"""Element types and opsets that pieces cannot have: refused with the reason, before anything is changed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cut_fixtures import distance, emit_cut, stage, whole_answer
from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.layers import build_cut_graph
from model_fixtures import floats, model_of, save


def one(op_type: str, given: int, made: int, opset: int, path: Path, **attributes: Any) -> Path:
    node = helper.make_node(op_type, ["x"], ["y"], "one", **attributes)
    values = [helper.make_tensor_value_info(name, kind, [6, 4]) for name, kind in (("x", given), ("y", made))]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return save(model, path)


CASES: dict[str, tuple[str, int, int, int, str, dict[str, int]]] = {
    "no slices of its input": ("Cast", TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT, 19, "no slices", {"to": 1}),
    "no joint of its output": ("Not", TensorProto.BOOL, TensorProto.BOOL, 1, "opset 4 joins parts first", {}),
    "no travel": ("Cast", TensorProto.FLOAT, TensorProto.BFLOAT16, 19, "cannot travel", {"to": TensorProto.BFLOAT16}),
}


@pytest.mark.parametrize("case", CASES)
def test_types_that_have_no_pieces_are_refused(case: str, tmp_path: Path) -> None:
    op_type, given, made, opset, reason, attributes = CASES[case]
    path = one(op_type, given, made, opset, tmp_path / "m.onnx", **attributes)
    staged, measured = stage(path, tmp_path / "stage")
    (name,) = (node.name for node in staged.model.graph)
    with pytest.raises(IndivisibleError) as caught:
        extent(staged.model, Region("one", (name,), -2), {"x": (6, 4), "y": (6, 4), **measured.sizes})
    assert reason in caught.value.reason


def test_the_same_operator_is_divided_where_its_type_allows_it(tmp_path: Path) -> None:
    staged, measured = stage(one("Not", TensorProto.BOOL, TensorProto.BOOL, 7, tmp_path / "m.onnx"), tmp_path / "s")
    (name,) = (node.name for node in staged.model.graph)
    assert extent(staged.model, Region("one", (name,), -2), measured.sizes).most == 6


@pytest.mark.parametrize("carry", [False, True])
def test_parts_of_a_sum_are_added_in_opsets_without_an_add(carry: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 6, 3, 3)).astype(np.float32)
    feeds = {"x": rng.standard_normal((1, 6, 5, 5)).astype(np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], "one")
    model = model_of([node], [floats("x", 1, 6, 5, 5)], [floats("y", 1, 4, 3, 3)], {"w": weight}, opset=6)
    path = save(model, tmp_path / "m.onnx")
    staged, measured = stage(path, tmp_path / "stage", feeds=feeds)
    Divide(Region("one", ("one",), None, carry=carry), 3).apply(staged.model, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes)
    cut = emit_cut(staged, measured, graph, tmp_path / "plan", graph.legal_borders())
    assert distance(whole_answer(path, feeds)["y"], cut.run(feeds)["y"]) <= 1e-5


def test_an_empty_axis_has_no_pieces(tmp_path: Path) -> None:
    """What leaves the region in the middle may be empty although its last output is not."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "first"),
        helper.make_node("Slice", ["r", "from", "to", "axis"], ["none"], "empty"),
        helper.make_node("Concat", ["none", "r"], ["y"], "last", axis=1),
    ]
    bounds = {"from": np.array([2]), "to": np.array([2]), "axis": np.array([1])}
    outputs = [floats("y", 2, 6), floats("none", 2, 0)]
    path = save(model_of(nodes, [floats("x", 2, 6)], outputs, bounds), tmp_path / "m.onnx")
    staged, measured = stage(path, tmp_path / "stage")
    with pytest.raises(IndivisibleError, match="nothing along axis 1"):
        extent(staged.model, Region("all", ("first", "empty", "last"), -1), measured.sizes)
