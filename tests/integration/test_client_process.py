"""Clients of a real `hyps-worker`: a thousand requests, fifty sessions, killed workers, `hypsc run --connect`."""

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import hyps
from client_fixtures import eventually
from command_fixtures import Running, run_command, started
from hyps.errors import DeadlineError, LostError
from hyps.observer import Observer, observe
from plan_fixtures import mlp, sharded

pytestmark = pytest.mark.network

FLOW = sharded()
HEAVY = mlp(*[2048] * 6)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    FLOW.write(folder / "plan")
    HEAVY.write(folder / "heavy")
    np.savez(folder / "batch.npz", x=np.stack([FLOW.feeds(seed=seed)["x"] for seed in range(100)]))
    np.savez(folder / "heavy.npz", t0=np.stack([HEAVY.feeds(batch=2048)["t0"]] * 8))
    return folder


@contextlib.contextmanager
def serving(place: Path, *args: str, bind: str = "tcp://127.0.0.1:0") -> Iterator[tuple[Running, str]]:
    with started(("hyps-worker", *args, "--threads", "1", "--bind", bind), place) as running:
        eventually(lambda: "serving at " in running.stderr_so_far())
        yield running, running.stderr_so_far().rpartition("serving at ")[2].split()[0].rstrip(":")


def traces() -> tuple[int, int]:
    return threading.active_count(), psutil.Process().num_fds()


def under_way(observer: Observer) -> int:
    requests = observer.ask().requests
    return requests.queued + requests.running


def right(place: Path) -> list[Any]:
    with hyps.InferenceSession(place / "plan", threads=1) as session:
        return [session.run(["y"], FLOW.feeds(seed=seed))[0] for seed in range(10)]


def test_a_thousand_requests_of_fifty_threads_leave_no_trace(place: Path) -> None:
    answers = right(place)
    with serving(place, "plan") as (_, address):
        before = traces()
        with hyps.InferenceSession(address) as session, ThreadPoolExecutor(50) as pool:
            made = list(pool.map(lambda i: session.run(["y"], FLOW.feeds(seed=i % 10))[0], range(1000)))
        assert all(now <= then for now, then in zip(traces(), before, strict=True))
    for index, one in enumerate(made):
        np.testing.assert_allclose(one, answers[index % 10], rtol=1e-6)


def test_fifty_sessions_at_once_leave_no_trace(place: Path) -> None:
    answers = right(place)
    with serving(place, "plan") as (worker, address):
        peer = psutil.Process(worker.process.pid)
        with hyps.InferenceSession(address) as session:
            session.run(None, FLOW.feeds())
        before = traces()
        meeting = threading.Barrier(50)

        def use(index: int) -> bool:
            with hyps.InferenceSession(address) as session:
                meeting.wait(WAIT_S)
                made = session.run_batch([FLOW.feeds(seed=index % 10)] * 20, ["y"])
            return all(np.allclose(one, answers[index % 10]) for (one,) in made)

        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(use, range(50)))
            of_worker = peer.num_fds()
            assert all(pool.map(use, range(50)))
        assert all(now <= then for now, then in zip(traces(), before, strict=True))
        assert peer.num_fds() <= of_worker + 5


def test_coroutines_ask_a_real_worker(place: Path) -> None:
    answers = right(place)

    async def work(address: str) -> list[Any]:
        async with hyps.AsyncSession(address) as session:
            requests = (FLOW.feeds(seed=index % 10) for index in range(200))
            return [made async for (made,) in session.stream(requests, ["y"], in_flight=16)]

    with serving(place, "plan") as (_, address):
        made = asyncio.run(asyncio.wait_for(work(address), WAIT_S))
    assert len(made) == 200
    for index, one in enumerate(made):
        np.testing.assert_allclose(one, answers[index % 10], rtol=1e-6)


def test_every_request_of_a_killed_worker_ends_and_its_successor_is_found(place: Path) -> None:
    feeds = HEAVY.feeds(batch=8192)
    with serving(place, "heavy") as (worker, address), hyps.InferenceSession(address) as session:
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(session.run, None, feeds) for _ in range(4)]
            with observe(address) as observer:
                eventually(lambda: under_way(observer) > 0)
            time.sleep(0.5)  # for the word that it has arrived
            worker.process.kill()
            begin_s = time.monotonic()
            errors = [call.exception(WAIT_S) for call in calls]
            assert time.monotonic() - begin_s < 12
        assert all(isinstance(error, hyps.HypsError) for error in errors)
        assert any(isinstance(error, LostError) for error in errors)
        with serving(place, "heavy", bind=address):
            assert session.run(None, HEAVY.feeds())[0].shape == (1, 2048)


def test_an_idle_session_does_not_notice_that_its_worker_was_started_anew(place: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving(place, "plan") as (worker, address):
            session = stack.enter_context(hyps.InferenceSession(address))
            expected = session.run(["y"], FLOW.feeds())[0]
            worker.process.kill()
            worker.process.wait(WAIT_S)
        with serving(place, "plan", bind=address):
            np.testing.assert_array_equal(session.run(["y"], FLOW.feeds())[0], expected)


def test_a_worker_that_stands_still_is_given_up_at_the_deadline(place: Path) -> None:
    with serving(place, "plan") as (worker, address), hyps.InferenceSession(address, timeout_s=0.5) as session:
        worker.process.send_signal(signal.SIGSTOP)
        begin_s = time.monotonic()
        with pytest.raises(DeadlineError):
            session.run(None, FLOW.feeds())
        assert time.monotonic() - begin_s < 2
        worker.process.send_signal(signal.SIGCONT)
        assert session.run(["y"], FLOW.feeds())[0].shape == (1, 5)


# `hypsc run --connect`.


def test_a_batch_goes_pipelined_and_tells_its_rate_and_latencies(place: Path) -> None:
    with serving(place, "plan") as (_, address):
        told = run_command(("hypsc", "run", "--connect", address, "-i", "batch.npz", "-o", "out.npz"), place)
        as_json = run_command(("hypsc", "run", "--connect", address, "-i", "batch.npz", "--json"), place)
    assert (told.status, told.stderr) == (0, "")
    assert told.stdout.startswith("100 requests in ")
    assert " per second\nlatency: median " in told.stdout
    value = json.loads(as_json.stdout)
    assert (value["requests"], len(value["latencies_s"])) == (100, 100)
    assert value["throughput_rps"] == pytest.approx(100 / value["seconds"])
    assert all(0 < latency_s <= value["seconds"] for latency_s in value["latencies_s"])
    with np.load(place / "out.npz") as made, hyps.InferenceSession(place / "plan", threads=1) as session:
        for seed in range(100):
            np.testing.assert_allclose(made["y"][seed], session.run(["y"], FLOW.feeds(seed=seed))[0], rtol=1e-5)


def test_a_deadline_on_the_command_line_is_each_requests(place: Path) -> None:
    with serving(place, "heavy") as (_, address):
        argv = ("hypsc", "run", "--connect", address, "-i", "heavy.npz", "--timeout", "50ms")
        finished = run_command(argv, place)
    assert finished.status == 1
    assert finished.error.endswith("[E_DEADLINE]")
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_withdraws_what_is_under_way(place: Path, signum: int, status: int) -> None:
    with serving(place, "heavy") as (_, address), observe(address) as observer:
        with started(("hypsc", "run", "--connect", address, "-i", "heavy.npz"), place) as running:
            eventually(lambda: under_way(observer) > 2)
            running.process.send_signal(signum)
            finished = running.finish()
        assert (finished.status, finished.stdout) == (status, "")
        assert "Traceback" not in finished.stderr
        eventually(lambda: under_way(observer) == 0)
        assert observer.ask().requests.done < 8
