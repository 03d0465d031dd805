"""The nodes, the courses over them and the placement aimed for: what joins, leaves, gets ready and breaks."""

from collections.abc import Mapping

from msgspec.structs import replace

from hyps.core.course_book import CourseBook, CourseState, CourseTrigger, LiveCourse, endpoints_for
from hyps.core.courses import Flow, Pair
from hyps.core.manager_events import Ask, ManagerInstruction, Reject, Tell
from hyps.core.manager_options import ManagerOptions, NewSecret
from hyps.core.membership import Members, Node, NodeState, NodeTrigger
from hyps.core.network_state import NetworkState, NetworkTrigger, PartitionLife, PartitionState, move_network
from hyps.core.placing import Placer, Search, Target
from hyps.core.timings import Timings
from hyps.core.watches import WorkWatch
from hyps.errors import printable
from hyps.formats.node_messages import HUB, NODE_PROTOCOL_VERSION, Beat, Drain, Join, Joined
from hyps.formats.plan import Plan
from hyps.formats.replanning import Reply

_CLOSED_AFTER_S = 2.0
"""A device that another one says it cannot reach is given up as its neighbour after so long."""

_RESENT_AFTER_BEATS = 6

_UNBOUNDED = 1_000_000
"""Requests on a group's course: the manager above bounds them, and one that waited could keep others from ending."""


class Network:
    """What the manager has to compute with.

    Attributes:
        state: where the network is in its life.
        members: the nodes.
        book: the courses.
        ready: those that take requests.
        lives: of the partitions.
        watches: of the partitions' runs.
        broken: courses that are gone, with the reason, whose work has to begin anew; whoever does that clears it.
    """

    def __init__(self, plan: Plan, flow: Flow, options: ManagerOptions, new_secret: NewSecret) -> None:
        self._plan, self._options = plan, options
        self.state = move_network(NetworkState.PARTITIONING, NetworkTrigger.PLAN_THERE)
        self.members = Members()
        self.timings = Timings(plan)
        self.book = CourseBook(plan, flow, self.timings, new_secret)
        self.placer = Placer(plan, flow, options, self.timings)
        self.ready: list[LiveCourse] = []
        self._most_hub_nbytes = flow.total_nbytes(flow.producer)
        self.lives = {task.id: PartitionLife(task.id) for task in flow.tasks}
        self.watches = {task.id: WorkWatch() for task in flow.tasks}
        self.broken: list[tuple[LiveCourse, str]] = []
        self._closed: set[tuple[int, int]] = set()
        """Links of nodes that do not reach each other, each direction apart."""

    def join(self, now_s: float, link: int, join: Join) -> list[ManagerInstruction]:
        """Take in a node, or say why not."""
        if link in self.members:
            return []
        name = printable(join.device, 60)
        if join.device == HUB:
            return [Reject(link, "E_USAGE", "a device needs a name", "start it with --device NAME")]
        if self.members.by_device(join.device) is not None:
            hint = "give each device a name of its own; one that was cut off is forgotten after a few seconds"
            return [Reject(link, "E_DUPLICATE", f"a device called `{name}` has joined already", hint)]
        self.members.add(link, join, now_s)
        options = self._options
        welcome = Joined(NODE_PROTOCOL_VERSION, self._plan.model.name, options.beat_s, options.wants_spans)
        return [Tell(link, welcome), *self.schedule(now_s)]

    def lose(self, node: Node, cause: str) -> None:
        """A node is gone, and with it its courses."""
        for course in self.book.on_node(node):
            self._break(course, cause)
        self.members.remove(node)
        self.book.forget_node(node)
        self.placer.forget(node)
        self._closed = {pair for pair in self._closed if node.link not in pair}

    def drain(self, node: Node) -> None:
        """A node wants to leave when its work is done."""
        node.move(NodeTrigger.WANTS_TO_LEAVE)

    def beat(self, now_s: float, node: Node, beat: Beat) -> bool:
        """Take how a node is; return whether that calls for something."""
        before = node.beat
        node.note_beat(now_s, beat)
        for sent in beat.sendings:
            if sent.device != HUB and self.members.by_device(sent.device) is None:
                continue  # it has gone, or there never was one of that name
            self.placer.links.add(
                node.device, sent.device, sent.nbytes, sent.seconds, now_s, behind_nbytes=sent.behind_nbytes
            )
        if beat.setup > node.setup_number:
            return False  # of a manager before us
        is_changed = self._note_unreachable(now_s, node, beat) | self._note_facts(now_s, node, beat)
        if (beat.setup, beat.loaded, beat.refused) == (before.setup, before.loaded, before.refused):
            return is_changed
        node.loaded = frozenset(beat.loaded)
        if beat.refused and beat.setup == node.setup_number:
            self._refuse(node, beat)
        self._note_loaded(node)
        return True

    def reply(self, now_s: float, reply: Reply) -> None:
        """Take what a search found."""
        self.placer.reply(reply, self.members, now_s)

    def schedule(self, now_s: float) -> list[ManagerInstruction]:
        """Aim for the best placement, prepare its courses, retire others, and tell the nodes."""
        steps: list[ManagerInstruction] = []
        closed = self._closed_pairs()
        decision = self.placer.decide(now_s, self.members, is_ready=bool(self.ready), closed=closed)
        if isinstance(decision, Search):
            steps.append(Ask(decision.question))
        self._lay(closed)
        for node, setup in self.book.changed_setups(self.members, now_s):
            steps.append(Tell(node.link, setup))
            node.move(NodeTrigger.SET_UP if setup.plan is not None else NodeTrigger.NOTHING_TO_DO)
        steps += self._dismiss()
        self._note_states()
        return steps

    def end_work(self, course: LiveCourse) -> bool:
        """A piece of work on a course has ended; return whether the course is gone by that."""
        if course.state is not CourseState.RETIRING or course.in_flight:
            return False
        course.move(CourseTrigger.LAST_ENDED)
        self.book.drop(course)
        return True

    def look(self, now_s: float) -> list[ManagerInstruction]:
        """Expect of courses what is known by now, and say again what nodes seem not to have heard."""
        for course in self.book:
            self.book.expect(course)
        steps: list[ManagerInstruction] = []
        patience_s = _RESENT_AFTER_BEATS * self._options.beat_s
        for node in self.members:
            if node.setup is not None and node.beat.setup < node.setup.number and now_s - node.told_s > patience_s:
                node.told_s = now_s
                steps.append(Tell(node.link, node.setup))
        return steps

    def overdue(self) -> list[tuple[Node, str]]:
        """Return nodes that have computed something for longer than it can take, and what."""
        return [(node, part) for node in self.members if (part := self._overdue_part(node)) is not None]

    def best_course(self, scale: float) -> LiveCourse | None:
        """Return the course on which a piece of work is expected to be done first; None: none has room."""
        best, best_cost = None, (0.0, 0, 0)
        for course in self.ready:
            if not course.has_room(scale):
                continue
            cost = (course.cost_s(), course.in_flight, course.id)
            if best is None or cost < best_cost:
                best, best_cost = course, cost
        return best

    def has_free_course(self) -> bool:
        """Return whether a course may take one more piece of work, as far as their number goes."""
        return any(course.in_flight < course.window for course in self.ready)

    @property
    def most_hub_nbytes(self) -> int:
        """The most bytes that one request makes the hub hold, on any course: devices may not reach each other."""
        return self._most_hub_nbytes

    @property
    def is_hopeful(self) -> bool:
        """Whether requests can be computed, or will be once something is prepared."""
        return self.state is not NetworkState.PARTITIONED

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        self.members.check_invariants()
        self.book.check_invariants()

    # Nodes.

    def _note_unreachable(self, now_s: float, node: Node, beat: Beat) -> bool:
        since = node.unreachable_since_s
        if not beat.unreachable and not since:
            return False
        others = {device: other for device in beat.unreachable if (other := self.members.by_device(device))}
        for device in [device for device in since if device not in others]:
            del since[device]
        is_new = False
        for device, other in others.items():
            first_s = since.setdefault(device, now_s)
            if now_s - first_s >= _CLOSED_AFTER_S and (node.link, other.link) not in self._closed:
                self._closed.add((node.link, other.link))
                self._break_between(node, other)
                is_new = True
        return is_new

    def _note_facts(self, now_s: float, node: Node, beat: Beat) -> bool:
        """Take what a group can do since nodes have joined or left it."""
        facts, most = beat.facts, beat.max_requests or node.join.max_requests
        if not node.join.is_group or facts is None or (facts, most) == (node.join.facts, node.join.max_requests):
            return False
        node.join = replace(node.join, facts=facts, max_requests=most)
        self.placer.reconsider(node, now_s)
        return True

    def _break_between(self, source: Node, target: Node) -> None:
        cause = f"`{printable(source.device, 60)}` does not reach `{printable(target.device, 60)}`"
        for course in self.book.on_node(source):
            if (source.device, target.device) in course.whole.pairs:
                self._break(course, cause)

    def _refuse(self, node: Node, beat: Beat) -> None:
        reasons = {part: reason for part, reason in beat.refused if part in self.lives}
        if not self.placer.refuse(node, reasons):
            return
        for course in self.book.on_node(node):
            for part in course.whole.parts[node.device].partitions:
                if part in reasons and course.state is not CourseState.GONE:
                    where = f"`{printable(node.device, 60)}` cannot load partition `{printable(part, 60)}`"
                    self._break(course, f"{where}: {printable(reasons[part], 200)}")

    def _note_loaded(self, node: Node) -> None:
        is_all = node.setup is not None and node.has_all(node.setup_number, tuple(self.book.partitions_on(node)))
        if node.state is NodeState.LOADING and is_all:
            node.move(NodeTrigger.LOADED)
        for course in self.book.on_node(node):
            if course.state is CourseState.PREPARING and course.is_loaded():
                course.move(CourseTrigger.LOADED)
                self._sort_ready()

    def _overdue_part(self, node: Node) -> str | None:
        if node.join.is_group:
            return None  # it looks after its own, and would be cut off just before it does
        options, macs_per_s = self._options, node.join.facts.macs_per_s
        for item in node.beat.running:
            since_s = node.running_since_s[item.request, item.epoch, item.partition]
            elapsed_s = max(item.elapsed_s, node.beat_s - since_s)
            if elapsed_s > options.least_lease_s and item.partition in self.lives:
                lease_s = self.timings.lease_s(
                    item.partition, node.device, macs_per_s, options.least_lease_s, options.unknown_lease_s
                )
                if elapsed_s > lease_s:
                    return item.partition
        return None

    def _dismiss(self) -> list[ManagerInstruction]:
        """Let nodes go that want to leave and have nothing more to do."""
        steps: list[ManagerInstruction] = []
        for node in self.members:
            if node.state is NodeState.DRAINING and not node.is_dismissed and not self.book.on_node(node):
                node.is_dismissed = True
                steps.append(Tell(node.link, Drain()))
        return steps

    # Courses.

    def _closed_pairs(self) -> frozenset[Pair]:
        nodes = list(self.members)
        return frozenset(
            (source.device, target.device)
            for source in nodes
            for target in nodes
            if source is not target
            and ((source.link, target.link) in self._closed or not endpoints_for(source, target))
        )

    def _lay(self, closed: frozenset[Pair]) -> None:
        """Bring the courses nearer to those that the target calls for; new ones are ready before old ones go."""
        target = self.placer.target
        placements = [] if target is None else self.placer.placements(target, self.members)
        kept = frozenset() if target is None else target.kept
        wanted = {_key(placement, _within(placement, closed), kept): placement for placement in placements}
        known = {_key(c.whole.placement, c.closed, c.kept): c for c in self.book if c.state in _IN_USE}
        outdated = [course for key, course in known.items() if key not in wanted]
        missing = [placement for key, placement in wanted.items() if key not in known]
        for course in [course for course in outdated if course.state is CourseState.PREPARING]:
            self._replace(course)
        if missing and target is not None and self._have_room_for(missing, outdated):
            for placement in missing:
                self._lay_one(placement, target, _within(placement, closed))
        is_awaited = any(course.state is CourseState.PREPARING for course in self.book) or self.placer.is_searching
        is_served = any(key in known and known[key].state is CourseState.READY for key in wanted)
        if is_served or not is_awaited:
            for course in [course for course in outdated if course.state is CourseState.READY]:
                self._replace(course)

    def _have_room_for(self, placements: list[dict[str, str]], outdated: list[LiveCourse]) -> bool:
        """Return whether the devices can hold new courses beside the outdated ones; else these end first."""
        devices = sorted({device for placement in placements for device in placement.values()})
        nodes = [node for node in map(self.members.by_device, devices) if node is not None]
        in_the_way = [course for course in self.book if course in outdated or course.state is CourseState.RETIRING]
        if not in_the_way or all(self.book.fits(node, placements) for node in nodes):
            return True
        shared = [course for course in in_the_way if not set(devices).isdisjoint(course.whole.devices)]
        for course in [course for course in shared if course.state is CourseState.READY]:
            self._replace(course)
        return not any(course.state is CourseState.RETIRING for course in shared)

    def _lay_one(self, placement: dict[str, str], target: Target, closed: frozenset[Pair]) -> None:
        course = self.book.lay(
            placement,
            self.members,
            variant=target.name,
            kept=target.kept,
            closed=closed,
            is_via_hub=self._options.is_via_hub,
        )
        if self._options.is_relay:
            course.window = _UNBOUNDED
        if not course.nodes:
            course.move(CourseTrigger.LOADED)
            self._sort_ready()

    def _replace(self, course: LiveCourse) -> None:
        course.move(CourseTrigger.REPLACED)
        if course.state is CourseState.RETIRING and not course.in_flight:
            course.move(CourseTrigger.LAST_ENDED)
        if course.state is CourseState.GONE:
            self.book.drop(course)
        self._sort_ready()

    def _break(self, course: LiveCourse, cause: str) -> None:
        course.move(CourseTrigger.BROKEN)
        self.book.drop(course)
        self.broken.append((course, cause))
        self._sort_ready()

    def _sort_ready(self) -> None:
        self.ready = self.book.ready()

    # What is shown.

    def _note_states(self) -> None:
        if self.ready:
            trigger = NetworkTrigger.COURSE_READY
        elif len(self.book) or self.placer.is_searching:
            trigger = NetworkTrigger.PLACING
        else:
            trigger = NetworkTrigger.NO_PLACEMENT
        self.state = move_network(self.state, trigger)
        standing = dict.fromkeys(self.lives, PartitionState.CREATED)
        for course in self.book:
            for part, device in course.whole.placement.items():
                standing[part] = max(standing[part], _standing(course.nodes[device], part), key=_ORDER.index)
        for part, life in self.lives.items():
            life.stand(standing[part])


_IN_USE = (CourseState.PREPARING, CourseState.READY)
_ORDER = tuple(PartitionState)


def _standing(node: Node, part: str) -> PartitionState:
    if part in node.loaded:
        return PartitionState.LOADED
    return PartitionState.LOADING if node.beat.setup >= node.setup_number else PartitionState.PLACED


def _key(placement: Mapping[str, str], closed: frozenset[Pair], kept: frozenset[str]) -> tuple[object, ...]:
    """Return what tells a course from others."""
    return (tuple(sorted(placement.items())), closed, kept)


def _within(placement: dict[str, str], pairs: frozenset[Pair]) -> frozenset[Pair]:
    devices = set(placement.values())
    return frozenset(pair for pair in pairs if pair[0] in devices and pair[1] in devices)
