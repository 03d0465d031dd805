"""What a node's state machine is told, and what it answers: names and byte counts, never arrays.

A run, a sending and a partition's digest tell apart what else would have one name: numbers of runs and sendings are
never used twice, not even after another manager has begun to count its requests anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyps.core.residency import Task
from hyps.formats.node_messages import Beat, Course, Drain, Finished, ItemFailed, Started


@dataclass(frozen=True, slots=True)
class Share:
    """A partition that a node is to run."""

    task: Task
    digest: str = ""
    """Over its files: a partition of the same id and another digest is another partition."""


# Events.


@dataclass(frozen=True, slots=True)
class ManagerFound:
    """The manager has taken the node in; its numbers of setups and requests begin anew."""

    beat_s: float
    """How often it wants to hear of the node."""


@dataclass(frozen=True, slots=True)
class ManagerLost:
    """The link to the manager is gone: it begins anew what was under way here."""


@dataclass(frozen=True, slots=True)
class SetUp:
    """All that the node has to do from now on; one with a lower number than the latest is ignored."""

    number: int
    shares: tuple[Share, ...] = ()
    """In an order in which they can run."""
    courses: tuple[Course, ...] = ()
    inputs: tuple[str, ...] = ()
    """Tensors that others make for these partitions."""
    outputs: tuple[str, ...] = ()
    """Tensors that others need of them."""
    nbytes: Mapping[str, int] = field(default_factory=dict)
    """Of the tensors whose size is known."""


@dataclass(frozen=True, slots=True)
class TensorHere:
    """A tensor has come from another process; it is to be stored only where `Keep` says so."""

    request: int
    epoch: int
    course: int
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Obtained:
    """An `Obtain` is done: the partition's files are here, whole and unaltered."""

    partition: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class NotObtained:
    """An `Obtain` failed for good."""

    partition: str
    reason: str
    digest: str = ""
    code: str = "E_MISSING"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Load` is done."""

    partition: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A `Load` failed: what needs the partition fails."""

    partition: str
    reason: str
    digest: str = ""
    code: str = "E_PLAN"


@dataclass(frozen=True, slots=True)
class Executed:
    """An `Execute` is done; its tensors are to be stored only where `Keep` says so."""

    run: int
    tensors: tuple[tuple[str, int], ...]
    """Name and bytes of each."""
    seconds: float
    """That it took, as the thread that computes tells."""


@dataclass(frozen=True, slots=True)
class ExecuteFailed:
    """An `Execute` has no result."""

    run: int
    code: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The other process has all of what a `Send` sent."""

    sending: int


@dataclass(frozen=True, slots=True)
class Retired:
    """A request has ended or begins anew: nothing of it up to this epoch is wanted any more."""

    request: int
    epoch: int


@dataclass(frozen=True, slots=True)
class NeighbourLost:
    """A device cannot be reached: what was sent to it and not delivered may be lost."""

    device: str


@dataclass(frozen=True, slots=True)
class NeighbourBack:
    """A device can be reached again."""

    device: str


@dataclass(frozen=True, slots=True)
class ToldToDrain:
    """The node's operator wants it to leave when its work is done."""


@dataclass(frozen=True, slots=True)
class AllowedToLeave:
    """The manager needs the node no more."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


NodeEvent = (
    ManagerFound
    | ManagerLost
    | SetUp
    | TensorHere
    | Obtained
    | NotObtained
    | Loaded
    | LoadFailed
    | Executed
    | ExecuteFailed
    | Delivered
    | Retired
    | NeighbourLost
    | NeighbourBack
    | ToldToDrain
    | AllowedToLeave
    | Ticked
)


# Instructions.


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the tensor that the event was about."""

    request: int
    epoch: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a stored tensor; what computes or sends it goes on."""

    request: int
    epoch: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Obtain:
    """Get the partition's files, then tell `Obtained` or `NotObtained`."""

    partition: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Open the partition's session, then tell `Loaded` or `LoadFailed`; one `Load` is out at a time."""

    partition: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Unload:
    """Close the partition's session; a run of it that is under way goes on."""

    partition: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Execute:
    """Run the partition on the request's stored tensors, then tell `Executed` or `ExecuteFailed`."""

    run: int
    request: int
    epoch: int
    partition: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stored tensor to a device (`HUB`: the manager's hub), then tell `Delivered`."""

    sending: int
    request: int
    epoch: int
    course: int
    tensor: str
    device: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the manager; in a `Beat` the shell fills in what only it knows."""

    message: Started | Finished | ItemFailed | Beat | Drain


@dataclass(frozen=True, slots=True)
class Leave:
    """The node's work is over: say goodbye, and end."""


NodeInstruction = Keep | Forget | Obtain | Load | Unload | Execute | Send | Tell | Leave
