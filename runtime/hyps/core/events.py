"""What the worker's state machine is told, and what it answers: names and byte counts, never arrays."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request exists; its tensors arrive on their own. After it has finished, the same name is a new request."""

    request: str
    outputs: tuple[str, ...] | None = None
    """The outputs wanted, and so only the partitions they need; None: all outputs and all partitions."""


@dataclass(frozen=True, slots=True)
class TensorArrived:
    """A tensor of a request is here; a second of the same name is ignored."""

    request: str
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Load` is done."""

    partition: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A `Load` failed: every request at work that needs the partition fails."""

    partition: str
    reason: str


@dataclass(frozen=True, slots=True)
class Executed:
    """An `Execute` is done and its tensors are here."""

    request: str
    partition: str
    tensors: tuple[tuple[str, int], ...]
    """Name and bytes of each."""


@dataclass(frozen=True, slots=True)
class ExecuteFailed:
    """An `Execute` failed: its request fails."""

    request: str
    partition: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants the request's answer any more."""

    request: str


Event = Submitted | TensorArrived | Loaded | LoadFailed | Executed | ExecuteFailed | Cancelled


@dataclass(frozen=True, slots=True)
class Load:
    """Open the partition's session, then tell `Loaded` or `LoadFailed`."""

    partition: str


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Begin to load the partition beside what follows; `Load` comes for it, or `Unload` where nothing needs it."""

    partition: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Close the partition's session and give its memory back."""

    partition: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Run the partition on the request's tensors, then tell `Executed` or `ExecuteFailed`."""

    request: str
    partition: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a tensor of a request."""

    request: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Every output that the request wants is here: answer it. The drops follow."""

    request: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The request ends without an answer."""

    request: str
    reason: str


Instruction = Load | ReadAhead | Unload | Execute | Drop | Reply | Fail
