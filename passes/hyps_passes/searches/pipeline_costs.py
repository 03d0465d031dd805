"""What stages of consecutive tasks cost, for all beginnings and ends at once: the sums behind the dynamic program.

A cut at position `c` stands before task `c`. What crosses it depends on `c` alone, because stages are consecutive; so
all that `estimate` adds up for a stage `[a, b)` is a difference of running sums, a term of `a`, and a term of `b`.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hyps_passes.problem import REQUEST, Flow, Problem
from hyps_passes.searches.goals import Goal

Floats = npt.NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]
"""The machines of each stage; of several, the first is the one that a request alone goes to."""


class CutCosts:
    """A problem's figures by cut position, from 0 to the number of tasks."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.count = len(problem.tasks)
        self.reach = [problem.reach(index) for index in range(len(problem.flows))]
        self.is_legal = self._crossing(lambda _, flow: float(not flow.can_cross)) == 0
        self.crossing_reach = self._crossing(lambda index, _: self.reach[index])
        self.crossing_reach_bytes = self._crossing(lambda index, flow: self.reach[index] * flow.nbytes)
        self.crossing_bytes = self._crossing(lambda _, flow: flow.nbytes)
        answers = [index for index, flow in enumerate(problem.flows) if flow.is_output and flow.producer != REQUEST]
        self.first_answer = min((problem.flows[index].producer for index in answers), default=self.count)
        self.answer_reach = self._made(answers, lambda index: self.reach[index])
        self.answer_reach_bytes = self._made(answers, lambda index: self.reach[index] * problem.flows[index].nbytes)
        self.answer_bytes = self._made(answers, lambda index: problem.flows[index].nbytes)
        seconds = np.array(problem.seconds, np.float64).reshape(self.count, len(problem.machines)).T
        reach = np.array([task.reach for task in problem.tasks])
        self.seconds = _running(np.where(np.isinf(seconds), 0, seconds) * reach)
        self.banned = _running(np.isinf(seconds).astype(np.float64))
        self.exports = [self._borders(problem.export_s, machine) for machine in range(len(problem.machines))]
        self.imports = [self._borders(problem.import_s, machine) for machine in range(len(problem.machines))]

    def _crossing(self, of: Callable[[int, Flow], float]) -> Floats:
        """Sum over the flows that cross each cut."""
        change = np.zeros(self.count + 2)
        for index, flow in enumerate(self.problem.flows):
            if flow.consumers:
                change[flow.producer + 1] += of(index, flow)
                change[max(flow.consumers) + 1] -= of(index, flow)
        sums: Floats = np.cumsum(change)[: self.count + 1]
        sums[np.abs(sums) < 1e-12 * np.abs(change).max(initial=0)] = 0
        return sums

    def _borders(self, seconds: Sequence[Sequence[float]], machine: int) -> Floats:
        return self._crossing(lambda index, flow: 0.0 if flow.producer == REQUEST else seconds[index][machine])

    def _made(self, flows: Sequence[int], of: Callable[[int], float]) -> Floats:
        made = np.zeros(self.count)
        for index in flows:
            made[self.problem.flows[index].producer] += of(index)
        return _running(made)

    @cached_property
    def held(self) -> Floats:
        """Bytes of the weights of tasks `[a, b)`, tied ones once."""
        fresh = np.zeros((self.count + 1, self.count))
        last_user: dict[int, int] = {}
        for task, told in enumerate(self.problem.tasks):
            for key, nbytes in dict(told.weights).items():
                fresh[last_user.get(key, -1) + 1 : task + 1, task] += nbytes
                last_user[key] = task
        return _running(fresh)

    @cached_property
    def peak(self) -> Floats:
        """Bytes in use at most while `[a, b)` runs on a machine, its base left out; 0 where the stage is empty."""
        alive = np.zeros((self.count + 1, self.count))
        arriving = np.zeros((self.count + 1, self.count))
        for flow in self.problem.flows:
            uses = [flow.producer, *sorted(flow.consumers)]
            for before, use in pairwise(uses):  # comes in with the first use in the stage
                arriving[before + 1 : use + 1, use] += flow.nbytes
            if flow.producer != REQUEST:
                last = self.count if flow.is_output else uses[-1] + 1
                alive[: flow.producer + 1, flow.producer : last] += flow.nbytes
        alive += [task.work_bytes for task in self.problem.tasks]
        alive[np.tri(self.count + 1, self.count, -1, dtype=bool)] = 0
        most = np.maximum.accumulate(alive, axis=1)
        peak = self.held + _running(arriving)
        peak[:, 1:] += most
        peak[np.tri(self.count + 1, self.count + 1, dtype=bool)] = 0
        return peak


class SequenceCosts:
    """What stages on given machines, in order, cost: arrays by beginning and end, infinite where there is no way.

    The first stage begins at 0, the last one ends behind the last task: so the array of the first has one row, and that
    of the last one column. All but the last may be empty; then they only pass on what they get.
    """

    def __init__(self, costs: CutCosts, groups: Groups) -> None:
        self.costs = costs
        self.problem = costs.problem
        self.groups = groups
        self.leaders = [group[0] for group in groups]
        paths = self.problem.paths
        entry = self.problem.entry
        self.hops = [paths.get((a, b), ()) for a, b in pairwise(self.leaders)]
        self.returns = [paths.get((m, entry), ()) if self._may_answer(j) else () for j, m in enumerate(self.leaders)]
        uses = Counter(channel for path in (*self.hops, *self.returns) for channel in set(path))
        self.shared = tuple(sorted(channel for channel, count in uses.items() if count > 1))
        """Channels that several hops or answers go through: what goes through them adds up."""
        used = {entry, *self.leaders}
        self.idle_w = sum(self.problem.machines[m].idle_w for m in used)

    @property
    def is_connected(self) -> bool:
        """Whether each machine reaches the next, and the last one the entry."""
        ends = [*self.leaders[1:], self.problem.entry]
        return all(a == b or (a, b) in self.problem.paths for a, b in zip(self.leaders, ends, strict=True)) and all(
            m == self.problem.entry or (m, self.problem.entry) in self.problem.paths
            for j, m in enumerate(self.leaders)
            if self._may_answer(j)
        )

    def _may_answer(self, stage: int) -> bool:
        last = self.costs.count - (stage < len(self.groups) - 1)
        return self.costs.first_answer < last

    def is_allowed(self, stage: int) -> npt.NDArray[np.bool_]:
        """Return which beginnings and ends the order, bans and tensors that cannot cross leave."""
        starts, ends = self._starts(stage), self._ends(stage)
        is_last = stage == len(self.groups) - 1
        allowed = starts[:, None] < ends if is_last else starts[:, None] <= ends
        for machine in self.groups[stage]:
            banned = self.costs.banned[machine]
            allowed &= banned[ends] == banned[starts][:, None]
        if not is_last:
            allowed &= self.costs.is_legal[ends] & (ends < self.costs.count)
        if not stage and any(self.problem.entry in group for group in self.groups[1:]):
            allowed &= ends == 0  # a machine runs one stage
        return allowed

    def values(self, stage: int, goal: Goal) -> Floats:
        """Return what the stage and the hop behind it add to an amount that is a sum, or need of one that is a maximum.

        What goes through `shared` channels is left out of the throughput and of the waiting.
        """
        match goal.kind:
            case "latency":
                return self._latency(stage) + self._waiting(stage)
            case "energy":
                return self._energy(stage)
            case "throughput":
                return _most([self._load(stage), *self._local_loads(stage)])
            case "memory":
                return _most([self._peak(stage, machine) for machine in self.groups[stage]])
            case "memory of":
                return self._peak(stage, goal.index) if goal.index in self.groups[stage] else self._nothing(stage)
            case "share of":
                held = self._window(stage, self.costs.held)
                return held if goal.index in self.groups[stage] else self._nothing(stage)
            case "bytes":
                return self._bytes(stage, len(self._hop(stage)), len(self.returns[stage]))
            case "bytes of":
                return self._bytes(stage, self._hop(stage).count(goal.index), self.returns[stage].count(goal.index))

    def shared_load(self, stage: int, channel: int) -> Floats:
        """Return the seconds for which the stage's hop and answers occupy a channel."""
        load = self._nothing(stage)
        if channel in self._hop(stage):
            load = load + self._hop_s(stage, channel)
        if channel in self.returns[stage]:
            load = load + self._return_s(stage, channel)
        return load

    def _starts(self, stage: int) -> npt.NDArray[np.intp]:
        return np.arange(self.costs.count + 1 if stage else 1)

    def _ends(self, stage: int) -> npt.NDArray[np.intp]:
        return np.arange(self.costs.count + 1)[0 if stage < len(self.groups) - 1 else self.costs.count :]

    def _nothing(self, stage: int) -> Floats:
        return np.zeros((len(self._starts(stage)), len(self._ends(stage))))

    def _window(self, stage: int, by_start_and_end: Floats) -> Floats:
        return by_start_and_end[np.ix_(self._starts(stage), self._ends(stage))]

    def _between(self, stage: int, running: Floats) -> Floats:
        return running[self._ends(stage)] - running[self._starts(stage)][:, None]

    def _hop(self, stage: int) -> tuple[int, ...]:
        return self.hops[stage] if stage < len(self.hops) else ()

    def _hop_s(self, stage: int, channel: int) -> Floats:
        told, ends = self.problem.channels[channel], self._ends(stage)
        seconds = told.message_s * self.costs.crossing_reach + told.s_per_byte * self.costs.crossing_reach_bytes
        return np.broadcast_to(seconds[ends], self._nothing(stage).shape)

    def _return_s(self, stage: int, channel: int) -> Floats:
        told = self.problem.channels[channel]
        seconds = told.message_s * self.costs.answer_reach + told.s_per_byte * self.costs.answer_reach_bytes
        return self._between(stage, seconds)

    def _time(self, stage: int, machine: int) -> Floats:
        """Return how long a machine of the stage computes; what the borders cost is what they cost the first one."""
        starts, ends, leader = self._starts(stage), self._ends(stage), self.leaders[stage]
        seconds = self._between(stage, self.costs.seconds[machine])
        seconds += self.problem.machines[machine].run_s * (starts[:, None] < ends if not stage else True)
        if stage:
            seconds += self.costs.imports[leader][starts][:, None]
        if stage < len(self.groups) - 1:
            seconds += self.costs.exports[leader][ends]
        return seconds

    def _load(self, stage: int) -> Floats:
        """Return how long each machine of the stage is busy per request, if all take their part."""
        group = self.groups[stage]
        if len(group) == 1:
            return self._time(stage, group[0])
        with np.errstate(divide="ignore"):
            load: Floats = 1 / np.sum([1 / self._time(stage, machine) for machine in group], axis=0)
        return load

    def _local_loads(self, stage: int) -> list[Floats]:
        """Return what the stage alone occupies, channel by channel."""
        hop = [self._hop_s(stage, channel) for channel in self._hop(stage) if channel not in self.shared]
        return hop + [self._return_s(stage, channel) for channel in self.returns[stage] if channel not in self.shared]

    def _latency(self, stage: int) -> Floats:
        """Return the seconds of a request that is alone."""
        target = self.leaders[stage + 1] if stage < len(self.hops) else self.problem.entry
        seconds = self._time(stage, self.leaders[stage]) + self.problem.latency_s(self.leaders[stage], target)
        for channel in self._hop(stage):
            seconds = seconds + self._hop_s(stage, channel)
        for channel in self.returns[stage]:
            seconds = seconds + self._return_s(stage, channel)
        return seconds

    def _waiting(self, stage: int) -> Floats:
        if not self.problem.arrival_rps:
            return self._nothing(stage)
        waits = [wait_s(self.problem.arrival_rps, self._load(stage))] * len(self.groups[stage])
        waits += [wait_s(self.problem.arrival_rps, load) for load in self._local_loads(stage)]
        total: Floats = np.sum(waits, axis=0)
        return total

    def _energy(self, stage: int) -> Floats:
        leader = self.leaders[stage]
        machine = self.problem.machines[leader]
        latency = self._latency(stage)
        joules = latency * self.idle_w if self.idle_w else np.where(np.isinf(latency), np.inf, 0.0)
        joules += self._time(stage, leader) * (machine.active_w - machine.idle_w)
        return joules + self._bytes(stage, self._radio(self._hop(stage)), self._radio(self.returns[stage]))

    def _radio(self, path: Sequence[int]) -> float:
        return sum(self.problem.machines[self.problem.channels[c].source].joules_per_byte for c in path)

    def _bytes(self, stage: int, per_hop_byte: float, per_answer_byte: float) -> Floats:
        hop = self.costs.crossing_bytes[self._ends(stage)] * per_hop_byte
        return hop + self._between(stage, self.costs.answer_bytes) * per_answer_byte

    def _peak(self, stage: int, machine: int) -> Floats:
        peak = self._window(stage, self.costs.peak)
        return np.where(peak + self._busy(stage) > 0, peak + self.problem.machines[machine].base_bytes, 0.0)

    def _busy(self, stage: int) -> npt.NDArray[np.bool_]:
        return self._starts(stage)[:, None] < self._ends(stage)


def wait_s(arrival_rps: float, load_s: Floats) -> Floats:
    """Return the mean wait of M/D/1 queues, as `estimate` has it."""
    busy = arrival_rps * load_s
    with np.errstate(divide="ignore", invalid="ignore"):
        wait: Floats = np.where(busy >= 1, math.inf, busy * load_s / (2 * (1 - busy)))
    return wait


def _most(arrays: Sequence[Floats]) -> Floats:
    most: Floats = np.maximum.reduce(arrays)
    return most


def _running(values: Floats) -> Floats:
    """Return the sums of the values before each position, along the last axis."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
