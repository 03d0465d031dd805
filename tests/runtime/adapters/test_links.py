"""What every kind of link promises: the same tests on the twin in memory and on sockets."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from hyps.adapters.links import MAX_FRAMES, Buffer, Heard, LinkEvent, Links, Lost, Opened, Taken
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.adapters.zmq_links import ZmqLinks
from hyps.errors import PeerError, UsageError

WAIT_S = 20.0
E = TypeVar("E", Opened, Heard, Taken, Lost)


@dataclass
class World:
    """Where links of one kind live: each `make` is a process of its own, as far as links can tell."""

    make: Callable[[], Links]
    fresh_address: Callable[[], str]
    made: list[Links] = field(default_factory=list)

    def links(self) -> Links:
        self.made.append(self.make())
        return self.made[-1]

    def pair(self) -> tuple[Links, int, Links, int]:
        """Return two processes' links with one link between them: the one that was connected to first."""
        server, client = self.links(), self.links()
        there = client.connect(server.listen(self.fresh_address()))
        opened = heard_of(client, Opened, server)
        assert opened == Opened(there, came_to_us=False)
        came = heard_of(server, Opened, client)
        assert came.came_to_us
        return server, came.link, client, there


@pytest.fixture(params=["memory", pytest.param("tcp", marks=pytest.mark.network), "ipc"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    numbers = itertools.count()
    if request.param == "memory":
        network = MemoryNetwork()
        made = World(lambda: MemoryLinks(network), lambda: f"memory://{next(numbers)}")
    elif request.param == "tcp":
        made = World(ZmqLinks, lambda: "tcp://127.0.0.1:0")
    else:
        made = World(ZmqLinks, lambda: f"ipc://{tmp_path}/{next(numbers)}")
    yield made
    for links in made.made:
        links.close()


PENDING: dict[int, list[LinkEvent]] = {}


def turn_until(is_done: Callable[[], bool], *all_links: Links, tries: int = 2000) -> None:
    """Let links do their work in turn until `is_done`; what they tell is kept for `heard_of`."""
    for _ in range(tries):
        if is_done():
            return
        for links in all_links:
            event = links.receive(0.01)
            if event is not None:
                PENDING.setdefault(id(links), []).append(event)


def heard_of(links: Links, kind: type[E], *others: Links) -> E:
    """Return the next event of a kind, while `others` go on."""
    kept = PENDING.setdefault(id(links), [])

    def found() -> E | None:
        return next((event for event in kept if isinstance(event, kind)), None)

    turn_until(lambda: found() is not None, links, *others)
    event = found()
    assert event is not None, f"no {kind.__name__} came, only {[type(event).__name__ for event in kept]}"
    kept.remove(event)
    return event


@pytest.fixture(autouse=True)
def _nothing_pending() -> None:
    PENDING.clear()


def texts(frames: Sequence[Buffer]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def test_frames_arrive_as_they_were_sent_in_both_directions(world: World) -> None:
    server, came, client, there = world.pair()
    client.send(there, [b"one", b"", memoryview(b"12"), bytearray(b"x")])
    heard = heard_of(server, Heard, client)
    assert (heard.link, texts(heard.frames)) == (came, [b"one", b"", b"12", b"x"])
    server.send(came, [b"answer"])
    assert texts(heard_of(client, Heard, server).frames) == [b"answer"]


def test_arrays_of_every_element_type_are_frames(world: World) -> None:
    server, _, client, there = world.pair()
    array = np.arange(200_000, dtype=np.float64).reshape(400, 500)
    client.send(there, [b"header", array.data])
    frames = heard_of(server, Heard, client).frames
    np.testing.assert_array_equal(np.frombuffer(frames[1]).reshape(400, 500), array)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 100_000, 1_048_576, 1_048_577, 3_211_264, 30_000_001])
def test_sizes_around_every_border_arrive_bit_for_bit(world: World, nbytes: int) -> None:
    server, _, client, there = world.pair()
    array = np.random.default_rng(nbytes).integers(0, 255, nbytes, np.uint8)
    client.send(there, [b"header", array.data, b"end"], token="t")
    frames = heard_of(server, Heard, client).frames
    assert texts(frames) == [b"header", array.tobytes(), b"end"]
    assert heard_of(client, Taken, server) == Taken(there, "t")
    assert client.backlog_nbytes(there) == 0


def test_a_hundred_megabytes_arrive(world: World) -> None:
    server, _, client, there = world.pair()
    array = np.random.default_rng(0).integers(0, 255, 100_000_000, np.uint8)
    client.send(there, [b"header", array.data])
    frames = heard_of(server, Heard, client).frames
    np.testing.assert_array_equal(np.frombuffer(frames[1], np.uint8), array)


def test_messages_keep_their_order(world: World) -> None:
    server, _, client, there = world.pair()
    sizes = [0, 10, 2_000_000, 3, 70_000, 5, 1_500_000, 1]
    for number, nbytes in enumerate(sizes):
        client.send(there, [number.to_bytes(1, "big"), bytes(nbytes)], token=number)
    for number, nbytes in enumerate(sizes):
        frames = heard_of(server, Heard, client).frames
        assert (frames[0][0], len(frames[1])) == (number, nbytes)
    assert [heard_of(client, Taken, server).token for _ in sizes] == list(range(len(sizes)))


def test_urgent_messages_arrive_and_keep_their_order(world: World) -> None:
    server, _, client, there = world.pair()
    client.send(there, [b"slow", bytes(20_000_000)])
    for number in range(3):
        client.send(there, [b"urgent", number.to_bytes(1, "big")], is_urgent=True)
    frames = [heard_of(server, Heard, client).frames for _ in range(4)]
    assert [bytes(urgent[1]) for urgent in frames if bytes(urgent[0]) == b"urgent"] == [b"\0", b"\1", b"\2"]
    assert sorted(len(message[1]) for message in frames) == [1, 1, 1, 20_000_000]


def test_as_many_frames_as_a_message_may_have(world: World) -> None:
    server, _, client, there = world.pair()
    client.send(there, [bytes([index % 256]) * (index % 3) for index in range(MAX_FRAMES)])
    frames = heard_of(server, Heard, client).frames
    assert texts(frames) == [bytes([index % 256]) * (index % 3) for index in range(MAX_FRAMES)]
    with pytest.raises(UsageError):
        client.send(there, [])
    with pytest.raises(UsageError):
        client.send(there, [b""] * (MAX_FRAMES + 1))


def test_small_buffers_may_change_at_once(world: World) -> None:
    server, _, client, there = world.pair()
    buffer = bytearray(b"before")
    client.send(there, [buffer])
    buffer[:] = b"after!"
    assert texts(heard_of(server, Heard, client).frames) == [b"before"]


def test_what_came_stays_as_it_is(world: World) -> None:
    server, _, client, there = world.pair()
    kept = []
    for value in range(20):
        client.send(there, [b"h", np.full(300_000, value, np.uint8).data])
        kept.append(heard_of(server, Heard, client).frames[1])
    for value, frame in enumerate(kept):
        assert (np.frombuffer(frame, np.uint8) == value).all()


def test_many_peers_are_told_apart(world: World) -> None:
    server = world.links()
    address = server.listen(world.fresh_address())
    clients = [world.links() for _ in range(4)]
    numbers = [client.connect(address) for client in clients]
    for index, (client, number) in enumerate(zip(clients, numbers, strict=True)):
        client.send(number, [index.to_bytes(1, "big")])
    for _ in clients:
        heard = heard_of(server, Heard, *clients)
        server.send(heard.link, [heard.frames[0], b"back"])
    for index, client in enumerate(clients):
        assert texts(heard_of(client, Heard, server).frames) == [index.to_bytes(1, "big"), b"back"]


def test_one_process_listens_and_connects_with_one_links(world: World) -> None:
    first, second = world.links(), world.links()
    to_second = first.connect(second.listen(world.fresh_address()))
    to_first = second.connect(first.listen(world.fresh_address()))
    first.send(to_second, [b"a"])
    second.send(to_first, [b"b"])
    assert texts(heard_of(second, Heard, first).frames) == [b"a"]
    assert texts(heard_of(first, Heard, second).frames) == [b"b"]


def test_waiting_ends_in_time_and_a_wake_ends_it_early(world: World) -> None:
    server, _, _, _ = world.pair()
    start = time.monotonic()
    while server.receive(0.05) is not None:
        pass
    assert time.monotonic() - start < 5
    threading.Timer(0.05, server.wake).start()
    start = time.monotonic()
    assert server.receive(WAIT_S) is None
    assert time.monotonic() - start < WAIT_S / 2
    for _ in range(10_000):
        server.wake()


def test_a_wake_is_not_lost_when_it_comes_before_the_wait(world: World) -> None:
    server, _, _, _ = world.pair()
    server.wake()
    start = time.monotonic()
    assert server.receive(WAIT_S) is None
    assert time.monotonic() - start < WAIT_S / 2


def test_a_closed_link_is_lost_at_the_other_side_alone(world: World) -> None:
    server, came, client, there = world.pair()
    client.close_link(there)
    assert heard_of(server, Lost, client).link == came
    client.send(there, [b"x"])
    client.close_link(there)
    server.send(came, [b"x"])
    assert server.backlog_nbytes(came) == client.backlog_nbytes(there) == 0
    turn_until(lambda: False, server, client, tries=5)
    assert not [event for event in PENDING.get(id(client), []) if isinstance(event, Lost)]


def test_a_side_that_leaves_is_missed(world: World) -> None:
    server, came, client, _ = world.pair()
    client.close()
    client.close()
    assert heard_of(server, Lost).link == came


def test_what_was_sent_leaves_before_the_close_that_lingers(world: World) -> None:
    server, came, client, there = world.pair()
    client.send(there, [b"last", bytes(5_000_000)])
    events: list[LinkEvent | None] = []

    def read() -> None:
        while not events or not isinstance(events[-1], Lost):
            events.append(server.receive(1.0))

    reader = threading.Thread(target=read)
    reader.start()
    begin = time.monotonic()
    client.close(linger_s=WAIT_S)
    assert time.monotonic() - begin < WAIT_S / 4
    reader.join(WAIT_S)
    (heard,) = (event for event in events if isinstance(event, Heard))
    (lost,) = (event for event in events if isinstance(event, Lost))
    assert (bytes(heard.frames[0]), lost.link) == (b"last", came)


def test_a_taken_address_is_refused(world: World) -> None:
    server = world.links()
    address = server.listen(world.fresh_address())
    with pytest.raises(PeerError) as caught:
        world.links().listen(address)
    assert caught.value.code == "E_ADDRESS_IN_USE"


def test_no_address_is_refused(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        world.links().connect("")
    assert caught.value.code == "E_ADDRESS"
