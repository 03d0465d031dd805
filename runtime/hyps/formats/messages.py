"""What client and worker say to each other: one tagged union, in msgpack, tensors beside it in frames of their own."""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from hyps.errors import PeerError, printable
from hyps.formats.plan import NamedTensor

PROTOCOL_VERSION = 2
"""Rises only when an older peer would go wrong; new fields come at the end, with defaults."""

MAX_HEADER_NBYTES = 256 * 1024
"""Of a message without its tensors."""

MAX_PROBE_NBYTES = 4 * 2**20
"""Of what a probe may have sent back; a worker that takes smaller messages only sends smaller ones."""

Name = Annotated[str, Meta(max_length=16384)]
Size = Annotated[int, Meta(ge=0, le=2**62)]
RequestId = Annotated[str, Meta(max_length=64)]
_T = TypeVar("_T")


class TensorHeader(Struct, frozen=True, array_like=True):
    """A tensor whose bytes follow in a frame of their own; strings are UTF-8, each behind its length."""

    name: Name
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Size, ...], Meta(max_length=32)]
    nbytes: Size


Headers = Annotated[tuple[TensorHeader, ...], Meta(max_length=4096)]


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """A client's first message."""

    version: int
    producer: Name = ""


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """The worker's answer to `Hello`: what it computes."""

    version: int
    device: Name
    model: Name
    sha256: Name
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[NamedTensor, ...]
    max_nbytes: Size
    """Of one tensor; a larger one would cut the connection."""
    producer: Name = ""


class Submit(Struct, frozen=True, array_like=True, tag="submit"):
    """One request; its tensors follow."""

    request: RequestId
    tensors: Headers
    outputs: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    """The outputs wanted; empty: all."""
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    """From when it is heard: the request fails when it has no answer by then; None: as long as it takes."""


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """The request is kept and will be answered, or fail with a reason."""

    request: RequestId


class Done(Struct, frozen=True, array_like=True, tag="done"):
    """The request's outputs; its tensors follow."""

    request: RequestId
    tensors: Headers


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """The request, or what could not be read as one, has no answer."""

    request: RequestId
    """Empty: the message could not be read so far."""
    code: Name
    message: Name
    hint: Name = ""
    retry_after_s: float | None = None
    """With `E_BUSY`: when the same request may be sent again."""


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Nobody waits for the request any more."""

    request: RequestId


class Heartbeat(Struct, frozen=True, array_like=True, tag="heartbeat"):
    """Are you there? The answer is the same."""


class Probe(Struct, frozen=True, array_like=True, tag="probe"):
    """A client measures the way here: any bytes follow in one frame, and as many are wanted back as it says."""

    request: RequestId
    nbytes: Annotated[int, Meta(ge=0, le=MAX_PROBE_NBYTES)] = 0
    """Of the frame that is to come back."""
    wants_seconds: bool = False
    """Whether the answer shall tell what the worker's partitions took, and what its machine can do."""


class PartitionSeconds(Struct, frozen=True, array_like=True):
    """What a worker's partition took of late."""

    partition: Name
    median_s: float
    p95_s: float
    n: Size


class MachineFacts(Struct, frozen=True, array_like=True):
    """What a worker's machine can do."""

    memory_bytes: Size | None
    """Its budget; None: it has no limit."""
    threads: Size
    macs_per_s: Annotated[float, Meta(ge=0, le=1e18)]
    """Multiply-accumulates per second of a matrix product with these threads."""


class Probed(Struct, frozen=True, array_like=True, tag="probed"):
    """The answer to `Probe`; as many bytes as it wanted follow in one frame."""

    request: RequestId
    seconds: Annotated[tuple[PartitionSeconds, ...], Meta(max_length=4096)] = ()
    machine: MachineFacts | None = None
    """With `seconds`."""


class AskStatus(Struct, frozen=True, array_like=True, tag="ask-status"):
    """How is it? For whoever watches; it needs no `Hello`."""

    request: RequestId
    levels: Annotated[int, Meta(ge=1, le=8)] = 8
    """Of groups within groups that the answer shall show."""


class Status(Struct, frozen=True, array_like=True, tag="status"):
    """The answer to `AskStatus`; a `formats.status.Report` follows in one frame."""

    request: RequestId


FromClient = Hello | Submit | Cancel | Heartbeat | Probe | AskStatus
FromWorker = Welcome | Accepted | Done | Failed | Heartbeat | Probed | Status

_ENCODER = msgspec.msgpack.Encoder()
_FROM_CLIENT: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: FromClient | FromWorker) -> bytes:
    """Return the bytes of a message without its tensors."""
    return _ENCODER.encode(message)


def decode_from_client(data: bytes | memoryview) -> FromClient:
    """Return what a client said.

    Raises:
        PeerError: it is no message (`E_PROTOCOL`).
    """
    return _decode(_FROM_CLIENT, data)


def decode_from_worker(data: bytes | memoryview) -> FromWorker:
    """Return what a worker said.

    Raises:
        PeerError: it is no message (`E_PROTOCOL`).
    """
    return _decode(_FROM_WORKER, data)


def _decode(decoder: "msgspec.msgpack.Decoder[_T]", data: bytes | memoryview) -> _T:
    if len(data) > MAX_HEADER_NBYTES:
        raise PeerError(f"a message has {len(data)} bytes, more than {MAX_HEADER_NBYTES}", code="E_PROTOCOL")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a message of HyPS: {printable(str(error))}", code="E_PROTOCOL") from error
