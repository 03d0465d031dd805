"""The one cost model: what a placement costs, for searches, simulation and reports alike."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hyps_passes.problem import REQUEST, Problem


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that run as one partition."""

    machines: tuple[int, ...]
    """Where it runs; of several, each takes the requests that come while the others are busy."""
    tasks: tuple[int, ...]
    """Ascending. None: the stage only passes on what it gets, which takes a run as well, but not at the entry."""

    @property
    def machine(self) -> int:
        """The machine that a request alone in the cluster goes to."""
        return self.machines[0]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which task runs in which partition, on which machine."""

    stages: tuple[Stage, ...]
    """In an order in which they can run."""
    is_pipeline: bool = True
    """Whether each stage hands on to the next all that later stages need, beginning at the entry, so that nothing of
    one request overlaps; else each tensor goes straight to its consumers when its stage ends, and stages that do not
    need each other run side by side."""

    def machine_of(self) -> dict[int, int]:
        """Return the machine of each task."""
        return {task: stage.machine for stage in self.stages for task in stage.tasks}


@dataclass(frozen=True, slots=True)
class Span:
    """Something that takes time in the course of one request."""

    resource: str
    """A machine's name, or `a to b`."""
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a placement is predicted to cost."""

    latency_s: float
    """From a request's arrival at the entry to its answer there; waiting for others included where requests arrive."""
    throughput_rps: float
    """What it sustains with many requests under way."""
    bottleneck: str
    """The machine or channel that is busiest."""
    peak_bytes: tuple[int, ...]
    """Per machine; 0 where nothing runs."""
    channel_bytes: tuple[int, ...]
    """Per channel, of one request."""
    joules: float
    """Of one request alone: computing, waiting, sending, on every machine that takes part."""
    busy_s: tuple[float, ...]
    """Per machine, of one request."""
    queue_s: float = 0.0
    """The part of the latency that is waiting for other requests."""
    spans: tuple[Span, ...] = ()

    @property
    def wire_bytes(self) -> int:
        """Bytes through all channels."""
        return sum(self.channel_bytes)

    @property
    def worst_peak_bytes(self) -> int:
        """The largest peak of any machine."""
        return max(self.peak_bytes, default=0)


def pipeline(problem: Problem, machines: Sequence[int], stage_of: Sequence[int]) -> Assignment:
    """Return the assignment that runs each task in stage `stage_of[task]`, on `machines[stage]`; stage 0 at the entry.

    Stages without tasks at the end are left out.
    """
    members: list[list[int]] = [[] for _ in machines]
    for task, stage in enumerate(stage_of):
        members[stage].append(task)
    while len(members) > 1 and not members[-1]:
        members.pop()
    assert machines[0] == problem.entry, "a pipeline begins at the entry"
    return Assignment(tuple(Stage((m,), tuple(tasks)) for m, tasks in zip(machines, members, strict=False)))


def single(problem: Problem, machine: int) -> Assignment:
    """Return the assignment that runs everything on one machine."""
    everything = Stage((machine,), tuple(range(len(problem.tasks))))
    return Assignment((everything,) if machine == problem.entry else (Stage((problem.entry,), ()), everything))


def placed(problem: Problem, machine_of: Sequence[int]) -> Assignment:
    """Return the better way to run each task on `machine_of[task]`: in few partitions, or in such that send early."""
    few = Assignment(_by_level(problem, machine_of), is_pipeline=False)
    early = Assignment(_by_export(problem, machine_of), is_pipeline=False)
    return min((few, early), key=lambda assignment: estimate(problem, assignment).latency_s)


def is_sound(problem: Problem, assignment: Assignment) -> bool:
    """Return whether each task stands in one stage on machines that may run it, behind the stages that it needs."""
    stage_of = {task: index for index, stage in enumerate(assignment.stages) for task in stage.tasks}
    if sorted(stage_of) != list(range(len(problem.tasks))) or sum(len(s.tasks) for s in assignment.stages) != len(
        stage_of
    ):
        return False
    if any(
        math.isinf(problem.seconds[task][machine])
        for stage in assignment.stages
        for machine in stage.machines
        for task in stage.tasks
    ):
        return False
    for flow in problem.flows:
        first = stage_of[flow.producer] if flow.producer != REQUEST else -1
        stages = {stage_of[consumer] for consumer in flow.consumers}
        if any(stage < first for stage in stages):
            return False
        if not flow.can_cross and first >= 0 and stages - {first}:
            return False
    return True


def estimate(problem: Problem, assignment: Assignment) -> Estimate:
    """Return what the assignment costs.

    One request: stages as long as their tasks take, `Machine.run_s`, and what their borders cost; transfers one after
    another through each channel, then its latency. Throughput: the busiest machine or channel sets it. Peak memory:
    base, weights, all that comes in and, of what is made, what is still needed. Waiting: that of a queue with random
    arrivals and fixed service (M/D/1) at every machine and channel.
    """
    run = _Run(problem, assignment)
    latency = run.pipelined() if assignment.is_pipeline else run.overlapped()
    loads = {**run.machine_load, **run.channel_load}
    bottleneck = max(loads, key=lambda resource: (loads[resource], resource), default="")
    slowest = loads.get(bottleneck, 0.0)
    queue = sum(_wait_s(problem.arrival_rps, load) for load in loads.values())
    return Estimate(
        latency_s=latency + queue,
        throughput_rps=1 / slowest if slowest else math.inf,
        bottleneck=bottleneck,
        peak_bytes=tuple(peak_bytes(problem, assignment, machine) for machine in range(len(problem.machines))),
        channel_bytes=tuple(run.channel_bytes),
        joules=run.joules(latency),
        busy_s=tuple(run.busy_s),
        queue_s=queue,
        spans=tuple(run.spans),
    )


def stage_s(problem: Problem, stage: Stage, machine: int) -> float:
    """Return the seconds that a stage takes on a machine, what its borders cost left out."""
    tasks = sum(problem.seconds[task][machine] * problem.tasks[task].reach for task in stage.tasks)
    return problem.machines[machine].run_s + tasks


def partition_seconds(problem: Problem, assignment: Assignment) -> tuple[float, ...]:
    """Return the seconds of each stage on its machine as a partition of its own, what its borders cost there included.

    In a pipeline that relays nothing these are what `estimate` adds up.
    """
    run = _Run(problem, assignment)
    return tuple(
        stage_s(problem, stage, stage.machine) + (run.borders_s(index) if stage.tasks else 0.0)
        for index, stage in enumerate(assignment.stages)
    )


def violations(problem: Problem, found: Estimate, assignment: Assignment) -> list[str]:
    """Return which limits the placement breaks, one phrase each; empty when it keeps all."""
    return [phrase for phrase, amount, limit in excesses(problem, found, assignment) if amount > limit * (1 + 1e-9)]


def excesses(problem: Problem, found: Estimate, assignment: Assignment) -> Iterator[tuple[str, float, float]]:
    """Yield each limit's name, what the placement needs of it, and the limit."""
    limits = problem.limits
    if limits.deadline_s is not None:
        yield "deadline", found.latency_s, limits.deadline_s
    if limits.joules is not None:
        yield "energy", found.joules, limits.joules
    if limits.wire_bytes is not None:
        yield "bytes", found.wire_bytes, limits.wire_bytes
    if limits.throughput_rps is not None:
        yield "throughput", limits.throughput_rps, found.throughput_rps
    for index, machine in enumerate(problem.machines):
        if machine.memory_bytes is not None:
            yield f"memory of {machine.name}", found.peak_bytes[index], machine.memory_bytes
        if limits.peak_bytes is not None:
            yield f"memory of {machine.name}", found.peak_bytes[index], limits.peak_bytes
        if machine.max_share < 1:
            held = problem.weight_bytes_of(_tasks_on(assignment, index))
            yield f"share of {machine.name}", held, machine.max_share * problem.weight_bytes
    for channel, nbytes in zip(problem.channels, found.channel_bytes, strict=True):
        if channel.max_bytes is not None:
            yield f"bytes of {channel_name(problem, channel.source, channel.target)}", nbytes, channel.max_bytes


def peak_bytes(problem: Problem, assignment: Assignment, machine: int) -> int:
    """Return the most memory that a machine has in use, its base included; 0 where it runs nothing.

    What comes into a machine stays until the end; what is made there stays until its last consumer has run, and if it
    leaves the machine, or is part of the answer, until the end.
    """
    own = set(_tasks_on(assignment, machine))
    if not own:
        return 0
    incoming = sum(f.nbytes for f in problem.flows if f.producer not in own and own.intersection(f.consumers))
    change = [0] * (len(problem.tasks) + 1)
    for task in own:
        for index in problem.made_by.get(task, ()):
            flow = problem.flows[index]
            stays = flow.is_output or any(consumer not in own for consumer in flow.consumers)
            last = len(problem.tasks) - 1 if stays else max((task, *flow.consumers))
            change[task] += flow.nbytes
            change[last + 1] -= flow.nbytes
    alive = most = 0
    for task, delta in enumerate(change[:-1]):
        alive += delta
        most = max(most, alive + (problem.tasks[task].work_bytes if task in own else 0))
    return problem.machines[machine].base_bytes + problem.weight_bytes_of(own) + incoming + most


def channel_name(problem: Problem, source: int, target: int) -> str:
    """Return how a channel is called: `camera to server`."""
    return f"{problem.machines[source].name} to {problem.machines[target].name}"


def stage_name(problem: Problem, stage: Stage) -> str:
    """Return how a stage is called: `conv1 .. pool3`."""
    if not stage.tasks:
        return "relay"
    first, last = problem.tasks[stage.tasks[0]].name, problem.tasks[stage.tasks[-1]].name
    return first if first == last else f"{first} .. {last}"


def crossing_flows(problem: Problem, assignment: Assignment) -> list[list[int]]:
    """Return the flows that each stage of a pipeline hands to the next."""
    stage_of = {task: index for index, stage in enumerate(assignment.stages) for task in stage.tasks}
    crossing: list[list[int]] = [[] for _ in assignment.stages]
    for index, flow in enumerate(problem.flows):
        first = stage_of.get(flow.producer, 0)
        last = max((stage_of[consumer] for consumer in flow.consumers), default=first)
        for hop in range(first, last):
            crossing[hop].append(index)
    return crossing


class _Run:
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
            clock = self._compute(index, clock, borders)
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
            start = self._occupy(index, flow, start)
        return start

    def _occupy(self, index: int, flow: int, start: float) -> float:
        channel = self.problem.channels[index]
        nbytes = self.problem.flows[flow].nbytes
        seconds = channel.seconds(nbytes) * self.problem.reach(flow)
        name = channel_name(self.problem, channel.source, channel.target)
        self.channel_bytes[index] += nbytes
        self.sent_bytes[channel.source] += nbytes
        self.channel_load[name] = self.channel_load.get(name, 0.0) + seconds
        self.spans.append(Span(name, self.problem.flows[flow].name, start, start + seconds))
        return start + seconds

    def _compute(self, index: int, start: float, borders: float) -> float:
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

    def __init__(self, run: _Run) -> None:
        self.run_of = run
        self.problem = run.problem
        self.free_at = [0.0] * len(run.problem.machines)
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
                end = self.run_of._compute(index, now, self.run_of.borders_s(index))
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
            self.channel_free_at[index] = self.run_of._occupy(index, flow, start)
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


def _tasks_on(assignment: Assignment, machine: int) -> list[int]:
    return [task for stage in assignment.stages if machine in stage.machines for task in stage.tasks]


def _wait_s(arrival_rps: float, load_s: float) -> float:
    """Return the mean wait of an M/D/1 queue."""
    if not arrival_rps or not load_s:
        return 0.0
    busy = arrival_rps * load_s
    return math.inf if busy >= 1 else busy * load_s / (2 * (1 - busy))


def _by_level(problem: Problem, machine_of: Sequence[int]) -> tuple[Stage, ...]:
    """Return the fewest stages: a new one only where the way to a task has left its machine."""
    level = [0] * len(problem.tasks)
    for task in range(len(problem.tasks)):
        for index in problem.used_by.get(task, ()):
            producer = problem.flows[index].producer
            if producer != REQUEST:
                level[task] = max(level[task], level[producer] + (machine_of[producer] != machine_of[task]))
    keys = sorted({(level[task], machine_of[task]) for task in range(len(problem.tasks))})
    members: dict[tuple[int, int], list[int]] = {key: [] for key in keys}
    for task in range(len(problem.tasks)):
        members[level[task], machine_of[task]].append(task)
    return tuple(Stage((machine,), tuple(members[level_, machine])) for level_, machine in keys)


def _by_export(problem: Problem, machine_of: Sequence[int]) -> tuple[Stage, ...]:
    """Return stages of consecutive tasks of a machine that receive only at their beginning, send only at their end."""
    sends = {
        f.producer for f in problem.flows for c in f.consumers if f.producer >= 0 and _differ(machine_of, f.producer, c)
    }
    receives = {c for f in problem.flows for c in f.consumers if f.producer >= 0 and _differ(machine_of, f.producer, c)}
    runs: dict[int, list[list[int]]] = {}
    for task, machine in enumerate(machine_of):
        own = runs.setdefault(machine, [])
        if not own or task in receives or own[-1][-1] in sends:
            own.append([])
        own[-1].append(task)
    stages = [Stage((machine,), tuple(run)) for machine, own in runs.items() for run in own]
    return tuple(sorted(stages, key=lambda stage: stage.tasks[0]))


def _differ(machine_of: Sequence[int], producer: int, consumer: int) -> bool:
    return machine_of[producer] != machine_of[consumer]
