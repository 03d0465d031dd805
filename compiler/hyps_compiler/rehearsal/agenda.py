"""Virtual time: what happens when, and processes that can pause, crash and start anew in it."""

import heapq
import math
from collections.abc import Callable

Action = Callable[[], None]

_LEAST_S = 0.001


class Agenda:
    """What is to happen, in the order of time; what is due at one moment happens in the order it was entered."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        """Actions done so far."""
        self._due: list[tuple[float, int, Action]] = []
        self._entered = 0

    def at(self, time_s: float, action: Action) -> None:
        """Do `action` at `time_s`, or now where that is past."""
        self._entered += 1
        heapq.heappush(self._due, (max(time_s, self.now_s), self._entered, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Do `action` in `delay_s`."""
        self.at(self.now_s + delay_s, action)

    def run(self, until_s: float, most_steps: int = 1_000_000) -> bool:
        """Do all that is due until `until_s`; return False where that were more than `most_steps` actions."""
        due = self._due
        last = self.steps + most_steps
        while due and due[0][0] <= until_s:
            if self.steps >= last:
                return False
            self.now_s, _, action = heapq.heappop(due)
            self.steps += 1
            action()
        self.now_s = max(self.now_s, until_s)
        return True


class CrashError(Exception):
    """The process dies here, between two effects; only the process that is told so raises and catches it."""


class Process:
    """A process on the agenda.

    What it is to do later belongs to one of its lives: a crash drops it, a pause puts it off.
    """

    def __init__(self, agenda: Agenda, name: str, on_step: Callable[["Process"], None]) -> None:
        """`on_step` is called after each of its actions."""
        self.agenda, self.name = agenda, name
        self.is_up = False
        self.life = 0
        """Which one it is; from 1."""
        self.awake_s = 0.0
        """Until when it is paused."""
        self.effects_left: int | None = None
        """After so many effects it crashes; None: it does not."""
        self.on_crash: Callable[[], object] = self.end
        """Is called when an effect was the last one."""
        self._put_off: list[tuple[int, Action]] = []
        self._on_step = on_step

    @property
    def is_paused(self) -> bool:
        """Whether it neither runs nor reads."""
        return self.agenda.now_s < self.awake_s

    def begin(self) -> None:
        """Come up, with nothing of an earlier life."""
        self.is_up, self.effects_left = True, None
        self.life += 1

    def end(self) -> None:
        """Be gone at once."""
        self.is_up = False
        self.awake_s = 0.0
        self._put_off.clear()

    def pause(self, seconds: float) -> None:
        """Do nothing for a while."""
        self.awake_s = max(self.awake_s, self.agenda.now_s + seconds)
        if self.awake_s < math.inf:
            self.agenda.at(self.awake_s, self._do_what_was_put_off)

    def wake(self) -> None:
        """Be paused no more."""
        self.awake_s = min(self.awake_s, self.agenda.now_s)
        self._do_what_was_put_off()

    def later(self, delay_s: float, action: Action) -> None:
        """Do `action` in `delay_s`, if this life lasts until then."""
        life = self.life
        self.agenda.after(delay_s, lambda: self._do(life, action))

    def effect(self) -> None:
        """Be called before each effect on the world outside: here it may crash.

        Raises:
            CrashError: it does.
        """
        if self.effects_left is not None:
            self.effects_left -= 1
            if self.effects_left < 0:
                raise CrashError

    def _do_what_was_put_off(self) -> None:
        if self.is_paused:
            return
        put_off, self._put_off = self._put_off, []
        for life, action in put_off:
            self._do(life, action)

    def _do(self, life: int, action: Action) -> None:
        if life != self.life or not self.is_up:
            return
        if self.is_paused:
            self._put_off.append((life, action))
            return
        try:
            action()
        except CrashError:
            self.on_crash()
            return
        self._on_step(self)


class Alarm:
    """Wakes a process at the moment that was set last; of its present life."""

    def __init__(self, process: Process, action: Action) -> None:
        self._process, self._action = process, action
        self._due_s = float("inf")

    def set(self, due_s: float) -> None:
        """Do the action at `due_s` at the latest, but not within a millisecond; never where that is infinite."""
        now_s = self._process.agenda.now_s
        due_s = max(due_s, now_s + _LEAST_S)
        if due_s < self._due_s:
            self._due_s = due_s
            self._process.later(due_s - now_s, lambda: self._ring(due_s))

    def _ring(self, due_s: float) -> None:
        if due_s == self._due_s:
            self._due_s = float("inf")
            self._action()
