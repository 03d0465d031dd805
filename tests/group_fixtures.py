"""Groups for tests of state machines: a node of a `ToyCluster` that has a `ToyCluster` of its own below it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from cluster_fixtures import NBYTES, ToyCluster, ToyNode, plan_of
from hyps.core.group_events import Abandon, Begin, Bring, GroupEvent, GroupInstruction, Made, Rebuild, StandsBelow
from hyps.core.group_state import WAKE, GroupState
from hyps.core.group_view import facts_of, filled, plan_below
from hyps.core.manager_events import Added, Ask, Dropped, Emit, Ended, NodeJoined, PassOn, Relayed, Replied
from hyps.core.manager_options import ManagerOptions
from hyps.core.node_events import (
    AllowedToLeave,
    Delivered,
    Forget,
    Keep,
    Leave,
    ManagerFound,
    ManagerLost,
    Obtain,
    Obtained,
    Retired,
    Send,
    SetUp,
    Share,
    Tell,
    TensorHere,
    Ticked,
    ToldToDrain,
)
from hyps.core.residency import task_of
from hyps.formats.messages import MachineFacts
from hyps.formats.node_messages import Beat, Drain, Goodbye, Join, Joined, Retire, Setup
from hyps.formats.plan import Plan, Prediction
from hyps.formats.replanning import Answer, Question

BELOW = ManagerOptions(is_relay=True, gather_s=0.5, settle_s=1.0, patience_s=1000.0, max_attempts=1000)
EMPTY = replace(plan_of((), {}, outputs=(), inputs=()), tensors={})


@dataclass
class Below(ToyCluster):
    """A group's own manager and its nodes; what they do waits beside what the nodes above do."""

    group: "ToyGroup | None" = None

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.group is not None
        above = self.group.cluster
        self.now_s, self.rng = above.now_s, above.rng
        self._lines, self._links = above._lines, above._links

    def relay(self, event: Relayed | Added | Dropped, values: dict[str, str] | None = None) -> None:
        self._fresh = values or {}
        self.happen(event)

    def tell_above(self, step: Emit | PassOn | Ended) -> None:
        assert self.group is not None
        if isinstance(step, Emit):
            value = self.store[step.number, step.tensor]
            self.group.happen(Made(step.number, step.tensor, NBYTES), value)
        else:
            self.group.happen(step)

    def ask(self, step: Ask) -> None:
        self.later(lambda: self.happen(Replied(self._anywhere(step.question))))

    def _anywhere(self, question: Question) -> Answer:
        names = [device.name for device in question.devices]
        placement = {part.id: self.rng.choice(names) for part in question.partitions}
        return Answer(number=question.number, placement=placement, prediction=Prediction())


@dataclass(eq=False)
class ToyGroup(ToyNode):
    """A group whose machine is the real one; a tensor's value is who made it of what."""

    devices: tuple[str, ...] = ("i0", "i1")
    """Its nodes."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Which of them are groups, and the nodes of these."""
    state: GroupState = field(default_factory=GroupState)
    store: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    sent: list[tuple[int, int, str, str]] = field(default_factory=list)
    rebuilds: int = 0

    def __post_init__(self) -> None:
        self._happened: deque[tuple[GroupEvent, str | None]] = deque()
        self._plan: Plan | None = None
        self._stands: StandsBelow | None = None
        self.below = Below(EMPTY, ManagerOptions(is_relay=True, is_fixed=True), group=self)
        for device in self.devices:
            self.join_below(device)

    # What tests do.

    def join_below(self, device: str) -> ToyNode:
        """Let one of its nodes join; it has no name that another one has."""
        if device in self.groups:
            return join_group(self.below, device, self.groups[device])
        return self.below.join(device)

    def lose_manager(self) -> None:
        """The link above breaks and another one takes its place."""
        cluster = self.cluster
        cluster.lose(self)
        self.happen(ManagerLost())
        self.link, self.setup, self.is_dismissed = next(cluster._links), None, False
        join_anew(cluster, self)

    # What the cluster above does.

    def beat(self) -> None:
        below = self.below
        below.now_s = self.cluster.now_s
        below.tick(0.0)
        self.happen(Ticked())
        self.look()

    def hear(self, message: Joined | Setup | Retire | Drain | Goodbye) -> None:
        match message:
            case Joined():
                self.happen(ManagerFound(0.25))
            case Setup():
                self.setup, self._plan = message, message.plan
                self.happen(set_up(message))
            case Retire():
                for number, epoch in message.requests:
                    self.happen(Retired(number, epoch))
            case Drain():
                self.is_dismissed = True
                self.happen(AllowedToLeave())
            case Goodbye():
                pass

    def take(self, number: int, epoch: int, course: int, tensor: str, value: str) -> None:
        self.happen(TensorHere(number, epoch, course, tensor, NBYTES), value)

    def look(self) -> None:
        network = self.below.manager.network
        stands = StandsBelow(bool(network.ready), facts=facts_of(network.members), max_requests=4)
        if stands != self._stands:
            self._stands = stands
            self.happen(stands)

    def drain(self) -> None:
        self.happen(ToldToDrain())

    # What its machine says.

    def happen(self, event: GroupEvent, value: str | None = None) -> None:
        self._happened.append((event, value))
        if len(self._happened) > 1:
            return
        while self._happened:
            event, came = self._happened[0]
            for step in self.state.handle(self.cluster.now_s, event):
                self._do(step, came)
            self._happened.popleft()
        self.state.check_invariants()
        assert {key: set(held) for key, held in self.store.items()} == stored_by(self.state)

    def _do(self, step: GroupInstruction, came: str | None) -> None:
        match step:
            case Keep(number, epoch, tensor):
                assert came is not None
                self.store.setdefault((number, epoch), {})[tensor] = came
            case Forget(number, epoch, tensor):
                del self.store[number, epoch][tensor]
                if not self.store[number, epoch]:
                    del self.store[number, epoch]
            case Obtain(partition, digest):
                self.cluster.later(lambda: self.happen(Obtained(partition, digest)))
            case Send():
                self._send(step)
            case Tell(message):
                told = message
                if isinstance(message, Beat):
                    told = filled(message, self.below.manager, self.state.above)
                self.cluster.tell(self, told)
            case Leave():
                self.is_dismissed = True
            case Rebuild(keep):
                self._rebuild(keep)
            case Begin():
                values = {n: "" if n == WAKE else self.store[step.request, step.epoch][n] for n, _ in step.tensors}
                self.below.relay(Relayed(step.below, step.partitions, step.outputs, step.tensors), values)
            case Bring():
                value = self.store[step.request, step.epoch][step.tensor]
                self.below.relay(Added(step.below, step.tensor, step.nbytes), {step.tensor: value})
            case Abandon(below):
                self.below.relay(Dropped(below))

    def _send(self, step: Send) -> None:
        key = (step.request, step.epoch)
        self.sent.append((*key, step.tensor, step.device))
        self.cluster.carry(self, step.device, key, step.course, step.tensor, self.store[key][step.tensor])
        self.cluster.later(lambda: self.happen(Delivered(step.sending)))

    def _rebuild(self, keep: tuple[str, ...]) -> None:
        self.rebuilds += 1
        before, self._stands = self.below, None
        nodes = list(before.nodes.values())
        before.nodes.clear()
        plan = EMPTY if self._plan is None else plan_below(self._plan, self.device, WAKE, is_searched=True)
        options = ManagerOptions(is_relay=True, is_fixed=True) if self._plan is None else BELOW
        self.below = Below(plan, replace_options(options, keep), group=self)
        for node in nodes:
            if isinstance(node, ToyGroup):
                node.cluster = self.below
                node.happen(ManagerLost())
                node.link, node.setup, node.is_dismissed = next(self.below._links), None, False
                join_anew(self.below, node)
            else:
                self.below.join(node.device)


def replace_options(options: ManagerOptions, keep: tuple[str, ...]) -> ManagerOptions:
    return ManagerOptions(
        is_relay=True,
        is_fixed=options.is_fixed,
        keep=keep,
        gather_s=options.gather_s,
        settle_s=options.settle_s,
        patience_s=options.patience_s,
        max_attempts=options.max_attempts,
    )


def stored_by(state: GroupState) -> dict[tuple[int, int], set[str]]:
    """Return what a machine thinks is stored."""
    return {(r.number, r.epoch): set(r.stored) for r in state._requests.values() if r.stored}


def join_group(cluster: ToyCluster, device: str, devices: Sequence[str] = ("i0", "i1"), **more: object) -> ToyGroup:
    """Start a group with nodes, and let it join."""
    group = ToyGroup(cluster, device, next(cluster._links), devices=tuple(devices), **more)  # type: ignore[arg-type]
    join_anew(cluster, group)
    return group


def join_anew(cluster: ToyCluster, group: ToyGroup) -> None:
    facts = MachineFacts(None, 2, 2e9)
    cluster.nodes[group.link] = group
    join = Join(1, group.device, "", facts, "cpu", ("tcp://1",), is_group=True, max_requests=4)
    cluster.happen(NodeJoined(group.link, join))


def set_up(setup: Setup) -> SetUp:
    plan = setup.plan
    if plan is None:
        return SetUp(setup.number, (), setup.courses)
    return SetUp(
        number=setup.number,
        shares=tuple(Share(task_of(plan, part), "digest") for part in plan.partitions),
        courses=setup.courses,
        inputs=tuple(tensor.name for tensor in plan.model.inputs),
        outputs=tuple(tensor.name for tensor in plan.model.outputs),
        nbytes=dict.fromkeys(plan.tensors, NBYTES),
    )
