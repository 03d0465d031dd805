"""Any machine for each task: branches side by side, machines visited again; a mixed-integer program that bounds them.

Tasks are scheduled one by one, each as soon as what it needs is there; that machines and channels do one thing after
another is told by their total load alone. So the program is never slower than `estimate` says of the partitions that
`placed` forms, and its bound holds for them; which placement is best among those found, `estimate` decides.
"""

import math
import time
from collections.abc import Iterator, Sequence

from hyps_passes.assignment import Assignment, is_sound
from hyps_passes.estimate import estimate, placed
from hyps_passes.problem import REQUEST, Problem
from hyps_passes.searches.goals import SLACK, Cap, Goal, amount, keeps, safe_bound
from hyps_passes.searches.mip import CONSTANT, Mip, Terms, scaled
from hyps_passes.searches.pipeline_mip import Best
from hyps_passes.searches.placement_rows import MemoryRows, keep, largest, waiting


class PlacementProgram:
    """All placements: whether task t runs on machine m is variable `on[t][m]`."""

    def __init__(self, problem: Problem, latest_s: float) -> None:
        """Begin with every placement whose latency is below `latest_s`, which must be true of all that count."""
        self.problem = problem
        self.mip = Mip()
        self.latest_s = latest_s
        self.unit_s = max((s for row in problem.seconds for s in row if math.isfinite(s)), default=0.0) or 1.0
        """Seconds that variables count in, so that they are about 1: solvers go wrong where factors are far apart."""
        self.machines = range(len(problem.machines))
        self.on = [[self.mip.variable(1.0, is_integer=True) for _ in self.machines] for _ in problem.tasks]
        self.memory = MemoryRows(problem, self.mip, self.runs)
        self._ban()
        self.used = [largest(self.mip, [self.runs(task, m) for task in range(len(self.on))]) for m in self.machines]
        self.goes: dict[tuple[int, int], dict[tuple[int, int], Terms]] = {}
        """By flow and consumer, from which machine to which the flow goes."""
        self.sent: list[dict[tuple[int, int], Terms]] = [self._sending(index) for index in range(len(problem.flows))]
        """By flow, between which two machines it is sent: once, however many consumers it has there."""
        self._makespan: Terms = []

    def runs(self, task: int, machine: int) -> Terms:
        """Return whether a task runs on a machine."""
        return [(self.on[task][machine], 1.0)]

    def sums(self, goal: Goal) -> list[Terms]:
        """Return what a placement needs at least of an amount: the largest of some sums."""
        match goal.kind:
            case "latency":
                return [[*self._alone(), *waiting(self.problem, self.mip, self._loads())]]
            case "throughput":
                return self._loads()
            case "energy":
                return [self._energy()]
            case "bytes":
                return [self._bytes([1.0] * len(self.problem.channels))]
            case "bytes of":
                return [self._bytes([float(index == goal.index) for index in range(len(self.problem.channels))])]
            case "memory":
                return [peak for m in self.machines for peak in self.memory.peaks(m, self.used[m])]
            case "memory of":
                return self.memory.peaks(goal.index, self.used[goal.index])
            case "share of":
                return [self.memory.held(goal.index)]

    def keep(self, cap: Cap) -> None:
        """Keep a limit."""
        if cap.goal.kind == "memory of" and self.memory.most(cap.goal.index) <= cap.most:
            return
        keep(self.mip, self.sums(cap.goal), cap.most)

    def machine_of(self, solved: tuple[float, ...]) -> list[int]:
        """Return the machine of each task in a solution."""
        return [max(self.machines, key=lambda m: solved[row[m]]) for row in self.on]

    def _ban(self) -> None:
        problem = self.problem
        for task, row in enumerate(self.on):
            self.mip.equal([(variable, 1.0) for variable in row], 1.0)
            answers = any(problem.flows[flow].is_output for flow in problem.made_by.get(task, ()))
            for machine in self.machines:
                is_lost = answers and math.isinf(problem.latency_s(machine, problem.entry))
                if is_lost or math.isinf(problem.seconds[task][machine]):
                    self.mip.equal(self.runs(task, machine))

    def _sending(self, index: int) -> dict[tuple[int, int], Terms]:
        """Return between which machines a flow is sent."""
        flow = self.problem.flows[index]
        ways: dict[tuple[int, int], list[Terms]] = {}
        for consumer in flow.consumers:
            goes = self._from_request(consumer) if flow.producer == REQUEST else self._going(flow.producer, consumer)
            self.goes[index, consumer] = goes
            for way, terms in goes.items():
                if way[0] == way[1]:
                    continue
                if not flow.can_cross or way not in self.problem.paths:
                    self.mip.equal(terms)
                else:
                    ways.setdefault(way, []).append(terms)
        return {way: largest(self.mip, sums) for way, sums in ways.items()}

    def _from_request(self, consumer: int) -> dict[tuple[int, int], Terms]:
        return {(self.problem.entry, machine): self.runs(consumer, machine) for machine in self.machines}

    def _going(self, producer: int, consumer: int) -> dict[tuple[int, int], Terms]:
        """Return by two machines whether one runs the producer and the other the consumer."""
        for flow in self.problem.made_by[producer]:
            if (flow, consumer) in self.goes:
                return self.goes[flow, consumer]
        ways: dict[tuple[int, int], Terms] = {
            (a, b): [(self.mip.variable(1.0), 1.0)] for a in self.machines for b in self.machines
        }
        for machine in self.machines:
            left = [term for (a, _), terms in ways.items() if a == machine for term in terms]
            right = [term for (_, b), terms in ways.items() if b == machine for term in terms]
            self.mip.equal([*left, *scaled(self.runs(producer, machine), -1.0)])
            self.mip.equal([*right, *scaled(self.runs(consumer, machine), -1.0)])
        return ways

    def _computing(self, task: int) -> Terms:
        seconds, reach = self.problem.seconds[task], self.problem.tasks[task].reach
        return [(self.on[task][m], seconds[m] * reach) for m in self.machines if math.isfinite(seconds[m])]

    def _transfer_s(self, flow: int, source: int, target: int) -> float:
        problem = self.problem
        return problem.transfer_s(source, target, problem.flows[flow].nbytes) * problem.reach(flow)

    def _alone(self) -> Terms:
        """Return the seconds of a request that waits for no other."""
        if not self._makespan:
            self._makespan = [(self.mip.variable(self.latest_s / self.unit_s), self.unit_s)]
            self._schedule(self._makespan)
        return self._makespan

    def _schedule(self, makespan: Terms) -> None:
        mip, problem = self.mip, self.problem
        start: list[Terms] = [[(mip.variable(), self.unit_s)] for _ in self.on]
        for task, row in enumerate(self.on):
            runs = [(row[m], problem.machines[m].run_s) for m in self.machines]
            mip.at_most([*runs, *scaled(start[task], -1.0)])
            end: Terms = [*start[task], *self._computing(task)]
            mip.at_most([*end, *scaled(makespan, -1.0)])
            for index in problem.made_by.get(task, ()):
                if problem.flows[index].is_output:
                    mip.at_most([*end, *self._answer_s(index), *scaled(makespan, -1.0)])
                for consumer in problem.flows[index].consumers:
                    mip.at_most([*end, *self._delay(index, consumer), *scaled(start[consumer], -1.0)])
        for index in problem.made_by.get(REQUEST, ()):
            for consumer in problem.flows[index].consumers:
                mip.at_most([*self._delay(index, consumer), *scaled(start[consumer], -1.0)])
        for load in self._loads():
            mip.at_most([*load, *scaled(makespan, -1.0)])

    def _answer_s(self, index: int) -> Terms:
        entry, producer = self.problem.entry, self.problem.flows[index].producer
        ways = [m for m in self.machines if (m, entry) in self.problem.paths]
        return [
            (self.on[producer][m], self._transfer_s(index, m, entry) + self.problem.latency_s(m, entry)) for m in ways
        ]

    def _delay(self, index: int, consumer: int) -> Terms:
        """Return the seconds between a tensor's making and its first use, by where both are."""
        problem = self.problem
        terms: Terms = []
        is_made = problem.flows[index].producer != REQUEST
        for (a, b), goes in self.goes[index, consumer].items():
            if a == b or (a, b) not in problem.paths:
                continue
            seconds = self._transfer_s(index, a, b) + problem.latency_s(a, b) + problem.machines[b].run_s
            if is_made:
                seconds += problem.export_s[index][a] + problem.import_s[index][b]
            terms += scaled(goes, seconds)
        return terms

    def _time(self, machine: int) -> Terms:
        """Return how long a machine computes at least: in one partition, with borders only to other machines."""
        terms = scaled(self.used[machine], self.problem.machines[machine].run_s)
        for task, told in enumerate(self.problem.tasks):
            if math.isfinite(self.problem.seconds[task][machine]):
                terms.append((self.on[task][machine], self.problem.seconds[task][machine] * told.reach))
        for index, ways in enumerate(self.sent):
            if self.problem.flows[index].producer == REQUEST:
                continue
            gives = [way for way in ways if way[0] == machine]
            export_s = self.problem.export_s[index][machine]
            if gives and export_s:
                terms += scaled(largest(self.mip, [ways[way] for way in gives]), export_s)
            for (_, target), is_sent in ways.items():
                if target == machine:
                    terms += scaled(is_sent, self.problem.import_s[index][machine])
        return terms

    def _ways(self) -> Iterator[tuple[int, Terms, tuple[int, ...]]]:
        """Yield what may be sent: the flow, whether it is, and the channels."""
        for index, flow in enumerate(self.problem.flows):
            for way, is_sent in self.sent[index].items():
                yield index, is_sent, self.problem.paths[way]
            if flow.is_output and flow.producer != REQUEST:
                for machine in self.machines:
                    path = self.problem.paths.get((machine, self.problem.entry), ())
                    if path:
                        yield index, self.runs(flow.producer, machine), path

    def _loads(self) -> list[Terms]:
        """Return how long a request keeps each machine and channel busy."""
        channels: dict[int, Terms] = {}
        for flow, is_sent, path in self._ways():
            for channel in path:
                seconds = self.problem.channels[channel].seconds(self.problem.flows[flow].nbytes)
                channels.setdefault(channel, []).extend(scaled(is_sent, seconds * self.problem.reach(flow)))
        return [*(self._time(machine) for machine in self.machines), *channels.values()]

    def _bytes(self, factors: Sequence[float]) -> Terms:
        terms: Terms = []
        for flow, is_sent, path in self._ways():
            terms += scaled(is_sent, self.problem.flows[flow].nbytes * sum(factors[channel] for channel in path))
        return terms

    def _energy(self) -> Terms:
        """Return the joules: each machine that takes part idles as long as the request lasts."""
        problem = self.problem
        makespan = self._alone()
        terms: Terms = []
        for machine, told in enumerate(problem.machines):
            terms += scaled(self._time(machine), told.active_w - told.idle_w)
            if machine == problem.entry:
                terms += scaled(makespan, told.idle_w)
            elif told.idle_w:
                lasts = [(self.mip.variable(), self.unit_s)]  # the makespan where the machine is used
                unused: Terms = [(CONSTANT, 1.0), *scaled(self.used[machine], -1.0)]
                self.mip.at_most([*makespan, *scaled(unused, -self.latest_s), *scaled(lasts, -1.0)])
                self.mip.at_most([*self._time(machine), *scaled(lasts, -1.0)])
                terms += scaled(lasts, told.idle_w)
        return terms + self._bytes([problem.machines[channel.source].joules_per_byte for channel in problem.channels])


def search_placements(
    problem: Problem, goal: Goal, caps: Sequence[Cap], *, warm: Assignment | None, time_limit_s: float
) -> Best:
    """Return the best placement under the limits given; those of the problem itself do not count.

    The program's solution is formed into partitions, then improved by moving tasks as long as `estimate` gains by it.
    `warm` may be a pipeline: what is returned is never worse, though the bound tells of `placed` placements alone.
    """
    end = time.monotonic() + time_limit_s
    best = _better(problem, goal, caps, Best(None, math.inf, 0.0), warm)
    program = PlacementProgram(problem, _latest_s(problem, goal, caps, best.score))
    for cap in caps:
        program.keep(cap)
    objective = largest(program.mip, program.sums(goal))
    if math.isfinite(best.score):
        program.mip.at_most(objective, best.score)
    solved = program.mip.solve(objective, time_limit_s=0.7 * time_limit_s)
    starts = [] if warm is None else [_machine_of(problem, warm)]
    if solved.values is not None:
        starts.append(program.machine_of(solved.values))
    for machine_of in starts:
        best = _improved(problem, goal, caps, best, machine_of, end)
    bound = safe_bound(goal, solved.bound)
    return Best(best.assignment, best.score, min(bound, best.score))


def _latest_s(problem: Problem, goal: Goal, caps: Sequence[Cap], score: float) -> float:
    """Return a latency that no placement which counts exceeds: that keeps the limits and scores as well as `score`."""
    entry = problem.machines[problem.entry]
    idle_w = min(entry.idle_w, entry.active_w)
    told = [_slowest_s(problem), *(cap.most * SLACK for cap in caps if cap.goal.kind == "latency")]
    if goal.kind == "latency":
        told.append(score * SLACK)
    if goal.kind == "energy" and idle_w:  # the entry idles as long as the request lasts
        told.append(score / idle_w * SLACK)
    return min(told)


def _slowest_s(problem: Problem) -> float:
    """Return a latency that no placement exceeds: each task on the slowest machine, each tensor on the slowest way."""
    machines = range(len(problem.machines))
    ways = list(problem.paths)
    tasks = sum(max((s for s in row if math.isfinite(s)), default=0.0) for row in problem.seconds)
    tasks += len(problem.tasks) * sum(machine.run_s for machine in problem.machines)
    total = tasks
    for index, flow in enumerate(problem.flows):
        borders = max((problem.export_s[index][m] + problem.import_s[index][m] for m in machines), default=0.0)
        way = max((problem.transfer_s(a, b, flow.nbytes) + problem.latency_s(a, b) for a, b in ways), default=0.0)
        total += (len(flow.consumers) + 1) * (len(machines) * borders + way)
    return total


def _machine_of(problem: Problem, assignment: Assignment) -> list[int]:
    machine_of = assignment.machine_of()
    return [machine_of[task] for task in range(len(problem.tasks))]


def _better(problem: Problem, goal: Goal, caps: Sequence[Cap], best: Best, assignment: Assignment | None) -> Best:
    if assignment is None or not is_sound(problem, assignment):
        return best
    told = estimate(problem, assignment)
    if not keeps(problem, caps, told, assignment):
        return best
    score = amount(problem, goal, told, assignment)
    return Best(assignment, score, 0.0) if score < best.score else best


def _improved(
    problem: Problem, goal: Goal, caps: Sequence[Cap], best: Best, machine_of: Sequence[int], end: float
) -> Best:
    """Move single tasks to other machines, round after round, as long as that makes the placement the best one."""
    own = list(machine_of)
    best = _better(problem, goal, caps, best, placed(problem, own))
    is_moving = True
    while is_moving:
        is_moving = False
        for task in range(len(own)):
            for machine in problem.allowed(task):
                if machine == own[task]:
                    continue
                if time.monotonic() > end:
                    return best
                moved = [*own[:task], machine, *own[task + 1 :]]
                offer = _better(problem, goal, caps, best, placed(problem, moved))
                if offer.score < best.score:
                    best, own, is_moving = offer, moved, True
    return best
