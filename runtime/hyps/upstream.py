"""A node's way to its manager: looked for until it is there, and again when it is lost."""

import logging
import math
import time
from collections.abc import Callable, Sequence

from hyps.adapters.links import Buffer, Links
from hyps.errors import PeerError, printable
from hyps.formats.messages import Failed
from hyps.formats.node_messages import NODE_PROTOCOL_VERSION, FromNode, Join, Joined, encode_node_message

logger = logging.getLogger(__name__)

_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Before the manager is tried again; the last over and over."""

_ANSWER_S = 10.0
"""How long it may take to answer `Join`."""

_DUPLICATE_S = 4.0
"""How long a name that is taken is asked for: the manager may not know yet that who had it is gone."""


class Upstream:
    """The control link; for the shell's thread.

    Attributes:
        link: to the manager; 0: none now.
        is_joined: whether the manager has taken the node in.
        is_wanted: whether there is to be a link.
    """

    def __init__(self, links: Links, address: str, joining: Callable[[], Join]) -> None:
        """Prepare to connect to `address`, and to join with what `joining` returns then."""
        self._links, self._address, self._joining = links, address, joining
        self.link = 0
        self.is_joined = False
        self.is_wanted = False
        self._was_joined = False
        self._wanted_s = 0.0
        self._failures = 0
        self.next_s = math.inf
        """When to call `on_time`: to try again, or to stop waiting for an answer."""

    def begin(self) -> None:
        """Look for the manager from now on."""
        self.is_wanted, self._wanted_s = True, time.monotonic()
        self._connect()

    def end(self) -> None:
        """Have nothing to do with the manager until `begin`."""
        if self.link:
            self._links.close_link(self.link)
        self.link, self.is_joined, self.is_wanted = 0, False, False
        self.next_s = math.inf

    @property
    def waited_s(self) -> float:
        """For how long the manager has been looked for that never was there."""
        return time.monotonic() - self._wanted_s if self.is_wanted and not self._was_joined else 0.0

    def on_opened(self) -> None:
        """The manager is there."""
        self.say(self._joining())
        self.next_s = time.monotonic() + _ANSWER_S

    def on_joined(self, joined: Joined) -> bool:
        """Take the manager's welcome; return whether it is the first one on this link.

        Raises:
            PeerError: it speaks another version.
        """
        if joined.version != NODE_PROTOCOL_VERSION:
            text = f"the manager speaks version {joined.version} of the protocol, this node {NODE_PROTOCOL_VERSION}"
            raise PeerError(text, "use the same version of hyps on both sides", "E_VERSION")
        if self.is_joined:
            return False
        self.is_joined = self._was_joined = True
        self._failures, self.next_s = 0, math.inf
        return True

    def on_refused(self, failed: Failed) -> None:
        """The manager does not take the node in: wait for the name where it may become free.

        Raises:
            PeerError: there is no use in waiting.
        """
        is_early = time.monotonic() - self._wanted_s < _DUPLICATE_S
        if failed.code != "E_DUPLICATE" or not (self._was_joined or is_early):
            raise PeerError(printable(failed.message, 1000), printable(failed.hint, 1000), printable(failed.code))
        self.on_lost()

    def on_lost(self) -> None:
        """The link is gone, or is of no use: try again after a while."""
        if self.link:
            self._links.close_link(self.link)
        self._failures = 0 if self.is_joined else self._failures
        self.link, self.is_joined = 0, False
        pause_s = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1
        self.next_s = time.monotonic() + pause_s

    def on_time(self) -> None:
        """Try again what did not answer."""
        if self.link:
            self._links.close_link(self.link)
        self._connect()

    def put_off(self, pause_s: float) -> None:
        """Look for the manager later: the node is not ready for it."""
        self.next_s = time.monotonic() + pause_s

    def say(self, message: FromNode, frames: Sequence[Buffer] = ()) -> None:
        """Tell the manager; what nobody hears is told anew when it is back, or is over."""
        if self.link:
            self._links.send(self.link, [encode_node_message(message), *frames], is_urgent=not frames)

    def _connect(self) -> None:
        self.link = self._links.connect(self._address)
        self.next_s = math.inf  # the link itself keeps trying
