"""The bytes of a link's messages: of those that go, until they are taken; of those that come, until they are whole."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyps.adapters.buffer_pool import BufferPool
from hyps.adapters.links import Buffer
from hyps.adapters.shared_memory import SharedFrames
from hyps.core.conversation import PACKET_NBYTES, Conversation, Packet, Step
from hyps.errors import PeerError
from hyps.formats.packets import MAX_CHUNKS, MAX_INLINE_NBYTES, Data, encode_packet

_COPY_NBYTES = 32 * 1024
"""Smaller frames are copied when they are sent: their buffers may change at once."""

_BUNDLE_NBYTES = MAX_INLINE_NBYTES - PACKET_NBYTES
"""Of a bundle, so that it goes in one envelope."""


@dataclass(slots=True, eq=False)
class _Sent:
    """Something that goes through the conversation as one message."""

    frames: list[Buffer]
    nbytes: int
    tokens: tuple[Hashable, ...]
    counts: tuple[int, ...] = ()
    """Of a bundle: the frames of each message in it."""


@dataclass(slots=True, eq=False)
class _Bundle:
    """Small messages that wait to go together."""

    frames: list[Buffer] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[Hashable] = field(default_factory=list)
    nbytes: int = 0


class Outbox:
    """What goes: small messages wait for each other until `flush`, and go as one; large ones at once.

    Attributes:
        backlog_nbytes: of what was put here and is not taken yet.
    """

    def __init__(self, talk: Conversation, shared: SharedFrames) -> None:
        self._talk, self._shared = talk, shared
        self._sent: dict[int, _Sent] = {}
        self._bundle = _Bundle()
        self.backlog_nbytes = 0

    def __len__(self) -> int:
        """How much was put here and is not taken yet, bundles counted once."""
        return len(self._sent) + bool(self._bundle.counts)

    def put(self, now_s: float, frames: Sequence[Buffer], token: Hashable | None, *, is_urgent: bool) -> bool:
        """Take a message; return whether there is something to be sent that need not wait for more.

        Small ones go in the urgent lane, as bundles, where nothing of the other lane waits that they would overtake.
        """
        kept = [_kept(frame) for frame in frames]
        sizes = [len(frame) for frame in kept]
        nbytes = sum(sizes)
        self.backlog_nbytes += nbytes
        if nbytes <= _BUNDLE_NBYTES and len(kept) <= MAX_CHUNKS and (is_urgent or self._talk.is_clear):
            return self._add(now_s, kept, sizes, nbytes, token)
        self.flush(now_s)
        places = self._shared.lodge(kept, now_s)
        number = self._talk.send(now_s, sizes, places, lane=1 if is_urgent else 0)
        self._sent[number] = _Sent(kept, nbytes, () if token is None else (token,))
        return True

    def flush(self, now_s: float) -> None:
        """Let what waits for more go."""
        bundle = self._bundle
        if bundle.counts:
            self._bundle = _Bundle()
            number = self._talk.send(now_s, bundle.sizes, lane=1)
            counts = tuple(bundle.counts) if len(bundle.counts) > 1 else ()
            self._sent[number] = _Sent(bundle.frames, bundle.nbytes, tuple(bundle.tokens), counts)

    def tell(self, now_s: float, encoded: bytes) -> None:
        """Take a message between the links themselves."""
        number = self._talk.send(now_s, [len(encoded)], lane=1, is_internal=True)
        self._sent[number] = _Sent([encoded], 0, ())

    def taken(self, numbers: list[int]) -> list[Hashable]:
        """Forget messages that have come; return the tokens that they were put here with."""
        tokens: list[Hashable] = []
        for number in numbers:
            sent = self._sent.pop(number)
            self.backlog_nbytes -= sent.nbytes
            tokens += sent.tokens
        return tokens

    def clear(self) -> None:
        """Forget all."""
        self._sent.clear()
        self._bundle = _Bundle()
        self.backlog_nbytes = 0

    def envelope(self, packet: Packet) -> list[Buffer]:
        """Return what goes on the wire for a packet."""
        talk, sent = self._talk, self._sent[packet.message]
        chunks: list[Buffer] = []
        for place in packet.chunks:
            frame = sent.frames[place.frame]
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
            tuple([chunk if isinstance(chunk, bytes) else bytes(chunk) for chunk in chunks]) if is_inline else (),
            sent.counts if packet.sizes else (),
        )
        return [encode_packet(data)] if is_inline else [encode_packet(data), *chunks]

    def _add(self, now_s: float, frames: list[Buffer], sizes: list[int], nbytes: int, token: Hashable | None) -> bool:
        bundle = self._bundle
        is_full = bundle.nbytes + nbytes > _BUNDLE_NBYTES or len(bundle.frames) + len(frames) > MAX_CHUNKS
        if is_full:
            self.flush(now_s)
            bundle = self._bundle
        bundle.frames += frames
        bundle.sizes += sizes
        bundle.counts.append(len(frames))
        bundle.nbytes += nbytes
        if token is not None:
            bundle.tokens.append(token)
        return is_full


@dataclass(slots=True, eq=False)
class _Assembly:
    """The frames of a message that is coming, as far as they are here: those that are not are numbers of bytes."""

    frames: list[Any]
    counts: tuple[int, ...]
    nbytes: int = 0
    """That have come."""


class Inbox:
    """What comes."""

    def __init__(self, shared: SharedFrames, pool: BufferPool) -> None:
        self._shared, self._pool = shared, pool
        self._assemblies: dict[int, _Assembly] = {}

    @property
    def nbytes(self) -> int:
        """That have come of messages which are not whole."""
        return sum(assembly.nbytes for assembly in self._assemblies.values())

    def take(self, step: Step, counts: tuple[int, ...], chunks: Sequence[Buffer]) -> list[list[Buffer]]:
        """Take what a packet brings; return the messages that have become whole.

        Raises:
            PeerError: it cannot be (`E_PROTOCOL`), or there is no memory for it (`E_TOO_LARGE`).
        """
        if step.begins is not None:
            self._begin(step, step.begins, counts)
        assembly = self._assemblies[step.lane]
        frames = assembly.frames
        for place, chunk in zip(step.chunks, chunks, strict=True):
            size = frames[place.frame]
            if isinstance(size, int):
                if place.stop == size:  # all of it at once: the reader gets the packet's own memory
                    frames[place.frame] = chunk
                    continue
                frames[place.frame] = self._memory(size)
            frames[place.frame][place.start : place.stop] = chunk
        if not step.is_whole:
            assembly.nbytes += sum(map(len, chunks))
            return []
        del self._assemblies[step.lane]
        whole = [b"" if isinstance(frame, int) else frame for frame in frames]
        return [whole] if not assembly.counts else _parted(whole, assembly.counts)

    def clear(self) -> None:
        """Forget all."""
        self._assemblies.clear()

    def _begin(self, step: Step, sizes: tuple[int, ...], counts: tuple[int, ...]) -> None:
        if counts and (sum(counts) != len(sizes) or min(counts) < 1 or step.is_internal):
            raise PeerError("a bundle's messages are not those that came", code="E_PROTOCOL")
        frames: list[Any] = list(sizes)
        for index, offset in step.places:
            frames[index] = self._shared.view(offset, sizes[index])
        self._assemblies[step.lane] = _Assembly(frames, counts)

    def _memory(self, nbytes: int) -> memoryview:
        try:
            return self._pool.take(nbytes)
        except MemoryError as error:
            raise PeerError(f"there is no memory for a frame of {nbytes} bytes", code="E_TOO_LARGE") from error


def _parted(frames: list[Buffer], counts: tuple[int, ...]) -> list[list[Buffer]]:
    parted, begin = [], 0
    for count in counts:
        parted.append(frames[begin : begin + count])
        begin += count
    return parted


def _kept(frame: Buffer) -> Buffer:
    """Return a frame as bytes in a row; a small one as a copy."""
    if isinstance(frame, bytes):
        return frame
    view = memoryview(frame)
    if view.nbytes <= _COPY_NBYTES:
        return view.tobytes()
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")
