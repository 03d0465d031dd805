"""Links are measured over a service as it is, in memory and on a socket; what cannot be is refused."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyps.adapters.memory_transport import MemoryClient, MemoryServer
from hyps.adapters.transport import Server, ZmqServer
from hyps.core.admission import Admission
from hyps.engine import Engine, Options, open_engine
from hyps.errors import BusyError
from hyps.formats.messages import (
    MAX_PROBE_NBYTES,
    Failed,
    Probe,
    Probed,
    decode_from_worker,
    encode,
)
from hyps.probe import measure_link
from hyps.remote import RemoteRunner, connect
from hyps.worker import Service
from plan_fixtures import sharded

FLOW = sharded()
WAIT_S = 10.0
MAX_NBYTES = 50_000


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    FLOW.write(tmp_path / "plan")
    return open_engine(tmp_path / "plan", Options(threads=1))


@pytest.fixture
def admission() -> Admission:
    return Admission(2, 10_000)


@contextlib.contextmanager
def serving(engine: Engine, server: Server, admission: Admission) -> Iterator[None]:
    service = Service(engine, server, admission, "pi", max_nbytes=MAX_NBYTES)
    thread = threading.Thread(target=service.run)
    thread.start()
    yield
    service.leave()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    server.close()


@pytest.fixture
def server(engine: Engine, admission: Admission) -> Iterator[MemoryServer]:
    server = MemoryServer(max_nbytes=2**20)
    with serving(engine, server, admission):
        yield server


@pytest.fixture
def runner(engine: Engine, admission: Admission, tmp_path: Path) -> Iterator[RemoteRunner]:
    address = f"ipc://{tmp_path}/worker"
    server = ZmqServer(address, max_nbytes=2**20)
    with serving(engine, server, admission), contextlib.closing(connect(address)) as runner:
        yield runner


def _ask(client: MemoryClient, message: Probe, payload: bytes = b"") -> tuple[object, list[int]]:
    client.send([encode(message), payload], WAIT_S)
    parts = client.receive(WAIT_S)
    assert parts is not None
    return decode_from_worker(memoryview(parts[0])), [len(part) for part in parts[1:]]


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 7), (30_000, 1), (5, MAX_NBYTES)])
def test_as_many_bytes_come_back_as_were_asked_for(server: MemoryServer, up: int, down: int) -> None:
    assert _ask(server.connect(), Probe("a", down), bytes(up)) == (Probed("a"), [down])


def test_more_than_a_message_may_have_is_refused(server: MemoryServer) -> None:
    answer, _ = _ask(server.connect(), Probe("a", MAX_NBYTES + 1))
    assert isinstance(answer, Failed)
    assert (answer.code, str(MAX_NBYTES) in answer.message) == ("E_PROTOCOL", True)


@pytest.mark.parametrize("nbytes", [-1, MAX_PROBE_NBYTES + 1, 2**62])
def test_no_message_can_ask_for_too_much(server: MemoryServer, nbytes: int) -> None:
    answer, _ = _ask(server.connect(), Probe("a", nbytes))
    assert isinstance(answer, Failed)
    assert answer.code == "E_PROTOCOL"


def test_who_computes_is_not_disturbed(runner: RemoteRunner, admission: Admission) -> None:
    admission.offer("work", 1)
    with pytest.raises(BusyError):
        runner.probe()
    admission.end("work", 0.0)
    assert runner.probe(3, 4)[0] > 0


def test_partitions_tell_their_seconds_to_who_asks(runner: RemoteRunner, engine: Engine) -> None:
    runner.run(FLOW.feeds())
    link = measure_link(runner, "here")
    assert set(link.partitions) == {partition.id for partition in engine.plan.partitions}
    assert all(0 < sample.median_s <= sample.p95_s and sample.n == 1 for sample in link.partitions.values())


def test_a_link_is_measured_and_probes_leave_no_trace(runner: RemoteRunner) -> None:
    link = measure_link(runner, "here")
    assert (link.peer, link.device, link.partitions) == ("here", "pi", {})
    assert min(link.up_bytes_per_s, link.down_bytes_per_s) > 1e6
    assert 0 <= link.latency_s < 0.1
    assert 0 <= link.message_s < 0.1
    assert runner.run(FLOW.feeds()).keys() == set(FLOW.outputs)
