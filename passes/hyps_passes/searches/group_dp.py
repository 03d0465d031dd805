"""Consecutive stages over groups of machines, every subset in every order: one exact dynamic program.

Eight machines take a fraction of a second. As PipeEdge (Hu et al., 2022) it goes over what is done, which machines are
used, and which comes next; here a stage may take several machines at once. No stage is empty: nothing passes through a
machine that computes nothing.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Combine = Literal["sum", "most"]

_MOST_STEPS = 66_000_000
"""Elementary steps of one search: some seconds at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Machines that a stage may run on, and what it costs there."""

    machines: tuple[int, ...]
    """Places in the list of machines searched; the first is the one that a request alone goes to."""
    cost: Floats
    """By beginning and end; infinite where the stage must not be there, or would be empty."""


@dataclass(frozen=True, slots=True)
class Table:
    """What there is to choose from: all costs of one amount, which adds up or of which the most counts."""

    candidates: Sequence[Candidate]
    first: Floats
    """By leader: handing the request's inputs to the first stage."""
    hops: Floats
    """By leader, next leader and cut: handing on."""
    last: Floats
    """By leader of the last stage: what is due once it has ended."""
    combine: Combine


@dataclass(frozen=True, slots=True)
class Row:
    """Stages in a row."""

    value: float
    """The amount; no row of stages has less."""
    stages: tuple[tuple[tuple[int, ...], int, int], ...]
    """Machines, beginning and end of each."""


def most_machines(cuts: int, *, has_groups: bool) -> int:
    """Return for how many machines a search over so many cut positions stays within a fraction of a second."""
    steps, count = 0, 0
    while steps <= _MOST_STEPS and count < 10:
        count += 1
        steps = (count + 1) * ((3 if has_groups else 2) ** count) * cuts**2
    return count


def groups_of(count: int, *, has_groups: bool) -> list[tuple[int, ...]]:
    """Return the groups that `count` machines can form, each with every one of its members as the first."""
    sizes = range(1, count + 1) if has_groups else (1,)
    return [
        (leader, *(m for m in members if m != leader))
        for size in sizes
        for members in itertools.combinations(range(count), size)
        for leader in members
    ]


def best_row(table: Table) -> Row | None:
    """Return the stages whose amount is least, or None where there are none."""
    return _Search(table).run()


class _Search:
    """Least amounts by machines used (a set of bits), leader of the last stage, and where it ended."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.machines = len(table.last)
        self.cuts = table.hops.shape[2]
        self.sets = np.array([sum(1 << m for m in c.machines) for c in table.candidates], np.intp)
        self.leaders = np.array([c.machines[0] for c in table.candidates], np.intp)
        self.costs = np.array([c.cost for c in table.candidates]).reshape(-1, self.cuts, self.cuts)
        shape = (1 << self.machines, self.machines, self.cuts)
        self.least = np.full(shape, math.inf)
        self.came_by = np.full((*shape, 2), -1, np.intp)
        """The candidate of the last stage, and the cut at which it began."""

    def run(self) -> Row | None:
        for used in range(1 << self.machines):
            arrival = self._arrival(used)
            free = np.flatnonzero((self.sets & used) == 0)
            free = free[(arrival[self.leaders[free]] < math.inf).any(axis=1)]
            if len(free):
                self._extend(used, arrival, free)
        finished = self._joined(self.least[:, :, -1], self.table.last[None, :])
        if not (finished < math.inf).any():
            return None
        used, leader = (int(i) for i in np.unravel_index(int(np.argmin(finished)), finished.shape))
        return Row(float(finished[used, leader]), self._traced(used, leader))

    def _joined(self, one: Floats, other: Floats) -> Floats:
        joined: Floats = one + other if self.table.combine == "sum" else np.maximum(one, other)
        return joined

    def _arrival(self, used: int) -> Floats:
        """Return by machine and cut the least amount with which a stage can begin there."""
        arrival = np.full((self.machines, self.cuts), math.inf)
        if used:
            handed = self._joined(self.least[used][:, None, :], self.table.hops)
            arrival = handed.min(axis=0)
        else:
            arrival[:, 0] = self.table.first
        return arrival

    def _extend(self, used: int, arrival: Floats, free: npt.NDArray[np.intp]) -> None:
        leaders, sets = self.leaders[free], self.sets[free] | used
        offers = self._joined(arrival[leaders][:, :, None], self.costs[free])
        starts = offers.argmin(axis=1)
        values = np.take_along_axis(offers, starts[:, None, :], axis=1)[:, 0, :]
        is_better = values < self.least[sets, leaders]
        rows, ends = np.nonzero(is_better)
        self.least[sets[rows], leaders[rows], ends] = values[rows, ends]
        self.came_by[sets[rows], leaders[rows], ends, 0] = free[rows]
        self.came_by[sets[rows], leaders[rows], ends, 1] = starts[rows, ends]

    def _traced(self, used: int, leader: int) -> tuple[tuple[tuple[int, ...], int, int], ...]:
        end, stages = self.cuts - 1, []
        while True:
            candidate, start = (int(i) for i in self.came_by[used, leader, end])
            stages.append((self.table.candidates[candidate].machines, start, end))
            used &= ~int(self.sets[candidate])
            if not used:
                return tuple(reversed(stages))
            handed = self._joined(self.least[used, :, start], self.table.hops[:, leader, start])
            leader, end = int(np.argmin(handed)), start
