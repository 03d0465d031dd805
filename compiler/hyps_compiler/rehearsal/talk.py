"""Two conversations over a wire that loses, repeats and shuffles packets: each message once, in order, whole."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from hyps.core.conversation import Conversation, Limits, Packet, Place
from hyps.formats.packets import Data, Heard
from hyps_compiler.rehearsal.agenda import Agenda
from hyps_compiler.rehearsal.story import Story, require

_TICK_S = 0.1
_ACK_S = 0.001
_HEAL_S = 300.0
_PROGRESS_S = 1.5
_LIMITS = Limits(window_nbytes=256 * 1024, silence_s=1e9, broken_s=1e9)
_TOKEN = b"link"


@dataclass(frozen=True, slots=True)
class _Hello:
    """`Open` or `Opened`."""

    heard: int
    granted: int
    is_answer: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """A packet, and what its bytes are: of which message, and where they belong."""

    data: Data
    lengths: tuple[int, ...]
    truth: Packet


_Datagram = _Hello | _Piece | Heard


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOptions:
    """How bad the wire is while it is bad."""

    delay_s: float
    loses: float
    repeats: float
    shuffles: float
    breaks_per_s: float
    back_s: float
    bad_s: float


@dataclass(slots=True, eq=False)
class _Sent:
    lane: int
    sizes: tuple[int, ...]
    is_taken: bool = False


@dataclass(slots=True, eq=False)
class _Side:
    """One end, what it has sent, and what it has heard of the other."""

    name: str
    talk: Conversation
    sent: dict[int, _Sent] = field(default_factory=dict)
    heard: list[int] = field(default_factory=list)
    """Messages of the other side, in the order in which they became whole."""
    filled: dict[int, dict[int, int]] = field(default_factory=dict)
    """Of messages that are coming: bytes of each frame so far."""
    connection: int = 0


class TalkRehearsal:
    """One rehearsal of two conversations."""

    def __init__(self, seed: int, story: Story) -> None:
        self._rng = rng = random.Random(f"talk {seed}")
        self.story = story
        self.agenda = Agenda()
        self.wire = WireOptions(
            delay_s=rng.choice((0.0005, 0.01, 0.3)),
            loses=rng.choice((0.0, 0.0, 0.02, 0.3)),
            repeats=rng.choice((0.0, 0.0, 0.1)),
            shuffles=rng.choice((0.0, 0.0, 0.3)),
            breaks_per_s=rng.choice((0.0, 0.2, 2.0)),
            back_s=rng.choice((0.01, 0.5, 5.0)),
            bad_s=rng.choice((2.0, 10.0)),
        )
        self._sides = (_Side("east", Conversation(_LIMITS, _TOKEN)), _Side("west", Conversation(_LIMITS, _TOKEN)))
        self._connection = 0
        """Which one it is; what another one carried is not heard."""
        self._is_up = False
        self._messages = rng.choice((1, 5, 30))

    def run(self) -> None:
        """Rehearse.

        Raises:
            BrokenPromiseError: something that must always hold does not.
        """
        self._connect()
        for side in self._sides:
            self._tick(side)
            at_s = 0.0
            for _ in range(self._messages):
                at_s += self._rng.expovariate(self._messages / self.wire.bad_s)
                self.agenda.at(at_s, partial(self._send, side))
        at_s = 0.0
        while self.wire.breaks_per_s and at_s < self.wire.bad_s:
            at_s += self._rng.expovariate(self.wire.breaks_per_s)
            self.agenda.at(at_s, self._break)
        until_s = self.wire.bad_s
        while self.agenda.run(until_s, 200_000) and until_s < self.wire.bad_s + _HEAL_S and not self._is_quiet():
            until_s += 1.0
        for side, other in (self._sides, self._sides[::-1]):
            self._check_end(side, other)

    def _is_quiet(self) -> bool:
        return all(side.talk.is_idle and not side.talk.is_waiting and not side.talk.wants_ack for side in self._sides)

    # The wire.

    def _break(self) -> None:
        if self._is_up and self.agenda.now_s < self.wire.bad_s:
            self._is_up = False
            self._tell("wire", "breaks")
            for side in self._sides:
                self.agenda.after(self._delay_s(), partial(self._note_break, side))
            self.agenda.after(self.wire.back_s * self._rng.random(), self._connect)

    def _note_break(self, side: _Side) -> None:
        if side.connection != self._connection or not self._is_up:
            side.talk.break_off(self.agenda.now_s)

    def _connect(self) -> None:
        self._connection += 1
        self._is_up = True
        east, _ = self._sides
        east.talk.break_off(self.agenda.now_s)
        self._put(east, _Hello(east.talk.heard, east.talk.granted, is_answer=False), is_safe=True)
        if not self.wire.loses and not self.wire.shuffles:
            heard = tuple(side.talk.heard for side in self._sides)
            waiting = tuple(not self._other(side).talk.is_idle for side in self._sides)
            check = partial(self._check_progress, self._connection, heard, waiting)
            self.agenda.after(_PROGRESS_S + 6 * self.wire.delay_s, check)

    def _check_progress(self, connection: int, before: Sequence[int], waiting: Sequence[bool]) -> None:
        """Require that what waited for a new connection has come on over it, without any wait but the wire's own."""
        if connection == self._connection and self._is_up:
            for side, heard, was_awaited in zip(self._sides, before, waiting, strict=True):
                is_over = self._other(side).talk.is_idle
                require(side.talk.heard > heard or not was_awaited or is_over, f"{side.name} hears nothing anew")

    def _put(self, side: _Side, datagram: _Datagram, *, is_safe: bool = False) -> None:
        """Let the wire carry a datagram, if it does; the first ones of a connection are not lost by themselves."""
        if not self._is_up:
            return
        rng, wire = self._rng, self.wire
        is_bad = self.agenda.now_s < wire.bad_s and not is_safe
        if is_bad and rng.random() < wire.loses:
            return
        other = self._sides[1] if side is self._sides[0] else self._sides[0]
        connection = self._connection
        for _ in range(1 + (is_bad and rng.random() < wire.repeats)):
            late_s = wire.delay_s * rng.random() * 5 if is_bad and rng.random() < wire.shuffles else 0.0
            delay_s = wire.delay_s + late_s
            self.agenda.after(delay_s, lambda: self._carry(connection, other, datagram))

    def _carry(self, connection: int, side: _Side, datagram: _Datagram) -> None:
        if connection != self._connection or not self._is_up:
            return
        self._tell(side.name, "hears", datagram)
        if isinstance(datagram, _Hello):
            self._on_hello(side, datagram)
        elif side.talk.place is Place.OPEN:
            self._on_datagram(side, datagram)
        side.talk.check_invariants()
        self._pump(side)

    def _on_hello(self, side: _Side, hello: _Hello) -> None:
        now_s, talk = self.agenda.now_s, side.talk
        talk.break_off(now_s)
        self._on_taken(side, talk.on_opened(now_s, hello.heard, hello.granted))
        side.connection = self._connection
        if hello.is_answer:
            talk.wants_ack = True
        else:
            self._put(side, _Hello(talk.heard, talk.granted, is_answer=True), is_safe=True)

    def _delay_s(self) -> float:
        return self.wire.delay_s * (1 + self._rng.random())

    # One side.

    def _send(self, side: _Side) -> None:
        rng = self._rng
        sizes = tuple(rng.choice((0, 1, 10, 1000, 100_000, 700_000)) for _ in range(rng.choice((1, 1, 2, 3))))
        lane = rng.choice((0, 0, 1))
        number = side.talk.send(self.agenda.now_s, sizes, lane=lane)
        side.sent[number] = _Sent(lane, sizes)
        self._tell(side.name, "sends", (number, lane, sizes))
        self._pump(side)

    def _pump(self, side: _Side) -> None:
        talk = side.talk
        while (packet := talk.next_packet()) is not None:
            data = Data(
                talk.token, packet.sequence, talk.heard, talk.granted, packet.lane, packet.sizes, packet.places,
                packet.is_internal,
            )  # fmt: skip
            lengths = tuple(chunk.stop - chunk.start for chunk in packet.chunks)
            self._put(side, _Piece(data, lengths, packet))
            talk.sent(self.agenda.now_s)
            talk.check_invariants()
        if talk.wants_ack and talk.place is Place.OPEN:
            if talk.must_ack:
                self._acknowledge(side)
            else:
                self.agenda.after(_ACK_S, lambda: self._acknowledge(side))

    def _acknowledge(self, side: _Side) -> None:
        talk = side.talk
        if talk.wants_ack and talk.place is Place.OPEN:
            self._put(side, Heard(talk.token, talk.heard, talk.granted, talk.is_gap))
            talk.told()

    def _tick(self, side: _Side) -> None:
        reason = side.talk.on_tick(self.agenda.now_s)
        require(not reason, f"a link is lost: {reason}")
        side.talk.check_invariants()
        self._pump(side)
        self.agenda.after(_TICK_S, lambda: self._tick(side))

    def _on_datagram(self, side: _Side, datagram: _Piece | Heard) -> None:
        now_s, talk = self.agenda.now_s, side.talk
        if isinstance(datagram, Heard):
            self._on_taken(side, talk.on_heard(now_s, datagram.heard, datagram.granted, is_gap=datagram.is_gap))
            return
        self._on_taken(side, talk.on_heard(now_s, datagram.data.heard, datagram.data.granted))
        step = talk.on_data(now_s, datagram.data, datagram.lengths)
        if step is None:
            return
        truth = datagram.truth
        require(step.chunks == truth.chunks and step.lane == truth.lane, f"{truth} is put together as {step}")
        require(step.is_whole == truth.is_last, f"{truth} ends a message and is taken as {step}")
        filled = side.filled.setdefault(truth.message, {})
        for chunk in step.chunks:
            require(filled.get(chunk.frame, 0) == chunk.start, f"a hole in frame {chunk.frame} of {truth.message}")
            filled[chunk.frame] = chunk.stop
        if step.is_whole:
            side.heard.append(truth.message)
            del side.filled[truth.message]
            sizes = self._other(side).sent[truth.message].sizes
            whole = all(filled.get(frame, 0) == size for frame, size in enumerate(sizes))
            require(whole, f"message {truth.message} of {sizes} came as {filled}")

    def _on_taken(self, side: _Side, numbers: list[int]) -> None:
        for number in numbers:
            sent = side.sent[number]
            require(not sent.is_taken, f"message {number} is taken twice")
            require(number in self._other(side).heard, f"message {number} is taken and was not heard")
            sent.is_taken = True

    def _other(self, side: _Side) -> _Side:
        return self._sides[1] if side is self._sides[0] else self._sides[0]

    def _check_end(self, side: _Side, other: _Side) -> None:
        """Require that all has come, in the order of its lane, and that nothing is left."""
        for lane in (0, 1):
            sent = [number for number, message in side.sent.items() if message.lane == lane]
            heard = [number for number in other.heard if side.sent[number].lane == lane]
            require(sent == heard, f"{side.name} sent {sent} in lane {lane} and {heard} was heard")
        require(all(message.is_taken for message in side.sent.values()), f"{side.name} does not know what was taken")
        require(side.talk.is_idle and not side.talk.is_waiting, f"{side.name} still has something under way")
        require(not other.filled, "half a message is left")

    def _tell(self, who: str, kind: str, thing: object = "") -> None:
        self.story.tell(self.agenda.now_s, who, kind, thing)


def rehearse_talk(seed: int, story: Story) -> float:
    """Rehearse two conversations and return the simulated seconds.

    Raises:
        BrokenPromiseError: something that must always hold does not.
    """
    rehearsal = TalkRehearsal(seed, story)
    rehearsal.run()
    return rehearsal.agenda.now_s
