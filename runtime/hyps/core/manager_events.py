"""What the manager's state machine is told, and what it answers: names and byte counts, never arrays.

Peers are known by the numbers of their links, never by what they call themselves. A client's request has a number; so
has a piece of work, which is what devices are given: the same number for one request alone, another for a batch.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from hyps.formats.node_messages import (
    Beat,
    Drain,
    Finished,
    Goodbye,
    ItemFailed,
    Join,
    Joined,
    Retire,
    Setup,
    Started,
)
from hyps.formats.replanning import Question, Reply

# Events.


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client brings a request; its tensors, checked against the model's inputs, are kept if `Keep` says so.

    A second one of the same name, while the first is at work, is ignored.
    """

    client: int
    name: str
    """The client's own for it."""
    tensors: tuple[tuple[str, int], ...]
    """Name and bytes of each."""
    outputs: tuple[str, ...] = ()
    """Those wanted; empty: all."""
    timeout_s: float | None = None
    batch: Hashable | None = None
    """Equal for requests that can be computed together; None: it cannot."""
    rows: int = 1
    """Of its leading dimension, where it can be computed with others."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """For a group: the manager above has it begin a request, whose inputs come one by one; `Keep` keeps those here."""

    number: int
    """Of the request and its work; the group chooses it, rising."""
    partitions: frozenset[str]
    """Those that are to run here; what others make comes as inputs do."""
    outputs: tuple[str, ...]
    """Tensors that are wanted above: each is told of with `Emit`."""
    tensors: tuple[tuple[str, int], ...] = ()
    """Name and bytes of those that are here."""


@dataclass(frozen=True, slots=True)
class Added:
    """For a group: one more tensor of a relayed request is here, which is kept if `Store` says so."""

    number: int
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """For a group: nothing more of a relayed request is wanted above."""

    number: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A client waits no more for a request."""

    client: int
    name: str


@dataclass(frozen=True, slots=True)
class AnswerTaken:
    """A client's process has all of an answer."""

    request: int


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """Somebody wants to be a node; its token, version and CPU have been checked."""

    link: int
    join: Join


@dataclass(frozen=True, slots=True)
class NodeTold:
    """A node tells of its work or of itself."""

    link: int
    message: Started | Finished | ItemFailed | Beat | Drain | Goodbye


@dataclass(frozen=True, slots=True)
class TensorCame:
    """A node sent a tensor, which has been checked against the plan and is kept if `Store` says so."""

    link: int
    work: int
    epoch: int
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorTaken:
    """A node's process has all of a tensor that `Send` sent."""

    link: int
    work: int
    epoch: int
    tensor: str


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A client's or a node's process is gone, or silent for too long."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replied:
    """The search for a placement is over."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class ToldToLeave:
    """The operator wants the manager to end: what was accepted is finished, nothing more is taken."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; due at `ManagerState.wake_at_s` at the latest."""


ManagerEvent = (
    Submitted
    | Relayed
    | Added
    | Dropped
    | Cancelled
    | AnswerTaken
    | NodeJoined
    | NodeTold
    | TensorCame
    | TensorTaken
    | LinkLost
    | Replied
    | ToldToLeave
    | Ticked
)


# Instructions.


@dataclass(frozen=True, slots=True)
class Keep:
    """The request that the event brought is accepted: keep its tensors as those of `request`."""

    request: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Make the inputs of a piece of work from those of several requests, one after another; theirs stay."""

    work: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """Keep the tensor that the event was about, as one of `work`."""

    work: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stored tensor to a node, then tell `TensorTaken`."""

    link: int
    work: int
    epoch: int
    course: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a stored tensor of a request or of work; what sends it goes on."""

    work: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to a node."""

    link: int
    message: Joined | Setup | Retire | Drain | Goodbye


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell a peer that it cannot be a node."""

    link: int
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the link to a peer: it is silent, stuck or does not read; nothing of it counts from now on."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Send a client the outputs of its request, then tell `AnswerTaken`."""

    client: int
    name: str
    request: int
    work: int
    """Whose stored tensors they are."""
    outputs: tuple[str, ...]
    rows: tuple[int, int, int] | None = None
    """Which rows of them: first, past the last, and of how many in all; None: all there are."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell a client that its request has no answer, or is not accepted."""

    client: int
    name: str
    code: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Emit:
    """For a group: a stored tensor is wanted above."""

    number: int
    tensor: str


@dataclass(frozen=True, slots=True)
class PassOn:
    """For a group: tell the manager above of a work item, whose request has a number of here."""

    message: Started | Finished | ItemFailed


@dataclass(frozen=True, slots=True)
class Ended:
    """For a group: a relayed request is over, all of it told of; with a code: it failed."""

    number: int
    code: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Begin the search for a placement, then tell `Replied`; an earlier question that is not answered is void."""

    question: Question


@dataclass(frozen=True, slots=True)
class Leave:
    """Everything is done and said: end once it was taken."""


ManagerInstruction = (
    Keep
    | Merge
    | Store
    | Send
    | Drop
    | Tell
    | Reject
    | Disconnect
    | Answer
    | Fail
    | Emit
    | PassOn
    | Ended
    | Ask
    | Leave
)
