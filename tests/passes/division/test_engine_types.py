"""Element types and opsets that pieces cannot have: refused with the reason, before anything is changed."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from cut_fixtures import stage
from hyps_passes.division.engine import extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError
from model_fixtures import save


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
