"""A model whose skip connections alone exceed the budget is compiled for it, runs within it, and answers the same."""

import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from cut_fixtures import whole_answer
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import BASE_BYTES, Request
from model_fixtures import floats, model_of, save

MB = 10**6
WIDTH = 2 * MB
"""Numbers in a map: 8 MB."""
DEPTH = 10
BUDGET = BASE_BYTES + 56 * MB
"""For the process, and seven maps; ten wait at the bottom beside those that are worked on."""

CHILD = """
import json, sys, numpy
from hyps.adapters.machine import peak_rss_nbytes
from hyps.errors import HypsError
from hyps.local import LocalRunner
try:
    with LocalRunner(sys.argv[1], threads=1, memory_bytes=int(sys.argv[4]) or None) as runner:
        feeds = dict(numpy.load(sys.argv[2]))
        answers = [runner.run(feeds)["y"] for _ in range(2)]
        spilled = runner.spilled
except HypsError as error:
    print(json.dumps({"code": error.code, "hint": error.hint}))
    sys.exit()
numpy.save(sys.argv[3], answers[-1])
told = {"peak": peak_rss_nbytes(), "written": spilled.written_nbytes, "read": spilled.read_nbytes}
print(json.dumps(told | {"same": bool((answers[0] == answers[1]).all())}))
"""


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each step down is needed again on the way up, and adds up, for which it needs all of a map at once."""
    nodes, x = [], "x"
    for i in range(DEPTH):
        nodes += [_node("CumSum", [x, "axis"], f"c{i}"), _node("Sin", [f"c{i}"], f"s{i}")]
        x = f"s{i}"
    for i in reversed(range(DEPTH - 1)):
        nodes += [_node("Add", [x, f"s{i}"], f"a{i}"), _node("CumSum", [f"a{i}", "axis"], f"d{i}")]
        nodes.append(_node("Sin", [f"d{i}"], x := f"u{i}"))
    nodes.append(_node("ReduceSum", [x, "axis"], "y"))
    weights = {"axis": np.full(1, 2)}
    path = tmp_path_factory.mktemp("ladder") / "ladder.onnx"
    save(model_of(nodes, [floats("x", 1, 1, WIDTH)], [floats("y", 1, 1, 1)], weights), path)
    return path


def _node(op_type: str, inputs: list[str], output: str) -> NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output)


@pytest.fixture(scope="module")
def feeds() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((1, 1, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="module")
def plan(ladder: Path, feeds: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "plan"
    compiled = compile_model(ladder, folder, Options(request=Request(memory_bytes=BUDGET), feeds=feeds))
    assert max(partition.peak_memory_bytes or 0 for partition in compiled.plan.partitions) > BUDGET - BASE_BYTES
    return folder


@pytest.mark.slow
def test_skip_connections_beyond_the_budget_run_within_it(
    plan: Path, ladder: Path, feeds: dict[str, Any], tmp_path: Path
) -> None:
    told = _run(plan, feeds, tmp_path)

    assert told["peak"] <= BUDGET
    assert told["written"] == told["read"] > 0
    assert told["same"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole_answer(ladder, feeds)["y"])


@pytest.mark.slow
def test_a_refused_budget_is_told_one_that_does(plan: Path, feeds: dict[str, Any], tmp_path: Path) -> None:
    refused = _run(plan, feeds, tmp_path, memory=60 * MB)

    least = int(refused["hint"].split("`")[1].split()[1])
    told = _run(plan, feeds, tmp_path, memory=least + MB)

    assert 60 * MB < least < BUDGET
    assert told["peak"] <= least + MB


@pytest.mark.slow
def test_a_full_disk_is_told_as_such(plan: Path, feeds: dict[str, Any], tmp_path: Path) -> None:
    told = _run(plan, feeds, tmp_path, most_file=10 * MB)

    assert told["code"] == "E_DISKFULL"
    assert "TMPDIR" in told["hint"]


def _run(plan: Path, feeds: dict[str, Any], tmp_path: Path, memory: int = 0, most_file: int = 2**40) -> dict[str, Any]:
    """Run the plan in a process of its own; its scratch folder must be empty afterwards."""
    np.savez(tmp_path / "feeds.npz", x=feeds["x"])
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    arguments = [str(plan), str(tmp_path / "feeds.npz"), str(tmp_path / "y.npy"), str(memory)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_file, most_file)),
    )
    assert list(scratch.iterdir()) == []
    told: dict[str, Any] = json.loads(done.stdout)
    return told
