"""The lives of the whole network and of each partition in it, as the thesis draws them."""

from collections.abc import Mapping
from enum import Enum

from hyps.errors import InternalError


class NetworkState(Enum):
    """Where the network is in its life."""

    PARTITIONING = "partitioning"
    PARTITIONED = "partitioned"
    """There is a plan, and no placement of it is possible or has been decided."""
    SCHEDULING = "scheduling"
    """A placement is searched, or prepared on its devices."""
    INFERRING = "inferring"


class NetworkTrigger(Enum):
    """What moves it on."""

    PLAN_THERE = "plan there"
    PLACING = "placing"
    COURSE_READY = "course ready"
    NO_PLACEMENT = "no placement"


_NET, _NET_TRIGGER = NetworkState, NetworkTrigger
_PLANNED = (_NET.PARTITIONED, _NET.SCHEDULING, _NET.INFERRING)

NETWORK_TRANSITIONS: Mapping[tuple[NetworkState, NetworkTrigger], NetworkState] = {
    (_NET.PARTITIONING, _NET_TRIGGER.PLAN_THERE): _NET.PARTITIONED,
    **{(state, _NET_TRIGGER.PLACING): _NET.SCHEDULING for state in _PLANNED},
    **{(state, _NET_TRIGGER.COURSE_READY): _NET.INFERRING for state in _PLANNED},
    **{(state, _NET_TRIGGER.NO_PLACEMENT): _NET.PARTITIONED for state in _PLANNED},
}
"""Every change of the network's state; what is not in here cannot happen."""


class PartitionState(Enum):
    """Where a partition is in its life, over all devices that run it."""

    CREATED = "created"
    PLACED = "placed"
    LOADING = "loading"
    LOADED = "loaded"
    INFERRING = "inferring"


class PartitionTrigger(Enum):
    """What moves it on."""

    COURSE_LAID = "course laid"
    SETUP_CONFIRMED = "setup confirmed"
    LOADED = "loaded"
    RUN_BEGUN = "run begun"
    LAST_RUN_ENDED = "last run ended"
    UNLOADED = "unloaded"
    DEVICE_LOST = "device lost"
    LAST_COURSE_GONE = "last course gone"


_PART, _TRIGGER = PartitionState, PartitionTrigger

PARTITION_TRANSITIONS: Mapping[tuple[PartitionState, PartitionTrigger], PartitionState] = {
    (_PART.CREATED, _TRIGGER.COURSE_LAID): _PART.PLACED,
    (_PART.PLACED, _TRIGGER.SETUP_CONFIRMED): _PART.LOADING,
    (_PART.LOADING, _TRIGGER.LOADED): _PART.LOADED,
    (_PART.LOADED, _TRIGGER.RUN_BEGUN): _PART.INFERRING,
    (_PART.INFERRING, _TRIGGER.LAST_RUN_ENDED): _PART.LOADED,
    (_PART.LOADED, _TRIGGER.UNLOADED): _PART.LOADING,
    (_PART.LOADING, _TRIGGER.DEVICE_LOST): _PART.PLACED,
    (_PART.PLACED, _TRIGGER.LAST_COURSE_GONE): _PART.CREATED,
}
"""Every change of a partition's state; what is not in here cannot happen."""

_STEPS_UP = (_TRIGGER.COURSE_LAID, _TRIGGER.SETUP_CONFIRMED, _TRIGGER.LOADED, _TRIGGER.RUN_BEGUN)
_STEPS_DOWN = (_TRIGGER.LAST_COURSE_GONE, _TRIGGER.DEVICE_LOST, _TRIGGER.UNLOADED, _TRIGGER.LAST_RUN_ENDED)
_LEVELS = tuple(PartitionState)


def move_network(state: NetworkState, trigger: NetworkTrigger) -> NetworkState:
    """Return the state that follows."""
    after = NETWORK_TRANSITIONS.get((state, trigger))
    if after is None:
        raise InternalError(f"the network was {state.value} and then {trigger.value}")
    return after


class PartitionLife:
    """One partition's way from created to inferring, and back.

    Attributes:
        state: where it is.
    """

    def __init__(self, partition: str) -> None:
        self._partition = partition
        self.state = PartitionState.CREATED
        self._standing = PartitionState.CREATED
        """Where it is while nothing runs it."""
        self._running = 0

    def stand(self, standing: PartitionState) -> None:
        """Its devices have come so far with it; runs of it are told of apart."""
        if standing is not self._standing:
            self._standing = standing
            self._walk()

    def begin_run(self) -> None:
        """A device computes it."""
        self._running += 1
        if self._running == 1:
            self._walk()

    def end_run(self) -> None:
        """A device has computed it, or is lost."""
        self._running -= 1
        if not self._running:
            self._walk()

    def _walk(self) -> None:
        is_inferring = self._running > 0 and self._standing is PartitionState.LOADED
        aim = _LEVELS.index(PartitionState.INFERRING if is_inferring else self._standing)
        while (level := _LEVELS.index(self.state)) != aim:
            self._move(_STEPS_UP[level] if level < aim else _STEPS_DOWN[level - 1])

    def _move(self, trigger: PartitionTrigger) -> None:
        after = PARTITION_TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"partition `{self._partition}` was {self.state.value} and then {trigger.value}")
        self.state = after
