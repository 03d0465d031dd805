"""Threads that compute and run errands: each outcome once, in turn, whatever happens."""

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, save

from form_fixtures import write_formed
from hyps.adapters.executor import Completion, Done, Executor, Opened, Ran, Stuck
from hyps.adapters.sessions import Mode, Sessions
from hyps.errors import DeadlineError, ExecutionError, HypsError, InternalError, PlanError
from hyps.formats.plan import Partition
from loop_fixtures import looping
from model_fixtures import model_of
from plan_fixtures import mlp

WAIT_S = 20.0
KEY = ("v0", "digest")
PARTITION = Partition(
    id="v0",
    kind="vertical",
    file="v0.onnx",
    sha256="0",
    inputs=("t0",),
    outputs=("t1",),
    layers=("v0",),
    parameters=16,
    weight_bytes=64,
)


class Rig:
    """An executor, and what it told."""

    def __init__(self, timeout_s: float | None = None, budget_nbytes: int | None = None) -> None:
        self._told: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self.executor = Executor(Sessions(1), timeout_s, self._told.put, budget_nbytes)

    def next(self) -> Completion:
        return self._told.get(timeout=WAIT_S)

    def open(self, path: Path, key: tuple[str, str] = KEY) -> HypsError | None:
        return self.load(path.parent, replace(PARTITION, file=path.name), Mode.FAST, key)

    def load(self, folder: Path, partition: Partition, mode: Mode, key: tuple[str, str] = KEY) -> HypsError | None:
        self.executor.open(key, folder, partition, mode, "none")
        told = self.next()
        assert isinstance(told, Opened)
        assert told.key == key
        assert told.end_s >= told.start_s
        return told.error

    def run(self, number: int, feeds: dict[str, Any], *outputs: str) -> Any:
        self.executor.run(number, KEY, outputs, lambda: feeds)
        told = self.next()
        assert isinstance(told, Ran)
        assert told.run == number
        return told.outcome


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.executor.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plan = mlp(4, 4).write(tmp_path / "plan")
    return tmp_path / "plan" / plan.partitions[0].file


def ones() -> dict[str, Any]:
    return {"t0": np.ones((1, 4), np.float32)}


def test_what_is_open_is_run(rig: Rig, path: Path) -> None:
    assert rig.open(path) is None
    assert rig.run(1, ones(), "t1")["t1"].shape == (1, 4)
    assert rig.executor.running() is None


_LEAVING = """
import queue, sys
from pathlib import Path
import numpy as np
from hyps.adapters.executor import Executor
from hyps.adapters.resident import resident
from hyps.adapters.sessions import Mode, Sessions
from hyps.formats.plan import Partition

told = queue.SimpleQueue()
executor = Executor(Sessions(1), None, told.put, int(sys.argv[2]))
part = Partition(id="p", kind="vertical", file="abs.onnx", sha256="0", inputs=("t0",), outputs=("t1",), layers=("p",),
                 parameters=0, weight_bytes=0)
executor.open(("p", ""), Path(sys.argv[1]), part, Mode.FAST, "none")
assert told.get(timeout=20).error is None
before, feeds = resident().anonymous_nbytes, {"t0": np.ones((1, 10_000_000), np.float32)}
for number, width in enumerate((10_000_000, 1)):  # the first's outputs may be here still when it is over
    executor.run(number, ("p", ""), ("t1",), lambda width=width: {"t0": feeds["t0"][:, :width]})
    assert "t1" in told.get(timeout=20).outcome
executor.close(20)
print(resident().anonymous_nbytes - before - feeds["t0"].nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is tested is read from Linux' /proc")
def test_what_a_run_left_is_given_back_where_it_is_more_than_the_budget(tmp_path: Path) -> None:
    names = ["t0", "a", "b", "t1"]
    nodes = [helper.make_node("Abs", [a], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n"]) for name in ("t0", "t1")]
    save(model_of(nodes, ends[:1], ends[1:]), tmp_path / "abs.onnx")
    left = []
    for budget_nbytes in (2**60, 1):
        command = [sys.executable, "-c", _LEAVING, str(tmp_path), str(budget_nbytes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        left.append(int(done.stdout))
    assert left[0] >= 40_000_000
    assert left[1] <= 4_000_000


def test_a_run_that_would_pass_the_budget_is_refused_and_the_next_is_not(path: Path) -> None:
    rig = Rig(budget_nbytes=2**40)
    assert rig.open(path) is None
    rig.executor.run(1, KEY, ("t1",), ones, needed_nbytes=2**41)
    refused = rig.next()
    assert isinstance(refused, Ran)
    assert isinstance(refused.outcome, ExecutionError)
    assert refused.outcome.code == "E_MEMORY"
    rig.executor.run(2, KEY, ("t1",), ones, needed_nbytes=2**30)
    answered = rig.next()
    assert isinstance(answered, Ran)
    assert not isinstance(answered.outcome, HypsError)
    rig.executor.close(WAIT_S)


def test_what_cannot_be_given_back_ends_no_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Sessions) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Sessions, "shrink", fail)
    rig = Rig(budget_nbytes=1)
    assert rig.open(path) is None
    for number in (1, 2, 3):
        assert "t1" in rig.run(number, ones(), "t1")
    rig.executor.close(WAIT_S)


def test_what_onnxruntime_refuses_is_told(rig: Rig, path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert isinstance(rig.open(tmp_path / "bad.onnx"), PlanError)
    assert rig.open(path) is None
    assert isinstance(rig.run(1, {"t0": np.ones((1, 5), np.float32)}, "t1"), ExecutionError)
    assert "t1" in rig.run(2, ones(), "t1")


def test_whatever_opening_a_session_fails_of_is_told(
    rig: Rig, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Sessions, "open", fail)
        error = rig.open(path)
    assert isinstance(error, InternalError)
    assert "MemoryError" in error.message
    assert "broke off" in caplog.text
    assert rig.open(path) is None, "the thread goes on"


def test_a_failure_to_bring_the_feeds_is_told_and_the_thread_goes_on(rig: Rig, path: Path) -> None:
    rig.open(path)
    rig.executor.run(1, KEY, ("t1",), lambda: {"t0": ones()["nothing"]})
    told = rig.next()
    assert isinstance(told, Ran)
    assert isinstance(told.outcome, HypsError)
    assert told.outcome.code == "E_INTERNAL"
    assert "t1" in rig.run(2, ones(), "t1")


def test_a_run_goes_on_when_its_session_is_closed(rig: Rig, path: Path) -> None:
    rig.open(path)
    is_waiting, goes_on = threading.Event(), threading.Event()

    def feeds() -> dict[str, Any]:
        is_waiting.set()
        assert goes_on.wait(WAIT_S)
        return ones()

    rig.executor.run(1, KEY, ("t1",), feeds)
    assert is_waiting.wait(WAIT_S)
    now = rig.executor.running()
    assert now is not None
    assert now[0] == 1
    rig.executor.shut(KEY)
    goes_on.set()
    told = rig.next()
    assert isinstance(told, Ran)
    assert isinstance(told.outcome, dict)


def test_a_run_keeps_its_weights_while_others_are_read(rig: Rig, tmp_path: Path) -> None:
    """The partition is released, and memory asked for another's weights, before the run begins to compute."""
    flow = mlp(4, 4, 4)
    first, second = write_formed(flow, tmp_path / "plan").partitions
    assert rig.load(tmp_path / "plan", first, Mode.STREAMED) is None
    expected = rig.run(1, ones(), "t1")["t1"]
    is_waiting, goes_on = threading.Event(), threading.Event()

    def feeds() -> dict[str, Any]:
        is_waiting.set()
        assert goes_on.wait(WAIT_S)
        return ones()

    rig.executor.run(2, KEY, ("t1",), feeds)
    assert is_waiting.wait(WAIT_S)
    rig.executor.shut(KEY)
    assert rig.load(tmp_path / "plan", second, Mode.STREAMED, ("v1", "digest")) is None
    goes_on.set()
    told = rig.next()
    assert isinstance(told, Ran)
    assert isinstance(told.outcome, dict)
    assert told.outcome["t1"].tobytes() == expected.tobytes()


def test_what_is_released_leaves_no_memory_behind(rig: Rig, tmp_path: Path) -> None:
    plan = write_formed(mlp(4, 4), tmp_path / "plan")
    for number in range(2):
        assert rig.load(tmp_path / "plan", plan.partitions[0], Mode.STREAMED) is None
        assert "t1" in rig.run(number, ones(), "t1")
        rig.executor.shut(KEY)
        rig.executor.do("after it", lambda: None)
        assert rig.next() == Done("after it", None)
        assert rig.executor._streams._pool.idle_nbytes == 0


def test_errands_are_done_in_turn_and_their_failures_told(rig: Rig) -> None:
    def fail() -> None:
        raise PlanError("no")

    rig.executor.do("first", lambda: 1)
    rig.executor.do(None, lambda: 2)
    rig.executor.do("second", fail)
    rig.executor.do("third", lambda: ones()["x"])
    told = [rig.next() for _ in range(3)]
    assert told[0] == Done("first", 1)
    assert [done.name for done in told[1:] if isinstance(done, Done)] == ["second", "third"]
    assert [done.result.code for done in told[1:] if isinstance(done, Done)] == ["E_PLAN", "E_INTERNAL"]


@pytest.mark.parametrize("empty_body", [False, True], ids=["ends-when-told", "stuck"])
def test_what_takes_too_long_is_ended_or_called_stuck(
    tmp_path: Path, empty_body: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyps.adapters.deadlines.Watchdog.__init__.__defaults__", (0.2,))
    save(looping(empty_body=empty_body, trips=None), tmp_path / "model.onnx")
    rig = Rig(0.2)
    rig.open(tmp_path / "model.onnx")
    trips = 2**62 if not empty_body else 2**23
    feeds = {"x": np.ones((1, 4), np.float32), "trips": np.array(trips)}
    rig.executor.run(7, KEY, ("y",), lambda: feeds)
    told = rig.next()
    if empty_body:
        assert told == Stuck(7)
        told = rig.next()  # this loop has an end, or the test had none
    assert isinstance(told, Ran)
    if not empty_body:
        assert isinstance(told.outcome, DeadlineError)
    rig.executor.close()
