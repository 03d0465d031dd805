"""What a manager and its nodes say to each other, and nodes among themselves; tensors beside it in frames of their own.

A node is a worker that joined a manager, or a manager that joined one above it. Requests have numbers of the manager's
here; a work item is (request, epoch, partition): the epoch rises when a request is begun anew.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hyps.errors import PeerError, printable
from hyps.formats.messages import Failed, MachineFacts, Name, Size, TensorHeader
from hyps.formats.plan import Plan

NODE_PROTOCOL_VERSION = 1
"""Rises only when an older peer would go wrong; new fields come at the end, with defaults."""

MAX_SETUP_NBYTES = 16 * 2**20
"""Of a message without its tensors, between peers that know each other."""

MAX_FROM_NODE_NBYTES = 4 * 2**20
"""The same of what a node says, which tells of no plan."""

MAX_PIECE_NBYTES = 4 * 2**20
"""Of one piece of a file."""

HUB = ""
"""The hub's name where devices are named: it is reached over the way to the manager."""

MAX_NAMES = 65536
"""Partitions that one message tells of; a plan has fewer."""

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""Of at most thirty years: what is infinite, or no number, would spoil every mean and rate that it is counted in."""

Sha256 = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]*$")]


class Join(Struct, frozen=True, array_like=True, tag="join"):
    """A node's first message to its manager."""

    version: int
    device: Name
    """What it is called in clusters and plans."""
    token: Name
    """What the manager's operator gave it; empty: nothing."""
    facts: MachineFacts
    cpu_family: Name
    """Which CPUs' layouts it can run (`Plan.cpu_family`)."""
    endpoints: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    """Where other nodes reach it, the best first; empty: its tensors go over the hub."""
    host: Name = ""
    """The same for nodes that share a machine and its network, which then need no network between them."""
    is_group: bool = False
    """Whether it is the manager of nodes below it, and computes several requests at once."""
    max_requests: Annotated[int, Meta(ge=1, le=4096)] = 1
    """What it can have at work at once."""


class Joined(Struct, frozen=True, array_like=True, tag="joined"):
    """The manager's answer to `Join`."""

    version: int
    model: Name
    beat_s: Annotated[float, Meta(ge=0.001, le=3600)]
    """How often it wants to hear `Beat`; silence of some beats is a loss."""
    wants_spans: bool = False
    """Whether the node shall trace what it does and tell `Spans`."""


class Route(Struct, frozen=True, array_like=True):
    """Where a tensor that a node makes is wanted."""

    tensor: Name
    devices: tuple[Name, ...]
    """`HUB`: the hub. The node itself is not named."""


class Course(Struct, frozen=True, array_like=True):
    """One way of requests through the devices, as one node sees it. A request keeps its course."""

    id: Size
    partitions: tuple[Name, ...]
    """Those the node runs on this course, in an order in which they can run."""
    routes: tuple[Route, ...]


class Neighbour(Struct, frozen=True, array_like=True):
    """Another node that tensors come from or go to."""

    device: Name
    secret: Name
    """Known to these two and the manager alone; each direction has its own."""
    endpoints: tuple[Name, ...] = ()
    """Where it is reached, the best first; empty where it only comes to us."""


class Setup(Struct, frozen=True, array_like=True, tag="setup"):
    """All that a node has to do from now on; it replaces what was said before. Sent again until `Beat` confirms it."""

    number: Size
    """Rises with every change."""
    plan: Plan | None
    """Of the node's own partitions alone (`sub_plan`); None: it has none."""
    courses: tuple[Course, ...] = ()
    targets: tuple[Neighbour, ...] = ()
    """Whom it sends to."""
    sources: tuple[Neighbour, ...] = ()
    """Who may send to it."""


class Tensor(Struct, frozen=True, array_like=True, tag="tensor"):
    """A tensor of a request on its way; its bytes follow in one frame."""

    request: Size
    epoch: Size
    course: Size
    header: TensorHeader


class Greet(Struct, frozen=True, array_like=True, tag="greet"):
    """A node's first message to another: who it is, and the secret the manager gave it for this way."""

    version: int
    device: Name
    secret: Name


class Retire(Struct, frozen=True, array_like=True, tag="retire"):
    """Requests that have ended or begin anew: forget what there is of each up to its epoch, and take no more of it."""

    requests: Annotated[tuple[tuple[Size, Size], ...], Meta(max_length=4096)]
    """Number and epoch of each."""


class Started(Struct, frozen=True, array_like=True, tag="started"):
    """Progress: the thread that computes has begun a work item."""

    request: Size
    epoch: Size
    partition: Name


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """Progress: a work item is done and its tensors are on their way."""

    request: Size
    epoch: Size
    partition: Name
    waited_s: Seconds
    """From when its last input was here until it began."""
    run_s: Seconds
    nbytes: Annotated[int, Meta(ge=0, le=2**48)]
    """Of the tensors it made."""


class ItemFailed(Struct, frozen=True, array_like=True, tag="item-failed"):
    """A work item has no result, and would have none if it were tried again here."""

    request: Size
    epoch: Size
    partition: Name
    code: Name
    message: Name
    hint: Name = ""


class Running(Struct, frozen=True, array_like=True):
    """What a node computes now."""

    request: Size
    epoch: Size
    partition: Name
    elapsed_s: Seconds


class Sending(Struct, frozen=True, array_like=True):
    """A message that another node, or the hub, has taken: what the way there can do."""

    device: Name
    """`HUB`: the hub."""
    nbytes: Size
    behind_nbytes: Size
    """Of what had been sent there before and was not taken yet when it was sent."""
    seconds: Seconds
    """From when it was sent until it was known to be taken."""


class Beat(Struct, frozen=True, array_like=True, tag="beat"):
    """How a node is; also its sign of life. Told at every beat and when something in it has changed."""

    setup: Size
    """The latest `Setup` it follows; 0: none yet."""
    loaded: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)]
    """Partitions that can run at once, or when their turn comes."""
    refused: Annotated[tuple[tuple[Name, Name], ...], Meta(max_length=MAX_NAMES)] = ()
    """Partitions that cannot be loaded here, and why."""
    running: Annotated[tuple[Running, ...], Meta(max_length=4096)] = ()
    """As the thread that computes tells, not the one that sends this."""
    waiting: Size = 0
    """Work items whose inputs are all here."""
    held_nbytes: Size = 0
    """Of tensors that are here."""
    resident_nbytes: Size = 0
    """Of the whole process; 0: unknown."""
    unreachable: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    """Devices that it should send to and cannot reach."""
    clock_s: float = 0.0
    """Its monotonic clock, for traces."""
    sendings: Annotated[tuple[Sending, ...], Meta(max_length=256)] = ()
    """What has arrived at others since the last beat; some of them are enough."""
    facts: MachineFacts | None = None
    """Of a group, whose nodes come and go: what it can do now. None: as it said when it joined."""
    max_requests: Annotated[int, Meta(ge=0, le=4096)] = 0
    """The same of what it can have at work at once; 0: as it said."""


class Fetch(Struct, frozen=True, array_like=True, tag="fetch"):
    """A node wants a piece of one of its partitions' files."""

    sha256: Sha256
    offset: Size
    nbytes: Annotated[int, Meta(ge=1, le=MAX_PIECE_NBYTES)]


class Piece(Struct, frozen=True, array_like=True, tag="piece"):
    """The answer to `Fetch`; its bytes follow in one frame."""

    sha256: Sha256
    offset: Size
    total_nbytes: Size
    """Of the whole file."""


class Span(Struct, frozen=True, array_like=True):
    """Something that took time at a node."""

    request: Size
    kind: Name
    """`queue`, `compute`, `send` or `load`."""
    name: Name
    """A partition or a tensor."""
    start_s: float
    """On the node's monotonic clock."""
    end_s: float
    peer: Name = HUB
    """For `send`: to whom."""
    nbytes: Size = 0


class Echo(Struct, frozen=True, array_like=True, tag="echo"):
    """The manager measures the way to a node: any bytes follow in one frame, and as many come back as it says."""

    number: Size
    nbytes: Annotated[int, Meta(ge=0, le=MAX_PIECE_NBYTES)]
    """Of the frame that is to come back."""


class Echoed(Struct, frozen=True, array_like=True, tag="echoed"):
    """The answer to `Echo`; as many bytes as it wanted follow in one frame."""

    number: Size


class Spans(Struct, frozen=True, array_like=True, tag="spans"):
    """What a node traced, where the manager wants traces."""

    spans: Annotated[tuple[Span, ...], Meta(max_length=4096)]


class GroupReport(Struct, frozen=True, array_like=True, tag="group-report"):
    """How a group fares, told every few beats for those who watch above it; a `formats.status.Report` in one frame."""


class Drain(Struct, frozen=True, array_like=True, tag="drain"):
    """Node to manager: place nothing more here, I leave when my work is done. Manager to node: you may go."""


class Goodbye(Struct, frozen=True, array_like=True, tag="goodbye"):
    """The sender leaves now."""


FromNode = (
    Join
    | Greet
    | Tensor
    | Started
    | Finished
    | ItemFailed
    | Beat
    | Fetch
    | Echoed
    | Spans
    | GroupReport
    | Drain
    | Goodbye
)
"""What a node says, to its manager or to another node (`Greet` and `Tensor` alone)."""

FromManager = Joined | Setup | Tensor | Retire | Piece | Echo | Drain | Goodbye | Failed
"""What a manager says to a node; `Failed` refuses the latest `Join`, `Fetch` or message that could not be read."""

_ENCODER = msgspec.msgpack.Encoder()
_FROM_NODE: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)
_FROM_MANAGER: msgspec.msgpack.Decoder[FromManager] = msgspec.msgpack.Decoder(FromManager)


def encode_node_message(message: FromNode | FromManager) -> bytes:
    """Return the bytes of a message without its tensors."""
    return _ENCODER.encode(message)


def decode_from_node(data: bytes | memoryview) -> FromNode:
    """Return what a node said.

    Raises:
        PeerError: it is no message (`E_PROTOCOL`).
    """
    _check_nbytes(data, MAX_FROM_NODE_NBYTES)
    try:
        return _FROM_NODE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_message(error) from error


def decode_from_manager(data: bytes | memoryview) -> FromManager:
    """Return what a manager said.

    Raises:
        PeerError: it is no message (`E_PROTOCOL`).
    """
    _check_nbytes(data, MAX_SETUP_NBYTES)
    try:
        return _FROM_MANAGER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_message(error) from error


def _check_nbytes(data: bytes | memoryview, most_nbytes: int) -> None:
    if len(data) > most_nbytes:
        raise PeerError(f"a message has {len(data)} bytes, more than {most_nbytes}", code="E_PROTOCOL")


def _no_message(error: Exception) -> PeerError:
    return PeerError(f"not a message of HyPS: {printable(str(error))}", code="E_PROTOCOL")
