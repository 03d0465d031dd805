"""Links between processes: whole messages, each delivered once and in order, or the link is lost and says so.

One `Links` per process serves all its peers, those that came to it and those it went to, and belongs to one thread.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from hyps.formats.packets import MAX_FRAMES

__all__ = ["MAX_FRAMES", "Buffer", "Heard", "LinkEvent", "Links", "Lost", "Opened", "Taken"]

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer is there and speaks our language; what was sent before is on its way."""

    link: int
    came_to_us: bool
    """Whether it connected to an address of ours; else we to one of its."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came, whole: its first frame and the others, on memory that is ours to keep."""

    link: int
    frames: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class Taken:
    """The peer's process has all of a message that was sent with this token; its buffers may change."""

    link: int
    token: Hashable


@dataclass(frozen=True, slots=True)
class Lost:
    """The link is gone for good, and with it what was not `Taken`; its number is not used again."""

    link: int
    reason: str


LinkEvent = Opened | Heard | Taken | Lost


class Links(Protocol):
    """All but `wake` belong to one thread."""

    def listen(self, address: str, *, allow_remote: bool = False) -> str:
        """Let peers come to `address` (tcp:// or ipc://) and return it with the port it got.

        Raises:
            UsageError: no address that can be bound (`E_ADDRESS`), or one that other machines reach (`E_INSECURE`).
            PeerError: it is taken (`E_ADDRESS_IN_USE`), or the system does not give it.
        """

    def connect(self, address: str) -> int:
        """Begin to connect and return the link's number; `Opened` tells when somebody is there.

        Keeps trying, through connections that break and come back, until `close_link`, or until the process that it
        was opened with is gone or silent for too long (`Lost`).

        Raises:
            UsageError: no address that one can connect to (`E_ADDRESS`).
        """

    def send(
        self, link: int, frames: Sequence[Buffer], token: Hashable | None = None, *, is_urgent: bool = False
    ) -> None:
        """Send a message, without waiting; large buffers are not copied and must not change until `Taken`.

        It is on its way when `receive` is called next, at the latest: small ones that are sent until then go together.
        What is sent to a lost link is dropped: its `Lost` tells. With a `token`, `Taken` tells when it has arrived.
        An urgent message overtakes those that are not, which a large tensor on a slow link may hold up for long;
        urgent ones keep their order, and the others theirs.

        Raises:
            UsageError: no frames, or more than `MAX_FRAMES`.
        """

    def admit(self, link: int) -> None:
        """Take messages of any size that is taken at all from a peer that came to us and has shown who it is."""

    def backlog_nbytes(self, link: int) -> int:
        """Return the bytes that were sent and not taken yet: what a slow peer makes us keep."""

    def receive(self, timeout_s: float) -> LinkEvent | None:
        """Return what happened next, or None after `timeout_s` or a `wake`."""

    def flush(self) -> None:
        """Do not keep back what was sent, where `receive` may not be called again soon."""

    def close_link(self, link: int) -> None:
        """Drop a link without an event; the peer hears `Lost`."""

    def wake(self) -> None:
        """End a `receive` early, from any thread or signal handler."""

    def close(self, linger_s: float = 0.0) -> None:
        """Stop, after at most `linger_s` for what was sent to be taken."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
