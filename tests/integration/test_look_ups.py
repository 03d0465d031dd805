"""Models whose tables are larger than their memory: compiled for it, run in it, and the answers are the model's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hyps.formats.plan import Plan
from hyps_compiler.driver import Compiled, Options, compile_model
from hyps_compiler.partition import BASE_BYTES, Request

MB = 10**6
ROWS, WIDTH, TOKENS = 40_000, 384, 48
RNG = np.random.default_rng(5)
CHILD = """
import json, sys, numpy
from hyps.adapters.machine import peak_rss_nbytes
from hyps.local import LocalRunner
with LocalRunner(sys.argv[1], threads=1, memory_bytes=int(sys.argv[4])) as runner:
    requests = dict(numpy.load(sys.argv[2]))["ids"]
    answers = [runner.run({"ids": ids}) for _ in range(3) for ids in requests]
    modes = sorted({mode.value for mode in runner._engine.modes.values()})
last = answers[-len(requests):]
numpy.savez(sys.argv[3], rows=[a["y"] for a in last], scores=[a["scores"] for a in last])
print(json.dumps({"peak": peak_rss_nbytes(), "modes": modes}))
"""


def model(path: Path) -> Path:
    """Write a model of two tables of 61 MB that are looked up, and a third one that is multiplied with too."""
    tables = {name: RNG.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in ("words", "kinds")}
    tied = RNG.standard_normal((2000, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["word"], name="words"),
        helper.make_node("Gather", ["kinds", "ids"], ["kind"], name="kinds"),
        helper.make_node("Add", ["word", "kind"], ["both"], name="add"),
        helper.make_node("Mod", ["ids", "few"], ["ids_of_few"], name="mod"),
        helper.make_node("Gather", ["tied", "ids_of_few"], ["some"], name="some"),
        helper.make_node("Add", ["both", "some"], ["y"], name="sum"),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["tied", "turned"], ["scores"], name="scores"),
    ]
    weights: dict[str, Any] = {**tables, "tied": tied, "few": np.array(2000, np.int64)}
    graph = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [TOKENS])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [TOKENS, WIDTH]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2000, TOKENS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("source") / "tables.onnx")


@pytest.fixture(scope="module")
def compiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The model for a budget of a fifth of one table beside the process."""
    request = Request(memory_bytes=BASE_BYTES + 12 * MB)
    feeds = {"ids": np.array([0, -1] * (TOKENS // 2), np.int64)}
    return compile_model(source, tmp_path_factory.mktemp("plan") / "plan", Options(request=request, feeds=feeds))


def looked_up(plan: Plan) -> dict[tuple[int, ...], int]:
    forms = [part.form for part in plan.partitions if part.form is not None]
    shapes = [weight.shape for form in forms for weight in form.weights if weight.looked_up_by]
    return {shape: shapes.count(shape) for shape in shapes}


@pytest.mark.slow
def test_tables_that_need_not_be_are_not_divided(compiled: Compiled) -> None:
    assert looked_up(compiled.plan) == {(ROWS, WIDTH): 2}
    assert not any(part.shard for part in compiled.plan.partitions)
    assert all((part.peak_memory_bytes or 0) < 12 * MB for part in compiled.plan.partitions)


@pytest.mark.slow
@pytest.mark.parametrize("room", [12 * MB, 40 * MB], ids=["in turns", "all kept"])
def test_a_process_keeps_a_budget_far_below_its_tables(
    compiled: Compiled, source: Path, tmp_path: Path, room: int
) -> None:
    ids = RNG.integers(-ROWS, ROWS, (4, TOKENS))
    ids[1, 5:] = ids[1, 4]
    ids[2] = np.arange(TOKENS) * (ROWS // TOKENS)

    told = _run(compiled.folder, {"ids": ids}, tmp_path, BASE_BYTES + room)

    assert told["peak"] <= BASE_BYTES + room
    assert told["modes"] == ["packed", "streamed"] or told["modes"] == ["streamed"]
    weights = {one.name: numpy_helper.to_array(one) for one in onnx.load(source).graph.initializer}
    rows = weights["words"][ids] + weights["kinds"][ids] + weights["tied"][ids % 2000]
    assert np.array_equal(told["rows"], rows)
    expected = np.einsum("rw,ntw->nrt", weights["tied"], rows)
    np.testing.assert_allclose(told["scores"], expected, atol=1e-5 * float(np.abs(expected).max()))


def _run(folder: Path, feeds: dict[str, Any], tmp_path: Path, memory: int) -> dict[str, Any]:
    request, answer = tmp_path / "request.npz", tmp_path / "answer.npz"
    np.savez(request, **feeds)
    arguments = [str(folder), str(request), str(answer), str(memory)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(answer) as made:
        return {**json.loads(done.stdout), **made}
