"""The service behind an in-memory transport: who is answered what, and who is not disturbed by whom."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyps.adapters.frames import Buffer, from_frames, to_frames
from hyps.adapters.memory_transport import MemoryClient, MemoryServer
from hyps.core.admission import Admission
from hyps.engine import Engine, Options, Outcome, Request, open_engine
from hyps.errors import PeerError
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AskStatus,
    Cancel,
    Done,
    Failed,
    FromClient,
    FromWorker,
    Heartbeat,
    Hello,
    Status,
    Submit,
    TensorHeader,
    Welcome,
    decode_from_worker,
    encode,
)
from hyps.formats.status import Report, decode_report
from hyps.observer import Observer
from hyps.worker import Service, bounds_for
from plan_fixtures import mlp, sharded

WAIT_S = 10.0
FLOW = sharded()


class GatedEngine(Engine):
    """A real engine that computes only while its gate is open."""

    gate: threading.Event
    broken: BaseException | None = None

    def run_each(self, requests: Sequence[Request], on_done: Callable[[int, Outcome], None]) -> None:
        assert self.gate.wait(WAIT_S)
        if self.broken is not None:
            raise self.broken
        super().run_each(requests, on_done)


@dataclass
class Rig:
    """A service at work in a thread of its own."""

    engine: GatedEngine
    server: MemoryServer
    service: Service
    thread: threading.Thread

    def ended(self) -> bool:
        self.thread.join(WAIT_S)
        return not self.thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "plan"
    FLOW.write(path)
    return path


@pytest.fixture
def rig(folder: Path) -> Iterator[Rig]:
    made = open_engine(folder, Options(threads=1))
    engine = GatedEngine.__new__(GatedEngine)
    engine.__dict__.update(made.__dict__)
    engine.gate = threading.Event()
    engine.gate.set()
    server = MemoryServer()
    service = Service(engine, server, Admission(2, 10_000), "pi", max_nbytes=5_000)
    rig = Rig(engine, server, service, threading.Thread(target=service.run))
    rig.thread.start()
    yield rig
    engine.gate.set()
    service.leave()
    assert rig.ended()


def tell(client: MemoryClient, message: FromClient, frames: Sequence[Buffer] = ()) -> None:
    client.send([encode(message), *frames], WAIT_S)


def hear(client: MemoryClient) -> tuple[FromWorker, Sequence[Buffer]]:
    """Return what comes next, beside that a request was accepted."""
    while True:
        parts = client.receive(WAIT_S)
        assert parts is not None
        message = decode_from_worker(memoryview(parts[0]))
        if not isinstance(message, Accepted):
            return message, parts[1:]


def failure(client: MemoryClient) -> Failed:
    message, _ = hear(client)
    assert isinstance(message, Failed)
    return message


def submit(
    client: MemoryClient,
    name: str,
    feeds: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
    timeout_s: float | None = None,
) -> None:
    headers, frames = to_frames(FLOW.feeds() if feeds is None else feeds)
    tell(client, Submit(name, headers, outputs, timeout_s), frames)


def done(client: MemoryClient) -> tuple[str, dict[str, Any]]:
    message, frames = hear(client)
    assert isinstance(message, Done), message
    return message.request, from_frames(message.tensors, frames)


def test_hello_is_answered_with_what_is_served(rig: Rig) -> None:
    client = rig.server.connect()
    tell(client, Hello(PROTOCOL_VERSION))
    message, _ = hear(client)
    assert isinstance(message, Welcome)
    assert (message.device, message.max_nbytes) == ("pi", 5_000)
    assert [tensor.name for tensor in message.inputs] == ["x"]


def test_another_version_is_refused(rig: Rig) -> None:
    client = rig.server.connect()
    tell(client, Hello(PROTOCOL_VERSION + 1))
    assert failure(client).code == "E_VERSION"


def test_a_request_is_answered_with_the_engines_outputs(rig: Rig) -> None:
    client = rig.server.connect()
    submit(client, "a")
    name, made = done(client)
    expected = rig.engine.run_one(Request(FLOW.feeds()))
    assert name == "a"
    np.testing.assert_array_equal(made["y"], expected["y"])


def test_every_client_gets_its_own_answers(rig: Rig) -> None:
    clients = [rig.server.connect() for _ in range(2)]
    for round_ in range(10):
        for index, client in enumerate(clients):
            submit(client, "same name", FLOW.feeds(seed=index))
        for index, client in enumerate(clients):
            name, made = done(client)
            expected = rig.engine.run_one(Request(FLOW.feeds(seed=index)))
            assert name == "same name", round_
            np.testing.assert_array_equal(made["y"], expected["y"])


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"x": np.zeros((1, 12))}, "must be float32 and is float64"),
        ({"x": np.zeros((1, 13), np.float32)}, "must have the shape batch x 12 and has 1 x 13"),
        ({"z": np.zeros((1, 12), np.float32)}, "no input `z`"),
        ({}, "input `x` is missing"),
    ],
)
def test_wrong_tensors_are_refused_with_what_was_expected(rig: Rig, feeds: dict[str, Any], text: str) -> None:
    client = rig.server.connect()
    submit(client, "a", feeds)
    message = failure(client)
    assert (message.request, message.code) == ("a", "E_TENSOR")
    assert text in message.message


def test_an_unknown_output_is_refused(rig: Rig) -> None:
    client = rig.server.connect()
    submit(client, "a", outputs=("nonsense",))
    assert "no output `nonsense`" in failure(client).message


def test_frames_that_contradict_their_headers_are_refused(rig: Rig) -> None:
    client = rig.server.connect()
    header = TensorHeader("x", "float32", (1, 12), 48)
    for frames in ([], [bytes(47)], [bytes(48), b"more"], [b""]):
        tell(client, Submit("a", (header,)), frames)
        assert failure(client).code == "E_PROTOCOL"


def test_a_full_queue_says_when_to_come_back(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    for name in "abc":
        submit(client, name)
    message = failure(client)
    assert (message.request, message.code) == ("c", "E_BUSY")
    assert message.retry_after_s is not None
    assert 0 < message.retry_after_s <= 5
    rig.engine.gate.set()
    assert {done(client)[0], done(client)[0]} == {"a", "b"}
    submit(client, "c")
    assert done(client)[0] == "c"


def test_a_repeated_request_is_answered_once(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "a")
    submit(client, "a")
    rig.engine.gate.set()
    assert done(client)[0] == "a"
    tell(client, Heartbeat())
    assert isinstance(hear(client)[0], Heartbeat)


def test_a_cancelled_request_is_not_answered_and_makes_room(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "a")
    submit(client, "b")
    tell(client, Cancel("a"))
    tell(client, Cancel("unknown"))
    tell(client, Heartbeat())
    assert isinstance(hear(client)[0], Heartbeat)
    rig.engine.gate.set()
    assert done(client)[0] == "b"
    submit(client, "c")
    assert done(client)[0] == "c"


def test_an_accepted_request_is_said_to_be_and_a_refused_one_is_not(rig: Rig) -> None:
    client = rig.server.connect()
    submit(client, "a")
    parts = client.receive(WAIT_S)
    assert parts is not None
    assert decode_from_worker(memoryview(parts[0])) == Accepted("a")
    assert done(client)[0] == "a"
    submit(client, "b", {})
    parts = client.receive(WAIT_S)
    assert parts is not None
    assert isinstance(decode_from_worker(memoryview(parts[0])), Failed)


def test_a_request_whose_time_is_over_fails_and_is_not_computed(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "first")
    submit(client, "late", timeout_s=0.05)
    start_s = time.monotonic()
    message = failure(client)
    assert (message.request, message.code) == ("late", "E_DEADLINE")
    assert "more than it was given" in message.message
    assert 0.04 < time.monotonic() - start_s < WAIT_S / 2, "it is told then, and not when the first one is done"
    rig.engine.gate.set()
    assert done(client)[0] == "first"
    submit(client, "late", timeout_s=WAIT_S)
    assert done(client)[0] == "late"
    told = report(client)
    assert told.requests.failures == {"E_DEADLINE": 1}
    assert sum(partition.run.n for partition in told.partitions) == 2 * len(told.partitions)


def test_the_name_of_a_cancelled_request_is_free_at_once(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "a")
    tell(client, Cancel("a"))
    submit(client, "a", FLOW.feeds(seed=5))
    rig.engine.gate.set()
    _, made = done(client)
    np.testing.assert_array_equal(made["y"], rig.engine.run_one(Request(FLOW.feeds(seed=5)))["y"])


def test_what_a_client_that_is_gone_waited_for_makes_room(rig: Rig) -> None:
    gone, client = rig.server.connect(), rig.server.connect()
    rig.engine.gate.clear()
    submit(gone, "a")
    submit(gone, "b")
    submit(client, "c")
    assert failure(client).code == "E_BUSY"
    gone.close()
    tell(client, Heartbeat())
    assert isinstance(hear(client)[0], Heartbeat), "what came before that has been heard of too"
    rig.engine.gate.set()
    until_s = time.monotonic() + WAIT_S
    while report(client).requests.cancelled < 2:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    submit(client, "c")
    assert done(client)[0] == "c"
    assert max(partition.run.n for partition in report(client).partitions) <= 2, "at most the one that had begun"


def test_leaving_finishes_what_was_accepted_and_takes_nothing_more(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "a")
    tell(client, Heartbeat())
    hear(client)
    rig.service.leave()
    deadline_s = time.monotonic() + WAIT_S
    code = ""
    while code != "E_LEAVING" and time.monotonic() < deadline_s:
        submit(client, f"late{time.monotonic()}")
        code = failure(client).code
    rig.engine.gate.set()
    assert done(client)[0] == "a"
    assert rig.ended()


def test_told_twice_it_stops_at_once(rig: Rig) -> None:
    client = rig.server.connect()
    rig.engine.gate.clear()
    submit(client, "a")
    rig.service.leave()
    rig.service.leave()
    assert rig.ended()


def test_a_batch_that_breaks_off_fails_its_requests_and_the_next_works(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    client = rig.server.connect()
    rig.engine.broken = ZeroDivisionError("a bug")
    submit(client, "a")
    message = failure(client)
    assert (message.request, message.code) == ("a", "E_INTERNAL")
    assert "a batch broke off" in caplog.text
    rig.engine.broken = None
    submit(client, "b")
    assert done(client)[0] == "b"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_survived(rig: Rig, parts: list[bytes]) -> None:
    client = rig.server.connect()
    client.send(parts, WAIT_S)
    tell(client, Heartbeat())
    message: FromWorker | None = None
    while not isinstance(message, Heartbeat):
        message, _ = hear(client)
        assert isinstance(message, Heartbeat | Failed)


names = st.sampled_from(["submit", "hello", "cancel", "heartbeat", "done"])
scalars = st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.none() | st.binary(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names, fields=st.lists(values, max_size=4), frames=st.lists(st.binary(max_size=60), max_size=2))
def test_any_fields_are_survived(rig: Rig, name: str, fields: list[Any], frames: list[bytes]) -> None:
    client = rig.server.connect()
    client.send([msgspec.msgpack.encode([name, *fields]), *frames], WAIT_S)
    honest = rig.server.connect()
    submit(honest, "honest")
    assert done(honest)[0] == "honest"


# Bounds.


def test_the_queue_takes_a_small_part_of_the_budget(tmp_path: Path) -> None:
    plan = mlp(1000, 10, batch=1).write(tmp_path / "fixed")
    assert bounds_for(plan, 10**8).queue_nbytes == 4 * 4000
    assert bounds_for(plan, 10**8).reserved_nbytes == 4 * 4000
    assert bounds_for(plan, None).reserved_nbytes == 0
    dynamic = mlp(1000, 10).write(tmp_path / "dynamic")
    bounds = bounds_for(dynamic, 10**8)
    assert bounds.queue_nbytes == bounds.max_nbytes == 10**8 // 16


def test_a_tight_queue_takes_one_request(tmp_path: Path) -> None:
    dynamic = mlp(1000, 10).write(tmp_path / "dynamic")
    bounds = bounds_for(dynamic, 10**8, is_tight=True)
    assert bounds.queue_nbytes == bounds.reserved_nbytes == 4000


def test_the_largest_input_always_fits_the_queue(tmp_path: Path) -> None:
    plan = mlp(10_000_000, 1, batch=1).write(tmp_path / "plan")
    bounds = bounds_for(plan, 80_000_000)
    assert bounds.max_nbytes == 40_000_000
    assert bounds.queue_nbytes >= 40_000_000


def report(client: MemoryClient) -> Report:
    tell(client, AskStatus("how is it"))
    message, frames = hear(client)
    assert message == Status("how is it")
    assert len(frames) == 1
    return decode_report(memoryview(frames[0]))


def test_the_status_of_an_idle_worker(rig: Rig) -> None:
    told = report(rig.server.connect())
    assert (told.role, told.state, told.device, told.model) == ("worker", "serving", "pi", "test")
    assert [partition.partition for partition in told.partitions] == [piece.id for piece in FLOW.pieces]
    assert {partition.state for partition in told.partitions} == {"loaded"}
    assert (told.requests.accepted, told.requests.max_queued, told.requests.latency.n) == (0, 2, 0)
    (node,) = told.nodes
    assert (node.device, node.state, node.running, node.waiting) == ("pi", "serving", (), 0)
    assert node.resident_nbytes is not None
    assert node.resident_nbytes > 10_000_000


def test_the_status_counts_every_outcome_and_answers_while_the_worker_computes(rig: Rig) -> None:
    client, watcher = rig.server.connect(), rig.server.connect()
    submit(client, "good")
    done(client)
    rig.engine.gate.clear()
    submit(client, "slow")
    submit(client, "next")
    submit(client, "too many")
    assert failure(client).code == "E_BUSY"
    tell(client, Cancel("next"))
    during = report(watcher)
    assert (during.requests.accepted, during.requests.done, during.requests.refused) == (3, 1, 1)
    assert during.requests.running + during.requests.queued == 2
    assert during.hub is not None
    assert during.hub.queued_nbytes == 2 * 12 * 4
    rig.engine.gate.set()
    done(client)
    rig.engine.broken = RuntimeError("broken on purpose")
    submit(client, "bad")
    assert failure(client).code == "E_INTERNAL"
    after = report(watcher)
    counts = after.requests
    assert (counts.accepted, counts.done, counts.cancelled, counts.failed) == (4, 2, 1, 1)
    assert counts.failures == {"E_INTERNAL": 1}
    assert (counts.queued, counts.running) == (0, 0)
    assert counts.latency.n == 2
    assert after.partitions[0].run.p50_s is not None


def test_an_observer_asks_a_worker(rig: Rig) -> None:
    with Observer(rig.server.connect(), "memory://worker") as observer:
        assert observer.ask().device == "pi"
        assert observer.ask(levels=1).requests.accepted == 0


def test_an_observer_does_not_wait_for_ever() -> None:
    with (
        Observer(MemoryServer().connect(), "memory://nobody") as observer,
        pytest.raises(PeerError, match="did not answer within"),
    ):
        observer.ask(timeout_s=0.1)
