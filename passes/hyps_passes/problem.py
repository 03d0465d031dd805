"""What is to be placed, on what, within which limits: plain figures, without graphs, files or devices' names."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

REQUEST = -1
"""Stands for the request: the producer of the model's inputs, which are on the entry machine."""


@dataclass(frozen=True, slots=True)
class Task:
    """A layer, as a search sees it."""

    name: str
    weights: tuple[tuple[int, int], ...] = ()
    """Identity and bytes of each weight; a machine that runs several tasks with one weight holds it once."""
    work_bytes: int = 0
    """What is alive inside while it runs, beside what goes in and comes out."""
    macs: int = 0
    reach: float = 1.0
    """How likely a request comes so far: below 1 behind an early exit."""
    downsampling: str | None = None
    """`pooling`, `global pooling` or `strided convolution`; None where it does not shrink what comes in."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        return sum(nbytes for _, nbytes in self.weights)


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor that one task (or the request) makes and others use."""

    name: str
    nbytes: int
    producer: int
    """Index of a task, or REQUEST."""
    consumers: tuple[int, ...]
    """Indices of tasks, ascending, all above the producer's."""
    is_output: bool = False
    """Whether the answer has it: it must come back to the entry."""
    can_cross: bool = True
    """Whether it may travel between machines."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A device, as a search sees it."""

    name: str
    memory_bytes: int | None = None
    """None: no limit."""
    base_bytes: int = 0
    """What its process takes without any partition."""
    run_s: float = 0.0
    """Seconds that running a partition takes beside its tasks."""
    active_w: float = 0.0
    idle_w: float = 0.0
    joules_per_byte: float = 0.0
    """Of what it sends."""
    is_trusted: bool = True
    max_share: float = 1.0
    """The largest part of the model's weights, in bytes, that it may hold."""
    tier: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction of a link; messages go through one after another."""

    source: int
    target: int
    s_per_byte: float
    """Seconds per byte: the reciprocal of the bandwidth, and what serialization takes."""
    latency_s: float = 0.0
    """From the last byte sent to the last byte there."""
    message_s: float = 0.0
    """What every tensor costs whatever its size."""
    max_bytes: int | None = None
    """Most bytes that one request may send through it."""

    def seconds(self, nbytes: int) -> float:
        """Return how long one tensor occupies it."""
        return self.message_s + nbytes * self.s_per_byte


@dataclass(frozen=True, slots=True)
class Limits:
    """What a placement must keep beside what machines and channels say; None is no limit."""

    deadline_s: float | None = None
    joules: float | None = None
    peak_bytes: int | None = None
    """On every machine."""
    wire_bytes: int | None = None
    """Through all channels together."""
    throughput_rps: float | None = None
    """The least that is enough."""


@dataclass(frozen=True)
class Problem:
    """Tasks in an order in which they can run, machines, and what everything costs there."""

    tasks: tuple[Task, ...]
    flows: tuple[Flow, ...]
    machines: tuple[Machine, ...]
    channels: tuple[Channel, ...]
    seconds: tuple[tuple[float, ...], ...]
    """`seconds[task][machine]`; infinite where the machine must not run it."""
    export_s: tuple[tuple[float, ...], ...]
    """`export_s[flow][machine]`: what it costs a machine to let the flow out of a partition, once per partition."""
    import_s: tuple[tuple[float, ...], ...]
    """`import_s[flow][machine]`: what it costs to take it into a partition."""
    entry: int = 0
    """The machine at which requests arise and answers are wanted."""
    limits: Limits = field(default_factory=Limits)
    is_private: bool = False
    """Whether some tensors must not leave trusted machines: tasks that read them are banned from others already, and
    nothing passes over others (`paths`)."""
    arrival_rps: float = 0.0
    """Requests that arrive in a second, at random moments; 0: one at a time."""

    @cached_property
    def made_by(self) -> dict[int, tuple[int, ...]]:
        """The flows of each task; those of REQUEST are the model's inputs."""
        made: dict[int, list[int]] = {}
        for index, flow in enumerate(self.flows):
            made.setdefault(flow.producer, []).append(index)
        return {task: tuple(flows) for task, flows in made.items()}

    @cached_property
    def used_by(self) -> dict[int, tuple[int, ...]]:
        """The flows that each task consumes."""
        used: dict[int, list[int]] = {}
        for index, flow in enumerate(self.flows):
            for consumer in flow.consumers:
                used.setdefault(consumer, []).append(index)
        return {task: tuple(flows) for task, flows in used.items()}

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights, tied ones once."""
        return sum({key: nbytes for task in self.tasks for key, nbytes in task.weights}.values())

    @cached_property
    def paths(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The channels from each machine to each other that can be reached, on the way of the smallest delay.

        Delay is that of one tensor of 100 kB, as much as a feature map late in a network has. Where tensors are private
        no way between trusted machines leads over others, and from others none leads to a trusted one but the entry,
        for answers: so no stage that is not trusted comes between a private tensor and who reads it.
        """
        return {
            (source, target): path
            for source in range(len(self.machines))
            for target, path in self._paths_from(source).items()
        }

    def transfer_s(self, source: int, target: int, nbytes: int) -> float:
        """Return how long a tensor occupies the channels between two machines, latency left out; 0 on one machine."""
        if source == target:
            return 0.0
        path = self.paths.get((source, target))
        return math.inf if path is None else sum(self.channels[channel].seconds(nbytes) for channel in path)

    def latency_s(self, source: int, target: int) -> float:
        """Return the latency of the channels between two machines; infinite where there is no way."""
        if source == target:
            return 0.0
        path = self.paths.get((source, target))
        return math.inf if path is None else sum(self.channels[channel].latency_s for channel in path)

    def reach(self, flow: int) -> float:
        """Return how likely a request needs the flow: that it comes to a consumer; of an answer, to its maker."""
        told = self.flows[flow]
        if told.consumers:
            return max(self.tasks[consumer].reach for consumer in told.consumers)
        return 1.0 if told.producer == REQUEST else self.tasks[told.producer].reach

    def allowed(self, task: int) -> tuple[int, ...]:
        """Return the machines that may run the task."""
        return tuple(m for m, seconds in enumerate(self.seconds[task]) if seconds < math.inf)

    def weight_bytes_of(self, tasks: Iterable[int]) -> int:
        """Return the bytes of the weights of some tasks together, tied ones once."""
        return sum({key: nbytes for task in tasks for key, nbytes in self.tasks[task].weights}.values())

    def _paths_from(self, source: int) -> dict[int, tuple[int, ...]]:
        """Bellman and Ford's relaxation: clusters are small."""
        delay = {source: 0.0}
        found: dict[int, tuple[int, ...]] = {source: ()}
        is_guarded = self.is_private and self.machines[source].is_trusted
        for _ in self.machines:
            for index, channel in enumerate(self.channels):
                if channel.source not in delay or (is_guarded and not self.machines[channel.source].is_trusted):
                    continue
                offer = delay[channel.source] + channel.latency_s + channel.seconds(_TYPICAL_NBYTES)
                if offer < delay.get(channel.target, math.inf):
                    delay[channel.target] = offer
                    found[channel.target] = (*found[channel.source], index)
        del found[source]
        if self.is_private and not is_guarded:
            found = {m: way for m, way in found.items() if m == self.entry or not self.machines[m].is_trusted}
        return found


_TYPICAL_NBYTES = 100_000


def channel_name(problem: Problem, source: int, target: int) -> str:
    """Return how a channel is called: `camera to server`."""
    return f"{problem.machines[source].name} to {problem.machines[target].name}"
