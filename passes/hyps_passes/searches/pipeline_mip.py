"""Pipelines on a graph with side limits: the minimum cut's variables, as a mixed-integer program for each order.

Without limits its relaxation is the minimum cut, which is whole; limits make it fractional, and branching does the
rest. What a pipeline needs is told exactly as `estimate` adds it up, but for waiting, which tangents bound from below.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.estimate import estimate
from hyps_passes.problem import REQUEST, Problem
from hyps_passes.searches.goals import Cap, Goal, amount, keeps, safe_bound
from hyps_passes.searches.mip import CONSTANT, Mip, Solved, Terms, scaled, value_of
from hyps_passes.searches.placement_rows import MemoryRows, keep, largest, waiting

MOST_SEQUENCES = 400
"""Orders of machines that are tried: all of up to six machines; of more, those in the order of their tiers."""
_TIGHTER = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
"""By how much limits are drawn in, one after another, while a solution breaks them within the solver's tolerance."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best that was found, and what no other one is below."""

    assignment: Assignment | None
    """None where nothing was found."""
    score: float
    bound: float
    """Infinite where it is proven that nothing keeps the limits."""


class PipelineProgram:
    """All pipelines over given machines, of which the first is the entry and the last one has tasks.

    Whether task t runs behind hop s - 1, so in stage s or later, is variable `behind[t][s]`, and never falls along a
    tensor.
    """

    def __init__(self, problem: Problem, machines: Sequence[int]) -> None:
        self.problem = problem
        self.machines = list(machines)
        self.mip = Mip()
        self.stages = len(self.machines)
        self.behind = [
            [[(CONSTANT, 1.0)], *([(self.mip.variable(1.0, is_integer=True), 1.0)] for _ in self.machines[1:]), []]
            for _ in problem.tasks
        ]
        self.memory = MemoryRows(problem, self.mip, self._runs_on)
        self._order()
        self._ban()
        self.crossing = [self._crossings(index) for index in range(len(problem.flows))]
        self.first_is_used = self._first_is_used()

    def runs(self, task: int, stage: int) -> Terms:
        """Return whether a task is in a stage."""
        return [*self.behind[task][stage], *scaled(self.behind[task][stage + 1], -1.0)]

    def sums(self, goal: Goal) -> list[Terms]:
        """Return what a pipeline needs of an amount: the largest of some sums."""
        stages = range(self.stages)
        match goal.kind:
            case "latency":
                return [[*self._latency(), *waiting(self.problem, self.mip, self._loads())]]
            case "throughput":
                return self._loads()
            case "energy":
                return [self._energy()]
            case "bytes":
                return [self._sent([1.0] * len(self.problem.channels))]
            case "bytes of":
                return [self._sent([float(index == goal.index) for index in range(len(self.problem.channels))])]
            case "memory":
                return [peak for stage in stages for peak in self._peaks(stage)]
            case "memory of":
                return [peak for stage in stages if self.machines[stage] == goal.index for peak in self._peaks(stage)]
            case "share of":
                return [self.memory.held(goal.index)] if goal.index in self.machines else []

    def keep(self, cap: Cap) -> None:
        """Keep a limit."""
        machine = cap.goal.index
        if cap.goal.kind == "memory of" and self.memory.most(machine) <= cap.most:
            return
        keep(self.mip, self.sums(cap.goal), cap.most)

    def stage_of(self, solved: tuple[float, ...]) -> list[int]:
        """Return the stage of each task in a solution."""
        return [round(sum(value_of(term, solved) for term in row[1:])) for row in self.behind]

    def _runs_on(self, task: int, machine: int) -> Terms:
        return self.runs(task, self.machines.index(machine))

    def _order(self) -> None:
        for task, row in enumerate(self.behind):
            for stage in range(2, self.stages):
                self.mip.at_most([*row[stage], *scaled(row[stage - 1], -1.0)])
            for flow in self.problem.made_by.get(task, ()):
                for consumer in self.problem.flows[flow].consumers:
                    for stage in range(1, self.stages):
                        self.mip.at_most([*row[stage], *scaled(self.behind[consumer][stage], -1.0)])
        last = [(i, -f) for task in range(len(self.behind)) for i, f in self.runs(task, self.stages - 1)]
        self.mip.at_most(last, -1.0)

    def _ban(self) -> None:
        for task, seconds in enumerate(self.problem.seconds):
            answers = any(self.problem.flows[flow].is_output for flow in self.problem.made_by.get(task, ()))
            for stage, machine in enumerate(self.machines):
                if math.isinf(seconds[machine]) or (
                    answers and math.isinf(self.problem.latency_s(machine, self._entry))
                ):
                    self.mip.equal(self.runs(task, stage))
        for flow in self.problem.flows:
            if not flow.can_cross:
                for consumer in flow.consumers:
                    for stage in range(1, self.stages):
                        first = [] if flow.producer == REQUEST else self.behind[flow.producer][stage]
                        self.mip.equal([*self.behind[consumer][stage], *scaled(first, -1.0)])

    @property
    def _entry(self) -> int:
        return self.problem.entry

    def _crossings(self, index: int) -> list[Terms]:
        """Return by hop whether a flow crosses it: once, however many consumers it has behind it."""
        flow = self.problem.flows[index]
        if not flow.consumers or not flow.can_cross:
            return [[] for _ in range(self.stages - 1)]
        found: list[Terms] = []
        for stage in range(1, self.stages):
            first = [] if flow.producer == REQUEST else scaled(self.behind[flow.producer][stage], -1.0)
            crosses = [[*self.behind[consumer][stage], *first] for consumer in flow.consumers]
            found.append(largest(self.mip, crosses))
        return found

    def _first_is_used(self) -> Terms:
        """Return whether the entry has tasks: then it has one that needs no other."""
        needs = self.problem.used_by
        flows = self.problem.flows
        sources = [
            task
            for task in range(len(self.problem.tasks))
            if all(flows[flow].producer == REQUEST for flow in needs.get(task, ()))
        ]
        return largest(self.mip, [self.runs(task, 0) for task in sources])

    def _computes(self, stage: int) -> Terms:
        """Return whether a stage takes a run: that it is not the entry without tasks."""
        return [(CONSTANT, 1.0)] if stage else self.first_is_used

    def _has_tasks(self, stage: int) -> Terms:
        if stage in (0, self.stages - 1):
            return self._computes(stage)
        return largest(self.mip, [self.runs(task, stage) for task in range(len(self.behind))])

    def _time(self, stage: int) -> Terms:
        """Return how long a stage computes, its borders included."""
        machine = self.machines[stage]
        terms = scaled(self._computes(stage), self.problem.machines[machine].run_s)
        for task, told in enumerate(self.problem.tasks):
            if math.isfinite(self.problem.seconds[task][machine]):
                terms += scaled(self.runs(task, stage), self.problem.seconds[task][machine] * told.reach)
        for index, flow in enumerate(self.problem.flows):
            if flow.producer == REQUEST:
                continue
            if stage < self.stages - 1:
                terms += scaled(self.crossing[index][stage], self.problem.export_s[index][machine])
            if stage:
                terms += scaled(self.crossing[index][stage - 1], self.problem.import_s[index][machine])
        return terms

    def _ways(self) -> list[tuple[int, Terms, tuple[int, ...]]]:
        """Return what may be sent: the flow, whether it is, and the channels."""
        ways = []
        paths = self.problem.paths
        for index, flow in enumerate(self.problem.flows):
            for hop, crosses in enumerate(self.crossing[index]):
                if crosses:
                    ways.append((index, crosses, paths[self.machines[hop], self.machines[hop + 1]]))
            if flow.is_output and flow.producer != REQUEST:
                for stage, machine in enumerate(self.machines):
                    path = paths.get((machine, self._entry), ())
                    if path:
                        ways.append((index, self.runs(flow.producer, stage), path))
        return ways

    def _latency(self) -> Terms:
        """Return the seconds of a request that waits for no other."""
        ends = [*self.machines[1:], self._entry]
        hops = sum(self.problem.latency_s(a, b) for a, b in zip(self.machines, ends, strict=True))
        terms = [(CONSTANT, hops), *(term for stage in range(self.stages) for term in self._time(stage))]
        for flow, is_sent, path in self._ways():
            nbytes = self.problem.flows[flow].nbytes
            seconds = sum(self.problem.channels[channel].seconds(nbytes) for channel in path)
            terms += scaled(is_sent, seconds * self.problem.reach(flow))
        return terms

    def _loads(self) -> list[Terms]:
        """Return how long a request keeps each machine and channel busy."""
        channels: dict[int, Terms] = {}
        for flow, is_sent, path in self._ways():
            for channel in path:
                seconds = self.problem.channels[channel].seconds(self.problem.flows[flow].nbytes)
                channels.setdefault(channel, []).extend(scaled(is_sent, seconds * self.problem.reach(flow)))
        return [*(self._time(stage) for stage in range(self.stages)), *channels.values()]

    def _energy(self) -> Terms:
        machines = self.problem.machines
        terms = scaled(self._latency(), sum(machines[m].idle_w for m in {*self.machines, self._entry}))
        for stage, machine in enumerate(self.machines):
            terms += scaled(self._time(stage), machines[machine].active_w - machines[machine].idle_w)
        return terms + self._sent([machines[channel.source].joules_per_byte for channel in self.problem.channels])

    def _sent(self, factors: Sequence[float]) -> Terms:
        """Return the bytes through channels, each channel's times its factor."""
        terms: Terms = []
        for flow, is_sent, path in self._ways():
            terms += scaled(is_sent, self.problem.flows[flow].nbytes * sum(factors[channel] for channel in path))
        return terms

    def _peaks(self, stage: int) -> list[Terms]:
        return self.memory.peaks(self.machines[stage], self._has_tasks(stage))


def search_pipelines(
    problem: Problem, goal: Goal, caps: Sequence[Cap], *, warm: Assignment | None, time_limit_s: float
) -> Best:
    """Return the best pipeline under the limits given; those of the problem itself do not count.

    First every order of machines is relaxed, which bounds it; then those are solved that may still hold something
    better, the promising ones first.
    """
    end = time.monotonic() + time_limit_s
    best = _judged(problem, goal, caps, warm)
    orders = _orders(problem)
    relaxed: list[tuple[float, tuple[int, ...]]] = []
    for machines in orders.machines:
        left = end - time.monotonic()
        bound = 0.0
        if left > 0:
            bound = _relaxed(problem, machines, goal, caps, left)
        relaxed.append((bound, machines))
    bounds = [] if orders.is_complete else [0.0]
    for position, (bound, machines) in enumerate(sorted(relaxed)):
        if bound >= best.score:
            bounds.append(bound)
            continue
        left = (end - time.monotonic()) / max(1, min(3, len(relaxed) - position))
        offer = _solved(problem, machines, goal, caps, best, left) if left > 0.01 else Best(None, math.inf, bound)
        bounds.append(max(bound, offer.bound))
        if offer.score < best.score:
            best = offer
    bound = min([*bounds, best.score])
    return Best(best.assignment, best.score, bound)


@dataclass(frozen=True, slots=True)
class _Orders:
    machines: list[tuple[int, ...]]
    is_complete: bool


def _orders(problem: Problem) -> _Orders:
    """Return the machines of pipelines in every order, or, where too many, in that of their tiers."""
    entry = problem.entry
    others = sorted(
        (m for m in range(len(problem.machines)) if m != entry), key=lambda m: (problem.machines[m].tier, m)
    )
    counts = range(len(others) + 1)
    if sum(math.perm(len(others), count) for count in counts) <= MOST_SEQUENCES:
        every = [(entry, *p) for count in counts for p in itertools.permutations(others, count)]
        return _Orders([order for order in every if _is_connected(problem, order)], True)
    subsets = (c for count in counts for c in itertools.combinations(others, count))
    some = [(entry, *c) for c in itertools.islice(subsets, MOST_SEQUENCES)]
    return _Orders([order for order in some if _is_connected(problem, order)], False)


def _is_connected(problem: Problem, machines: tuple[int, ...]) -> bool:
    ends = [*machines[1:], problem.entry]
    return all(a == b or (a, b) in problem.paths for a, b in zip(machines, ends, strict=True))


def _judged(problem: Problem, goal: Goal, caps: Sequence[Cap], assignment: Assignment | None) -> Best:
    """Return what an assignment is worth: nothing where there is none or it breaks a limit."""
    if assignment is None:
        return Best(None, math.inf, 0.0)
    told = estimate(problem, assignment)
    if not keeps(problem, caps, told, assignment):
        return Best(None, math.inf, 0.0)
    return Best(assignment, amount(problem, goal, told, assignment), 0.0)


def _program(
    problem: Problem, machines: Sequence[int], goal: Goal, caps: Sequence[Cap], tighter: float = 0.0
) -> tuple[PipelineProgram, Terms]:
    program = PipelineProgram(problem, machines)
    for cap in caps:
        program.keep(Cap(cap.goal, cap.most * (1 - tighter)))
    sums = program.sums(goal)
    return program, largest(program.mip, sums) if sums else []


def _relaxed(problem: Problem, machines: Sequence[int], goal: Goal, caps: Sequence[Cap], time_limit_s: float) -> float:
    program, objective = _program(problem, machines, goal, caps)
    bound = program.mip.solve(objective, time_limit_s=time_limit_s, is_relaxed=True).bound
    return safe_bound(goal, bound)


def _solved(
    problem: Problem, machines: Sequence[int], goal: Goal, caps: Sequence[Cap], best: Best, time_limit_s: float
) -> Best:
    """Return the best pipeline over these machines in this order that is better than `best`, and the bound."""
    end = time.monotonic() + time_limit_s
    bound = -math.inf
    for tighter in _TIGHTER:
        program, objective = _program(problem, machines, goal, caps, tighter)
        if math.isfinite(best.score):
            program.mip.at_most(objective, best.score)
        # not hinted as well: HiGHS takes a hint on this row for the optimum, though there are better solutions
        solved = program.mip.solve(objective, time_limit_s=end - time.monotonic())
        if not tighter:
            bound = safe_bound(goal, solved.bound)
        offer = _offered(problem, machines, goal, caps, program, solved)
        if offer.assignment is not None or solved.values is None:
            return Best(offer.assignment, offer.score, bound)
    return Best(None, math.inf, bound)


def _offered(
    problem: Problem, machines: Sequence[int], goal: Goal, caps: Sequence[Cap], program: PipelineProgram, solved: Solved
) -> Best:
    if solved.values is None:
        return Best(None, math.inf, 0.0)
    return _judged(problem, goal, caps, pipeline(problem, machines, program.stage_of(solved.values)))
