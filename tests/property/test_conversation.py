"""Whatever a network does to packets, each message arrives once, whole and in order, and nothing is left."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.core.conversation import PACKET_NBYTES, Conversation, Limits, Packet, Place
from hyps.errors import HypsError, PeerError
from hyps.formats.packets import MAX_PIECE_NBYTES, Data
from hyps.formats.packets import Heard as HeardPacket

WINDOW = 2 * (MAX_PIECE_NBYTES + PACKET_NBYTES)
LIMITS = Limits(window_nbytes=WINDOW, silence_s=1e9, broken_s=1e9)


@dataclass
class Side:
    """One end: its conversation, what it sent, what it has heard, and what is on the wire to it."""

    talk: Conversation
    sent: dict[int, tuple[int, list[bytes]]] = field(default_factory=dict)
    heard: dict[int, list[list[bytes]]] = field(default_factory=lambda: {0: [], 1: []})
    taken: list[int] = field(default_factory=list)
    parts: dict[int, list[bytearray]] = field(default_factory=dict)
    wire: list[tuple[Data | HeardPacket, list[bytes]]] = field(default_factory=list)
    most_assembled_nbytes: int = 0

    def send(self, now_s: float, lane: int, frames: list[bytes]) -> None:
        number = self.talk.send(now_s, [len(frame) for frame in frames], lane=lane)
        self.sent[number] = (lane, frames)

    def emit(self, now_s: float) -> tuple[Data | HeardPacket, list[bytes]] | None:
        talk = self.talk
        packet = talk.next_packet()
        if packet is not None:
            made = envelope(talk, packet), cut(packet, self.sent[packet.message][1])
            talk.sent(now_s)
            return made
        if talk.wants_ack and talk.place is Place.OPEN:
            told = HeardPacket(talk.token, talk.heard, talk.granted, talk.is_gap)
            talk.told()
            return told, []
        return None

    def take(self, now_s: float, packet: Data | HeardPacket, chunks: list[bytes]) -> None:
        talk = self.talk
        is_gap = isinstance(packet, HeardPacket) and packet.is_gap
        self.taken += talk.on_heard(now_s, packet.heard, packet.granted, is_gap=is_gap)
        if not isinstance(packet, Data):
            return
        step = talk.on_data(now_s, packet, [len(chunk) for chunk in chunks])
        if step is None:
            return
        if step.begins is not None:
            self.parts[step.lane] = [bytearray(size) for size in step.begins]
        for place, chunk in zip(step.chunks, chunks, strict=True):
            self.parts[step.lane][place.frame][place.start : place.stop] = chunk
        self.most_assembled_nbytes = max(
            self.most_assembled_nbytes, sum(len(part) for parts in self.parts.values() for part in parts)
        )
        if step.is_whole:
            self.heard[step.lane].append([bytes(frame) for frame in self.parts.pop(step.lane)])


def envelope(talk: Conversation, packet: Packet) -> Data:
    return Data(talk.token, packet.sequence, talk.heard, talk.granted, packet.lane, packet.sizes)


def cut(packet: Packet, frames: list[bytes]) -> list[bytes]:
    return [frames[chunk.frame][chunk.start : chunk.stop] for chunk in packet.chunks]


def reconnect(one: Side, other: Side, now_s: float) -> None:
    """Give the sides a new connection: what was on the wire is gone, and each says what it has."""
    one.wire.clear()
    other.wire.clear()
    for side, peer in ((one, other), (other, one)):
        side.talk.break_off(now_s)
        side.taken += side.talk.on_opened(now_s, peer.talk.heard, peer.talk.granted)


def opened() -> tuple[Side, Side]:
    one, other = Side(Conversation(LIMITS)), Side(Conversation(LIMITS))
    reconnect(one, other, 0.0)
    return one, other


MESSAGES = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([0, 1]),
        st.lists(st.sampled_from([0, 1, 7, 1000, 16_384, 70_000, 200_001]), min_size=1, max_size=5),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(messages=MESSAGES, seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.05, 0.3]), cuts=st.integers(0, 5))
def test_each_message_arrives_once_and_whole(
    messages: list[tuple[bool, int, list[int]]], seed: int, loss: float, cuts: int
) -> None:
    chance = random.Random(seed)
    one, other = opened()
    now_s = 0.0
    waiting = [(one if is_one else other, lane, [chance.randbytes(size) for size in sizes])
               for is_one, lane, sizes in messages]  # fmt: skip
    for turn in range(20_000):
        now_s += 0.01
        if waiting and chance.random() < 0.3:
            side, lane, frames = waiting.pop(0)
            side.send(now_s, lane, frames)
        for side, peer in ((one, other), (other, one)):
            step(side, peer, now_s, chance, loss if turn < 300 else 0.0)
            side.talk.check_invariants()
        if cuts and chance.random() < 0.05:
            cuts -= 1
            reconnect(one, other, now_s)
        if not waiting and one.talk.is_idle and other.talk.is_idle and not one.wire and not other.wire:
            break
    for side, peer in ((one, other), (other, one)):
        for lane in (0, 1):
            assert peer.heard[lane] == [frames for at, frames in side.sent.values() if at == lane]
        assert sorted(side.taken) == sorted(side.sent)
        assert not side.parts
        assert not side.talk.is_waiting
        largest = max((sum(map(len, frames)) for _, frames in peer.sent.values()), default=0)
        assert side.most_assembled_nbytes <= 2 * largest, "one message in each lane"


def step(side: Side, peer: Side, now_s: float, chance: random.Random, loss: float) -> None:
    """Put a few packets on the wire, and let a few arrive, with what a bad network does to them."""
    for _ in range(chance.randrange(4)):
        made = side.emit(now_s)
        if made is None or chance.random() < loss:
            continue
        at = chance.randrange(len(peer.wire) + 1) if chance.random() < loss else len(peer.wire)
        peer.wire.insert(at, made)
        if chance.random() < loss:
            peer.wire.append(made)
    for _ in range(min(len(side.wire), chance.randrange(4))):
        side.take(now_s, *side.wire.pop(0))
    assert side.talk.on_tick(now_s) == ""


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), nbytes=st.integers(1, 4 * 2**20))
def test_what_is_under_way_stays_within_window_and_credits(seed: int, nbytes: int) -> None:
    chance = random.Random(seed)
    one, other = opened()
    one.send(0.0, 0, [bytes(nbytes)])
    now_s, largest = 0.0, MAX_PIECE_NBYTES + PACKET_NBYTES
    while not one.talk.is_idle:
        now_s += 0.001
        made = one.emit(now_s)
        if made is not None:
            other.wire.append(made)
            under_way = sum(PACKET_NBYTES + sum(map(len, chunks)) for _, chunks in other.wire)
            assert under_way <= min(WINDOW, max(one.talk.pace.window_nbytes, largest))
        elif other.wire:
            for _ in range(chance.randrange(len(other.wire) + 1)):
                other.take(now_s, *other.wire.pop(0))
            answer = other.emit(now_s)
            if answer is not None:
                one.take(now_s, *answer)
    assert [list(map(len, frames)) for frames in other.heard[0]] == [[nbytes]]


@settings(max_examples=300, deadline=None)
@given(
    packets=st.lists(
        st.tuples(
            st.builds(
                Data,
                st.just(b""),
                st.sampled_from([1, 1, 2, 2, 3, 6]),
                st.sampled_from([0, 0, 0, 1]),
                st.integers(0, 2**62),
                st.integers(0, 1),
                st.lists(st.sampled_from([0, 1, 5, 2**20, 2**40]), max_size=3).map(tuple),
                st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=2).map(tuple),
            ),
            st.lists(st.sampled_from([0, 1, 5, 2**20]), max_size=3),
        ),
        max_size=10,
    )
)
def test_a_hostile_peer_is_refused_or_understood(packets: list[tuple[Data, list[int]]]) -> None:
    talk = Conversation(LIMITS)
    talk.on_opened(0.0, 0, 0)
    sizes: dict[int, tuple[int, ...]] = {}
    for packet, lengths in packets:
        try:
            talk.on_heard(0.0, packet.heard, packet.granted)
            step = talk.on_data(0.0, packet, lengths)
        except PeerError:
            return
        talk.check_invariants()
        if step is not None:
            sizes[step.lane] = step.begins or sizes[step.lane]
            assert sum(sizes[step.lane]) <= LIMITS.message_nbytes
            assert all(0 <= chunk.start < chunk.stop <= sizes[step.lane][chunk.frame] for chunk in step.chunks)


def test_a_message_larger_than_the_limits_is_refused_before_its_bytes_come() -> None:
    talk = Conversation(Limits(frame_nbytes=10, message_nbytes=15))
    talk.on_opened(0.0, 0, 0)
    for sizes in ((11,), (8, 8)):
        with pytest.raises(PeerError) as caught:
            talk.on_data(0.0, Data(b"", 1, 0, 0, 0, sizes), [5])
        assert caught.value.code == "E_TOO_LARGE"


def test_silence_and_broken_connections_end_a_link_in_time() -> None:
    talk = Conversation(Limits(silence_s=10.0, broken_s=3.0))
    talk.on_opened(0.0, 0, WINDOW)
    assert talk.on_tick(1000.0) == "", "nothing is wanted of the peer"
    talk.send(1000.0, [5])
    assert talk.next_packet() is not None
    talk.sent(1000.0)
    assert talk.on_tick(1009.9) == ""
    assert "silent" in talk.on_tick(1010.1)
    talk.break_off(1010.0)
    assert talk.on_tick(1012.9) == ""
    assert "broke" in talk.on_tick(1013.1)
    talk.on_opened(1013.0, 1, WINDOW)
    assert talk.is_idle
    talk.check_invariants()


def test_an_urgent_message_overtakes_a_large_one() -> None:
    one, other = opened()
    one.send(0.0, 0, [bytes(4_000_000)])
    one.wire.clear()
    made = one.emit(0.0)
    assert made is not None
    other.take(0.0, *made)
    one.send(0.0, 1, [b"urgent"])
    for _ in range(2):
        made = one.emit(0.0)
        assert made is not None
        other.take(0.0, *made)
    assert other.heard[1] == [[b"urgent"]]
    assert other.heard[0] == []


def test_what_cannot_be_is_a_bug() -> None:
    talk = Conversation(LIMITS)
    with pytest.raises(HypsError):
        talk.sent(0.0)
    talk.end()
    with pytest.raises(HypsError):
        talk.on_opened(0.0, 0, 0)


def test_what_was_under_way_goes_again_at_once_on_a_new_connection() -> None:
    one, other = opened()
    one.send(0.0, 0, [b"lost"])
    assert one.emit(0.0) is not None
    assert one.emit(0.0) is None
    reconnect(one, other, 0.0)
    made = one.emit(0.0)
    assert made is not None
    other.take(0.0, *made)
    assert other.heard[0] == [[b"lost"]]


def test_a_gap_is_told_once_and_mended_without_waiting() -> None:
    one, other = opened()
    for text in (b"lost", b"a", b"b"):
        one.send(0.0, 0, [text])
    made = [one.emit(0.0) for _ in range(3)]
    told = []
    for late in made[1:]:
        assert late is not None
        other.take(0.0, *late)
        told.append(other.emit(0.0))
    gaps = [answer[0].is_gap for answer in told if answer is not None and isinstance(answer[0], HeardPacket)]
    assert gaps == [True, False]
    assert told[0] is not None
    one.take(0.0, *told[0])
    while (again := one.emit(0.0)) is not None:
        other.take(0.0, *again)
    assert other.heard[0] == [[b"lost"], [b"a"], [b"b"]]


def test_a_grant_is_not_taken_back_by_old_news() -> None:
    talk = Conversation(LIMITS)
    talk.on_opened(0.0, 0, 1000)
    talk.on_heard(0.0, 0, 10)
    talk.send(0.0, [900])
    assert talk.next_packet() is not None


def test_without_a_grant_nothing_goes() -> None:
    talk = Conversation(LIMITS)
    talk.on_opened(0.0, 0, 900)
    talk.send(0.0, [900])
    assert talk.next_packet() is None
    talk.on_heard(0.0, 0, 900 + PACKET_NBYTES)
    assert talk.next_packet() is not None
