"""Messages between server and clients: the same promises over every transport."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hyps.adapters.memory_transport import MemoryServer
from hyps.adapters.transport import Buffer, Client, Delivery, Departure, Server, ZmqClient, ZmqServer
from hyps.errors import PeerError

WAIT_S = 10.0
LIMIT = 1_000_000


class BusyClient:
    """A client in a thread of its own, which goes on while the test's thread is the server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._todo: queue.SimpleQueue[Future[None] | None] = queue.SimpleQueue()
        self._parts: Sequence[Buffer] = ()
        self._heard: queue.SimpleQueue[Sequence[Buffer] | PeerError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def send(self, parts: Sequence[Buffer], timeout_s: float) -> None:
        done: Future[None] = Future()
        self._parts, self._timeout_s = parts, timeout_s
        self._todo.put(done)
        if timeout_s < 1:
            done.result(WAIT_S)

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        try:
            heard = self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(heard, PeerError):
            raise heard
        return heard

    def close(self) -> None:
        self._todo.put(None)
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        while True:
            try:
                done = self._todo.get_nowait()
            except queue.Empty:
                self._hear()
                continue
            if done is None:
                self._client.close()
                return
            try:
                self._client.send(self._parts, self._timeout_s)
                done.set_result(None)
            except PeerError as error:
                done.set_exception(error)

    def _hear(self) -> None:
        try:
            parts = self._client.receive(0.005)
        except PeerError as error:
            self._heard.put(error)
            return
        if parts is not None:
            self._heard.put(parts)


@dataclass
class Link:
    """A server and how to reach it."""

    server: Server
    connect: Callable[[], Client]


@pytest.fixture(params=[pytest.param("tcp", marks=pytest.mark.network), "ipc", "memory"])
def link(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Link]:
    clients: list[Client] = []
    if request.param == "memory":
        twin = MemoryServer(max_nbytes=LIMIT)
        yield Link(twin, twin.connect)
        twin.close()
        return
    address = "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{tmp_path}/socket"
    with ZmqServer(address, max_nbytes=LIMIT) as server:

        def connect() -> Client:
            clients.append(BusyClient(ZmqClient(server.address, max_nbytes=LIMIT)))
            return clients[-1]

        yield Link(server, connect)
    for client in clients:
        client.close()


def delivered(server: Server) -> Delivery:
    event = server.receive(WAIT_S)
    while isinstance(event, Departure):
        event = server.receive(WAIT_S)
    assert event is not None
    return event


def answered(client: Client) -> list[bytes]:
    parts = client.receive(WAIT_S)
    assert parts is not None
    return [bytes(part) for part in parts]


def test_parts_arrive_and_answers_find_their_way(link: Link) -> None:
    first, second = link.connect(), link.connect()
    first.send([b"one", b"", memoryview(b"12")], WAIT_S)
    to_first = delivered(link.server)
    second.send([b"two"], WAIT_S)
    to_second = delivered(link.server)
    assert [bytes(part) for part in to_first.parts] == [b"one", b"", b"12"]
    assert to_first.peer != to_second.peer
    assert link.server.send(to_second.peer, [b"for two"])
    assert link.server.send(to_first.peer, [b"for one", b""])
    assert link.server.receive(0.01) is None
    assert answered(first) == [b"for one", b""]
    assert answered(second) == [b"for two"]


def test_a_large_array_travels_whole(link: Link) -> None:
    client = link.connect()
    array = np.random.default_rng(0).standard_normal(LIMIT // 8)
    client.send([b"header", array.view(np.uint8).data], WAIT_S)
    np.testing.assert_array_equal(np.frombuffer(delivered(link.server).parts[1]), array)


def test_waiting_ends_in_time(link: Link) -> None:
    client = link.connect()
    start = time.monotonic()
    assert link.server.receive(0.05) is None
    assert client.receive(0.05) is None
    assert time.monotonic() - start < 5


def test_a_wake_from_another_thread_ends_the_wait(link: Link) -> None:
    threading.Timer(0.05, link.server.wake).start()
    start = time.monotonic()
    assert link.server.receive(WAIT_S) is None
    assert time.monotonic() - start < WAIT_S / 2
    for _ in range(100_000 // 10):
        link.server.wake()


def test_the_server_hears_who_is_gone(link: Link) -> None:
    staying, leaving = link.connect(), link.connect()
    leaving.send([b"leaving"], WAIT_S)
    peer = delivered(link.server).peer
    leaving.close()
    assert link.server.receive(WAIT_S) == Departure(peer)
    assert not link.server.send(peer, [b"too late"])
    staying.send([b"staying"], WAIT_S)
    assert bytes(delivered(link.server).parts[0]) == b"staying"


def test_an_unknown_peer_takes_nothing(link: Link) -> None:
    assert not link.server.send(b"nobody", [b"x"])


def test_a_peer_that_does_not_read_is_not_waited_for(link: Link) -> None:
    client = link.connect()
    client.send([b"hello"], WAIT_S)
    peer = delivered(link.server).peer
    block: Buffer = bytes(LIMIT)
    start = time.monotonic()
    sent = sum(link.server.send(peer, [block]) for _ in range(200))
    assert sent < 200
    assert time.monotonic() - start < WAIT_S


def send_until_refused(client: Client) -> None:
    """Send and send again: the port of a server that is gone is closed by a thread, which may take a moment."""
    for _ in range(100):
        client.send([b"again"], 0.2)
        time.sleep(0.05)


def test_the_client_sees_that_the_server_is_gone(link: Link) -> None:
    client = link.connect()
    client.send([b"hello"], WAIT_S)
    delivered(link.server)
    link.server.close()
    with pytest.raises(PeerError):
        client.receive(WAIT_S)
    with pytest.raises(PeerError):
        send_until_refused(client)


def test_a_part_that_is_too_large_cuts_its_sender_only(link: Link) -> None:
    large, honest = link.connect(), link.connect()
    large.send([b"header", bytes(LIMIT + 1)], WAIT_S)
    assert isinstance(link.server.receive(WAIT_S), Departure)
    assert link.server.receive(0.1) is None
    honest.send([b"hello"], WAIT_S)
    assert bytes(delivered(link.server).parts[0]) == b"hello"
    with pytest.raises(PeerError):
        large.receive(WAIT_S)


@pytest.mark.network
def test_nobody_at_the_address_is_said_in_time() -> None:
    with ZmqServer("tcp://127.0.0.1:0", max_nbytes=LIMIT) as server:
        address = server.address
    client = ZmqClient(address, max_nbytes=LIMIT)
    start = time.monotonic()
    with pytest.raises(PeerError, match="no worker answers"):
        client.send([b"hello"], 0.2)
    assert time.monotonic() - start < 5
    client.close()
    client.close()


@pytest.mark.parametrize("scheme", [pytest.param("tcp", marks=pytest.mark.network), "ipc"])
def test_a_taken_address_is_refused(scheme: str, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    with ZmqServer(address, max_nbytes=LIMIT) as server:
        with pytest.raises(PeerError) as caught:
            ZmqServer(server.address, max_nbytes=LIMIT)
        assert caught.value.code == "E_ADDRESS_IN_USE"


def test_an_ipc_socket_is_for_its_owner(tmp_path: Path) -> None:
    with ZmqServer(f"ipc://{tmp_path}/socket", max_nbytes=LIMIT):
        assert (tmp_path / "socket").stat().st_mode & 0o077 == 0


@pytest.mark.network
def test_a_stranger_that_speaks_something_else_disturbs_nobody() -> None:
    with ZmqServer("tcp://127.0.0.1:0", max_nbytes=LIMIT) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            client = BusyClient(ZmqClient(server.address, max_nbytes=LIMIT))
            client.send([b"hello"], WAIT_S)
            assert bytes(delivered(server).parts[0]) == b"hello"
            client.close()
