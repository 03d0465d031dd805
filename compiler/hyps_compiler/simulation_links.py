"""A link in virtual time: when a message that comes now begins, when its last byte has left, what that cost."""

import bisect
import math
from collections import deque
from itertools import pairwise

from hyps_compiler.simulation_result import Use, mean_queue
from hyps_compiler.simulation_system import Down, Link


class LinkState:
    """What a link carries.

    Bandwidth and faults are known ahead, so that a message's end is known the moment it comes: messages are carried in
    the order in which they come, and nothing that happens later changes that.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.busy_s = self.lost_s = self.waited_s = 0.0
        self.messages = self.nbytes = self.resent = self.most_waiting = 0
        self._free_at = 0.0
        self._starts: deque[float] = deque()
        self._is_plain = not link.steps and not link.downs
        self._times = [step.from_s for step in link.steps]

    def carry(self, now: float, nbytes: int, reach: float) -> tuple[float, float]:
        """Return when a message that comes `now` begins and ends; messages must come in the order of time."""
        start = self._free_at
        if start < now:
            start = now
        else:
            self._note_wait(now, start)
        link = self.link
        if self._is_plain:
            end = start + (link.message_s + nbytes * link.s_per_byte) * reach
        else:
            start, end = self._carry_through(start, nbytes, reach)
        self.messages += 1
        self.nbytes += nbytes
        self.busy_s += end - start
        self._free_at = end
        return start, end

    def use(self, seconds: float) -> Use:
        """Return what it did in so many seconds."""
        queue = mean_queue(self.waited_s, seconds)
        counts = (self.messages, self.resent, self.nbytes, queue, self.most_waiting)
        return Use(self.link.name, self.busy_s, 0.0, self.lost_s, *counts)

    def _note_wait(self, now: float, start: float) -> None:
        starts = self._starts
        while starts and starts[0] <= now:
            starts.popleft()
        if start > now:
            starts.append(start)
            self.waited_s += start - now
            self.most_waiting = max(self.most_waiting, len(starts))

    def _carry_through(self, start: float, nbytes: int, reach: float) -> tuple[float, float]:
        """Carry through steps of the bandwidth; begin again after every fault that falls into it."""
        start = up_at(self.link.downs, start)
        while True:
            end = self._end_s(start + self.link.message_s * reach, nbytes * reach)
            fault = first_within(self.link.downs, start, end)
            if fault is None:
                return start, end
            self.resent += 1
            self.lost_s += fault.from_s - start
            start = up_at(self.link.downs, fault.to_s)

    def _end_s(self, now: float, left: float) -> float:
        """Return when `left` bytes that begin to leave `now` have left."""
        index = bisect.bisect_right(self._times, now)
        while True:
            s_per_byte = self.link.steps[index - 1].s_per_byte if index else self.link.s_per_byte
            until = self._times[index] if index < len(self._times) else math.inf
            if left == 0 or now + left * s_per_byte <= until:
                return now + (left * s_per_byte if left else 0.0)
            left -= (until - now) / s_per_byte
            now, index = until, index + 1


def up_at(downs: tuple[Down, ...], now: float) -> float:
    """Return the first moment from `now` on at which nothing is down."""
    for down in downs:
        if down.from_s <= now < down.to_s:
            return down.to_s
    return now


def first_within(downs: tuple[Down, ...], start: float, end: float) -> Down | None:
    """Return the first fault that begins after `start` and before `end`."""
    return next((down for down in downs if start < down.from_s < end), None)


def merged(downs: tuple[Down, ...]) -> tuple[Down, ...]:
    """Return the same faults in order, those that touch as one."""
    joined: list[Down] = []
    for down in sorted(downs, key=lambda d: d.from_s):
        if joined and down.from_s <= joined[-1].to_s:
            joined[-1] = Down(joined[-1].from_s, max(joined[-1].to_s, down.to_s))
        else:
            joined.append(down)
    assert all(a.to_s < b.from_s for a, b in pairwise(joined)), "faults are apart"
    return tuple(joined)
