"""Links over ZeroMQ: what `core.conversation` decides is carried out here, on sockets and on the bytes of messages.

One socket per address that is listened to, one per connection that we make, and one thread for all of them. Small
messages go as they are, large ones in pieces that are put together in one buffer, on which the reader's arrays lie.
"""

import itertools
import math
import secrets
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, assert_never

import zmq

from hyps.adapters.buffer_pool import BufferPool
from hyps.adapters.links import MAX_FRAMES, Buffer, Heard, LinkEvent, Lost, Opened, Taken
from hyps.adapters.shared_memory import SharedFrames
from hyps.adapters.sockets import Security, WakePipe, bind, connect, make_dealer, make_router, watch
from hyps.core.conversation import Conversation, Limits, Packet, Place, Step
from hyps.errors import PeerError, UsageError, printable
from hyps.formats import packets
from hyps.formats.packets import LINK_VERSION, MAX_INLINE_NBYTES, Data, Gone, Open, decode_packet, encode_packet

ARENA_NBYTES = 256 * 2**20
"""Of the memory that a peer on the same machine may put frames into; taken of the system as it is used."""

_COPY_NBYTES = 32 * 1024
"""Smaller frames are copied when they are sent: their buffers may change at once."""

_TICK_S = 0.1
_TRIM_S = 5.0
"""How long memory is kept that was used to put messages together."""

_LATE_ACK_S = 0.001
_LATE_ACK_NBYTES = 64 * 1024
"""What was heard beyond it is told at once when there is nothing else to do."""

_RETRY_S = 0.002
"""When a socket that names its peers is asked again for one whose queue was full."""

_READ_PACKETS = 64
"""Of one socket, before the others have their turn."""

_PROBES_S = (0.02, 0.3)
"""When peers are spoken to after a connection of one of them broke: which, one learns only by speaking."""

_ZERO_COPY_NBYTES = 65536
"""From here on copying costs more than being told when a buffer is free again."""

_MORE = zmq.NOBLOCK | zmq.SNDMORE
_FAREWELL_MS = 200
_MAX_LINKS = 4096
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(slots=True, eq=False)
class _Port:
    """A socket, and the one that tells of its connections."""

    socket: "zmq.Socket[Any]"
    monitor: "zmq.Socket[Any]"
    link: "_Link | None"
    """The one link of a socket that connects; None: a socket that is connected to."""
    is_local: bool
    """Whether peers are on the same machine, by the kind of address."""
    is_full: bool = False
    """Whether it is to be watched for room."""


@dataclass(slots=True, eq=False)
class _Outgoing:
    frames: list[Buffer]
    nbytes: int
    token: Hashable | None


@dataclass(slots=True, eq=False)
class _Assembly:
    """The frames of a message that is coming, as far as they are here."""

    frames: list[Any]
    nbytes: int


@dataclass(slots=True, eq=False)
class _Link:
    number: int
    port: _Port
    talk: Conversation
    shared: SharedFrames
    came_to_us: bool
    route: bytes = b""
    """How the socket calls the peer, where it came to us; empty: its connection is gone."""
    is_confirmed: bool = False
    """Whether `Opened` was told."""
    born_s: float = 0.0
    told_s: float = 0.0
    """When the peer was told last what was heard."""
    outgoing: dict[int, _Outgoing] = field(default_factory=dict)
    assemblies: dict[int, _Assembly] = field(default_factory=dict)
    backlog_nbytes: int = 0


class ZmqLinks:
    """See `Links`; addresses are tcp:// and ipc://."""

    def __init__(
        self,
        *,
        frame_nbytes: int = 2**34,
        message_nbytes: int = 2**35,
        assembled_nbytes: int = 2**36,
        stranger_nbytes: int | None = None,
        silence_s: float = 10.0,
        broken_s: float = 3.0,
        arena_nbytes: int = ARENA_NBYTES,
        security: Security | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            frame_nbytes: the most that one frame of a peer's message may have.
            message_nbytes: the most that one message may have.
            assembled_nbytes: of all messages that are coming in pieces at one time, from all peers together; who sent
                most of them is given up where there is more.
            stranger_nbytes: the most that a message may have of a peer that came to us and was not admitted; None: no
                less than that of others.
            silence_s: how long a peer may say nothing when something is wanted of it.
            broken_s: how long a connection that broke may take to come back.
            arena_nbytes: of the memory that is shared with each peer on ipc://, in each direction; 0: none.
            security: gives each socket its keys.
        """
        self._arena_nbytes = arena_nbytes
        self._limits = Limits(frame_nbytes, message_nbytes, silence_s=silence_s, broken_s=broken_s)
        least = message_nbytes if stranger_nbytes is None else min(stranger_nbytes, message_nbytes)
        self._stranger_limits = replace(self._limits, frame_nbytes=min(least, frame_nbytes), message_nbytes=least)
        self._assembled_nbytes, self._assembling_nbytes = assembled_nbytes, 0
        self._security = security
        self._context: zmq.Context[Any] = zmq.Context()
        self._pipe = WakePipe()
        self._poller = zmq.Poller()
        self._poller.register(self._pipe.read_fd, zmq.POLLIN)
        self._numbers = itertools.count(1)
        self._ports: dict[zmq.Socket[Any], _Port] = {}
        """By their sockets."""
        self._monitors: dict[zmq.Socket[Any], _Port] = {}
        """By their monitors."""
        self._links: dict[int, _Link] = {}
        self._tokens: dict[bytes, _Link] = {}
        """Of those that came to us."""
        self._routes: dict[tuple[_Port, bytes], _Link] = {}
        self._events: deque[LinkEvent] = deque()
        self._stale: dict[int, _Link] = {}
        """Links whose peers are to be told what was heard, or sent what waits."""
        self._blocked: dict[int, _Link] = {}
        """Links whose sockets were full."""
        self._pool = BufferPool()
        self._probes: list[float] = []
        self._undrained: set[zmq.Socket[Any]] = set()
        """Sockets that may have more without another wait."""
        self._is_busy = False
        """Whether time alone can change a link."""
        self._is_acked_late = False
        """Whether what was heard is told a little later, in the hope that something goes that way anyhow."""
        self._next_tick_s = self._next_trim_s = 0.0
        self._is_closed = False

    # What `Links` promises.

    def listen(self, address: str, *, allow_remote: bool = False) -> str:
        """See `Links`."""
        socket = make_router(self._context, self._security)
        try:
            bound = bind(socket, address, allow_remote=allow_remote)
        except Exception:
            socket.close()
            raise
        self._add_port(socket, zmq.EVENT_DISCONNECTED, is_local=bound.startswith("ipc:"))
        return bound

    def connect(self, address: str) -> int:
        """See `Links`."""
        socket = make_dealer(self._context, self._security)
        port = self._add_port(socket, _EVENTS, is_local=address.startswith("ipc:"))
        try:
            connect(socket, address)
        except Exception:
            self._drop_port(port)
            raise
        link = self._add_link(port, Conversation(self._limits), came_to_us=False)
        port.link = link
        return link.number

    def send(
        self, link: int, frames: Sequence[Buffer], token: Hashable | None = None, *, is_urgent: bool = False
    ) -> None:
        """See `Links`."""
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise UsageError(f"a message of {len(frames)} frames")
        there = self._links.get(link)
        if there is None:
            return
        kept = [_kept(frame) for frame in frames]
        sizes = [len(frame) for frame in kept]
        now_s = time.monotonic()
        places = there.shared.lodge(kept, now_s)
        number = there.talk.send(now_s, sizes, places, lane=1 if is_urgent else 0)
        outgoing = _Outgoing(kept, sum(sizes), token)
        self._is_busy = True
        there.outgoing[number] = outgoing
        there.backlog_nbytes += outgoing.nbytes
        if there.number not in self._blocked:
            self._transmit(there)

    def admit(self, link: int) -> None:
        """See `Links`."""
        there = self._links.get(link)
        if there is not None:
            there.talk.limits = self._limits

    def backlog_nbytes(self, link: int) -> int:
        """See `Links`."""
        there = self._links.get(link)
        return 0 if there is None else there.backlog_nbytes

    def receive(self, timeout_s: float) -> LinkEvent | None:
        """See `Links`."""
        events = self._events
        if events:
            return events.popleft()
        deadline_s = time.monotonic() + timeout_s
        ready: Sequence[Any] = list(self._undrained)
        while True:
            for socket in ready:
                self._read(socket)
            now_s = time.monotonic()
            if now_s >= self._next_tick_s:
                self._tick(now_s)
            if events:
                self._answer(is_idle=False)
                return events.popleft()
            self._answer(is_idle=True)
            alarm_s = now_s + _LATE_ACK_S if self._is_acked_late else self._alarm_s(now_s)
            is_woken, ready = self._wait(min(deadline_s, alarm_s) - now_s)
            if self._is_acked_late and not ready:
                self._answer(is_idle=True, is_late=True)
            if is_woken or (not ready and time.monotonic() >= deadline_s):
                return None

    def is_open(self, link: int) -> bool:
        """Return whether the link has a connection at the moment, as far as `receive` has seen."""
        there = self._links.get(link)
        return there is not None and there.talk.place is Place.OPEN

    def flush(self) -> None:
        """Tell peers what was heard, where `receive` may not be called again soon."""
        self._answer(is_idle=True, is_late=True)

    def close_link(self, link: int) -> None:
        """See `Links`."""
        there = self._links.get(link)
        if there is not None:
            self._say_gone(there, "the peer left")
            self._drop_link(there, linger_ms=_FAREWELL_MS)
        self._events = deque(event for event in self._events if event.link != link)

    def wake(self) -> None:
        """See `Links`."""
        self._pipe.wake()

    def close(self, linger_s: float = 0.0) -> None:
        """See `Links`."""
        if self._is_closed:
            return
        deadline_s = time.monotonic() + linger_s
        while time.monotonic() < deadline_s and any(link.outgoing for link in self._links.values()):
            self.receive(min(_TICK_S, max(0.0, deadline_s - time.monotonic())))
        self._is_closed = True
        for number in list(self._links):
            self.close_link(number)
        for port in list(self._ports.values()):
            self._drop_port(port, linger_ms=_FAREWELL_MS)
        self._context.term()
        self._pipe.close()
        self._events.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Waiting.

    def _wait(self, timeout_s: float) -> tuple[bool, list[Any]]:
        """Wait for sockets; return whether a `wake` came, and the sockets."""
        ready = dict(self._poller.poll(math.ceil(max(0.0, timeout_s) * 1000)))
        is_woken = ready.pop(self._pipe.read_fd, 0) != 0
        if is_woken:
            self._pipe.drain()
        for socket, flags in ready.items():
            port = self._ports.get(socket)
            if flags & zmq.POLLOUT and port is not None:
                self._on_room(port)
        return is_woken, list(ready)

    def _alarm_s(self, now_s: float) -> float:
        if self._blocked and any(link.came_to_us for link in self._blocked.values()):
            return now_s + _RETRY_S
        if self._probes:
            return self._probes[0]
        is_busy = any(
            link.talk.place is Place.BROKEN or not link.is_confirmed or link.talk.is_waiting or link.shared.is_trimmable
            for link in self._links.values()
        )
        return self._next_tick_s if is_busy else now_s + 3600.0

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + _TICK_S
        if now_s > self._next_trim_s:
            self._next_trim_s = now_s + _TRIM_S
            self._pool.trim()
        self._is_busy = self._pool.is_stale
        for link in list(self._links.values()):
            reason = link.talk.on_tick(now_s)
            if reason:
                self._lose(link, reason)
            elif link.came_to_us and not link.is_confirmed and now_s - link.born_s > self._limits.broken_s:
                self._drop_link(link)
            else:
                self._stale[link.number] = link
                link.shared.trim(now_s)
                self._is_busy |= (
                    link.talk.place is not Place.OPEN
                    or not link.is_confirmed
                    or link.talk.is_waiting
                    or link.shared.is_trimmable
                )

    # What comes.

    def _read(self, socket: "zmq.Socket[Any]") -> None:
        port = self._ports.get(socket)
        if port is None:
            port = self._monitors.get(socket)
            if port is not None:
                self._read_monitor(port)
            return
        self._undrained.add(socket)
        for _ in range(_READ_PACKETS):
            if self._events or socket.closed:
                return
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._undrained.discard(socket)
                return
            self._is_busy = True
            self._on_parts(port, parts)

    def _on_parts(self, port: _Port, parts: list[Any]) -> None:
        route = b"" if port.link is not None else parts.pop(0).bytes
        if not parts:
            return
        try:
            packet = decode_packet(parts[0].buffer)
        except PeerError:
            return  # whoever says that is no link of ours; its connection is its own affair
        link = port.link if port.link is not None else self._tokens.get(getattr(packet, "token", b""))
        try:
            self._on_packet(port, route, link, packet, parts)
        except PeerError as error:
            if link is None:
                return
            self._give_up(link, error.message)

    def _on_packet(
        self, port: _Port, route: bytes, link: _Link | None, packet: packets.Packet, parts: list[Any]
    ) -> None:
        match packet:
            case Data() | packets.Heard():
                if link is None:
                    if port.link is None:
                        self._say(port, route, Gone(packet.token, "the peer started anew"))
                elif packet.token == link.talk.token and route == link.route:
                    self._on_live(link, packet, parts)
            case Open():
                if port.link is None:
                    self._on_open(port, route, link, packet)
            case packets.Opened():
                if port.link is not None and link is not None:
                    self._on_opened(link, packet)
            case Gone():
                if (
                    link is not None
                    and (packet.token == link.talk.token)
                    and (not link.came_to_us or route == link.route)
                ):
                    self._lose(link, packet.reason)
            case _:
                assert_never(packet)

    def _on_live(self, link: _Link, packet: "Data | packets.Heard", parts: list[Any]) -> None:
        if link.talk.place is not Place.OPEN:
            return
        now_s = time.monotonic()
        self._confirm(link)
        is_gap = isinstance(packet, packets.Heard) and packet.is_gap
        self._on_taken(link, link.talk.on_heard(now_s, packet.heard, packet.granted, is_gap=is_gap))
        if isinstance(packet, Data):
            chunks = packet.inline or [part.buffer for part in parts[1:]]
            step = link.talk.on_data(now_s, packet, [len(chunk) for chunk in chunks])
            if step is not None:
                self._on_step(link, step, chunks)
        self._stale[link.number] = link

    def _on_taken(self, link: _Link, numbers: list[int]) -> None:
        for number in numbers:
            outgoing = link.outgoing.pop(number)
            link.backlog_nbytes -= outgoing.nbytes
            if outgoing.token is not None:
                self._events.append(Taken(link.number, outgoing.token))

    def _on_step(self, link: _Link, step: Step, chunks: Sequence[Buffer]) -> None:
        if step.begins is not None:
            self._begin(link, step)
        assembly = link.assemblies[step.lane]
        frames = assembly.frames
        if not step.is_whole:
            self._make_room(link, assembly, sum(map(len, chunks)))
        for place, chunk in zip(step.chunks, chunks, strict=True):
            size = frames[place.frame]
            if isinstance(size, int):
                if place.stop == size:  # all of it at once: the reader gets the packet's own memory
                    frames[place.frame] = chunk
                    continue
                frames[place.frame] = self._memory(size)
            frames[place.frame][place.start : place.stop] = chunk
        if step.is_whole:
            self._assembling_nbytes -= assembly.nbytes
            del link.assemblies[step.lane]
            whole = [b"" if isinstance(frame, int) else frame for frame in frames]
            if step.is_internal:
                self._tell(link, link.shared.on_message(packets.decode_internal(bytes(whole[0]))))
            else:
                self._events.append(Heard(link.number, whole))

    def _begin(self, link: _Link, step: Step) -> None:
        assert step.begins is not None
        frames: list[Any] = list(step.begins)
        for index, offset in step.places:
            frames[index] = link.shared.view(offset, step.begins[index])
        link.assemblies[step.lane] = _Assembly(frames, 0)

    def _make_room(self, link: _Link, assembly: _Assembly, nbytes: int) -> None:
        """Count bytes of a message that is not whole; beyond the bound, who has most of such is given up, no other."""
        assembly.nbytes += nbytes
        self._assembling_nbytes += nbytes
        while self._assembling_nbytes > self._assembled_nbytes:
            worst = max(self._links.values(), key=_assembling_nbytes)
            if worst is link:
                raise PeerError("too much comes in pieces at one time", code="E_TOO_LARGE")
            self._give_up(worst, "too much comes in pieces at one time")

    def _memory(self, nbytes: int) -> memoryview:
        try:
            return self._pool.take(nbytes)
        except MemoryError as error:
            raise PeerError(f"there is no memory for a frame of {nbytes} bytes", code="E_TOO_LARGE") from error

    def _give_up(self, link: _Link, reason: str) -> None:
        self._say_gone(link, reason)
        self._lose(link, reason)

    # What links tell each other by themselves.

    def _tell(self, link: _Link, message: packets.Internal | None) -> None:
        if message is None:
            return
        encoded = encode_packet(message)
        number = link.talk.send(time.monotonic(), [len(encoded)], lane=1, is_internal=True)
        link.outgoing[number] = _Outgoing([encoded], 0, None)
        self._stale[link.number] = link

    # Connections.

    def _on_open(self, port: _Port, route: bytes, link: _Link | None, packet: Open) -> None:
        """A peer that came says who it is: a new link, or the next connection of one."""
        if packet.version != LINK_VERSION:
            reason = f"this side speaks version {LINK_VERSION} of the link's protocol and the other {packet.version}"
            self._say(port, route, Gone(packet.token, reason))
            return
        if link is None:
            if packet.token:
                self._say(port, route, Gone(packet.token, "the peer started anew"))
                return
            if (port, route) in self._routes or len(self._links) >= _MAX_LINKS:
                self._say(port, route, Gone(b"", "no more links are taken here"))
                return
            talk = Conversation(self._stranger_limits, token=secrets.token_bytes(16))
            link = self._add_link(port, talk, came_to_us=True)
            self._tokens[talk.token] = link
        self._routes.pop((link.port, link.route), None)
        link.port, link.route = port, route
        self._routes[port, route] = link
        self._blocked.pop(link.number, None)
        talk = link.talk
        talk.break_off(time.monotonic())
        self._on_taken(link, talk.on_opened(time.monotonic(), packet.heard, packet.granted))
        self._say(port, route, packets.Opened(LINK_VERSION, talk.token, talk.heard, talk.granted))
        self._stale[link.number] = link

    def _on_opened(self, link: _Link, packet: packets.Opened) -> None:
        """The peer that we went to knows us."""
        talk = link.talk
        if talk.token and talk.token != packet.token:
            return
        talk.token = packet.token
        talk.break_off(time.monotonic())
        self._on_taken(link, talk.on_opened(time.monotonic(), packet.heard, packet.granted))
        self._acknowledge(link)  # so that the peer knows that we know
        self._confirm(link)
        self._stale[link.number] = link

    def _confirm(self, link: _Link) -> None:
        """Tell of a link whose other side speaks our language, once."""
        if not link.is_confirmed:
            link.is_confirmed = True
            self._events.append(Opened(link.number, link.came_to_us))
            self._tell(link, link.shared.offer())

    def _read_monitor(self, port: _Port) -> None:
        while not port.monitor.closed:
            try:
                event = port.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._is_busy = True
            kind, now_s = int.from_bytes(event[0][:2], "little"), time.monotonic()
            link = port.link
            if link is None:
                self._probes = [now_s + wait_s for wait_s in _PROBES_S]
                continue
            link.talk.break_off(now_s)
            self._blocked.pop(link.number, None)
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                talk = link.talk
                self._say(port, b"", Open(LINK_VERSION, talk.token, talk.heard, talk.granted))

    def _probe(self) -> None:
        """Speak to all that came to us, so that those whose connection is gone are known."""
        for link in list(self._links.values()):
            if link.came_to_us and link.route:
                link.talk.wants_ack = True
                self._stale[link.number] = link

    # What goes.

    def _answer(self, *, is_idle: bool, is_late: bool = False) -> None:
        """Send what waits; before a wait, also tell what was heard: if it is little, only when it is late."""
        self._is_acked_late = False
        if self._probes and time.monotonic() >= self._probes[0]:
            self._probes.pop(0)
            self._probe()
        if self._blocked:
            for link in list(self._blocked.values()):
                if link.came_to_us:
                    del self._blocked[link.number]
                    self._stale[link.number] = link
        if not self._stale:
            return
        for link in list(self._stale.values()):
            if link.number in self._blocked:
                continue
            self._tell(link, link.shared.take_news())
            self._transmit(link)
            talk = link.talk
            if talk.wants_ack and talk.place is Place.OPEN:
                is_much = is_idle and talk.untold_nbytes > _LATE_ACK_NBYTES
                if is_late or is_much or talk.must_ack or time.monotonic() - link.told_s > _LATE_ACK_S:
                    self._acknowledge(link)
                else:
                    self._is_acked_late |= is_idle
            if not talk.wants_ack or talk.place is not Place.OPEN:
                self._stale.pop(link.number, None)

    def _transmit(self, link: _Link) -> None:
        """Put on the wire what the conversation allows."""
        talk = link.talk
        while (packet := talk.next_packet()) is not None:
            if not self._put(link, self._envelope(link, packet)):
                return
            link.told_s = time.monotonic()
            talk.sent(link.told_s)

    def _envelope(self, link: _Link, packet: Packet) -> list[Buffer]:
        talk = link.talk
        chunks: list[Buffer] = []
        if packet.chunks:
            frames = link.outgoing[packet.message].frames
            for place in packet.chunks:
                frame = frames[place.frame]
                is_all = place.start == 0 and place.stop == len(frame)
                chunks.append(frame if is_all else memoryview(frame)[place.start : place.stop])
        is_inline = packet.nbytes <= MAX_INLINE_NBYTES
        data = Data(
            talk.token,
            packet.sequence,
            talk.heard,
            talk.granted,
            packet.lane,
            packet.sizes,
            packet.places,
            packet.is_internal,
            tuple([bytes(chunk) for chunk in chunks]) if is_inline else (),
        )
        return [encode_packet(data)] if is_inline else [encode_packet(data), *chunks]

    def _acknowledge(self, link: _Link) -> None:
        talk = link.talk
        if self._put(link, [encode_packet(packets.Heard(talk.token, talk.heard, talk.granted, talk.is_gap))]):
            talk.told()
            link.told_s = time.monotonic()

    def _put(self, link: _Link, parts: list[Buffer]) -> bool:
        """Return whether the socket took a packet; if not, it is tried again when there is room."""
        if link.came_to_us:
            if not link.route:
                return False
            parts.insert(0, link.route)
        try:
            send, last = link.port.socket.send, parts.pop()
            for part in parts:
                send(part, _MORE, copy=len(part) < _ZERO_COPY_NBYTES)
            send(last, zmq.NOBLOCK, copy=len(last) < _ZERO_COPY_NBYTES)
        except zmq.Again:
            self._blocked[link.number] = link
            if not link.came_to_us and not link.port.is_full:
                link.port.is_full = True
                self._poller.modify(link.port.socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._routes.pop((link.port, link.route), None)
            link.route = b""
            link.talk.break_off(time.monotonic())
            return False
        return True

    def _on_room(self, port: _Port) -> None:
        port.is_full = False
        self._poller.modify(port.socket, zmq.POLLIN)
        if port.link is not None:
            self._blocked.pop(port.link.number, None)
            self._stale[port.link.number] = port.link

    def _say(self, port: _Port, route: bytes, packet: packets.Packet) -> None:
        """Say something that may be lost."""
        parts: list[Buffer] = [encode_packet(packet)]
        if port.link is None:
            parts.insert(0, route)
        try:
            port.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise

    def _say_gone(self, link: _Link, reason: str) -> None:
        if link.talk.place is Place.OPEN and (link.route or not link.came_to_us):
            self._say(link.port, link.route, Gone(link.talk.token, printable(reason, 1000)))

    # Links and sockets, coming and going.

    def _add_port(self, socket: "zmq.Socket[Any]", events: int, *, is_local: bool) -> _Port:
        port = _Port(socket, watch(socket, events), None, is_local)
        self._ports[socket] = self._monitors[port.monitor] = port
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(port.monitor, zmq.POLLIN)
        return port

    def _drop_port(self, port: _Port, linger_ms: int = 0) -> None:
        del self._ports[port.socket], self._monitors[port.monitor]
        self._undrained.discard(port.socket)
        self._poller.unregister(port.socket)
        self._poller.unregister(port.monitor)
        port.socket.disable_monitor()
        port.monitor.close(linger=0)
        port.socket.close(linger=linger_ms)

    def _add_link(self, port: _Port, talk: Conversation, *, came_to_us: bool) -> _Link:
        shared = SharedFrames(self._arena_nbytes if port.is_local else 0)
        link = _Link(next(self._numbers), port, talk, shared, came_to_us, born_s=time.monotonic())
        self._links[link.number] = link
        return link

    def _lose(self, link: _Link, reason: str) -> None:
        self._drop_link(link)
        if link.is_confirmed or not link.came_to_us:
            self._events.append(Lost(link.number, printable(reason, 1000)))

    def _drop_link(self, link: _Link, linger_ms: int = _FAREWELL_MS) -> None:
        del self._links[link.number]
        self._stale.pop(link.number, None)
        self._blocked.pop(link.number, None)
        self._assembling_nbytes -= _assembling_nbytes(link)
        link.assemblies.clear()
        link.outgoing.clear()
        link.backlog_nbytes = 0
        link.shared.close()
        if link.came_to_us:
            self._tokens.pop(link.talk.token, None)
            self._routes.pop((link.port, link.route), None)
        else:
            self._drop_port(link.port, linger_ms)
        link.talk.end()


def _assembling_nbytes(link: _Link) -> int:
    return sum(assembly.nbytes for assembly in link.assemblies.values())


def _kept(frame: Buffer) -> Buffer:
    """Return a frame as bytes in a row; a small one as a copy."""
    if isinstance(frame, bytes):
        return frame
    view = memoryview(frame)
    if view.nbytes <= _COPY_NBYTES:
        return view.tobytes()
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")
