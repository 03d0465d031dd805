"""Sessions on a worker, as `hyps.worker` serves it: busy, silent, answering many at once; and on plan folders."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import hyps
from client_fixtures import WAIT_S, eventually
from hyps.adapters.transport import ZmqServer
from hyps.core.admission import Admission
from hyps.engine import Engine, Options, Outcome, Request, open_engine
from hyps.errors import BusyError, DeadlineError, TensorError, UsageError
from hyps.worker import Service
from plan_fixtures import sharded

FLOW = sharded()


class Gated(Engine):
    """A real engine that computes only while its gate is open."""

    gate: threading.Event

    def run_each(self, requests: Sequence[Request], on_done: Callable[[int, Outcome], None]) -> None:
        assert self.gate.wait(WAIT_S)
        super().run_each(requests, on_done)


class Worker:
    """A service at work in threads of this process, with room for three requests."""

    def __init__(self, folder: Path, plan: Path) -> None:
        made = open_engine(plan, Options(threads=1))
        self.engine = Gated.__new__(Gated)
        self.engine.__dict__.update(made.__dict__)
        self.gate = self.engine.gate = threading.Event()
        self.gate.set()
        self.admission = Admission(3, 100_000)
        self.address = f"ipc://{folder}/worker"
        self._server = ZmqServer(self.address, max_nbytes=5_000)
        self._service = Service(self.engine, self._server, self.admission, "pi", max_nbytes=5_000)
        self._thread = threading.Thread(target=self._service.run)
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._service.leave()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self._server.close()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client") / "plan"
    FLOW.write(path)
    return path


@pytest.fixture
def worker(plan: Path, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, plan)
    yield worker
    worker.close()


@pytest.fixture(params=["plan", "worker"])
def target(request: pytest.FixtureRequest, plan: Path) -> Any:
    return plan if request.param == "plan" else request.getfixturevalue("worker").address


@pytest.fixture(autouse=True)
def _nothing_is_left_open(plan: Path) -> Iterator[None]:
    threads, descriptors = set(threading.enumerate()), psutil.Process().num_fds()
    yield
    assert set(threading.enumerate()) <= threads
    assert psutil.Process().num_fds() <= descriptors


def expected(plan: Path, seeds: Sequence[int]) -> list[Any]:
    with hyps.InferenceSession(plan, threads=1) as session:
        return [session.run(["y"], FLOW.feeds(seed=seed))[0] for seed in seeds]


def open_session(target: Any) -> hyps.InferenceSession:
    return hyps.InferenceSession(target, threads=None if "://" in str(target) else 1)


def test_a_batch_is_answered_in_its_order(target: Any, plan: Path) -> None:
    with open_session(target) as session:
        made = session.run_batch([FLOW.feeds(seed=seed) for seed in range(40)], ["y"])
        assert session.run_batch([]) == []
    for (one,), other in zip(made, expected(plan, range(40)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("in_flight", [None, 1, 3])
def test_an_iterable_is_answered_in_its_order_and_read_as_needed(
    target: Any, plan: Path, in_flight: int | None
) -> None:
    taken = []

    def source() -> Iterator[dict[str, Any]]:
        for seed in range(30):
            taken.append(seed)
            yield FLOW.feeds(seed=seed)

    with open_session(target) as session:
        answers = session.run_many(source(), ["y"], in_flight=in_flight)
        assert taken == []
        made = [next(answers)]
        assert in_flight is None or len(taken) <= in_flight
        made += answers
    for (one,), other in zip(made, expected(plan, range(30)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_wrong_request_fails_at_its_place(target: Any) -> None:
    requests: list[dict[str, Any]] = [FLOW.feeds(), FLOW.feeds(), {"x": np.zeros((1, 12))}]
    with open_session(target) as session:
        answers = session.run_many(requests, ["y"], in_flight=1)
        assert len([next(answers), next(answers)]) == 2
        with pytest.raises(TensorError, match="must be float32"):
            next(answers)
        with pytest.raises(TensorError, match="must be float32"):
            session.run_batch(requests)
        with pytest.raises(UsageError, match="must be at least 1"):
            session.run_many(requests, in_flight=0)


def test_what_cannot_be_sent_is_refused_here(worker: Worker) -> None:
    with hyps.InferenceSession(worker.address) as session, pytest.raises(TensorError, match="takes 5000"):
        session.run(None, FLOW.feeds(batch=200))
    with pytest.raises(UsageError, match="was closed"):
        session.run(None, FLOW.feeds())


def test_more_than_a_worker_has_room_for_waits_and_is_answered(worker: Worker, plan: Path) -> None:
    with hyps.InferenceSession(worker.address) as session, ThreadPoolExecutor(30) as pool:
        seeds = [seed % 7 for seed in range(300)]
        made = list(pool.map(lambda seed: session.run(["y"], FLOW.feeds(seed=seed))[0], seeds))
    others = expected(plan, range(7))
    for one, seed in zip(made, seeds, strict=True):
        np.testing.assert_allclose(one, others[seed], rtol=1e-6)


def test_sessions_share_a_worker_with_little_room(worker: Worker, plan: Path) -> None:
    (right,) = expected(plan, [3])

    def use(_: int) -> int:
        with hyps.InferenceSession(worker.address) as session:
            return sum(np.allclose(made, right) for (made,) in session.run_many([FLOW.feeds(seed=3)] * 20, ["y"]))

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(use, range(50))) == [20] * 50


def test_a_worker_that_others_keep_busy_is_given_up(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        worker.admission.offer(name, 1)
    with hyps.InferenceSession(worker.address, timeout_s=0.3) as session:
        with pytest.raises((BusyError, DeadlineError)):
            session.run(None, FLOW.feeds())
        future: Future[Any] = Future()
        thread = threading.Thread(target=lambda: future.set_result(session.run(["y"], FLOW.feeds())))
        thread.start()
        for name in "abc":
            worker.admission.end(name, 0.0)
        assert future.result(WAIT_S)[0].shape == (1, 5)
        thread.join(WAIT_S)


def test_a_deadline_ends_the_wait_and_the_worker_forgets_the_request(worker: Worker) -> None:
    worker.gate.clear()
    with hyps.InferenceSession(worker.address, timeout_s=0.2) as session:
        with pytest.raises(DeadlineError):
            session.run(None, FLOW.feeds())
        worker.gate.set()
        eventually(lambda: len(worker.admission) == 0)
        assert session.run(["y"], FLOW.feeds())[0].shape == (1, 5)


def test_a_session_may_be_used_and_left_by_many_threads(worker: Worker) -> None:
    session = hyps.InferenceSession(worker.address)
    worker.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(session.run, None, FLOW.feeds()) for _ in range(5)]
        eventually(lambda: len(worker.admission) > 0)
        session.close()
        assert all(isinstance(call.exception(WAIT_S), UsageError) for call in calls)
