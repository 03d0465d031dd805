"""Links under what happens to real processes and networks: kills, restarts, cut and stalled connections, strangers."""

import contextlib
import gc
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import zmq

from hyps.adapters.links import Heard, LinkEvent, Lost, Opened, Taken
from hyps.adapters.zmq_links import ZmqLinks
from hyps.formats.packets import LINK_VERSION, Data, Gone, Offer, Open, decode_packet, encode_packet
from hyps.formats.packets import Opened as OpenedPacket

pytestmark = pytest.mark.network

WAIT_S = 20.0
E = TypeVar("E", Opened, Heard, Taken, Lost)

ECHO = """
import sys
from hyps.adapters.links import Heard
from hyps.adapters.zmq_links import ZmqLinks
with ZmqLinks() as links:
    print(links.listen(sys.argv[1]), flush=True)
    while True:
        event = links.receive(1.0)
        if isinstance(event, Heard):
            links.send(event.link, event.frames)
"""


@contextlib.contextmanager
def echoing(address: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield a process that sends back what it hears, and its address."""
    process = subprocess.Popen([sys.executable, "-c", ECHO, address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


class Proxy:
    """A wire between two processes that can be cut, stalled, and slowed."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes_per_s = float("inf")
        self.is_stalled = False
        self.is_closed_to_new = False
        self.connections = 0
        self.nbytes = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        """Break all connections there are, in the middle of whatever they carry."""
        for pair in list(self._pairs):
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join(WAIT_S)
        self._listener.close()

    def _run(self) -> None:
        workers = []
        while not self._is_over:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self.is_closed_to_new:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=WAIT_S)
            except OSError:
                client.close()
                continue
            self.connections += 1
            self._pairs.append((client, server))
            workers += [
                threading.Thread(target=self._carry, args=ends) for ends in ((client, server), (server, client))
            ]
            for worker in workers[-2:]:
                worker.start()
        self.is_stalled, self.bytes_per_s = False, float("inf")
        self.cut()
        for worker in workers:
            worker.join(WAIT_S)
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._is_over:
                if self.is_stalled or not select.select([source], [], [], 0.05)[0]:
                    time.sleep(0.01 if self.is_stalled else 0.0)
                    continue
                data = source.recv(int(min(65536, max(1024, self.bytes_per_s / 50))))
                if not data:
                    break
                time.sleep(len(data) / self.bytes_per_s)
                self.nbytes += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Reader:
    """Links in a thread of their own that keep what they hear."""

    def __init__(
        self, links: ZmqLinks, answer: Callable[[ZmqLinks, Heard], None] = lambda _links, _heard: None
    ) -> None:
        self.links, self.events = links, list[LinkEvent]()
        self.is_over = False
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type[E]) -> E:
        deadline_s = time.monotonic() + WAIT_S
        while not self.of(kind):
            assert time.monotonic() < deadline_s, f"no {kind.__name__} came"
            time.sleep(0.01)
        return self.of(kind)[0]

    def _run(self) -> None:
        while not self.is_over:
            event = self.links.receive(0.05)
            if event is not None:
                self.events.append(event)
            if isinstance(event, Heard):
                self._answer(self.links, event)
        self.links.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self._thread.join(WAIT_S)


def wait_for(links: ZmqLinks, kind: type[E], timeout_s: float = WAIT_S) -> E:
    deadline_s = time.monotonic() + timeout_s
    seen = []
    while time.monotonic() < deadline_s:
        event = links.receive(0.1)
        if isinstance(event, kind):
            return event
        seen.append(type(event).__name__)
    raise AssertionError(f"no {kind.__name__} came in {timeout_s} s, only {set(seen)}")


def test_each_message_comes_once_though_the_connection_is_cut_again_and_again() -> None:
    chance = random.Random(0)
    with (
        Reader(ZmqLinks(), lambda links, heard: links.send(heard.link, heard.frames)) as server,
        ZmqLinks() as client,
        Proxy(server.links.listen("tcp://127.0.0.1:0")) as proxy,
    ):
        link = client.connect(proxy.address)
        sent = [(number, chance.randbytes(chance.choice([10, 5000, 300_000, 2_500_000]))) for number in range(60)]
        for number, data in sent:
            client.send(link, [number.to_bytes(2, "big"), data], token=number)
        heard: list[tuple[int, bytes]] = []
        taken: list[object] = []
        cuts = 0
        deadline_s = time.monotonic() + 60
        while len(heard) < len(sent) and time.monotonic() < deadline_s:
            event = client.receive(0.05)
            assert not isinstance(event, Lost)
            if isinstance(event, Heard):
                heard.append((int.from_bytes(event.frames[0], "big"), bytes(event.frames[1])))
            elif isinstance(event, Taken):
                taken.append(event.token)
            if cuts < 8 and len(heard) >= 5 * cuts and proxy.connections > cuts:
                proxy.cut()
                cuts += 1
        assert heard == sent
        assert taken == list(range(60))
        assert cuts == 8
        assert proxy.connections > 4
        assert client.backlog_nbytes(link) == 0


def test_a_large_tensor_on_a_slow_link_neither_loses_it_nor_holds_up_what_is_urgent() -> None:
    with (
        Reader(ZmqLinks(silence_s=2.0)) as server,
        ZmqLinks(silence_s=2.0) as client,
        Proxy(server.links.listen("tcp://127.0.0.1:0")) as proxy,
    ):
        link = client.connect(proxy.address)
        wait_for(client, Opened)
        proxy.bytes_per_s = 400_000
        data = np.random.default_rng(0).integers(0, 255, 3_000_000, np.uint8)
        begin_s = time.monotonic()
        client.send(link, [b"tensor", data.data], token="tensor")
        beats = 0
        while not any(len(heard.frames[1]) == data.size for heard in server.of(Heard)):
            assert not isinstance(client.receive(0.1), Lost)
            assert time.monotonic() - begin_s < 30
            if time.monotonic() - begin_s > 0.5 * (beats + 1):
                beats += 1
                client.send(link, [b"beat", bytes(beats)], is_urgent=True)
        assert time.monotonic() - begin_s > 5, "the wire was slow"
        assert beats > 8
        names = [bytes(heard.frames[0]) for heard in server.of(Heard)]
        assert names.index(b"tensor") >= beats - 3, "a beat waits no more than 1.5 s"
        assert bytes(server.of(Heard)[names.index(b"tensor")].frames[1]) == data.tobytes()


def test_a_stalled_wire_is_waited_for_and_a_dead_one_given_up() -> None:
    with (
        Reader(ZmqLinks(silence_s=3.0, broken_s=1.0)) as server,
        ZmqLinks(silence_s=3.0, broken_s=1.0) as client,
        Proxy(server.links.listen("tcp://127.0.0.1:0")) as proxy,
    ):
        link = client.connect(proxy.address)
        wait_for(client, Opened)
        proxy.is_stalled = True
        time.sleep(0.2)
        client.send(link, [b"a"], token="a")
        assert client.receive(1.0) is None
        proxy.is_stalled = False
        assert wait_for(client, Taken).token == "a"
        proxy.is_stalled = True
        time.sleep(0.2)
        client.send(link, [b"b"])
        begin_s = time.monotonic()
        assert "silent" in wait_for(client, Lost).reason
        assert 2.5 < time.monotonic() - begin_s < 8


def test_a_connection_that_does_not_come_back_is_lost_on_both_sides() -> None:
    with (
        Reader(ZmqLinks(broken_s=0.5)) as server,
        ZmqLinks(broken_s=0.5) as client,
        Proxy(server.links.listen("tcp://127.0.0.1:0")) as proxy,
    ):
        client.connect(proxy.address)
        wait_for(client, Opened)
        server.wait_for(Opened)
        proxy.is_closed_to_new = True
        proxy.cut()
        begin_s = time.monotonic()
        assert "broke" in wait_for(client, Lost).reason
        assert "broke" in server.wait_for(Lost).reason
        assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_killed_peer_is_lost_and_its_successor_is_another(scheme: str, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    with ZmqLinks(broken_s=1.0) as client:
        with echoing(address) as (process, address):
            link = client.connect(address)
            wait_for(client, Opened)
            for _ in range(20):
                client.send(link, [b"h", bytes(5_000_000)])
            process.kill()
            begin_s = time.monotonic()
            assert wait_for(client, Lost).link == link
            assert time.monotonic() - begin_s < 5
            assert client.backlog_nbytes(link) == 0
        with echoing(address) as (_, again):
            assert again == address
            link = client.connect(address)
            client.send(link, [b"new"])
            assert bytes(wait_for(client, Heard).frames[0]) == b"new"


def test_a_peer_that_starts_anew_at_once_is_lost_not_mistaken() -> None:
    with ZmqLinks(broken_s=10.0) as client:
        with echoing("tcp://127.0.0.1:0") as (_, address):
            link = client.connect(address)
            wait_for(client, Opened)
        with echoing(address):
            client.send(link, [b"for the first"])
            assert "anew" in wait_for(client, Lost).reason


def test_a_sender_killed_within_a_message_leaves_nothing() -> None:
    program = ECHO.split("with ZmqLinks")[0] + (
        "links = ZmqLinks()\nlink = links.connect(sys.argv[1])\nlinks.send(link, [b'h', bytes(10**9)])\n"
        "print('sent', flush=True)\nwhile True:\n    links.receive(1.0)\n"
    )
    with ZmqLinks(broken_s=0.5) as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy:
        proxy.bytes_per_s = 20_000_000
        process = subprocess.Popen([sys.executable, "-c", program, proxy.address], stdout=subprocess.PIPE)
        wait_for(server, Opened)
        while proxy.nbytes < 5_000_000:
            assert server.receive(0.01) is None
        assert 1_000_000 < server.assembling_nbytes < 10**8
        process.kill()
        wait_for(server, Lost)
        assert server.assembling_nbytes == 0
        process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_stopped_peer_holds_up_nobody_and_bounds_what_is_kept(scheme: str, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    with ZmqLinks() as client, echoing(address) as (process, address):
        link = client.connect(address)
        wait_for(client, Opened)
        process.send_signal(signal.SIGSTOP)
        block = bytes(1_000_000)
        begin_s = time.monotonic()
        sent = 0
        while client.backlog_nbytes(link) < 50_000_000:
            client.send(link, [b"h", block])
            sent += 1
        assert time.monotonic() - begin_s < 5
        assert sent == 50, "nothing is taken that was not heard"
        process.send_signal(signal.SIGCONT)
        for _ in range(sent):
            assert len(wait_for(client, Heard).frames[1]) == 1_000_000
        while client.backlog_nbytes(link):
            client.receive(0.05)


def test_a_slow_consumer_holds_its_sender_back_not_its_own_memory() -> None:
    with ZmqLinks() as server, ZmqLinks() as client:
        link = client.connect(server.listen("tcp://127.0.0.1:0"))
        stop = threading.Event()

        def send() -> None:
            wait_for(client, Opened)
            for number in range(100):
                client.send(link, [bytes([number]), bytes(2_000_000)])
            while not stop.is_set():
                client.receive(0.05)

        thread = threading.Thread(target=send)
        thread.start()
        wait_for(server, Opened)
        resident = psutil.Process().memory_info().rss
        time.sleep(1.5)
        assert psutil.Process().memory_info().rss - resident < 60_000_000
        for number in range(100):
            assert bytes(wait_for(server, Heard).frames[0]) == bytes([number])
        stop.set()
        thread.join(WAIT_S)


class Stranger:
    """A peer that speaks ZeroMQ, and the link's protocol as it likes."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(address)

    def opened(self) -> bytes:
        """Return the token of a link made by the rules."""
        self.socket.send(encode_packet(Open(LINK_VERSION)))
        answer = self.heard()
        assert isinstance(answer, OpenedPacket)
        return answer.token

    def heard(self) -> object:
        assert self.socket.poll(int(WAIT_S * 1000)), "no answer"
        return decode_packet(self.socket.recv_multipart()[0])

    def __enter__(self) -> "Stranger":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)


HOSTILE: dict[str, Callable[[bytes], list[bytes]]] = {
    "a frame too large": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (2**33,))), b"x"],
    "a message too large": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (2**25,) * 100)), b"x"],
    "a bundle of other frames": lambda token: [
        encode_packet(Data(token, 1, 0, 0, 0, (1, 1), (), False, (b"a", b"b"), (1, 2)))
    ],
    "no message": lambda token: [encode_packet(Data(token, 1, 0, 0)), b"x"],
    "no bytes": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (5,)))],
    "too many bytes": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (5,))), b"123456"],
    "empty piece": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (5,))), b""],
    "pieces behind the end": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (1,))), b"1", b"2"],
    "heard what was not said": lambda token: [encode_packet(Data(token, 1, 99, 0, 0, (1,))), b"1"],
    "shared memory that is none": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (5000,), ((0, 4096),)))],
    "a place of no frame": lambda token: [encode_packet(Data(token, 1, 0, 0, 0, (5,), ((7, 4096),)))],
    "an internal message that is none": lambda token: [
        encode_packet(Data(token, 1, 0, 0, 1, (3,), (), True)),
        b"abc",
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_who_breaks_the_rules_loses_its_own_link_only(name: str) -> None:
    limits = {"frame_nbytes": 2**26, "message_nbytes": 2**27}
    with Reader(ZmqLinks(**limits)) as server, ZmqLinks() as honest:  # type: ignore[arg-type] # ints alone
        address = server.links.listen("tcp://127.0.0.1:0")
        with Stranger(address) as stranger:
            token = stranger.opened()
            stranger.socket.send_multipart(HOSTILE[name](token))
            answer = stranger.heard()
            assert isinstance(answer, Gone)
            assert answer.token == token
            link = honest.connect(address)
            honest.send(link, [b"hello"], token=1)
            wait_for(honest, Taken)
            server.wait_for(Heard)
        assert [bytes(heard.frames[0]) for heard in server.of(Heard)] == [b"hello"]


def test_who_has_most_of_what_comes_in_pieces_is_given_up_and_nobody_else() -> None:
    with Reader(ZmqLinks(assembled_nbytes=2**20)) as server, ZmqLinks() as honest:
        address = server.links.listen("tcp://127.0.0.1:0")
        with Stranger(address) as greedy, Stranger(address) as idle:
            for stranger, nbytes in ((greedy, 700_000), (idle, 1000)):
                token = stranger.opened()
                stranger.socket.send_multipart([encode_packet(Data(token, 1, 0, 0, 0, (2**29,))), bytes(nbytes)])
                assert not isinstance(stranger.heard(), Gone), "what is announced takes no memory"
            link = honest.connect(address)
            honest.send(link, [bytes(900_000)], token=1)
            wait_for(honest, Taken)
            while not isinstance(told := greedy.heard(), Gone):
                pass
            assert "too much" in told.reason
            assert not idle.socket.poll(200)


def test_a_peer_with_more_than_all_may_have_is_given_up() -> None:
    with (
        Reader(ZmqLinks(assembled_nbytes=2**20)) as server,
        Stranger(server.links.listen("tcp://127.0.0.1:0")) as greedy,
    ):
        token = greedy.opened()
        greedy.socket.send_multipart([encode_packet(Data(token, 1, 0, 0, 0, (2**29,))), bytes(700_000)])
        greedy.socket.send_multipart([encode_packet(Data(token, 2, 0, 0)), bytes(700_000)])
        while not isinstance(told := greedy.heard(), Gone):
            pass
        assert "too much" in told.reason


def test_strangers_say_little_before_they_are_admitted() -> None:
    with ZmqLinks(stranger_nbytes=1000) as server, ZmqLinks() as client:
        address = server.listen("tcp://127.0.0.1:0")
        for is_admitted in (False, True):
            link = client.connect(address)
            client.send(link, [b"hello"])
            while not isinstance(event := server.receive(0.01), Heard):
                client.receive(0.01)
            if is_admitted:
                server.admit(event.link)
            client.send(link, [bytes(2000)], token="more")
            told: LinkEvent | None = None
            while not isinstance(told, Taken | Lost):
                server.receive(0.01)
                told = client.receive(0.01)
            assert isinstance(told, Taken if is_admitted else Lost)


def test_nobody_speaks_for_another_link() -> None:
    with Reader(ZmqLinks()) as server:
        address = server.links.listen("tcp://127.0.0.1:0")
        with Stranger(address) as stranger, Stranger(address) as victim:
            stranger.opened()
            token = victim.opened()
            guessed = bytes(16)
            stranger.socket.send_multipart([encode_packet(Data(guessed, 1, 0, 0, 0, (3,))), b"bad"])
            assert stranger.heard() == Gone(guessed, "the peer started anew")
            stranger.socket.send_multipart([encode_packet(Gone(guessed, "end it"))])
            stranger.socket.send_multipart([encode_packet(Open(LINK_VERSION, guessed))])
            assert stranger.heard() == Gone(guessed, "the peer started anew")
            victim.socket.send_multipart([encode_packet(Data(token, 1, 0, 0, 0, (4,))), b"good"])
            victim.heard()
            server.wait_for(Heard)
        assert [bytes(heard.frames[0]) for heard in server.of(Heard)] == [b"good"]


def test_another_version_is_told_so() -> None:
    with Reader(ZmqLinks()) as server, Stranger(server.links.listen("tcp://127.0.0.1:0")) as stranger:
        stranger.socket.send(encode_packet(Open(LINK_VERSION + 1)))
        answer = stranger.heard()
        assert isinstance(answer, Gone)
        assert "version" in answer.reason


def test_random_bytes_and_other_protocols_disturb_nobody() -> None:
    chance = random.Random(0)
    with Reader(ZmqLinks()) as server, ZmqLinks() as honest:
        address = server.links.listen("tcp://127.0.0.1:0")
        host, _, port = address.removeprefix("tcp://").partition(":")
        raw = [socket.create_connection((host, int(port)), timeout=WAIT_S) for _ in range(10)]
        for index, one in enumerate(raw):
            with contextlib.suppress(OSError):
                one.sendall([b"GET / HTTP/1.1\r\n\r\n" * 50, chance.randbytes(5000), b"\xff" * 64][index % 3])
        with Stranger(address) as stranger:
            for _ in range(200):
                stranger.socket.send_multipart([chance.randbytes(chance.randrange(200)) for _ in range(3)])
            stranger.socket.send_multipart([b""] * 50)
            link = honest.connect(address)
            honest.send(link, [b"hello", bytes(2_000_000)], token=1)
            wait_for(honest, Taken)
            server.wait_for(Heard)
        for one in raw:
            one.close()
        assert [event.came_to_us for event in server.of(Opened)] == [True]
        assert len(server.of(Heard)) == 1


def test_a_hostile_offer_of_memory_is_declined(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious" * 1000)
    with Reader(ZmqLinks(), lambda links, heard: links.send(heard.link, [b"h", bytes(200_000)])) as server:
        address = server.links.listen(f"ipc://{tmp_path}/socket")
        with precious.open("r+b") as file, Stranger(address) as stranger:
            token = stranger.opened()
            offer = encode_packet(Offer(os.getpid(), file.fileno(), 8000, b"precious" * 4))
            stranger.socket.send_multipart([encode_packet(Data(token, 1, 0, 2**30, 1, (len(offer),), (), True)), offer])
            stranger.socket.send_multipart([encode_packet(Data(token, 2, 0, 2**30, 0, (1,))), b"x"])
            server.wait_for(Heard)
            time.sleep(0.2)
    assert precious.read_bytes() == b"precious" * 1000


def test_large_frames_between_processes_of_one_machine_need_no_socket(tmp_path: Path) -> None:
    with ZmqLinks() as client, echoing(f"ipc://{tmp_path}/socket") as (_, address):
        link = client.connect(address)
        client.send(link, [b"first", bytes(100_000)])
        wait_for(client, Heard)
        kept = []
        for value in range(60):
            array = np.full(10_000_000, value, np.uint8)
            client.send(link, [b"h", array.data, b"t"])
            array[:] = 255
            frames = wait_for(client, Heard).frames
            kept.append(frames[1])
            assert bytes(frames[2]) == b"t"
        # 256 MiB hold 26 of them: those that did not fit came as pieces, and were sent after they had changed
        values = [set(np.unique(np.frombuffer(frame, np.uint8))) for frame in kept]
        assert values[:20] == [{value} for value in range(20)]
        assert len(values) == 60


def test_descriptors_and_threads_come_back(tmp_path: Path) -> None:
    def state() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), psutil.Process().num_threads()

    def use() -> None:
        with Reader(ZmqLinks()) as server, ZmqLinks() as client:
            for address in ("tcp://127.0.0.1:0", f"ipc://{tmp_path}/socket"):
                link = client.connect(server.links.listen(address))
                client.send(link, [b"h", np.zeros(2_000_000, np.uint8).data], token=1)
                wait_for(client, Taken)
                client.close_link(link)

    use()
    before = state()
    for _ in range(5):
        use()
    assert state() == before


def test_small_messages_go_together_and_arrive_apart_in_their_order() -> None:
    with ZmqLinks() as one, ZmqLinks() as other:
        link = joined(one, other)
        sent = [[bytes([index]) * size, b"", b"end"] for index, size in enumerate((0, 1, 500, 3000, 7000, 40_000, 9))]
        for index, frames in enumerate(sent):
            one.send(link, frames, token=index)
        assert one.backlog_nbytes(link) == sum(len(frame) for frames in sent for frame in frames)
        heard, taken = collect(one, other, len(sent))
    assert heard == sent
    assert taken == list(range(len(sent)))


def test_what_is_small_overtakes_nothing_of_its_lane() -> None:
    with ZmqLinks() as one, ZmqLinks() as other:
        link = joined(one, other)
        sent = [[bytes(5_000_000)], [b"a"], [b"b"], [bytes(2_000_000)], [b"c"]]
        for index, frames in enumerate(sent):
            one.send(link, frames, token=index)
        heard, _ = collect(one, other, len(sent))
    assert heard == sent


def test_many_small_messages_take_few_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    with ZmqLinks() as one, ZmqLinks() as other:
        link = joined(one, other)
        packets: list[int] = []
        put = one._ports.put

        def note(port: Any, parts: list[Any]) -> bool:
            packets.append(len(parts))
            return put(port, parts)

        monkeypatch.setattr(one._ports, "put", note)
        for index in range(50):
            one.send(link, [b"x" * 100], token=index)
        heard, _ = collect(one, other, 50)
    assert len(heard) == 50
    assert len(packets) <= 3


def joined(one: ZmqLinks, other: ZmqLinks) -> int:
    """Let one end in this thread connect to another, and return its link."""
    link = one.connect(other.listen("tcp://127.0.0.1:0"))
    deadline_s = time.monotonic() + WAIT_S
    while not one.is_open(link):
        assert time.monotonic() < deadline_s
        one.receive(0.001)
        other.receive(0.001)
    return link


def collect(one: ZmqLinks, other: ZmqLinks, count: int) -> tuple[list[list[bytes]], list[Any]]:
    """Return so many messages that come to `other`, and the tokens of those that `one` knows to be taken."""
    heard: list[list[bytes]] = []
    taken: list[Any] = []
    deadline_s = time.monotonic() + WAIT_S
    while len(heard) < count or len(taken) < count:
        assert time.monotonic() < deadline_s
        event = one.receive(0.001)
        if isinstance(event, Taken):
            taken.append(event.token)
        event = other.receive(0.001)
        if isinstance(event, Heard):
            heard.append([bytes(frame) for frame in event.frames])
    return heard, taken
