"""Links over ZeroMQ: what `core.conversation` decides is carried out here, on sockets and on the bytes of messages.

Small messages that are sent while one thing is done after another go together, large ones in pieces that are put
together in one buffer, on which the reader's arrays lie.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, assert_never

import zmq

from hyps.adapters.buffer_pool import BufferPool
from hyps.adapters.link_messages import Inbox, Outbox
from hyps.adapters.links import MAX_FRAMES, Buffer, Heard, LinkEvent, Lost, Opened, Taken
from hyps.adapters.shared_memory import SharedFrames
from hyps.adapters.sockets import Security
from hyps.adapters.zmq_ports import Port, Ports, Socket
from hyps.core.conversation import Conversation, Limits, Place, Step
from hyps.errors import PeerError, UsageError, printable
from hyps.formats import packets
from hyps.formats.packets import LINK_VERSION, Data, Gone, Open, decode_packet, encode_packet

POOLED_NBYTES = 64 * 2**20

ARENA_NBYTES = 256 * 2**20
"""Of the memory that a peer on the same machine may put frames into; taken of the system as it is used."""

_TICK_S = 0.1
_TRIM_S = 5.0
"""How long memory is kept that was used to put messages together."""

_LATE_ACK_S = 0.001
_LATE_ACK_NBYTES = 64 * 1024
"""What was heard beyond it is told at once when there is nothing else to do."""

_RETRY_S = 0.002
"""When a socket that names its peers is asked again for one whose queue was full."""

_READ_PACKETS = 16
"""Of one socket, before what they say is done and the others have their turn."""

_PROBES_S = (0.02, 0.3)
"""When peers are spoken to after a connection of one of them broke: which, one learns only by speaking."""

_FAREWELL_MS = 200
_MAX_LINKS = 4096


@dataclass(slots=True, eq=False)
class _Link:
    number: int
    port: Port["_Link"]
    talk: Conversation
    shared: SharedFrames
    outbox: Outbox
    inbox: Inbox
    came_to_us: bool
    route: bytes = b""
    """How the socket calls the peer, where it came to us; empty: its connection is gone."""
    is_confirmed: bool = False
    """Whether `Opened` was told."""
    born_s: float = 0.0
    heard_s: float = 0.0
    """When the first came of what the peer was not told to have been heard."""

    @property
    def needs_time(self) -> bool:
        """Whether time alone can change something."""
        return (
            self.talk.place is not Place.OPEN
            or not self.is_confirmed
            or self.talk.is_waiting
            or self.shared.is_trimmable
        )


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
        pooled_nbytes: int = POOLED_NBYTES,
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
            pooled_nbytes: of memory for messages that come in pieces, kept for some seconds for the next ones.
            security: gives each socket its keys.
        """
        self._arena_nbytes = arena_nbytes
        self._limits = Limits(frame_nbytes, message_nbytes, silence_s=silence_s, broken_s=broken_s)
        least = message_nbytes if stranger_nbytes is None else min(stranger_nbytes, message_nbytes)
        self._stranger_limits = replace(self._limits, frame_nbytes=min(least, frame_nbytes), message_nbytes=least)
        self._assembled_nbytes = assembled_nbytes
        self._ports: Ports[_Link] = Ports(security)
        self._numbers = itertools.count(1)
        self._links: dict[int, _Link] = {}
        self._tokens: dict[bytes, _Link] = {}
        """Of those that came to us."""
        self._routes: dict[tuple[Port[_Link], bytes], _Link] = {}
        self._events: deque[LinkEvent] = deque()
        self._stale: dict[int, _Link] = {}
        """Links whose peers are to be told what was heard, or sent what waits."""
        self._blocked: dict[int, _Link] = {}
        """Links whose sockets were full."""
        self._pool = BufferPool(pooled_nbytes)
        self._probes: list[float] = []
        self._undrained: set[Socket] = set()
        """Sockets that may have more without another wait."""
        self._is_acked_late = False
        """Whether what was heard is told a little later, in the hope that something goes that way anyhow."""
        self._next_tick_s = self._next_trim_s = 0.0
        self._is_closed = False

    # What `Links` promises.

    def listen(self, address: str, *, allow_remote: bool = False) -> str:
        """See `Links`."""
        return self._ports.listen(address, allow_remote=allow_remote)

    def connect(self, address: str) -> int:
        """See `Links`."""
        port = self._ports.connect(address)
        link = port.link = self._add_link(port, Conversation(self._limits), came_to_us=False)
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
        can_go = there.outbox.put(time.monotonic(), frames, token, is_urgent=is_urgent)
        if not can_go:
            self._stale[link] = there
        elif link not in self._blocked:
            self._transmit(there)

    def admit(self, link: int) -> None:
        """See `Links`."""
        there = self._links.get(link)
        if there is not None:
            there.talk.limits = self._limits

    def backlog_nbytes(self, link: int) -> int:
        """See `Links`."""
        there = self._links.get(link)
        return 0 if there is None else there.outbox.backlog_nbytes

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
            done = self._ports.wait(min(deadline_s, alarm_s) - now_s)
            ready = done.sockets
            for port in done.roomy:
                self._on_room(port)
            if self._is_acked_late and not ready:
                self._answer(is_idle=True, is_late=True)
            if done.is_woken:
                self._undrained.update(ready)  # read at the next call
            if done.is_woken or (not ready and time.monotonic() >= deadline_s):
                return None

    @property
    def assembling_nbytes(self) -> int:
        """That have come of all messages which are not whole."""
        return sum(link.inbox.nbytes for link in self._links.values())

    def is_open(self, link: int) -> bool:
        """Return whether the link has a connection at the moment, as far as `receive` has seen."""
        there = self._links.get(link)
        return there is not None and there.talk.place is Place.OPEN

    def flush(self) -> None:
        """See `Links`; also tells peers what was heard."""
        self._answer(is_idle=True, is_late=True)

    def close_link(self, link: int) -> None:
        """See `Links`."""
        there = self._links.get(link)
        if there is not None:
            if link not in self._blocked:
                self._transmit(there)
            self._say_gone(there, "the peer left")
            self._drop_link(there, linger_ms=_FAREWELL_MS)
        self._events = deque(event for event in self._events if event.link != link)

    def wake(self) -> None:
        """See `Links`."""
        self._ports.wake()

    def close(self, linger_s: float = 0.0) -> None:
        """See `Links`."""
        if self._is_closed:
            return
        deadline_s = time.monotonic() + linger_s
        while time.monotonic() < deadline_s and any(link.outbox for link in self._links.values()):
            self.receive(min(_TICK_S, max(0.0, deadline_s - time.monotonic())))
        self._is_closed = True
        for number in list(self._links):
            self.close_link(number)
        self._ports.close(_FAREWELL_MS)
        self._events.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Waiting.

    def _alarm_s(self, now_s: float) -> float:
        if self._blocked and any(link.came_to_us for link in self._blocked.values()):
            return now_s + _RETRY_S
        if self._probes:
            return self._probes[0]
        is_busy = self._pool.is_stale or any(link.needs_time for link in self._links.values())
        return self._next_tick_s if is_busy else now_s + 3600.0

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + _TICK_S
        if now_s > self._next_trim_s:
            self._next_trim_s = now_s + _TRIM_S
            self._pool.trim()
        for link in list(self._links.values()):
            reason = link.talk.on_tick(now_s)
            if reason:
                self._lose(link, reason)
            elif link.came_to_us and not link.is_confirmed and now_s - link.born_s > self._limits.broken_s:
                self._drop_link(link)
            else:
                self._stale[link.number] = link
                link.shared.trim(now_s)

    # What comes.

    def _read(self, socket: Socket) -> None:
        port = self._ports.of(socket)
        if port is None:
            self._undrained.discard(socket)
            port = self._ports.watched_by(socket)
            if port is not None:
                self._read_monitor(port)
            return
        self._undrained.add(socket)
        for _ in range(_READ_PACKETS):
            if socket.closed:
                return
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._undrained.discard(socket)
                return
            self._on_parts(port, parts)

    def _on_parts(self, port: Port[_Link], parts: list[Any]) -> None:
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
        self, port: Port[_Link], route: bytes, link: _Link | None, packet: packets.Packet, parts: list[Any]
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
            if not link.talk.wants_ack:
                link.heard_s = now_s
            chunks = packet.inline or [part.buffer for part in parts[1:]]
            step = link.talk.on_data(now_s, packet, [len(chunk) for chunk in chunks])
            if step is not None:
                self._on_step(link, step, packet.counts, chunks)
        self._stale[link.number] = link

    def _on_taken(self, link: _Link, numbers: list[int]) -> None:
        for token in link.outbox.taken(numbers):
            self._events.append(Taken(link.number, token))

    def _on_step(self, link: _Link, step: Step, counts: tuple[int, ...], chunks: Sequence[Buffer]) -> None:
        if not step.is_whole:
            self._make_room(link, sum(map(len, chunks)))
        for frames in link.inbox.take(step, counts, chunks):
            if step.is_internal:
                self._tell(link, link.shared.on_message(packets.decode_internal(bytes(frames[0]))))
            else:
                self._events.append(Heard(link.number, frames))

    def _make_room(self, link: _Link, nbytes: int) -> None:
        """See to it that more can come in pieces; beyond the bound, who has most of such is given up, and no other."""
        while self.assembling_nbytes + nbytes > self._assembled_nbytes:
            worst = max(self._links.values(), key=lambda other: other.inbox.nbytes + nbytes * (other is link))
            if worst is link:
                raise PeerError("too much comes in pieces at one time", code="E_TOO_LARGE")
            self._give_up(worst, "too much comes in pieces at one time")

    def _give_up(self, link: _Link, reason: str) -> None:
        self._say_gone(link, reason)
        self._lose(link, reason)

    # What links tell each other by themselves.

    def _tell(self, link: _Link, message: packets.Internal | None) -> None:
        if message is None:
            return
        link.outbox.tell(time.monotonic(), encode_packet(message))
        self._stale[link.number] = link

    # Connections.

    def _on_open(self, port: Port[_Link], route: bytes, link: _Link | None, packet: Open) -> None:
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
            talk = Conversation(self._stranger_limits, token=os.urandom(16))
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

    def _read_monitor(self, port: Port[_Link]) -> None:
        while not port.monitor.closed:
            try:
                event = port.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
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
                if is_late or is_much or talk.must_ack or time.monotonic() - link.heard_s > _LATE_ACK_S:
                    self._acknowledge(link)
                else:
                    self._is_acked_late |= is_idle
            if not talk.wants_ack or talk.place is not Place.OPEN:
                self._stale.pop(link.number, None)

    def _transmit(self, link: _Link) -> None:
        """Put on the wire what the conversation allows."""
        talk, now_s = link.talk, time.monotonic()
        link.outbox.flush(now_s)
        while (packet := talk.next_packet()) is not None and self._put(link, link.outbox.envelope(packet)):
            talk.sent(now_s)

    def _acknowledge(self, link: _Link) -> None:
        talk = link.talk
        if self._put(link, [encode_packet(packets.Heard(talk.token, talk.heard, talk.granted, talk.is_gap))]):
            talk.told()

    def _put(self, link: _Link, parts: list[Buffer]) -> bool:
        """Return whether the socket took a packet; if not, it is tried again when there is room."""
        if link.came_to_us:
            if not link.route:
                return False
            parts.insert(0, link.route)
        try:
            is_taken = self._ports.put(link.port, parts)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._routes.pop((link.port, link.route), None)
            link.route = b""
            link.talk.break_off(time.monotonic())
            return False
        if not is_taken:
            self._blocked[link.number] = link
        return is_taken

    def _on_room(self, port: Port[_Link]) -> None:
        if port.link is not None:
            self._blocked.pop(port.link.number, None)
            self._stale[port.link.number] = port.link

    def _say(self, port: Port[_Link], route: bytes, packet: packets.Packet) -> None:
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

    def _add_link(self, port: Port[_Link], talk: Conversation, *, came_to_us: bool) -> _Link:
        shared = SharedFrames(self._arena_nbytes if port.is_local else 0)
        outbox, inbox = Outbox(talk, shared), Inbox(shared, self._pool)
        number, born_s = next(self._numbers), time.monotonic()
        link = _Link(number, port, talk, shared, outbox, inbox, came_to_us, born_s=born_s)
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
        link.inbox.clear()
        link.outbox.clear()
        link.shared.close()
        if link.came_to_us:
            self._tokens.pop(link.talk.token, None)
            self._routes.pop((link.port, link.route), None)
        else:
            self._undrained.discard(link.port.socket)
            self._ports.drop(link.port, linger_ms)
        link.talk.end()
