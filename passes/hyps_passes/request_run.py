"""One request on its way through a placement: when what computes, when what is sent, and what that occupies."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyps_passes.assignment import Assignment, Stage, crossing_flows, stage_name
from hyps_passes.problem import REQUEST, Problem, channel_name


@dataclass(frozen=True, slots=True)
class Span:
    """Something that takes time in the course of one request."""

    resource: str
    """A machine's name, or `a to b`."""
    name: str
    start_s: float
    end_s: float


def stage_s(problem: Problem, stage: Stage, machine: int) -> float:
    """Return the seconds that a stage takes on a machine, what its borders cost left out."""
    tasks = sum(problem.seconds[task][machine] * problem.tasks[task].reach for task in stage.tasks)
    return problem.machines[machine].run_s + tasks


class Run:
    """One request's way through the stages, and what it costs every machine and channel."""

    def __init__(self, problem: Problem, assignment: Assignment) -> None:
        self.problem = problem
        self.stages = assignment.stages
        self.assignment = assignment
        self.busy_s = [0.0] * len(problem.machines)
        self.channel_bytes = [0] * len(problem.channels)
        self.machine_load: dict[str, float] = {}
        self.channel_load: dict[str, float] = {}
        self.sent_bytes = [0] * len(problem.machines)
        self.spans: list[Span] = []
        self.stage_of = {task: index for index, stage in enumerate(self.stages) for task in stage.tasks}

    def pipelined(self) -> float:
        """Return the latency where each stage hands on to the next and nothing overlaps."""
        problem, clock = self.problem, 0.0
        crossing = crossing_flows(problem, self.assignment)
        for index, stage in enumerate(self.stages):
            borders = sum(problem.export_s[f][stage.machine] for f in self._made(crossing[index]))
            if index:
                borders += sum(problem.import_s[f][stage.machine] for f in self._made(crossing[index - 1]))
            clock = self.compute(index, clock, borders)
            if index + 1 < len(self.stages):
                clock = self._hop(stage.machine, self.stages[index + 1].machine, crossing[index], clock)
        for stage in self.stages:
            made = [f for t in stage.tasks for f in problem.made_by.get(t, ()) if problem.flows[f].is_output]
            for flow in made:
                clock = self._send(stage.machine, problem.entry, flow, clock)
        return clock + problem.latency_s(self.stages[-1].machine, problem.entry)

    def _made(self, flows: Iterable[int]) -> list[int]:
        """Leave out the request's own tensors: what it costs to take these in is part of the layers."""
        return [f for f in flows if self.problem.flows[f].producer != REQUEST]

    def _hop(self, source: int, target: int, flows: Sequence[int], clock: float) -> float:
        for flow in flows:
            clock = self._send(source, target, flow, clock)
        return clock + self.problem.latency_s(source, target)

    def _send(self, source: int, target: int, flow: int, start: float) -> float:
        """Occupy the channels of a path one after another; return when the last is free again."""
        if source == target:
            return start
        path = self.problem.paths.get((source, target))
        if path is None:
            return math.inf
        for index in path:
            start = self.occupy(index, flow, start)
        return start

    def occupy(self, index: int, flow: int, start: float) -> float:
        """Send a flow through a channel from `start` on; return when it is through, latency left out."""
        channel = self.problem.channels[index]
        nbytes = self.problem.flows[flow].nbytes
        seconds = channel.seconds(nbytes) * self.problem.reach(flow)
        name = channel_name(self.problem, channel.source, channel.target)
        self.channel_bytes[index] += nbytes
        self.sent_bytes[channel.source] += nbytes
        self.channel_load[name] = self.channel_load.get(name, 0.0) + seconds
        self.spans.append(Span(name, self.problem.flows[flow].name, start, start + seconds))
        return start + seconds

    def compute(self, index: int, start: float, borders: float) -> float:
        """Run a stage from `start` on, its borders costing `borders` seconds; return when it has ended."""
        stage = self.stages[index]
        if not stage.tasks and not index:  # the request begins at the entry, which has nothing to do
            return start
        seconds = {m: stage_s(self.problem, stage, m) + borders for m in stage.machines}
        rate = sum(1 / s if s else math.inf for s in seconds.values())
        for machine in stage.machines:  # the faster of the replicas takes the more requests: all are equally busy
            name = self.problem.machines[machine].name
            self.machine_load[name] = self.machine_load.get(name, 0.0) + (1 / rate if rate else math.inf)
        self.busy_s[stage.machine] += seconds[stage.machine]
        end = start + seconds[stage.machine]
        self.spans.append(Span(self.problem.machines[stage.machine].name, stage_name(self.problem, stage), start, end))
        return end

    def joules(self, latency: float) -> float:
        """Return the energy of one request on the machines that take part, the entry always among them."""
        used = {self.problem.entry} | {stage.machine for stage in self.stages}
        total = 0.0
        for index in used:
            machine = self.problem.machines[index]
            total += (machine.active_w - machine.idle_w) * self.busy_s[index] + machine.idle_w * latency
        for index, nbytes in enumerate(self.sent_bytes):
            total += self.problem.machines[index].joules_per_byte * nbytes
        return total

    def overlapped(self) -> float:
        """Return the latency where stages run as soon as their tensors and their machine allow, the earlier first."""
        return _Schedule(self).run()

    # what the schedule asks

    def inputs(self, index: int) -> set[int]:
        """The flows that a stage takes from outside."""
        used = (f for task in self.stages[index].tasks for f in self.problem.used_by.get(task, ()))
        return {f for f in used if self.stage_of.get(self.problem.flows[f].producer) != index}

    def outputs(self, index: int) -> list[int]:
        """The flows that leave a stage, in the order in which they are made."""
        flows = (f for task in self.stages[index].tasks for f in self.problem.made_by.get(task, ()))
        return [f for f in flows if self._leaves(f, index)]

    def _leaves(self, flow: int, index: int) -> bool:
        return self.problem.flows[flow].is_output or any(
            self.stage_of[c] != index for c in self.problem.flows[flow].consumers
        )

    def borders_s(self, index: int) -> float:
        """What the borders of a stage cost, beside transfers."""
        machine = self.stages[index].machine
        problem = self.problem
        taken = sum(problem.import_s[f][machine] for f in self._made(sorted(self.inputs(index))))
        given = (f for f in self.outputs(index) if any(self.stage_of[c] != index for c in problem.flows[f].consumers))
        return taken + sum(problem.export_s[f][machine] for f in given)


class _Schedule:
    """List scheduling: machines take the ready stage that stands first, channels the tensor that came first."""

    def __init__(self, run: Run) -> None:
        self.run_of = run
        self.problem = run.problem
        self.channel_free_at = [0.0] * len(run.problem.channels)
        self.missing = [run.inputs(index) for index in range(len(run.stages))]
        self.events: list[tuple[float, int, int, int, int]] = []
        """Time; 0 arrival, 1 end; flow and machine, or stage; a number that keeps the order of what is simultaneous."""
        self.waiting: list[list[int]] = [[] for _ in run.problem.machines]
        self.is_busy = [False] * len(run.problem.machines)
        self.number = 0
        self.end_s = 0.0

    def run(self) -> float:
        for flow in self.problem.made_by.get(REQUEST, ()):
            self._spread(flow, self.problem.entry, 0.0)
        for index, missing in enumerate(self.missing):
            if not missing:
                heapq.heappush(self.waiting[self.run_of.stages[index].machine], index)
        self._start_all(0.0)
        while self.events:
            now = self.events[0][0]
            if math.isinf(now):
                return math.inf
            while self.events and self.events[0][0] == now:
                _, kind, subject, machine, _ = heapq.heappop(self.events)
                self._arrive(subject, machine) if kind == 0 else self._end(subject, now)
            self._start_all(now)
        return self.end_s

    def _start_all(self, now: float) -> None:
        for machine, waiting in enumerate(self.waiting):
            if waiting and not self.is_busy[machine]:
                index = heapq.heappop(waiting)
                self.is_busy[machine] = True
                end = self.run_of.compute(index, now, self.run_of.borders_s(index))
                self._push(end, 1, index, machine)

    def _end(self, index: int, now: float) -> None:
        machine = self.run_of.stages[index].machine
        self.is_busy[machine] = False
        self.end_s = max(self.end_s, now)
        for flow in self.run_of.outputs(index):
            self._spread(flow, machine, now)

    def _spread(self, flow: int, source: int, now: float) -> None:
        """Send a tensor to every machine that needs it, once each."""
        stages = {self.run_of.stage_of[c] for c in self.problem.flows[flow].consumers}
        targets = {self.run_of.stages[stage].machine for stage in stages if flow in self.missing[stage]}
        is_answer = self.problem.flows[flow].is_output and source != self.problem.entry
        for target in sorted(targets | ({self.problem.entry} if is_answer else set())):
            arrival = self._transfer(flow, source, target, now)
            if target in targets:
                self._push(arrival, 0, flow, target)
            if is_answer and target == self.problem.entry:
                self.end_s = max(self.end_s, arrival)

    def _transfer(self, flow: int, source: int, target: int, now: float) -> float:
        if source == target:
            return now
        path = self.problem.paths.get((source, target))
        if path is None:
            return math.inf
        for index in path:
            start = max(now, self.channel_free_at[index])
            self.channel_free_at[index] = self.run_of.occupy(index, flow, start)
            now = self.channel_free_at[index] + self.problem.channels[index].latency_s
        return now

    def _arrive(self, flow: int, machine: int) -> None:
        for index in {self.run_of.stage_of[c] for c in self.problem.flows[flow].consumers}:
            if self.run_of.stages[index].machine == machine and flow in self.missing[index]:
                self.missing[index].discard(flow)
                if not self.missing[index]:
                    heapq.heappush(self.waiting[machine], index)

    def _push(self, time: float, kind: int, subject: int, machine: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (time, kind, subject, machine, self.number))
