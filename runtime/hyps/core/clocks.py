"""What another machine's monotonic clock shows, told from the messages in which it says so."""

import math
from collections import deque

_SLOT_S = 15.0
_SLOTS = 4
"""A minute: two clocks that part by 50 parts in a million part by 3 ms in it."""


class RemoteClock:
    """A node's clock on ours: the least difference between when a message said it was sent and when it was heard.

    A message is heard when it was sent plus the difference of the clocks plus what its way took, so that the least
    difference of late is that of the quickest message. `way_s`, where it is known, is what that took. What is measured
    is forgotten after a minute, since clocks do not run alike.

    >>> clock = RemoteClock()
    >>> for sent_s, heard_s in ((1.0, 101.020), (2.0, 102.005), (3.0, 103.050)):
    ...     clock.add(sent_s, heard_s)
    >>> round(clock.ours(2.5, way_s=0.004), 3)
    102.501
    """

    def __init__(self) -> None:
        self._least: deque[tuple[int, float]] = deque(maxlen=_SLOTS)
        """Per quarter of a minute, by our clock, the least difference."""

    def add(self, sent_s: float, heard_s: float) -> None:
        """A message came at `heard_s` by our clock that says it was sent at `sent_s` by its own."""
        slot, difference = math.floor(heard_s / _SLOT_S), heard_s - sent_s
        if not math.isfinite(difference):
            return
        if self._least and self._least[-1][0] == slot:
            self._least[-1] = (slot, min(difference, self._least[-1][1]))
        else:
            self._least.append((slot, difference))

    @property
    def is_known(self) -> bool:
        """Whether anything was heard."""
        return bool(self._least)

    def ours(self, theirs_s: float, way_s: float = 0.0) -> float:
        """Return the moment by our clock at which theirs shows `theirs_s`; theirs itself while nothing was heard."""
        if not self._least:
            return theirs_s
        return theirs_s + min(difference for _, difference in self._least) - way_s
