"""Sessions: opened as each way of running wants, refused in one line."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hyps.adapters.sessions import _IDENTITY_MODEL, Mode, Sessions, execution_error, one_line
from hyps.errors import PlanError
from hyps.formats.dtypes import numpy_name, ort_type_name
from model_fixtures import model_of, save
from plan_fixtures import cnn, mlp


def test_the_smallest_model_is_what_onnx_would_write() -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model.SerializeToString() == _IDENTITY_MODEL


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_mode_computes_the_same(tmp_path: Path, mode: Mode, threads: int) -> None:
    flow = cnn()
    flow.write(tmp_path / "plan")
    session = Sessions(threads).open(tmp_path / "plan/partitions/stem.onnx", mode, "none")
    plain = onnxruntime.InferenceSession(tmp_path / "plan/partitions/stem.onnx")
    feeds = flow.feeds()
    np.testing.assert_allclose(session.run(None, feeds)[0], plain.run(None, feeds)[0], atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_a_file_that_is_no_model_is_refused_in_one_line(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(PlanError) as refusal:
        Sessions(1).open(path, Mode.FAST, "none")
    assert "`bad.onnx`" in refusal.value.message
    assert "\n" not in refusal.value.message
    assert capfd.readouterr() == ("", "")


def test_a_native_plan_is_not_optimized_again(tmp_path: Path) -> None:
    opener = Sessions(1)
    off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert opener._options(Mode.FAST, "native").graph_optimization_level == off
    assert opener._options(Mode.FAST, "portable").graph_optimization_level != off
    assert opener._options(Mode.MAPPED, "none").graph_optimization_level == off
    assert opener._options(Mode.EXACT, "none").graph_optimization_level == off


def test_only_mapped_weights_stay_where_they_are() -> None:
    opener = Sessions(1)
    mapped = opener._options(Mode.MAPPED, "none")
    assert mapped.get_session_config_entry("session.disable_prepacking") == "1"
    assert not opener._options(Mode.EXACT, "none").has_providers()
    with pytest.raises(RuntimeError):
        opener._options(Mode.EXACT, "none").get_session_config_entry("session.disable_prepacking")


def test_idle_sessions_do_not_spin_unless_there_is_only_one() -> None:
    key = "session.force_spinning_stop"
    assert Sessions(2)._options(Mode.FAST, "none").get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError):
        Sessions(2, is_alone=True)._options(Mode.FAST, "none").get_session_config_entry(key)


def test_the_base_of_the_process_is_measured() -> None:
    assert Sessions(1).measure_base() > 20_000_000


def test_a_shared_pool_serves_every_session_of_the_process(tmp_path: Path) -> None:
    mlp(4, 4).write(tmp_path / "plan")
    code = f"""
import os
from pathlib import Path
from hyps.adapters.sessions import Mode, Sessions
opener = Sessions(2, share_pool=True)
path = Path({str(tmp_path / "plan/partitions/v0.onnx")!r})
first = opener.open(path, Mode.FAST, "none")
before = len(os.listdir("/proc/self/task"))
more = [Sessions(2, share_pool=True).open(path, Mode.MAPPED, "none") for _ in range(5)]
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "0\n"


_SHARING = """
import sys
from pathlib import Path
import numpy as np
from hyps.adapters.machine import trim
from hyps.adapters.resident import resident
from hyps.adapters.sessions import Mode, Sessions

def held():
    trim()
    return resident().anonymous_nbytes

opener, x = Sessions(1), np.ones((1, 2_000_000), np.float32)
before = held()
first = opener.open(Path(sys.argv[1]), Mode.FAST, "none")
first.run(None, {"x": x})
del first
opener.shrink()
at_once, before = held() - before, held()
sessions = [opener.open(Path(sys.argv[1]), Mode.FAST, "none") for _ in range(12)]
for size in range(25_000, 2_000_001, 25_000):
    sessions[0].run(None, {"x": x[:, :size]})
grown = held() - before
for _ in range(2):
    for session in sessions:
        session.run(None, {"x": x})
kept = held() - before
del session, sessions
opener.shrink()
print(grown, kept, held() - before, at_once)
"""


def _open_row(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n"])


@pytest.mark.skipif(sys.platform != "linux", reason="what is tested is read from Linux' /proc")
def test_sessions_keep_memory_for_their_next_run_together_and_give_it_back(tmp_path: Path) -> None:
    names = ["x", "a", "b", "c", "y"]
    nodes = [helper.make_node("Abs", [a], [b]) for a, b in pairwise(names)]
    save(model_of(nodes, [_open_row("x")], [_open_row("y")]), tmp_path / "abs.onnx")
    command = [sys.executable, "-c", _SHARING, str(tmp_path / "abs.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    grown, kept, left, at_once = map(int, done.stdout.split())
    assert at_once <= 6_000_000, (
        "also when the very first is large: what onnxruntime takes for good, and no map of 8 MB"
    )
    assert 8_000_000 <= grown <= 60_000_000, "640 MB if requests of ever larger shapes added up"
    assert kept <= grown + 8_000_000, "twelve times two maps of 8 MB if each session had its own"
    assert left <= 4_000_000


def test_what_onnxruntime_says_becomes_one_line() -> None:
    assert one_line(RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad : shape\nmore")) == "bad : shape"
    assert one_line(RuntimeError("")) == "RuntimeError"
    assert execution_error("p", MemoryError()).code == "E_MEMORY"
    assert execution_error("p", RuntimeError("[ONNXRuntimeError] : 1 : FAIL : x")).message == "partition `p` failed: x"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint64", "bool", "string", "complex64"])
def test_type_names_go_both_ways(dtype: str) -> None:
    assert numpy_name(ort_type_name(dtype)) == dtype
