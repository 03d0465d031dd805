"""What any placement needs, as sums of variables of a mixed-integer program: memory, weights held, waiting."""

import math
from collections.abc import Callable, Sequence

from hyps_passes.problem import REQUEST, Problem
from hyps_passes.searches.mip import CONSTANT, Mip, Terms, scaled

Runs = Callable[[int, int], Terms]
"""Whether a task runs on a machine, as a sum."""


class MemoryRows:
    """The bytes in use on machines, as `estimate.peak_bytes` has them, by the tasks that run there."""

    def __init__(self, problem: Problem, mip: Mip, runs: Runs) -> None:
        self.problem = problem
        self.mip = mip
        self.runs = runs
        self.unit = float(max([1, *(self.most(machine) for machine in range(len(problem.machines)))]))
        """Bytes that variables count in, so that they are about 1: solvers go wrong where factors are far apart."""
        self.users: dict[int, list[int]] = {}
        self.key_bytes: dict[int, int] = {}
        for index, task in enumerate(problem.tasks):
            for key, nbytes in dict(task.weights).items():
                self.users.setdefault(key, []).append(index)
                self.key_bytes[key] = nbytes

    def most(self, machine: int) -> int:
        """Return what cannot be passed whatever runs on the machine."""
        flows = sum(flow.nbytes for flow in self.problem.flows)
        work = max((task.work_bytes for task in self.problem.tasks), default=0)
        return self.problem.machines[machine].base_bytes + self.problem.weight_bytes + flows + work

    def held(self, machine: int) -> Terms:
        """Return the bytes of the weights that a machine holds, tied ones once."""
        terms: Terms = []
        for key, users in self.users.items():
            holds = self.runs(users[0], machine)
            if len(users) > 1:
                variable = self.mip.variable(1.0)
                for task in users:
                    self.mip.at_most([*self.runs(task, machine), (variable, -1.0)])
                holds = [(variable, 1.0)]
            terms += scaled(holds, self.key_bytes[key])
        return terms

    def peaks(self, machine: int, is_used: Terms) -> list[Terms]:
        """Return sums whose largest is the peak of a machine; 0 where nothing runs there, once `is_used` is 0."""
        mip, problem = self.mip, self.problem
        standing = mip.variable()
        base = scaled(is_used, problem.machines[machine].base_bytes)
        mip.at_most([*base, *self.held(machine), *self._incoming(machine), (standing, -self.unit)])
        changes: list[Terms] = [[] for _ in range(len(problem.tasks) + 1)]
        for index, flow in enumerate(problem.flows):
            if flow.producer == REQUEST:
                continue
            made = self.runs(flow.producer, machine)
            changes[flow.producer] += scaled(made, flow.nbytes)
            last = max((flow.producer, *flow.consumers))
            if not flow.is_output and last + 1 < len(problem.tasks):
                gone = [*scaled(made, -1.0), *self._stays(index, machine)]
                changes[last + 1] += scaled(gone, flow.nbytes)
        peaks: list[Terms] = []
        alive: Terms = []
        for index, task in enumerate(problem.tasks):
            if changes[index]:
                before, alive = alive, [(mip.variable(), self.unit)]
                mip.at_most([*before, *changes[index], *scaled(alive, -1.0)])
            peaks.append([(standing, self.unit), *alive, *scaled(self.runs(index, machine), task.work_bytes)])
        return peaks

    def _incoming(self, machine: int) -> Terms:
        terms: Terms = []
        for flow in self.problem.flows:
            if flow.producer != REQUEST and not flow.can_cross:
                continue
            made = [] if flow.producer == REQUEST else self.runs(flow.producer, machine)
            if flow.consumers:
                variable = self.mip.variable(1.0)
                for consumer in flow.consumers:
                    self.mip.at_most([*self.runs(consumer, machine), *scaled(made, -1.0), (variable, -1.0)])
                terms.append((variable, float(flow.nbytes)))
        return terms

    def _stays(self, flow: int, machine: int) -> Terms:
        """Return whether a tensor made on the machine has a consumer elsewhere."""
        told = self.problem.flows[flow]
        if not told.consumers or not told.can_cross:
            return []
        variable = self.mip.variable(1.0)
        made = self.runs(told.producer, machine)
        for consumer in told.consumers:
            self.mip.at_most([*made, *scaled(self.runs(consumer, machine), -1.0), (variable, -1.0)])
        return [(variable, 1.0)]


def waiting(problem: Problem, mip: Mip, loads: Sequence[Terms]) -> Terms:
    """Return at most what requests wait for each other: the tangents of the wait at each machine and channel.

    The wait is convex in the load, so a tangent is below it everywhere.
    """
    rate = problem.arrival_rps
    if not rate:
        return []
    terms: Terms = []
    for load in loads:
        mip.at_most(load, 1 / rate)
        wait = mip.variable()  # in mean times between arrivals
        for busy in _TANGENTS:
            slope = (busy - busy * busy / 2) / (1 - busy) ** 2
            value = busy * busy / (2 * (1 - busy)) / rate
            mip.at_most([*scaled(load, slope), (CONSTANT, value - slope * busy / rate), (wait, -1 / rate)])
        terms.append((wait, 1 / rate))
    return terms


_TANGENTS = tuple(1 - math.exp(-step / 4) for step in range(1, 17))


def keep(mip: Mip, sums: Sequence[Terms], most: float) -> None:
    """Ask that every one of some sums is at most a number."""
    for terms in sums:
        mip.at_most(terms, most)


def largest(mip: Mip, sums: Sequence[Terms]) -> Terms:
    """Return what is to be small so that the largest of some sums is; its variable counts in their largest factor."""
    if len(sums) == 1:
        return list(sums[0])
    unit = max((abs(factor) for terms in sums for _, factor in terms), default=0.0) or 1.0
    top = mip.variable()
    for terms in sums:
        mip.at_most([*terms, (top, -unit)])
    return [(top, unit)]
