"""What the two ends of a link put on the wire: envelopes in msgpack, in front of the pieces of messages.

A link survives its connections. Its token is given by the side that was connected to; who has it speaks for the link.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from hyps.errors import PeerError, printable

LINK_VERSION = 2
"""Rises only when an older peer would go wrong; new fields come at the end, with defaults."""

MAX_FRAMES = 4100
"""Of one message."""

MAX_PIECE_NBYTES = 2**20
"""Of one message's bytes in one packet."""

MAX_CHUNKS = 64
"""Frames, or parts of frames, in one packet."""

MAX_INLINE_NBYTES = 8 * 1024
"""Of a packet's bytes that go within its envelope."""

MAX_ENVELOPE_NBYTES = 128 * 1024

Token = Annotated[bytes, Meta(max_length=16)]
Bytes = Annotated[bytes, Meta(max_length=MAX_INLINE_NBYTES)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Text = Annotated[str, Meta(max_length=1000)]
_T = TypeVar("_T")


class Open(Struct, frozen=True, array_like=True, tag=0):
    """First on every connection, by who connected: a new link, or one whose connection broke."""

    version: int
    token: Token = b""
    """Empty: a new link."""
    heard: Count = 0
    """All packets up to this one have come."""
    granted: Count = 0


class Opened(Struct, frozen=True, array_like=True, tag=1):
    """The answer to `Open`."""

    version: int
    token: Token
    heard: Count
    granted: Count


class Data(Struct, frozen=True, array_like=True, tag=2):
    """A packet with bytes of one message; they follow, each frame or part of a frame of the message in its own."""

    token: Token
    sequence: Annotated[int, Meta(ge=1, le=2**62)]
    heard: Count
    granted: Count
    """Bytes, from the beginning of the link on, that the other side may send."""
    lane: Annotated[int, Meta(ge=0, le=1)] = 0
    """Messages of a lane come in order; those of lane 1 overtake those of lane 0."""
    sizes: Annotated[tuple[Count, ...], Meta(max_length=MAX_FRAMES)] = ()
    """With the first packet of a message: the bytes of its frames."""
    places: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=MAX_FRAMES)] = ()
    """Frames whose bytes lie in the receiver's shared memory: index and offset."""
    is_internal: bool = False
    """With the first packet of a message: it is between the links themselves."""
    inline: Annotated[tuple[Bytes, ...], Meta(max_length=MAX_CHUNKS)] = ()
    """The bytes themselves where they are few: none follow then."""
    counts: Annotated[tuple[Annotated[int, Meta(ge=1, le=MAX_CHUNKS)], ...], Meta(max_length=MAX_CHUNKS)] = ()
    """With the first packet of a bundle: how many frames each of the small messages has that go as one."""


class Heard(Struct, frozen=True, array_like=True, tag=3):
    """What has come and may come, where there is no packet to tell it with."""

    token: Token
    heard: Count
    granted: Count
    is_gap: bool = False
    """Whether a packet came whose predecessor did not: all after `heard` is wanted again."""


class Gone(Struct, frozen=True, array_like=True, tag=4):
    """The link ends, or there is none of that token."""

    token: Token
    reason: Text


Packet = Open | Opened | Data | Heard | Gone


class Offer(Struct, frozen=True, array_like=True, tag=0):
    """Shared memory that the other side may put frames into (inside an internal message)."""

    process: Annotated[int, Meta(ge=1, le=2**31)]
    descriptor: Annotated[int, Meta(ge=0, le=2**31)]
    nbytes: Annotated[int, Meta(ge=1, le=2**40)]
    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """What lies at its beginning."""


class Freed(Struct, frozen=True, array_like=True, tag=1):
    """Blocks of shared memory that are used no more, by their offsets (inside an internal message)."""

    offsets: Annotated[tuple[Count, ...], Meta(max_length=65536)]


class Mapped(Struct, frozen=True, array_like=True, tag=2):
    """The answer to `Offer`: whether it could be opened."""

    is_usable: bool


Internal = Offer | Freed | Mapped

_ENCODER = msgspec.msgpack.Encoder()
_PACKET: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)
_INTERNAL: msgspec.msgpack.Decoder[Internal] = msgspec.msgpack.Decoder(Internal)

encode_packet = _ENCODER.encode
"""Return the bytes of an envelope or of an internal message."""


def decode_packet(data: bytes | memoryview) -> Packet:
    """Return what an envelope says.

    Raises:
        PeerError: it is none (`E_PROTOCOL`).
    """
    return _decode(_PACKET, data)


def decode_internal(data: bytes | memoryview) -> Internal:
    """Return what an internal message says.

    Raises:
        PeerError: it is none (`E_PROTOCOL`).
    """
    return _decode(_INTERNAL, data)


def _decode(decoder: "msgspec.msgpack.Decoder[_T]", data: bytes | memoryview) -> _T:
    if len(data) > MAX_ENVELOPE_NBYTES:
        raise PeerError(f"an envelope has {len(data)} bytes, more than {MAX_ENVELOPE_NBYTES}", code="E_PROTOCOL")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not an envelope of HyPS: {printable(str(error))}", code="E_PROTOCOL") from error
