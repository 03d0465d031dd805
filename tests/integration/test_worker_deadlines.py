"""A worker under requests that would never end."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

import hyps
import hyps_compiler
from command_fixtures import Running, started
from hyps.errors import DeadlineError, HypsError
from loop_fixtures import looping

pytestmark = pytest.mark.network

WAIT_S = 20.0


def plan_of(folder: Path, *, empty_body: bool) -> Path:
    onnx.save(looping(empty_body=empty_body, trips=None), folder / "model.onnx")
    hyps_compiler.compile(folder / "model.onnx", folder / "plan", verify=False)
    return folder


def feeds(trips: int) -> dict[str, Any]:
    return {"x": np.ones((1, 4), np.float32), "trips": np.array(trips)}


def address_of(running: Running, count: int = 1) -> str:
    deadline_s = time.monotonic() + WAIT_S
    while running.stderr_so_far().count("serving at ") < count:
        assert time.monotonic() < deadline_s, running.stderr_so_far()
        time.sleep(0.01)
    return running.stderr_so_far().rpartition("serving at ")[2].split()[0].rstrip(":")


def test_a_request_without_end_is_refused_and_the_next_one_answered(tmp_path: Path) -> None:
    folder = plan_of(tmp_path, empty_body=False)
    argv = ("hyps-worker", "plan", "--bind", "tcp://127.0.0.1:0", "--timeout", "500ms")
    with started(argv, folder) as running, hyps.InferenceSession(address_of(running)) as session:
        for _ in range(2):
            with pytest.raises(DeadlineError, match="took longer than 500 ms, in partition `p000`") as caught:
                session.run(None, feeds(2**62))
            assert "--timeout" in caught.value.hint
            assert session.run(None, feeds(3))[0].sum() == 4
        running.process.terminate()
        finished = running.finish()
    assert (finished.status, finished.stderr.count("\n")) == (0, 1)


@pytest.mark.parametrize("order", [("plan", "--bind", "tcp://127.0.0.1:0"), ("--bind=tcp://127.0.0.1:0", "--", "plan")])
def test_a_worker_that_is_stuck_starts_anew_and_those_who_waited_are_answered(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    folder = plan_of(tmp_path, empty_body=True)
    argv = ("hyps-worker", "--timeout", "200ms", *order)
    outcomes: dict[str, Any] = {}

    def ask(name: str, trips: int) -> None:
        with hyps.InferenceSession(address) as session:
            try:
                outcomes[name] = session.run(None, feeds(trips))[0].sum()
            except HypsError as error:
                outcomes[name] = error

    with started(argv, folder) as running:
        address = address_of(running)
        stuck, waiting = (threading.Thread(target=ask, args=args) for args in (("stuck", 2**62), ("waiting", 3)))
        stuck.start()
        time.sleep(0.5)
        waiting.start()
        for thread in (stuck, waiting):
            thread.join(WAIT_S)
        assert address_of(running, 2) == address
        assert sum("--bind" in arg for arg in psutil.Process(running.process.pid).cmdline()) == 1
        running.process.terminate()
        finished = running.finish()
    assert isinstance(outcomes["stuck"], DeadlineError)
    assert outcomes["waiting"] == 4
    assert (finished.status, finished.has_orphans) == (0, False)


def test_a_session_here_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    folder = plan_of(tmp_path, empty_body=False)
    with hyps.InferenceSession(folder / "plan", threads=1, timeout_s=0.3) as session:
        for _ in range(3):
            assert session.run(None, feeds(3))[0].sum() == 4
        with pytest.raises(DeadlineError):
            session.run(None, feeds(2**62))
        assert session.run(None, feeds(3))[0].sum() == 4
