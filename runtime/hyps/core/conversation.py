"""One end of a link: what goes on the wire next, and what that which comes means. No clock, no sockets, no bytes.

Whatever connections lose, repeat or bring in another order, each message arrives once, whole, in the order of its lane.
Messages go as packets; packets are numbered from 1, and taken in that order only. `heard` says up to where they came,
`granted` how many bytes may be sent in all since the link began: both only rise, so that old news is harmless.
"""

import enum
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hyps.core.pace import Pace
from hyps.errors import InternalError, PeerError
from hyps.formats.packets import MAX_CHUNKS, Data

PACKET_NBYTES = 64
"""What a packet counts for besides the bytes it carries: none is free."""

LANES = (1, 0)
"""In the order in which they are served."""

_ACK_NBYTES = 2**20
"""Heard and not acknowledged: more is acknowledged at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one end takes from the other."""

    frame_nbytes: int = 2**34
    """Of one frame."""
    message_nbytes: int = 2**35
    """Of all frames of a message."""
    window_nbytes: int = 16 * 2**20
    """That may be under way and not heard yet."""
    silence_s: float = 10.0
    """How long the other side may say nothing when something is wanted of it."""
    broken_s: float = 3.0
    """How long a connection that broke may take to come back."""


class Place(enum.Enum):
    """Where a link stands."""

    CONNECTING = "connecting"
    """Never opened yet."""
    OPEN = "open"
    BROKEN = "broken"
    """Was open; its connection is gone and may come back."""
    GONE = "gone"


_STEPS: dict[Place, frozenset[Place]] = {
    Place.CONNECTING: frozenset({Place.CONNECTING, Place.OPEN, Place.GONE}),
    Place.OPEN: frozenset({Place.OPEN, Place.BROKEN, Place.GONE}),
    Place.BROKEN: frozenset({Place.BROKEN, Place.OPEN, Place.GONE}),
    Place.GONE: frozenset({Place.GONE}),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A frame of a message, or a part of one."""

    frame: int
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Packet:
    """A numbered packet of ours; the bytes of its chunks go with it."""

    sequence: int
    message: int
    lane: int
    sizes: tuple[int, ...]
    """Only with the first packet of a message."""
    places: tuple[tuple[int, int], ...]
    is_internal: bool
    chunks: tuple[Chunk, ...]
    nbytes: int
    """With `PACKET_NBYTES`."""
    end_nbytes: int
    """Of all packets up to this one."""
    is_last: bool
    """Whether the message ends with it."""
    sent_s: float = 0.0
    acked_nbytes: int = 0
    """What had been acknowledged when it was sent."""
    is_again: bool = False
    """Whether it was sent more than once, so that what was heard of it tells no time."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a packet that came brings forward."""

    lane: int
    begins: tuple[int, ...] | None
    """The sizes of a new message's frames."""
    places: tuple[tuple[int, int], ...]
    chunks: tuple[Chunk, ...]
    """Where its bytes belong."""
    is_whole: bool
    """Whether the message has ended."""
    is_internal: bool


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A message that waits to be cut, or is being cut, into packets."""

    number: int
    sizes: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    is_internal: bool
    frames: list[tuple[int, int]]
    """Those that go as bytes: index and size."""
    has_begun: bool = False
    next_frame: int = 0
    offset: int = 0


@dataclass(slots=True, eq=False)
class _Incoming:
    """A message of which not all is here."""

    sizes: tuple[int, ...]
    is_internal: bool
    frames: list[tuple[int, int]]
    next_frame: int = 0
    offset: int = 0


@dataclass(slots=True, eq=False)
class Conversation:
    """One end of a link, from its first connection to its end.

    The shell asks `next_packet` what to send and says `sent` when the wire took it; it tells what comes with
    `on_data`, `on_heard`, `on_opened`, and what happens to the connection with `break_off` and `on_opened`.
    """

    limits: Limits
    token: bytes = b""
    place: Place = Place.CONNECTING
    heard: int = 0
    """Packets of the other side that have come."""
    wants_ack: bool = False
    is_gap: bool = False
    broken_at_s: float = 0.0
    pace: Pace = field(default_factory=Pace)
    _queues: tuple[deque[_Outgoing], deque[_Outgoing]] = field(default_factory=lambda: (deque(), deque()))
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _sequence: int = 0
    _sent_nbytes: int = 0
    _flying: deque[Packet] = field(default_factory=deque)
    """Sent at least once and not acknowledged."""
    _resend: int = 0
    """Index in `_flying` of the next to be sent again; its length: none."""
    _flying_nbytes: int = 0
    """Of those that are not to be sent again."""
    _acked: int = 0
    _acked_nbytes: int = 0
    _may_send_nbytes: int = 0
    _next: Packet | None = None
    _is_told: int = 0
    """Bytes of `_heard_nbytes` that were acknowledged."""
    _heard_nbytes: int = 0
    _gap_told: int = -1
    _incoming: dict[int, _Incoming] = field(default_factory=dict)
    _heard_s: float = 0.0
    """When the other side was heard last, or began to be waited for."""
    _moved_s: float = 0.0
    """When something was acknowledged last, or began to be waited for."""

    # What goes out.

    def send(
        self,
        now_s: float,
        sizes: Sequence[int],
        places: tuple[tuple[int, int], ...] = (),
        *,
        lane: int = 0,
        is_internal: bool = False,
    ) -> int:
        """Queue a message of frames with these sizes and return its number; those in `places` need no bytes."""
        number = next(self._numbers)
        if not self.is_waiting:
            self._heard_s = self._moved_s = now_s
        placed = {frame for frame, _ in places}
        frames = [(index, size) for index, size in enumerate(sizes) if size and index not in placed]
        self._queues[lane].append(_Outgoing(number, tuple(sizes), places, is_internal, frames))
        return number

    def next_packet(self) -> Packet | None:
        """Return what to put on the wire now: the same until `sent`; None: nothing, or nothing yet."""
        if self.place is not Place.OPEN:
            return None
        if self._resend < len(self._flying):
            packet = self._flying[self._resend]
            return packet if self._fits(packet.nbytes) else None
        fresh = self._next
        if fresh is None:
            fresh = self._next = self._cut()
        if fresh is None or fresh.end_nbytes > self._may_send_nbytes or not self._fits(fresh.nbytes):
            return None
        return fresh

    def sent(self, now_s: float) -> None:
        """Note that the wire took what `next_packet` returned, and with it what has been heard."""
        if self._resend < len(self._flying):
            packet = self._flying[self._resend]
            packet.is_again = True
            self._resend += 1
        elif self._next is not None:
            packet, self._next = self._next, None
            self._flying.append(packet)
            self._resend += 1
        else:
            raise InternalError("nothing was to be sent, and it was sent")
        if not self._flying_nbytes:
            self._moved_s = now_s
        packet.sent_s, packet.acked_nbytes = now_s, self._acked_nbytes
        self._flying_nbytes += packet.nbytes
        self.told()

    def told(self) -> None:
        """Note that the wire took what has been heard."""
        self.wants_ack = self.is_gap = False
        self._is_told = self._heard_nbytes

    @property
    def granted(self) -> int:
        """Bytes that the other side may send, counted from the beginning of the link."""
        return self._heard_nbytes + self.limits.window_nbytes

    @property
    def must_ack(self) -> bool:
        """Whether what was heard should be told without waiting for more."""
        return self.is_gap or self.untold_nbytes > _ACK_NBYTES

    @property
    def untold_nbytes(self) -> int:
        """Bytes that were heard and not acknowledged."""
        return self._heard_nbytes - self._is_told

    @property
    def is_waiting(self) -> bool:
        """Whether something is wanted of the other side."""
        return bool(self._flying or self._incoming or self._next or self._queues[0] or self._queues[1])

    @property
    def is_clear(self) -> bool:
        """Whether what goes in lane 1 from now on overtakes nothing of lane 0."""
        return not self._queues[0]

    @property
    def is_idle(self) -> bool:
        """Whether all that was sent has been taken."""
        return not (self._flying or self._next or self._queues[0] or self._queues[1])

    # What comes in.

    def on_data(self, now_s: float, packet: Data, lengths: Sequence[int]) -> Step | None:
        """Return what to do with a packet that came with chunks of these `lengths`; None: it is not its turn.

        Raises:
            PeerError: it breaks the rules (`E_PROTOCOL`), or is more than the limits allow (`E_TOO_LARGE`).
        """
        self._heard_s = now_s
        if packet.sequence != self.heard + 1:
            self.wants_ack = True
            if packet.sequence > self.heard and self._gap_told != self.heard:
                self.is_gap, self._gap_told = True, self.heard
            return None
        nbytes = PACKET_NBYTES + sum(lengths)
        if self._heard_nbytes + nbytes > self.granted:
            raise PeerError("a peer sent more than it was granted", code="E_PROTOCOL")
        begins = self._begin(packet) if packet.sizes else None
        incoming = self._incoming.get(packet.lane)
        if incoming is None:
            raise PeerError("a piece came of no message", code="E_PROTOCOL")
        chunks = tuple([_place(incoming, length) for length in lengths])
        is_whole = incoming.next_frame == len(incoming.frames)
        if is_whole:
            del self._incoming[packet.lane]
        elif not chunks:
            raise PeerError("a piece came without bytes", code="E_PROTOCOL")
        self.heard += 1
        self._heard_nbytes += nbytes
        self.wants_ack = True
        return Step(packet.lane, begins, packet.places, chunks, is_whole, incoming.is_internal)

    def on_heard(self, now_s: float, heard: int, granted: int, *, is_gap: bool = False) -> list[int]:
        """Note what the other side has; return the numbers of the messages that it has whole.

        Raises:
            PeerError: it has what was never sent (`E_PROTOCOL`).
        """
        self._heard_s = now_s
        if granted > self._may_send_nbytes:
            self._may_send_nbytes = granted
        if heard > self._sequence - (self._next is not None):
            raise PeerError("a peer has heard what was never said", code="E_PROTOCOL")
        taken = []
        if heard > self._acked:
            self._moved_s = now_s
        while self._acked < heard:
            packet = self._flying.popleft()
            self._acked, self._acked_nbytes = packet.sequence, packet.end_nbytes
            if self._resend:
                self._resend -= 1
                self._flying_nbytes -= packet.nbytes
                if not packet.is_again:
                    self.pace.note(now_s, now_s - packet.sent_s, packet.end_nbytes - packet.acked_nbytes)
            if packet.is_last:
                taken.append(packet.message)
        if is_gap and heard == self._acked:
            self._rewind()
        return taken

    def on_opened(self, now_s: float, heard: int, granted: int) -> list[int]:
        """Note that a connection is there and what the other side has; what it has not is sent again.

        Raises:
            PeerError: see `on_heard`.
        """
        self._go(Place.OPEN)
        self._moved_s = now_s
        taken = self.on_heard(now_s, heard, granted)
        self._gap_told = -1
        self._rewind()
        return taken

    def break_off(self, now_s: float) -> None:
        """Note that the connection is gone; nothing is sent until `on_opened`."""
        if self.place is Place.OPEN:
            self._go(Place.BROKEN)
            self.broken_at_s = now_s
            self.pace.restart()

    def end(self) -> None:
        """Note that the link is gone; forgets all."""
        self._go(Place.GONE)
        self._flying.clear()
        self._incoming.clear()
        self._next = None
        for queue in self._queues:
            queue.clear()
        self._resend = self._flying_nbytes = 0

    # Time.

    def on_tick(self, now_s: float) -> str:
        """Send again what was probably lost; return why the link is lost by now, or an empty string."""
        if self.place is Place.BROKEN and now_s - self.broken_at_s > self.limits.broken_s:
            return "the connection broke and did not come back"
        if self.place is Place.OPEN and self.is_waiting:
            if now_s - self._heard_s > self.limits.silence_s:
                return "the peer is silent"
            if self._resend and now_s - self._moved_s > self.pace.patience_s:
                self._moved_s = now_s
                self.pace.restart()
                self._rewind()
        return ""

    def check_invariants(self) -> None:
        """Raise InternalError unless all is as it always must be."""
        flying = [packet.sequence for packet in self._flying]
        facts = (
            flying == list(range(self._acked + 1, self._acked + 1 + len(flying))),
            0 <= self._resend <= len(flying),
            self._flying_nbytes == sum(packet.nbytes for packet in itertools.islice(self._flying, self._resend)),
            self._sequence == self._acked + len(flying) + (self._next is not None),
            not flying or self._flying[-1].end_nbytes <= self._may_send_nbytes,
            all(incoming.next_frame < len(incoming.frames) for incoming in self._incoming.values()),
            self.place is not Place.GONE or not self.is_waiting,
        )
        if not all(facts):
            raise InternalError(f"a conversation contradicts itself: {facts}")

    def _fits(self, nbytes: int) -> bool:
        if self._flying_nbytes and self._flying_nbytes + nbytes > self.pace.window_nbytes:
            self.pace.is_full = True
            return False
        return True

    def _cut(self) -> Packet | None:
        """Return the next packet of the message whose turn it is."""
        for lane in LANES:
            queue = self._queues[lane]
            if queue:
                break
        else:
            return None
        message = queue[0]
        chunks, nbytes = _take(message, self.pace.piece_nbytes)
        is_first, message.has_begun = not message.has_begun, True
        is_last = message.next_frame == len(message.frames)
        if is_last:
            queue.popleft()
        self._sequence += 1
        nbytes += PACKET_NBYTES
        self._sent_nbytes += nbytes
        return Packet(
            self._sequence,
            message.number,
            lane,
            message.sizes if is_first else (),
            message.places if is_first else (),
            is_first and message.is_internal,
            chunks,
            nbytes,
            self._sent_nbytes,
            is_last,
        )

    def _rewind(self) -> None:
        self._resend = self._flying_nbytes = 0

    def _begin(self, packet: Data) -> tuple[int, ...]:
        if packet.lane in self._incoming:
            raise PeerError("a message came within another", code="E_PROTOCOL")
        sizes = packet.sizes
        if max(sizes) > self.limits.frame_nbytes or sum(sizes) > self.limits.message_nbytes:
            raise PeerError(
                f"a message of {sum(sizes)} bytes, its largest frame {max(sizes)}, is more than is taken here",
                code="E_TOO_LARGE",
            )
        placed = {frame for frame, _ in packet.places}
        if len(placed) != len(packet.places) or any(frame >= len(sizes) for frame in placed):
            raise PeerError("the places of a message's frames are none", code="E_PROTOCOL")
        frames = [(index, size) for index, size in enumerate(sizes) if size and index not in placed]
        self._incoming[packet.lane] = _Incoming(sizes, packet.is_internal, frames)
        return sizes

    def _go(self, place: Place) -> None:
        if place not in _STEPS[self.place]:
            raise InternalError(f"a link that is {self.place.value} became {place.value}")
        self.place = place


def _take(message: _Outgoing, nbytes: int) -> tuple[tuple[Chunk, ...], int]:
    """Return the message's next chunks, of at most `nbytes` in all, and their bytes; it moves on."""
    chunks: list[Chunk] = []
    taken = 0
    while message.next_frame < len(message.frames) and taken < nbytes and len(chunks) < MAX_CHUNKS:
        index, size = message.frames[message.next_frame]
        stop = min(size, message.offset + nbytes - taken)
        chunks.append(Chunk(index, message.offset, stop))
        taken += stop - message.offset
        message.offset = stop
        if stop == size:
            message.next_frame, message.offset = message.next_frame + 1, 0
    return tuple(chunks), taken


def _place(incoming: _Incoming, length: int) -> Chunk:
    """Return where the next `length` bytes of a message belong; it moves on."""
    if incoming.next_frame == len(incoming.frames):
        raise PeerError("a piece came behind the end of its message", code="E_PROTOCOL")
    index, size = incoming.frames[incoming.next_frame]
    start, stop = incoming.offset, incoming.offset + length
    if not start < stop <= size:
        raise PeerError("a piece came that fits into no frame", code="E_PROTOCOL")
    incoming.offset = stop
    if stop == size:
        incoming.next_frame, incoming.offset = incoming.next_frame + 1, 0
    return Chunk(index, start, stop)
