"""Measures the way to a node that has joined, with some echoes: which to send next, and what the answers tell.

One echo is under way at a time, so that none waits for another. A manager sends `Echo(number, back_nbytes)` with a
frame of `there_nbytes` zeros, remembers when, and calls `answered` with the seconds until `Echoed` came.
"""

from dataclasses import dataclass

from hyps.core.link_estimates import LinkEstimates
from hyps.formats.node_messages import MAX_PIECE_NBYTES
from hyps.formats.replanning import HUB

_SHORT = 5
"""Empty echoes."""
_LONG = 3
"""Of each size and direction."""
_FIRST_NBYTES = 64 * 1024
_LONG_S = 0.02
"""An echo that takes so much longer than an empty one tells the rate; else one of four times the bytes follows."""


@dataclass(frozen=True, slots=True)
class EchoSize:
    """What is to be sent there, and what back."""

    there_nbytes: int
    back_nbytes: int


class LinkProbing:
    """The echoes of one node; on a slow link two or three of 64 KiB in each direction, on a fast one up to 4 MiB."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._is_there = True
        """Whether the long frames go there; they come back afterwards."""
        self._nbytes = 0
        self._left = _SHORT
        self._took_s: list[float] = []
        """Of echoes of this size."""
        self._empty_s = 0.0

    def next_echo(self) -> EchoSize | None:
        """Return the echo to send now; None: all is known that can be."""
        if not self._left:
            return None
        return EchoSize(self._nbytes, 0) if self._is_there else EchoSize(0, self._nbytes)

    def answered(self, seconds: float, now_s: float, links: LinkEstimates, behind_nbytes: int = 0) -> None:
        """Take the answer to `next_echo`, which came after so many seconds, and tell `links`.

        Args:
            seconds: from when it was sent.
            now_s: the time.
            links: what is told.
            behind_nbytes: what had been sent there and was not taken yet when it was sent.
        """
        for source, target, is_told in (
            (HUB, self._device, self._is_there or not self._nbytes),
            (self._device, HUB, not self._is_there or not self._nbytes),
        ):
            if is_told:
                links.add(source, target, self._nbytes, seconds, now_s, behind_nbytes=behind_nbytes)
        self._took_s.append(seconds)
        self._left -= 1
        if not self._left:
            self._go_on()

    def _go_on(self) -> None:
        shortest_s, self._took_s = min(self._took_s), []
        if not self._nbytes:
            self._empty_s, self._nbytes, self._left = shortest_s, _FIRST_NBYTES, _LONG
        elif shortest_s < self._empty_s + _LONG_S and self._nbytes < MAX_PIECE_NBYTES:
            self._nbytes, self._left = min(4 * self._nbytes, MAX_PIECE_NBYTES), _LONG
        elif self._is_there:
            self._is_there, self._nbytes, self._left = False, _FIRST_NBYTES, _LONG
