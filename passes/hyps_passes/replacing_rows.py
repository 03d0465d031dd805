"""The best consecutive stages for partitions as they are: the tables that `searches.group_dp` searches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyps.formats.replanning import Aim
from hyps_passes.problem import Problem
from hyps_passes.searches.goals import SLACK
from hyps_passes.searches.group_dp import Candidate, Combine, Row, Table, best_row, groups_of
from hyps_passes.searches.pipeline_costs import CutCosts

Floats = npt.NDArray[np.float64]

_LEAST_SLACK = 1e-9
"""By which part placements may differ and still count as equally good."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive stages over some machines; their figures are indices of the problem's machines."""

    best: Row
    """The least of what is asked for."""
    near: Row
    """Nearly as good, with few weights to move, and soon done."""


class RowSearch:
    """Searches consecutive stages of one problem."""

    def __init__(self, problem: Problem, held: Sequence[Sequence[int]], alone: frozenset[int] = frozenset()) -> None:
        """Prepare to search.

        Args:
            problem: tasks, machines, channels.
            held: by machine, the tasks whose weights it has.
            alone: machines that are never one of several that run a task.
        """
        self.alone = alone
        self.problem = problem
        self.costs = CutCosts(problem)
        self.cuts = len(problem.tasks) + 1
        self.is_empty = np.tri(self.cuts, self.cuts, dtype=bool)
        """By beginning and end."""
        self.missing = [self._missing(machine, set(tasks)) for machine, tasks in enumerate(held)]
        self.fastest_s = sum(min(row) for row in problem.seconds)

    def best(self, machines: Sequence[int], aim: Aim, *, has_groups: bool, keep_within: float) -> Rows | None:
        """Return the best stages over some of the machines, or None where they cannot hold them."""
        lonely = {place for place, machine in enumerate(machines) if machine in self.alone}
        groups = [
            group
            for group in groups_of(len(machines), has_groups=has_groups)
            if len(group) == 1 or lonely.isdisjoint(group)
        ]
        table = self._table(machines, groups, aim)
        best = best_row(table)
        if best is None:
            return None
        slack = max(keep_within, _LEAST_SLACK)
        near = best_row(self._near(machines, table, aim, best.value, slack)) or best
        return Rows(self._named(best, machines), self._named(near, machines))

    def least_excess(self, machines: Sequence[int]) -> Row | None:
        """Return the stages for which the memory of the most overburdened machine falls short by the fewest bytes."""
        count = len(machines)
        excess = [
            self._barred(m, self._peak(m) - _or_infinite(self.problem.machines[m].memory_bytes)) for m in machines
        ]
        candidates = [Candidate((place,), cost) for place, cost in enumerate(excess)]
        nothing = np.full((count, count, self.cuts), -math.inf)
        row = best_row(Table(candidates, np.full(count, -math.inf), nothing, np.full(count, -math.inf), "most"))
        return None if row is None else self._named(row, machines)

    def peak_bytes(self, machine: int, start: int, end: int) -> int:
        """Return the bytes that a machine needs to run the tasks from `start` to before `end`."""
        return int(self._peak(machine)[start, end])

    def _table(self, machines: Sequence[int], groups: Sequence[tuple[int, ...]], aim: Aim) -> Table:
        combine: Combine = "most" if aim in ("throughput", "memory") else "sum"
        alone = [self._bounded(m, self._alone(m, aim)) for m in machines]
        answers = [self._answers(m, aim) for m in machines]
        masks = [np.isfinite(cost) for cost in alone]
        candidates = []
        for group in groups:
            cost = alone[group[0]] if len(group) == 1 else self._shared([alone[member] for member in group])
            cost = np.maximum(cost, answers[group[0]]) if combine == "most" else cost + answers[group[0]]
            candidates.append(Candidate(group, np.where(np.all([masks[m] for m in group], axis=0), cost, math.inf)))
        first = np.array([self._hop(self.problem.entry, m, aim)[0] for m in machines])
        hops = np.array([[self._hop(a, b, aim) for b in machines] for a in machines])
        return Table(candidates, first, hops, np.array([self._end(m, aim) for m in machines]), combine)

    def _near(self, machines: Sequence[int], table: Table, aim: Aim, best: float, slack: float) -> Table:
        """Return the table in which weights to move count too, of what is at most `slack` worse than the best."""
        total = max(1, self.problem.weight_bytes)
        moved = [self.missing[m] / total for m in machines]
        if table.combine == "sum":
            added = [c.cost + slack * best * sum(moved[m] for m in c.machines) for c in table.candidates]
            candidates = [Candidate(c.machines, cost) for c, cost in zip(table.candidates, added, strict=True)]
            return Table(candidates, table.first, table.hops, table.last, "sum")
        most = best * (1 + slack)
        seconds = self._table(machines, [c.machines for c in table.candidates if len(c.machines) == 1], "latency")
        by_leader = {c.machines[0]: c.cost for c in seconds.candidates}
        candidates = [
            Candidate(
                c.machines,
                np.where(
                    c.cost <= most,
                    by_leader[c.machines[0]] + 10 * self.fastest_s * sum(moved[m] for m in c.machines),
                    math.inf,
                ),
            )
            for c in table.candidates
        ]
        first = np.where(table.first <= most, seconds.first, math.inf)
        return Table(candidates, first, np.where(table.hops <= most, seconds.hops, math.inf), seconds.last, "sum")

    def _alone(self, machine: int, aim: Aim) -> Floats:
        """Return what a stage needs on one machine, its tensors' ways left out."""
        seconds = self._between(self.costs.seconds[machine])
        match aim:
            case "latency" | "throughput":
                return seconds
            case "memory":
                return self._peak(machine)
            case "energy":
                return seconds * self.problem.machines[machine].active_w

    def _shared(self, costs: Sequence[Floats]) -> Floats:
        """Return for how long each machine of a group is busy per request, if all take their part."""
        with np.errstate(divide="ignore"):
            shared: Floats = 1 / np.sum([1 / cost for cost in costs], axis=0)
        return shared

    def _bounded(self, machine: int, cost: Floats) -> Floats:
        """Return a stage's cost with what the machine must not do, or has no memory for, made infinite."""
        most = _or_infinite(self.problem.machines[machine].memory_bytes)
        return self._barred(machine, np.where(self._peak(machine) > most * SLACK, math.inf, cost))

    def _barred(self, machine: int, cost: Floats) -> Floats:
        told = self.problem.machines[machine]
        is_barred = self.is_empty | (self._between(self.costs.banned[machine]) > 0)
        if told.max_share < 1:
            is_barred = is_barred | (self.costs.held > told.max_share * self.problem.weight_bytes * SLACK)
        barred: Floats = np.where(is_barred, math.inf, cost)
        return barred

    def _peak(self, machine: int) -> Floats:
        return self.costs.peak + self.problem.machines[machine].base_bytes

    def _between(self, running: Floats) -> Floats:
        return running[None, :] - running[:, None]

    def _hop(self, source: int, target: int, aim: Aim) -> Floats:
        """Return what it needs to hand on, by cut."""
        if source == target:
            return np.full(self.cuts, math.inf)
        sums = self._sent(source, target, self.costs.crossing_reach, self.costs.crossing_reach_bytes, aim)
        return sums + (self.problem.latency_s(source, target) if aim == "latency" else 0.0)

    def _answers(self, machine: int, aim: Aim) -> Floats:
        """Return what it needs to send the answers that a stage makes."""
        sums = self._sent(machine, self.problem.entry, self.costs.answer_reach, self.costs.answer_reach_bytes, aim)
        return self._between(sums)

    def _sent(self, source: int, target: int, messages: Floats, nbytes: Floats, aim: Aim) -> Floats:
        told = [self.problem.channels[index] for index in self.problem.paths[source, target]]
        if aim == "memory":
            return np.zeros(len(messages))
        if aim == "energy":
            joules = sum(self.problem.machines[channel.source].joules_per_byte for channel in told)
            return nbytes * joules
        seconds = [channel.message_s * messages + channel.s_per_byte * nbytes for channel in told]
        amount: Floats = np.sum(seconds, axis=0) if aim == "latency" else np.max(seconds, axis=0)
        return amount

    def _end(self, machine: int, aim: Aim) -> float:
        return self.problem.latency_s(machine, self.problem.entry) if aim == "latency" else 0.0

    def _missing(self, machine: int, held: set[int]) -> Floats:
        """Return the bytes of the weights of each stage that the machine does not hold."""
        there = {key for task in held for key, _ in self.problem.tasks[task].weights}
        fresh = [sum(n for key, n in dict(task.weights).items() if key not in there) for task in self.problem.tasks]
        return self._between(np.concatenate([[0.0], np.cumsum(fresh, dtype=np.float64)]))

    def _named(self, row: Row, machines: Sequence[int]) -> Row:
        stages = tuple((tuple(machines[m] for m in group), start, end) for group, start, end in row.stages)
        return Row(row.value, stages)


def _or_infinite(memory_bytes: int | None) -> float:
    return math.inf if memory_bytes is None else memory_bytes
