"""The courses that there are, from preparing to gone, and what each node has to do for them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from hyps.core.courses import Flow, Pair, WholeCourse, lay_course
from hyps.core.manager_options import NewSecret
from hyps.core.membership import UNBOUNDED_NBYTES, Members, Node
from hyps.core.residency import Residency, live_activations, residency_for_many, tensor_room_nbytes
from hyps.core.timings import Timings
from hyps.errors import InfeasibleError, InternalError
from hyps.formats.node_messages import Neighbour, Setup
from hyps.formats.plan import Plan
from hyps.formats.sub_plan import sub_plan

_IN_FLIGHT_PER_DEVICE = 2
"""Requests: one is computed while the next one's tensors come."""

_SWAPPED_FACTOR = 8
"""More of them where partitions are loaded for their turn, so that each load serves many."""


class CourseState(Enum):
    """Where a course is in its life."""

    PREPARING = "preparing"
    READY = "ready"
    RETIRING = "retiring"
    """It takes no new requests."""
    GONE = "gone"


class CourseTrigger(Enum):
    """What moves it on."""

    LOADED = "loaded"
    REPLACED = "replaced"
    LAST_ENDED = "last request ended"
    BROKEN = "broken"


TRANSITIONS: Mapping[tuple[CourseState, CourseTrigger], CourseState] = {
    (CourseState.PREPARING, CourseTrigger.LOADED): CourseState.READY,
    (CourseState.PREPARING, CourseTrigger.REPLACED): CourseState.GONE,
    (CourseState.READY, CourseTrigger.REPLACED): CourseState.RETIRING,
    (CourseState.RETIRING, CourseTrigger.LAST_ENDED): CourseState.GONE,
    (CourseState.PREPARING, CourseTrigger.BROKEN): CourseState.GONE,
    (CourseState.READY, CourseTrigger.BROKEN): CourseState.GONE,
    (CourseState.RETIRING, CourseTrigger.BROKEN): CourseState.GONE,
}
"""Every change of a course's state; what is not in here cannot happen."""


@dataclass(slots=True, eq=False)
class LiveCourse:
    """A course and how it is used."""

    whole: WholeCourse
    nodes: dict[str, Node]
    """Per device."""
    variant: str
    """The plan's variant that it was made of; empty: placed anew."""
    closed: frozenset[Pair]
    """Pairs whose tensors go over the hub because the devices do not reach each other."""
    kept: frozenset[str]
    """Tensors that the hub keeps beside the outputs."""
    state: CourseState = CourseState.PREPARING
    setups: dict[str, int] = field(default_factory=dict)
    """Per device, the number of the setup that it is part of first."""
    window: int = 1
    """Most pieces of work at once."""
    in_flight: int = 0
    done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Expected per partition."""
    total_s: float = 0.0
    first_sends: tuple[tuple[str, str], ...] = ()
    """Tensor and device: what the hub sends when a request begins."""

    @property
    def id(self) -> int:
        """Its number."""
        return self.whole.id

    def move(self, trigger: CourseTrigger) -> None:
        """Move on in its life."""
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"course {self.id} was {self.state.value} and then {trigger.value}")
        self.state = after

    def is_loaded(self) -> bool:
        """Return whether every node of it can run its partitions."""
        parts = self.whole.parts
        return all(
            node.has_all(self.setups.get(device, node.setup_number), parts[device].partitions)
            for device, node in self.nodes.items()
        )

    def cost_s(self) -> float:
        """Return when a piece of work that begins now is expected to be done."""
        return self.total_s + max((node.backlog_s for node in self.nodes.values()), default=0.0)

    def has_room(self, scale: float) -> bool:
        """Return whether one more piece of work may begin, of so many times the bytes that the plan tells of."""
        if self.in_flight >= self.window:
            return False
        return all(node.has_room(self.nbytes_on(device, scale)) for device, node in self.nodes.items())

    def nbytes_on(self, device: str, scale: float) -> int:
        """Return the bytes that a piece of work has at most on a device."""
        return int(self.whole.device_nbytes[device] * scale)


class CourseBook:
    """All live courses; a plan's, on the nodes that there are."""

    def __init__(self, plan: Plan, flow: Flow, timings: Timings, new_secret: NewSecret) -> None:
        self._plan, self._flow, self._timings = plan, flow, timings
        self._new_secret = new_secret
        self._courses: dict[int, LiveCourse] = {}
        self._last_course = 0
        self._secrets: dict[tuple[int, int], str] = {}
        """Per direction between two nodes' links."""

    def __iter__(self) -> Iterator[LiveCourse]:
        return iter(self._courses.values())

    def __len__(self) -> int:
        return len(self._courses)

    def get(self, number: int) -> LiveCourse | None:
        """Return the live course of that number."""
        return self._courses.get(number)

    def ready(self) -> list[LiveCourse]:
        """Return the courses that take requests."""
        return [course for course in self if course.state is CourseState.READY]

    def on_node(self, node: Node) -> list[LiveCourse]:
        """Return the courses that a node is part of."""
        return [course for course in self if course.nodes.get(node.device) is node]

    def lay(
        self,
        placement: Mapping[str, str],
        members: Members,
        *,
        variant: str,
        kept: frozenset[str],
        closed: frozenset[Pair],
        is_via_hub: bool,
    ) -> LiveCourse:
        """Make a course; its nodes have to hear of it (`changed_setups`)."""
        self._last_course += 1
        whole = lay_course(self._flow, self._last_course, placement, kept=kept, closed=closed, is_via_hub=is_via_hub)
        nodes = {}
        for device in whole.devices:
            node = members.by_device(device)
            if node is None:
                raise InternalError(f"a course was laid over `{device}`, which is not here")
            nodes[device] = node
        course = LiveCourse(whole, nodes, variant, closed, kept)
        self._courses[course.id] = course
        course.window = self._window_of(course)
        sends = [(name, device) for name in self._flow.inputs for device in whole.from_hub.get(name, ())]
        course.first_sends = tuple(sends)
        self.expect(course)
        return course

    def drop(self, course: LiveCourse) -> None:
        """Forget a course that is gone."""
        if course.state is not CourseState.GONE:
            raise InternalError(f"course {course.id} was dropped, {course.state.value}")
        del self._courses[course.id]

    def forget_node(self, node: Node) -> None:
        """A node is gone: so are its secrets."""
        for pair in [pair for pair in self._secrets if node.link in pair]:
            del self._secrets[pair]

    def changed_setups(self, members: Members, now_s: float) -> list[tuple[Node, Setup]]:
        """Return what nodes have to do from now on, for those for which it is something else than before."""
        changed = []
        for node in members:
            setup = self._setup_for(node)
            if setup is None:
                continue
            node.setup, node.told_s = setup, now_s
            for course in self.on_node(node):
                course.setups.setdefault(node.device, setup.number)
            changed.append((node, setup))
        return changed

    def partitions_on(self, node: Node) -> list[str]:
        """Return what a node has to be able to run, in the plan's order."""
        ids = {part for course in self.on_node(node) for part in course.whole.parts[node.device].partitions}
        return [task.id for task in self._flow.tasks if task.id in ids]

    def fits(self, node: Node, placements: Sequence[Mapping[str, str]]) -> bool:
        """Return whether a node can keep what it has loaded and all that the placements give it as well."""
        ids = {*self.partitions_on(node)}
        ids.update(part for placement in placements for part, device in placement.items() if device == node.device)
        residency = self._residency(node, ids)
        return residency is not None and len(residency.kept) == len(ids)

    def expect(self, course: LiveCourse) -> None:
        """Work out what a course's partitions are expected to take, by what is known now."""
        course.seconds = {
            part: self._timings.expected_s(part, device, course.nodes[device].join.facts.macs_per_s)
            for part, device in course.whole.placement.items()
        }
        course.total_s = sum(course.seconds.values())

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        for course in self:
            if course.state is CourseState.GONE:
                raise InternalError(f"course {course.id} is gone and remembered")
            if course.in_flight > course.window or course.in_flight < 0:
                raise InternalError(f"course {course.id} has {course.in_flight} in flight, {course.window} allowed")

    def _window_of(self, course: LiveCourse) -> int:
        window = len(course.whole.pairs)  # a link is a stage too
        for node in course.nodes.values():
            is_swapped = not self.fits(node, ())
            own = max(_IN_FLIGHT_PER_DEVICE, node.join.max_requests + 1)
            window += own * (_SWAPPED_FACTOR if is_swapped else 1)
        return max(1, window)

    def _setup_for(self, node: Node) -> Setup | None:
        courses = tuple(
            course.whole.parts[node.device] for course in sorted(self.on_node(node), key=lambda course: course.id)
        )
        before = node.setup
        if before is None and not courses:
            return None
        ids = self.partitions_on(node)
        targets, sources = self._neighbours(node)
        if before is not None and (courses, targets, sources) == (before.courses, before.targets, before.sources):
            return None
        self._bound_tensors(node, ids)
        had = None if before is None or before.plan is None else tuple(part.id for part in before.plan.partitions)
        same = before is not None and had == tuple(ids)
        plan = before.plan if before is not None and same else sub_plan(self._plan, node.device, ids)
        return Setup(node.setup_number + 1, plan if ids else None, courses, targets, sources)

    def _neighbours(self, node: Node) -> tuple[tuple[Neighbour, ...], tuple[Neighbour, ...]]:
        targets: dict[str, Neighbour] = {}
        sources: dict[str, Neighbour] = {}
        for course in self.on_node(node):
            for source, target in sorted(course.whole.pairs):
                if source == node.device:
                    other = course.nodes[target]
                    secret = self._secret(node, other)
                    targets[target] = Neighbour(target, secret, endpoints_for(node, other))
                if target == node.device:
                    sources[source] = Neighbour(source, self._secret(course.nodes[source], node))
        return tuple(targets[name] for name in sorted(targets)), tuple(sources[name] for name in sorted(sources))

    def _secret(self, source: Node, target: Node) -> str:
        pair = (source.link, target.link)
        if pair not in self._secrets:
            self._secrets[pair] = self._new_secret()
        return self._secrets[pair]

    def _bound_tensors(self, node: Node, ids: Collection[str]) -> None:
        """Note how many bytes of tensors a node has room for beside its partitions; one request is always taken."""
        residency = self._residency(node, set(ids))
        if residency is None:
            node.buffer_nbytes = 0
            return
        room_nbytes = tensor_room_nbytes([task for task in self._flow.tasks if task.id in ids], residency)
        node.buffer_nbytes = UNBOUNDED_NBYTES if room_nbytes is None else max(0, room_nbytes)

    def _residency(self, node: Node, ids: set[str]) -> Residency | None:
        """Return what a node keeps loaded of these, as it decides itself; None: one is too large."""
        flow = self._flow
        tasks = [task for task in flow.tasks if task.id in ids]
        made = [name for task in tasks for name in task.outputs]
        inputs = [name for task in tasks for name in task.inputs if name not in made]
        outputs = [name for name in made if name in flow.outputs or not ids.issuperset(flow.readers.get(name, ()))]
        live = live_activations(tasks, inputs, outputs, flow.nbytes)
        crossing_nbytes = flow.total_nbytes((*inputs, *outputs))
        try:
            return residency_for_many(tasks, live, crossing_nbytes, node.join.facts.memory_bytes, node.base_nbytes)
        except InfeasibleError:
            return None


def endpoints_for(source: Node, target: Node) -> tuple[str, ...]:
    """Return where a node reaches another; what lies in a machine's own files only from that machine."""
    is_same_host = bool(target.join.host) and source.join.host == target.join.host
    return tuple(name for name in target.join.endpoints if is_same_host or not name.startswith("ipc:"))
