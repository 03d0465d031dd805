"""Compiled networks laid out for speed under a budget: what they keep between requests stays within it."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from model_fixtures import model_of, save

_OPEN_BATCH = """
import json, sys
import numpy as np
from hyps.adapters.machine import trim
from hyps.adapters.resident import resident
from hyps.adapters.sessions import Mode
from hyps.errors import ExecutionError
from hyps.local import LocalRunner

def ask(runner, batch):
    return runner.run({"x": np.ones((batch, 1 << 18), np.float32)})["y"].shape[0]

with LocalRunner(sys.argv[1], memory_bytes=2**40) as runner:
    budget = runner.base_nbytes + 40_000_000
with LocalRunner(sys.argv[1], memory_bytes=budget) as runner:
    assert set(runner.modes.values()) == {Mode.FAST}, runner.modes
    answered = [ask(runner, batch) for batch in (*range(1, 11), 1)]
    try:
        ask(runner, 100)
    except ExecutionError as error:
        answered.append(error.code)
    answered.append(ask(runner, 1))
    trim()
    print(json.dumps([answered, resident().total_nbytes, budget]))
"""


def test_what_a_larger_request_was_computed_in_is_given_back_where_others_need_it(tmp_path: Path) -> None:
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("Abs", [a], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1 << 18]) for name in "xy"]
    save(model_of(nodes, ends[:1], ends[1:]), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", tmp_path / "plan", Options(request=Request(cuts=("all",)), verify=False))
    command = [sys.executable, "-c", _OPEN_BATCH, str(tmp_path / "plan")]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    answered, left, budget = json.loads(done.stdout)
    assert answered == [*range(1, 11), 1, "E_MEMORY", 1]
    assert left <= budget


_CHILD = """
import json, sys
import numpy as np
from hyps.adapters.plan_files import read_plan
from hyps.adapters.resident import CODE_NBYTES, OwnPeak
from hyps.adapters.sessions import Mode, Sessions
from hyps.core.residency import Residency, has_room_for_speed, live_activations, tasks_of
from hyps.engine import GENEROUS_NBYTES
from hyps.local import LocalRunner

plan = read_plan(sys.argv[1])
tasks, sizes = tasks_of(plan), {name: info.nbytes for name, info in plan.tensors.items()}
live = live_activations(tasks, ["x"], ["y"], sizes)
alive = max(live[task.id] + task.scratch_nbytes for task in tasks)
kept = frozenset(task.id for task in tasks)
room = next(n for n in range(0, 10**9, 100_000) if has_room_for_speed(tasks, Residency(kept, 0, n), alive))
base = Sessions(None).measure_base() + CODE_NBYTES
peak = OwnPeak()
budget = base + room + GENEROUS_NBYTES + 1_000_000  # a process takes some more with every measurement
with LocalRunner(sys.argv[1], memory_bytes=budget) as runner:
    assert set(runner.modes.values()) == {Mode.FAST}, runner.modes
    for seed in range(10):
        runner.run({"x": np.random.default_rng(seed).standard_normal((1, 32, 112, 112), np.float32)})
    print(json.dumps([peak.measure(), budget]))
"""


@pytest.mark.parametrize("cut", ["mandatory", "all"])
def test_what_is_kept_between_requests_stays_within_the_budget(tmp_path: Path, cut: str) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((32, 32, 3, 3), np.float32) / 20 for i in range(12)}
    names = ["x", *(f"t{i}" for i in range(11)), "y"]
    nodes = [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1] * 4) for i in range(12)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, 112, 112]) for name in "xy"]
    save(model_of(nodes, ends[:1], ends[1:], weights), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", tmp_path / "plan", Options(request=Request(cuts=(cut,)), verify=False))
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "plan")]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    peak, budget = json.loads(done.stdout)
    assert peak <= budget
