"""Which ways requests can take through the devices, and what each device has to do for that: tensors and where they go.

Every tensor reaches each device that reads it exactly once: from the device that makes it, or over the hub. Scattering
a layer's parts over devices and gathering what they make falls out of that: they read and make tensors as others do.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hyps.core.residency import Task, task_of
from hyps.formats.node_messages import HUB, Course, Route
from hyps.formats.plan import Plan

MAX_COURSES = 12
"""Of one placement with replicas."""

Pair = tuple[str, str]
"""A device that makes a tensor and one that reads it."""


class Flow:
    """What the partitions of a plan read and make.

    Attributes:
        tasks: the partitions, in an order in which they can run.
        inputs: the model's.
        outputs: the model's.
        nbytes: per tensor whose size is known.
        producer: per tensor that a partition makes, that partition.
        readers: per tensor, the partitions that read it.
    """

    def __init__(
        self, tasks: Sequence[Task], inputs: Sequence[str], outputs: Sequence[str], nbytes: Mapping[str, int]
    ) -> None:
        """Take the plan's partitions and its tensors."""
        self.tasks = tuple(tasks)
        self.inputs, self.outputs, self.nbytes = tuple(inputs), tuple(outputs), dict(nbytes)
        self.task = {task.id: task for task in tasks}
        self.producer = {name: task.id for task in tasks for name in task.outputs}
        self.readers: dict[str, tuple[str, ...]] = {}
        for task in tasks:
            for name in dict.fromkeys(task.inputs):
                self.readers[name] = (*self.readers.get(name, ()), task.id)

    def total_nbytes(self, names: Iterable[str]) -> int:
        """Return the bytes of the tensors, as far as they are known."""
        return sum(self.nbytes.get(name, 0) for name in names)


def flow_of(plan: Plan) -> Flow:
    """Return what the partitions of a plan read and make, and what each takes."""
    sizes = {name: info.nbytes for name, info in plan.tensors.items() if info.nbytes is not None}
    tasks = [task_of(plan, part) for part in plan.partitions]
    inputs = [tensor.name for tensor in plan.model.inputs]
    outputs = [tensor.name for tensor in plan.model.outputs]
    return Flow(tasks, inputs, outputs, sizes)


@dataclass(frozen=True, slots=True, eq=False)
class WholeCourse:
    """One way of requests through the devices: each partition on exactly one."""

    id: int
    placement: Mapping[str, str]
    """Partition to device."""
    devices: tuple[str, ...]
    """In the order in which requests come to them."""
    from_hub: Mapping[str, tuple[str, ...]]
    """Per tensor that the hub has or gets, the devices that read it and get it from there."""
    to_hub: frozenset[str]
    """Tensors that devices send to the hub: outputs, what is to be kept, what it passes on."""
    parts: Mapping[str, Course]
    """What each device has to do."""
    pairs: frozenset[Pair]
    """Devices between which tensors go without the hub."""
    device_nbytes: Mapping[str, int]
    """Of one request's tensors, all there could be on the device at once."""
    hub_nbytes: int
    """Of one request's tensors that come to the hub."""
    wakes: frozenset[str] = frozenset()
    """Devices with partitions that read nothing: the model's first input tells them of a request."""


def spread(
    placement: Mapping[str, str],
    replicas: Mapping[str, Sequence[str]],
    can_run: Callable[[str, str], bool],
    most: int = MAX_COURSES,
) -> list[dict[str, str]]:
    """Return placements that use each partition's devices in turn, of those that can run it; empty: one has none.

    Where all combinations of turns would be more than `most`, as many as the most replicated partition has devices.

    >>> spread({"a": "x", "b": "y"}, {"b": ("z",)}, lambda partition, device: True)
    [{'a': 'x', 'b': 'y'}, {'a': 'x', 'b': 'z'}]
    """
    choices = {
        part: [name for name in dict.fromkeys((device, *replicas.get(part, ()))) if can_run(part, name)]
        for part, device in placement.items()
    }
    counts = {len(names) for names in choices.values()} or {1}
    if 0 in counts:
        return []
    turns = math.lcm(*counts)
    turns = turns if turns <= most else min(most, max(counts))
    return [{part: names[turn % len(names)] for part, names in choices.items()} for turn in range(turns)]


def lay_course(
    flow: Flow,
    number: int,
    placement: Mapping[str, str],
    *,
    kept: Collection[str] = (),
    closed: Collection[Pair] = (),
    is_via_hub: bool = False,
) -> WholeCourse:
    """Return the course on which each partition runs where `placement` says.

    Args:
        flow: the plan's.
        number: the course's.
        placement: a device per partition.
        kept: tensors that the hub shall have beside the outputs.
        closed: devices between which tensors go over the hub, since they do not reach each other.
        is_via_hub: whether all tensors do.
    """
    readers = {
        name: tuple(dict.fromkeys(placement[part] for part in flow.readers.get(name, ())))
        for name in (*flow.inputs, *flow.producer)
    }
    from_hub = {name: readers[name] for name in flow.inputs if readers[name]}
    wakes = _devices_to_wake(flow, placement)
    for device in wakes:
        if device not in from_hub.get(flow.inputs[0], ()):
            from_hub[flow.inputs[0]] = (*from_hub.get(flow.inputs[0], ()), device)
    to_hub = {name for name in flow.outputs if name in flow.producer}
    to_hub.update(name for name in kept if name in flow.producer)
    pairs: set[Pair] = set()
    routes: dict[str, list[Route]] = {}
    for name, producer in flow.producer.items():
        source = placement[producer]
        others = [device for device in readers[name] if device != source]
        over_hub = tuple(device for device in others if is_via_hub or (source, device) in closed)
        direct = tuple(device for device in others if device not in over_hub)
        if over_hub:
            from_hub[name] = over_hub
            to_hub.add(name)
        pairs.update((source, device) for device in direct)
        if direct or name in to_hub:
            targets = (*direct, HUB) if name in to_hub else direct
            routes.setdefault(source, []).append(Route(name, targets))
    devices = tuple(dict.fromkeys(placement[task.id] for task in flow.tasks))
    return WholeCourse(
        id=number,
        placement=dict(placement),
        devices=devices,
        from_hub=from_hub,
        to_hub=frozenset(to_hub),
        parts={
            device: Course(number, _parts_on(flow, placement, device), tuple(routes.get(device, ())))
            for device in devices
        },
        pairs=frozenset(pairs),
        device_nbytes={device: _nbytes_on(flow, placement, device) for device in devices},
        hub_nbytes=flow.total_nbytes(to_hub),
        wakes=frozenset(wakes),
    )


def parts_to_run(
    flow: Flow, held: Collection[str], wanted: Iterable[str] | None = None, within: Collection[str] | None = None
) -> frozenset[str]:
    """Return the partitions without which tensors cannot be made of those that are `held`.

    Args:
        flow: the plan's.
        held: tensors that are here.
        wanted: what is to be made; None: the outputs.
        within: partitions that may run; what others make will come, as inputs do. None: all.
    """
    needed: set[str] = set()
    missing = [name for name in (flow.outputs if wanted is None else wanted) if name not in held]
    while missing:
        part = flow.producer.get(missing.pop())
        if part is not None and part not in needed and (within is None or part in within):
            needed.add(part)
            missing += [name for name in flow.task[part].inputs if name not in held]
    return frozenset(needed)


def can_go_on(flow: Flow, held: Collection[str], within: Collection[str], unfinished: Collection[str]) -> bool:
    """Return whether one of the `unfinished` partitions has its inputs, or will have them with no more coming."""
    here = set(held)
    for task in flow.tasks:
        if task.id in within and here.issuperset(task.inputs):
            if task.id in unfinished:
                return True
            here.update(task.outputs)
    return False


def sends_to_begin(
    flow: Flow, course: WholeCourse, held: Collection[str], needed: Collection[str]
) -> list[tuple[str, str]]:
    """Return which of the `held` tensors the hub sends where, so that the `needed` partitions can run on the course."""
    sends = []
    for name in held:
        readers = [course.placement[part] for part in flow.readers.get(name, ()) if part in needed]
        if name in flow.inputs[:1]:
            readers += [device for device in course.from_hub.get(name, ()) if device in course.wakes]
        sends += [(name, device) for device in dict.fromkeys(readers)]
    return sends


def _devices_to_wake(flow: Flow, placement: Mapping[str, str]) -> list[str]:
    """Return the devices with a partition that reads nothing: without a tensor they would not hear of a request."""
    if not flow.inputs:
        return []
    return list(dict.fromkeys(placement[task.id] for task in flow.tasks if not task.inputs))


def _parts_on(flow: Flow, placement: Mapping[str, str], device: str) -> tuple[str, ...]:
    return tuple(task.id for task in flow.tasks if placement[task.id] == device)


def _nbytes_on(flow: Flow, placement: Mapping[str, str], device: str) -> int:
    parts = _parts_on(flow, placement, device)
    return flow.total_nbytes(
        dict.fromkeys(name for part in parts for name in (*flow.task[part].inputs, *flow.task[part].outputs))
    )
