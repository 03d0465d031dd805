"""What a client's state machine is told, and what it answers: numbers of requests, never their tensors."""

from dataclasses import dataclass

from hyps.errors import HypsError


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody waits for the connection itself: `Reached` or `Unreachable` tells."""


@dataclass(frozen=True, slots=True)
class Asked:
    """There is a request; its number is above those before."""

    request: int
    timeout_s: float | None = None
    """From now: how long the caller waits for its answer; None: as long as it takes."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The caller does not want the request's answer any more; nothing is told to it."""

    request: int


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """Somebody is there."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link is gone, and with it what was under way on it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Greeted:
    """The peer said what it serves, and it is what we want."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """The peer is not what we want, or says what makes no sense: nothing more is heard on this link."""

    error: HypsError


@dataclass(frozen=True, slots=True)
class Arrived:
    """The peer's process has all of the request."""

    request: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The peer promised to answer the request."""

    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer has no room for the request now."""

    request: int
    retry_after_s: float
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The request's answer came, or what it failed with."""

    request: int


@dataclass(frozen=True, slots=True)
class Tick:
    """It is later: `due_s` tells when this is wanted."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The caller ends the connection."""


ClientEvent = (
    Wanted
    | Asked
    | GivenUp
    | LinkOpened
    | LinkLost
    | Greeted
    | Unfit
    | Arrived
    | Kept
    | Refused
    | Ended
    | Tick
    | Closed
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin a link, then tell `LinkOpened`, `LinkLost` or `Unfit`."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Drop the link, if it is still there, and tell nothing of it any more."""


@dataclass(frozen=True, slots=True)
class Greet:
    """Say hello, then tell `Greeted` or `Unfit`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request, with what is left of its time."""

    request: int
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the peer that nobody waits for the request any more."""

    request: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Ask whether the peer is there: a link on which nothing is said does not notice that it is silent."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand what came to the caller; the request is over."""

    request: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the caller that there is no answer; the request is over."""

    request: int
    error: HypsError


@dataclass(frozen=True, slots=True)
class Reached:
    """Tell those who wait for the connection that it is there."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Tell those who wait for the connection that there is none."""

    error: HypsError


ClientInstruction = Connect | Disconnect | Greet | Send | Withdraw | Beat | Deliver | Fail | Reached | Unreachable
