"""The problem that a question about a new placement poses: its partitions are the tasks, the hub is the entry."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from hyps.errors import printable
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.formats.replanning import HUB, DeviceFacts, LinkFacts, Question
from hyps_passes.problem import REQUEST, Channel, Flow, Limits, Machine, Problem, Task
from hyps_passes.replacing_times import Times, times_of

HUB_MACHINE = 0
"""Index of the hub among the machines; devices follow in the order of the question."""


@dataclass(frozen=True)
class HubProblem(Problem):
    """A problem whose tensors go straight to where they are used, or over the hub, never over another device."""

    alone: frozenset[int] = frozenset()
    """Machines that are never one of several that run a task."""

    @cached_property
    def paths(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The channel between each two machines that have one, else those over the hub."""
        direct = {(channel.source, channel.target): index for index, channel in enumerate(self.channels)}
        found: dict[tuple[int, int], tuple[int, ...]] = {}
        for source in range(len(self.machines)):
            for target in range(len(self.machines)):
                up, down = direct.get((source, self.entry)), direct.get((self.entry, target))
                if source != target and (source, target) in direct:
                    found[source, target] = (direct[source, target],)
                elif source != target and up is not None and down is not None:
                    found[source, target] = (up, down)
        return found

    @cached_property
    def is_chain(self) -> bool:
        """Whether each task needs what the one before it makes and nothing else, and only the last one answers.

        Then nothing of one request overlaps; nor do several tensors on a way over the hub, where there is such a way.
        """
        last = len(self.tasks) - 1
        made = [flow for flow in self.flows if flow.consumers or flow.is_output]
        follows = all(flow.consumers == ((flow.producer + 1,) if flow.producer < last else ()) for flow in made)
        answers = all(flow.producer == last for flow in made if flow.is_output)
        return follows and answers and (self._is_direct or len({flow.producer for flow in made}) == len(made))

    @cached_property
    def _is_direct(self) -> bool:
        return all(len(path) == 1 for path in self.paths.values())


@dataclass(frozen=True, slots=True)
class Posed:
    """A problem, and what had to be assumed for it, a phrase each."""

    problem: HubProblem
    assumptions: tuple[str, ...]


def pose(question: Question) -> Posed:
    """Return the problem of placing the partitions of a question on its devices."""
    times = times_of(question)
    links = _Links(question)
    flows = _flows(question)
    free = ((0.0,) * (len(question.devices) + 1),) * len(flows)
    problem = HubProblem(
        tasks=_tasks(question),
        flows=flows,
        machines=(Machine(HUB), *(_machine(device) for device in question.devices)),
        channels=tuple(links.channels()),
        seconds=_seconds(question, times),
        export_s=free,
        import_s=free,
        entry=HUB_MACHINE,
        limits=Limits(deadline_s=question.deadline_s),
        alone=frozenset(number for number, device in enumerate(question.devices, start=1) if device.is_group),
    )
    return Posed(problem, (*_guesses(times), *links.assumptions()))


def _seconds(question: Question, times: Times) -> tuple[tuple[float, ...], ...]:
    """Return by task and machine what it takes: for ever at the hub, and where a device cannot load it."""
    refused = [set(device.refused) for device in question.devices]
    return tuple(
        (math.inf, *(math.inf if part.id in names else s for names, s in zip(refused, row, strict=True)))
        for part, row in zip(question.partitions, times.seconds, strict=True)
    )


def _guesses(times: Times) -> Iterator[str]:
    if times.guessed:
        more = f" and {len(times.guessed) - 3} more" if len(times.guessed) > 3 else ""
        yield f"nothing has timed {_shown(times.guessed[:3])}{more}: multiply-accumulates stand in"


def _tasks(question: Question) -> tuple[Task, ...]:
    keys = {weight.key: weight.nbytes for part in question.partitions for weight in part.weights}
    numbers = {key: number for number, key in enumerate(keys)}
    return tuple(
        Task(
            name=part.id,
            weights=tuple((numbers[weight.key], keys[weight.key]) for weight in part.weights),
            work_bytes=part.work_bytes,
            macs=part.macs or 0,
        )
        for part in question.partitions
    )


def _flows(question: Question) -> tuple[Flow, ...]:
    users: dict[str, list[int]] = {}
    makers = dict.fromkeys(question.model_inputs, REQUEST)
    for index, part in enumerate(question.partitions):
        makers.update(dict.fromkeys(part.outputs, index))
        for name in dict.fromkeys(part.inputs):
            users.setdefault(name, []).append(index)
    return tuple(
        Flow(
            name=name,
            nbytes=question.tensor_bytes[name],
            producer=maker,
            consumers=tuple(users.get(name, ())),
            is_output=name in question.model_outputs and maker != REQUEST,
        )
        for name, maker in makers.items()
    )


def _machine(device: DeviceFacts) -> Machine:
    return Machine(
        name=device.name,
        memory_bytes=device.memory_bytes,
        base_bytes=device.base_bytes,
        active_w=device.active_w,
        idle_w=device.idle_w,
        joules_per_byte=device.joules_per_byte,
        max_share=device.max_share,
    )


class _Links:
    """What each direction between two devices, or a device and the hub, can do: known, or assumed."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.known = {(link.source, link.target): link for link in question.links}
        self.names = [HUB, *(device.name for device in question.devices)]
        self.unknown: set[str] = set()
        """Devices of whose links to the hub nothing is known."""

    def channels(self) -> Iterator[Channel]:
        """Yield a channel for each direction that tensors may go straight."""
        for (source, one), (target, other) in itertools.permutations(enumerate(self.names), 2):
            link = self.known.get((one, other), LinkFacts(source=one, target=other))
            if HUB in (one, other) or (link.is_open and not self.question.is_via_hub):
                rate, latency = self._figures(link)
                yield Channel(source, target, 1 / rate, latency, link.message_s)

    def assumptions(self) -> Iterator[str]:
        """Yield what had to be assumed, once all channels are made."""
        if self.unknown:
            rate, latency = self.question.assumption.bytes_per_s, self.question.assumption.latency_s
            rate_shown = format_nbytes(rate).replace(" B", " bytes")
            names = sorted(self.unknown)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"links of {_shown(names[:3])}{more} are unmeasured: {rate_shown}/s, {format_seconds(latency)}"

    def _figures(self, link: LinkFacts) -> tuple[float, float]:
        """Return bytes per second and latency."""
        rate, latency = link.bytes_per_s, link.latency_s
        if rate is None or latency is None:
            guessed_rate, guessed_latency = self._guess(link)
            rate = guessed_rate if rate is None else rate
            latency = guessed_latency if latency is None else latency
        return rate, latency

    def _guess(self, link: LinkFacts) -> tuple[float, float]:
        """Return what a link is taken to be: what its other direction is, or the links of both ends to the hub."""
        base = self.question.assumption
        if HUB in (link.source, link.target):
            back = self.known.get((link.target, link.source))
            if back is None or back.bytes_per_s is None or back.latency_s is None:
                self.unknown.add(link.source or link.target)
            rate, latency = (None, None) if back is None else (back.bytes_per_s, back.latency_s)
            return rate or base.bytes_per_s, base.latency_s if latency is None else latency
        ends = [self.known.get((link.source, HUB)), self.known.get((HUB, link.target))]
        rates = [end.bytes_per_s for end in ends if end is not None and end.bytes_per_s is not None]
        latencies = [end.latency_s for end in ends if end is not None and end.latency_s is not None]
        return min(rates, default=base.bytes_per_s), max(latencies, default=base.latency_s)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(f"`{printable(name, 40)}`" for name in names)
