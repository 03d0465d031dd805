"""Sockets as they were measured to be right, and addresses as they are allowed."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from hyps.adapters.sockets import Security, WakePipe, bind, connect, make_dealer, make_router
from hyps.errors import PeerError, UsageError

Socket = zmq.Socket[Any]
Make = Callable[..., Socket]


@pytest.fixture
def made() -> Iterator[Callable[[Make], Socket]]:
    """What makes sockets with a function and closes them in the end."""
    context: zmq.Context[Any] = zmq.Context()
    sockets: list[Socket] = []

    def make(function: Make, security: Security | None = None) -> Socket:
        sockets.append(function(context, security))
        return sockets[-1]

    yield make
    for socket in sockets:
        socket.close(linger=0)
    context.term()


COMMON = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 16,
    zmq.RCVHWM: 16,
    zmq.MAXMSGSIZE: 2**20 + 4096,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 4000,
    zmq.HEARTBEAT_TTL: 4000,
    zmq.TCP_KEEPALIVE: 1,
}
DEALER = {zmq.IMMEDIATE: 1, zmq.RECONNECT_IVL: 50, zmq.RECONNECT_IVL_MAX: 1000, zmq.CONNECT_TIMEOUT: 2000}


@pytest.mark.parametrize(("option", "value"), COMMON.items())
def test_every_socket_has_the_measured_profile(made: Callable[..., Socket], option: int, value: int) -> None:
    assert made(make_router).get(option) == value
    assert made(make_dealer).get(option) == value


@pytest.mark.parametrize(("option", "value"), DEALER.items())
def test_a_socket_that_connects_has_its_own(made: Callable[..., Socket], option: int, value: int) -> None:
    assert made(make_dealer).get(option) == value


def test_a_socket_that_is_connected_to_says_when_it_cannot_send(made: Callable[..., Socket]) -> None:
    with pytest.raises(zmq.ZMQError) as caught:
        made(make_router).send_multipart([b"nobody", b"x"], zmq.NOBLOCK)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_a_socket_takes_nothing_while_nobody_is_there(made: Callable[..., Socket], tmp_path: Path) -> None:
    dealer = made(make_dealer)
    connect(dealer, f"ipc://{tmp_path}/nobody")
    with pytest.raises(zmq.Again):
        dealer.send(b"x", zmq.NOBLOCK)


def test_keys_are_given_before_anything_else(made: Callable[..., Socket]) -> None:
    seen: list[str] = []
    for make in (make_router, make_dealer):
        made(make, lambda socket: seen.append(socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")))
    assert seen == ["", ""]


def test_only_this_machine_is_let_in_unless_told(made: Callable[..., Socket]) -> None:
    with pytest.raises(UsageError) as caught:
        bind(made(make_router), "tcp://0.0.0.0:0", allow_remote=False)
    assert caught.value.code == "E_INSECURE"


def test_an_ipc_socket_is_for_its_owner_and_taken_once(made: Callable[..., Socket], tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    assert bind(made(make_router), address, allow_remote=False) == address
    assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
    with pytest.raises(PeerError) as caught:
        bind(made(make_router), address, allow_remote=False)
    assert caught.value.code == "E_ADDRESS_IN_USE"


def test_a_pipe_ends_the_wait_there_is_or_the_next_and_no_other() -> None:
    pipe = WakePipe()
    poller = zmq.Poller()
    poller.register(pipe.read_fd, zmq.POLLIN)
    pipe.wake()
    assert not poller.poll(0), "nobody waits: no system call"
    assert pipe.begin_wait()
    assert pipe.end_wait(is_readable=False)
    assert not pipe.begin_wait()
    for _ in range(100_000):
        pipe.wake()
    assert poller.poll(0)
    assert pipe.end_wait(is_readable=True)
    assert not poller.poll(0)
    assert not pipe.begin_wait()
    assert not pipe.end_wait(is_readable=False)
    pipe.close()
    pipe.close()
    pipe.wake()


def test_a_wake_that_meets_a_close_writes_to_no_file_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe, write = WakePipe(), os.write
    pipe.begin_wait()
    opened: list[int] = []

    def close_first(fd: int, data: bytes) -> int:
        pipe.close()
        opened.extend(os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY) for number in range(2))
        return write(fd, data)

    monkeypatch.setattr(os, "write", close_first)
    pipe.wake()
    monkeypatch.undo()
    for fd in opened:
        os.close(fd)
    assert len(opened) == 2
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [0, 0]


def test_no_wake_is_lost_however_it_meets_a_wait() -> None:
    pipe, done = WakePipe(), queue.SimpleQueue[int]()
    told: list[int] = []
    poller = zmq.Poller()
    poller.register(pipe.read_fd, zmq.POLLIN)

    def work() -> None:
        for number in range(20_000):
            done.put(number)
            pipe.wake()
            if number % 7 == 0:
                time.sleep(0)

    thread = threading.Thread(target=work)
    thread.start()
    while len(told) < 20_000:
        is_wanted = pipe.begin_wait()
        is_readable = bool(poller.poll(0 if is_wanted else 10_000))
        assert pipe.end_wait(is_readable=is_readable) or is_readable, "waited in vain"
        while not done.empty():
            told.append(done.get())
    thread.join()
    pipe.close()
    assert told == list(range(20_000))
