"""Requests are computed together only where no row of an answer depends on another request's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from hyps.adapters.row_trials import require_independent_rows
from hyps.cli_manager import manager
from hyps.errors import InfeasibleError
from plan_fixtures import Dataflow, Piece, Weights, mlp


def mixing(operator: str) -> Dataflow:
    """Return a model whose last partition mixes rows: a running sum, or each row less the mean of all."""
    flow = mlp(4, 4)
    (last,) = flow.outputs
    weights: Weights = {"axis": np.array(0, dtype=np.int64)} if operator == "CumSum" else {}
    nodes = [helper.make_node("CumSum", [last, "axis"], ["mixed"])]
    if operator == "ReduceMean":
        nodes = [
            helper.make_node("ReduceMean", [last], ["mean"], axes=[0]),
            helper.make_node("Sub", [last, "mean"], ["mixed"]),
        ]
    piece = Piece("mix", nodes, weights, (last,), ("mixed",))
    tensors = {**flow.tensors, "mixed": flow.tensors[last]}
    return replace(flow, pieces=[*flow.pieces, piece], tensors=tensors, outputs=("mixed",))


@pytest.mark.parametrize("operator", ["CumSum", "ReduceMean"])
def test_a_model_whose_rows_mix_is_refused(tmp_path: Path, operator: str) -> None:
    mixing(operator).write(tmp_path / "plan")
    with pytest.raises(InfeasibleError, match="output `mixed` depends on the other rows"):
        require_independent_rows(tmp_path / "plan")


def test_a_model_whose_rows_are_apart_may_be_batched(tmp_path: Path) -> None:
    mlp(4, 8, 4).write(tmp_path / "plan")
    assert require_independent_rows(tmp_path / "plan") == ""


def test_what_cannot_be_tried_is_said(tmp_path: Path) -> None:
    mlp(4, 4).write(tmp_path / "plan")
    for file in (tmp_path / "plan" / "partitions").iterdir():
        file.write_bytes(b"")
    assert require_independent_rows(tmp_path / "plan") != ""


def test_a_manager_does_not_start_to_batch_rows_that_mix(tmp_path: Path) -> None:
    mixing("CumSum").write(tmp_path / "plan")
    result = CliRunner().invoke(manager, [str(tmp_path / "plan"), "--batch", "4", "--bind", "nonsense"])
    assert result.exit_code == 3
    assert "leave --batch out" in result.stderr
