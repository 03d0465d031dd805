"""What a group's state machine is told and answers beside what every node's is (`node_events`): of the manager below.

A request that the manager above began has its number and epoch; below it has a number that the group chose, and another
one whenever the manager below is replaced.
"""

from dataclasses import dataclass

from hyps.core.manager_events import Ended, PassOn
from hyps.core.node_events import Forget, Keep, Leave, NodeEvent, Obtain, Send, Tell
from hyps.formats.messages import MachineFacts

# Events.


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that is wanted above has been made below; it is to be stored only where `Keep` says so."""

    below: int
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StandsBelow:
    """How the nodes below fare, whenever that changes."""

    is_ready: bool
    """Whether every partition can run, on one way through them at least."""
    refusal: str = ""
    """Why they will not be able to; empty: they can, or may be soon."""
    facts: MachineFacts | None = None
    """What they can do together; None: nobody knows yet."""
    max_requests: int = 1
    """That they can have at work at once."""


GroupEvent = NodeEvent | Made | PassOn | Ended | StandsBelow
"""`PassOn` and `Ended` are what the manager below says. What only concerns sessions and runs never happens here."""


# Instructions.


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Replace the manager below by one for the partitions of the latest setup; its requests end without a word."""

    keep: tuple[str, ...]
    """Tensors between the partitions that are wanted above as well."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Have the manager below begin a request, with its stored tensors."""

    below: int
    request: int
    epoch: int
    partitions: frozenset[str]
    outputs: tuple[str, ...]
    tensors: tuple[tuple[str, int], ...]
    """Name and bytes of each."""


@dataclass(frozen=True, slots=True)
class Bring:
    """Give the manager below one more stored tensor of a request."""

    below: int
    request: int
    epoch: int
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Have the manager below forget a request."""

    below: int


GroupInstruction = Keep | Forget | Obtain | Send | Tell | Leave | Rebuild | Begin | Bring | Abandon
