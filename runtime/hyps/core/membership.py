"""The nodes: who is here, in which state, what each holds and has to do, and who is silent."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hyps.core.rates import Rate
from hyps.errors import InternalError
from hyps.formats.node_messages import Beat, Join, Setup

BASE_NBYTES = 65 * 10**6
"""Of a node's process without any partition."""

UNBOUNDED_NBYTES = 256 * 2**20
"""For tensors, on a node without a memory limit."""


_WINDOW_S = 10.0


class NodeState(Enum):
    """Where a node is in its life."""

    JOINING = "joining"
    """It is here and has nothing to do."""
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class NodeTrigger(Enum):
    """What moves it on."""

    SET_UP = "set up"
    LOADED = "loaded"
    NOTHING_TO_DO = "nothing to do"
    WANTS_TO_LEAVE = "wants to leave"
    LOST = "lost"


_ALIVE = (NodeState.JOINING, NodeState.LOADING, NodeState.SERVING)

_AT_WORK = (NodeState.SERVING, NodeState.DRAINING)

TRANSITIONS: Mapping[tuple[NodeState, NodeTrigger], NodeState] = {
    **{(state, NodeTrigger.SET_UP): NodeState.LOADING for state in _ALIVE},
    (NodeState.LOADING, NodeTrigger.LOADED): NodeState.SERVING,
    **{(state, NodeTrigger.NOTHING_TO_DO): NodeState.JOINING for state in _ALIVE},
    **{(state, NodeTrigger.WANTS_TO_LEAVE): NodeState.DRAINING for state in (*_ALIVE, NodeState.DRAINING)},
    (NodeState.DRAINING, NodeTrigger.SET_UP): NodeState.DRAINING,
    (NodeState.DRAINING, NodeTrigger.LOADED): NodeState.DRAINING,
    (NodeState.DRAINING, NodeTrigger.NOTHING_TO_DO): NodeState.DRAINING,
    **{(state, NodeTrigger.LOST): NodeState.GONE for state in (*_ALIVE, NodeState.DRAINING)},
}
"""Every change of a node's state; what is not in here cannot happen."""


class NodeWatch:
    """Counts what a node computes: cheaply per run, and once in a while for the rates.

    Attributes:
        items_done: runs since the start.
    """

    def __init__(self) -> None:
        self.items_done = 0
        self._new_items, self._new_s = 0, 0.0
        self._busy, self._items = Rate(), Rate()

    def finish(self, run_s: float) -> None:
        """A run has ended."""
        self.items_done += 1
        self._new_items += 1
        self._new_s += run_s

    def tick(self, now_s: float) -> None:
        """Have the rates follow."""
        if self._new_items:
            self._busy.add(now_s, self._new_s)
            self._items.add(now_s, self._new_items)
            self._new_items, self._new_s = 0, 0.0

    def items_per_s(self, now_s: float) -> float:
        """Return the runs per second of the last seconds."""
        return self._items.per_s(now_s)

    def utilisation(self, now_s: float, running_s: float) -> float:
        """Return the part of the last seconds that runs took, with what has run for so long by now."""
        return self._busy.per_s(now_s) + min(running_s, _WINDOW_S) / _WINDOW_S


Sending = tuple[int, int, str]
"""Work, epoch and tensor."""


@dataclass(slots=True, eq=False)
class Node:
    """A node that joined."""

    link: int
    device: str
    join: Join
    joined_s: float
    heard_s: float
    state: NodeState = NodeState.JOINING
    beat: Beat = field(default_factory=lambda: Beat(0, ()))
    """The latest."""
    beat_s: float = 0.0
    """When that came."""
    running_since_s: dict[tuple[int, int, str], float] = field(default_factory=dict)
    """When it was first heard of each work item that the latest beat calls running: the node's own word on how long it
    has been at it is not all that counts."""
    loaded: frozenset[str] = frozenset()
    setup: Setup | None = None
    """What it was told to do; None: nothing yet."""
    told_s: float = 0.0
    """When."""
    buffer_nbytes: int = UNBOUNDED_NBYTES
    """For the tensors of requests."""
    in_flight: int = 0
    in_flight_nbytes: int = 0
    sending: dict[Sending, int] = field(default_factory=dict)
    """Tensors on their way to it from the hub, and their bytes; of work under way."""
    stale: dict[Sending, int] = field(default_factory=dict)
    """The same of work that is over."""
    stale_nbytes: int = 0
    backlog_s: float = 0.0
    """Expected to be computed there for what is in flight."""
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Requests, with their epochs, that it has not been told the end of."""
    ended_nbytes: int = 0
    """Of their tensors: it may still store them."""
    unreachable_since_s: dict[str, float] = field(default_factory=dict)
    """Devices that it should send to and cannot reach."""
    watch: NodeWatch = field(default_factory=NodeWatch)
    is_dismissed: bool = False
    """Whether it was told that it may go."""

    @property
    def setup_number(self) -> int:
        """Of what it was told to do last."""
        return 0 if self.setup is None else self.setup.number

    @property
    def is_staying(self) -> bool:
        """Whether something new may be placed on it."""
        return self.state in _ALIVE

    @property
    def base_nbytes(self) -> int:
        """Of its process without any partition."""
        return BASE_NBYTES

    def move(self, trigger: NodeTrigger) -> None:
        """Move on in its life."""
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"node `{self.device}` was {self.state.value} and then {trigger.value}")
        self.state = after

    def note_beat(self, now_s: float, beat: Beat) -> None:
        """Take how it is."""
        self.beat, self.beat_s = beat, now_s
        if beat.running or self.running_since_s:
            keys = [(item.request, item.epoch, item.partition) for item in beat.running]
            self.running_since_s = {key: self.running_since_s.get(key, now_s) for key in keys}

    def has_all(self, setup_number: int, parts: tuple[str, ...]) -> bool:
        """Return whether it follows a setup and can run the partitions."""
        return self.beat.setup >= setup_number and self.loaded.issuperset(parts)

    def has_room(self, nbytes: int) -> bool:
        """Return whether one more request's tensors fit; one alone always does."""
        here = self.in_flight_nbytes + self.ended_nbytes + self.stale_nbytes
        return here + nbytes <= self.buffer_nbytes or not (self.in_flight or self.ended or self.stale)

    def take_ended(self) -> tuple[tuple[int, int], ...]:
        """Return what it is now told the end of: what is sent after that finds nothing of it."""
        ended, self.ended, self.ended_nbytes = tuple(self.ended), [], 0
        return ended

    def note_sent(self, sending: Sending, nbytes: int) -> None:
        """A tensor is on its way to it."""
        self.sending[sending] = nbytes

    def note_taken(self, sending: Sending) -> None:
        """It has a tensor."""
        self.sending.pop(sending, None)
        self.stale_nbytes -= self.stale.pop(sending, 0)

    def end_work(self, number: int, epoch: int, nbytes: int) -> None:
        """Work of so many bytes is over: what is here or on its way for it is in the way of other work."""
        self.ended.append((number, epoch))
        self.ended_nbytes += nbytes
        for sending in [sending for sending in self.sending if sending[:2] == (number, epoch)]:
            nbytes = self.stale[sending] = self.sending.pop(sending)
            self.stale_nbytes += nbytes


class Members:
    """The nodes by link and by device."""

    def __init__(self) -> None:
        self._by_link: dict[int, Node] = {}
        self._by_device: dict[str, Node] = {}

    def __len__(self) -> int:
        return len(self._by_link)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_link.values())

    def __contains__(self, link: int) -> bool:
        return link in self._by_link

    def by_link(self, link: int) -> Node | None:
        """Return the node at the other end of a link."""
        return self._by_link.get(link)

    def by_device(self, device: str) -> Node | None:
        """Return the node of that name."""
        return self._by_device.get(device)

    def add(self, link: int, join: Join, now_s: float) -> Node:
        """Take in a node; its name must be free."""
        if join.device in self._by_device or link in self._by_link:
            raise InternalError(f"node `{join.device}` joined twice")
        node = Node(link, join.device, join, now_s, now_s)
        self._by_link[link] = self._by_device[join.device] = node
        return node

    def remove(self, node: Node) -> None:
        """A node is gone."""
        node.move(NodeTrigger.LOST)
        del self._by_link[node.link]
        del self._by_device[node.device]

    def staying(self) -> list[str]:
        """Return the devices that partitions can be placed on."""
        return sorted(node.device for node in self if node.is_staying)

    def silent(self, now_s: float, silence_s: float, loading_silence_s: float) -> list[Node]:
        """Return the nodes that have not been heard of for too long."""
        return [
            node for node in self if now_s - node.heard_s > (silence_s if node.state in _AT_WORK else loading_silence_s)
        ]

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        for node in self:
            if self._by_device.get(node.device) is not node:
                raise InternalError(f"node `{node.device}` is not known by its name")
            if node.stale_nbytes != sum(node.stale.values()):
                raise InternalError(f"what is on its way to node `{node.device}` is miscounted")
            if node.ended_nbytes and not node.ended:
                raise InternalError(f"node `{node.device}` has {node.ended_nbytes} bytes of nothing")
            if node.in_flight == 0 and (node.in_flight_nbytes or abs(node.backlog_s) > 1e-6):
                raise InternalError(f"node `{node.device}` is idle with {node.in_flight_nbytes} bytes in flight")
