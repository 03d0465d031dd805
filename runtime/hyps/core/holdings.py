"""A node's partitions: which are obtained, which stay loaded, which is loaded for its turn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from hyps.core.node_events import Load, NodeInstruction, Obtain, SetUp, Share, Unload
from hyps.core.residency import Residency, Task, has_room_for_speed, live_activations, residency_for_many
from hyps.errors import InternalError, printable
from hyps.formats.quantities import format_nbytes


class PartitionState(Enum):
    """Where a partition is in its life at one node."""

    PLACED = "placed"
    """Its files are on their way."""
    OBTAINED = "obtained"
    LOADING = "loading"
    LOADED = "loaded"
    INFERRING = "inferring"
    REFUSED = "refused"


class PartitionTrigger(Enum):
    """What moves it on."""

    OBTAINED = "obtained"
    TOLD_TO_LOAD = "told to load"
    LOADED = "loaded"
    RUN_BEGUN = "run begun"
    LAST_RUN_ENDED = "last run ended"
    UNLOADED = "unloaded"
    CANNOT_BE_HAD = "cannot be had"
    PLACED_AGAIN = "placed again"


_State, _Trigger = PartitionState, PartitionTrigger

PARTITION_TRANSITIONS: Mapping[tuple[PartitionState, PartitionTrigger], PartitionState] = {
    (_State.PLACED, _Trigger.OBTAINED): _State.OBTAINED,
    (_State.PLACED, _Trigger.CANNOT_BE_HAD): _State.REFUSED,
    (_State.OBTAINED, _Trigger.TOLD_TO_LOAD): _State.LOADING,
    (_State.LOADING, _Trigger.LOADED): _State.LOADED,
    (_State.LOADING, _Trigger.CANNOT_BE_HAD): _State.REFUSED,
    (_State.LOADED, _Trigger.RUN_BEGUN): _State.INFERRING,
    (_State.INFERRING, _Trigger.RUN_BEGUN): _State.INFERRING,
    (_State.INFERRING, _Trigger.LAST_RUN_ENDED): _State.LOADED,
    (_State.LOADED, _Trigger.UNLOADED): _State.OBTAINED,
    (_State.REFUSED, _Trigger.PLACED_AGAIN): _State.PLACED,
}
"""Every change of a partition's state; what is not in here cannot happen."""

_IN_MEMORY = (_State.LOADING, _State.LOADED, _State.INFERRING)
_RUNNABLE = (_State.LOADED, _State.INFERRING)


@dataclass(slots=True, eq=False)
class Holding:
    """One partition at a node."""

    share: Share
    index: int
    """Its place in an order in which all can run."""
    state: PartitionState = PartitionState.PLACED
    is_kept: bool = True
    """Whether it stays loaded; else it is loaded for its turn."""
    was_loaded: bool = False
    """Whether it has ever been: one that is not kept is tried before it is called ready."""
    runs: int = 0
    """Under way."""
    code: str = ""
    reason: str = ""
    """Of its refusal."""

    @property
    def id(self) -> str:
        """The partition's id."""
        return self.share.task.id

    @property
    def is_runnable(self) -> bool:
        """Whether its session is open."""
        return self.state in _RUNNABLE

    def move(self, trigger: PartitionTrigger) -> None:
        """Change the state; the only place where it changes."""
        after = PARTITION_TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"partition `{printable(self.id)}` was {self.state.value} and then {trigger.value}")
        self.state = after

    def begin_run(self) -> None:
        """Note that a run of it is under way."""
        self.runs += 1
        self.move(PartitionTrigger.RUN_BEGUN)

    def end_run(self) -> None:
        """Note that a run of it is over."""
        self.runs -= 1
        if not self.runs:
            self.move(PartitionTrigger.LAST_RUN_ENDED)

    def refuse(self, code: str, reason: str) -> None:
        """Note that it cannot be had here."""
        self.code, self.reason = code, reason
        self.move(PartitionTrigger.CANNOT_BE_HAD)


class Holdings:
    """All partitions of a node under one memory budget.

    Kept ones are loaded as they come. Of the others at most one is in memory at a time, and none is loaded while
    anything runs: its weights take the place of what a run needs.

    Attributes:
        residency: what `place` decided last.
        has_room_for_speed: whether then all can be laid out for speed.
        room_nbytes: what the budget leaves for tensors beside the partitions that are kept; None: no budget.
    """

    def __init__(self, budget_nbytes: int | None, base_nbytes: int) -> None:
        """Take the most bytes the process may have, and what it has without any partition."""
        self._budget_nbytes, self._base_nbytes = budget_nbytes, base_nbytes
        self._held: dict[str, Holding] = {}
        self._run_nbytes: dict[str, int] = {}
        """What a run of each partition takes beside its weights and inputs."""
        self._loading: Holding | None = None
        self._in_turn: Holding | None = None
        """The one that is loaded, or being loaded, without being kept."""
        self.residency = Residency(frozenset(), None)
        self.has_room_for_speed = False
        self.room_nbytes: int | None = None

    def __iter__(self) -> Iterator[Holding]:
        return iter(self._held.values())

    def __contains__(self, partition: str) -> bool:
        return partition in self._held

    def __getitem__(self, partition: str) -> Holding:
        return self._held[partition]

    @property
    def in_turn(self) -> Holding | None:
        """The partition that is loaded for its turn, or about to be."""
        return self._in_turn

    @property
    def is_loading(self) -> bool:
        """Whether a `Load` is out."""
        return self._loading is not None

    @property
    def is_loading_in_turn(self) -> bool:
        """Whether a partition is being loaded for its turn: nothing may begin to run meanwhile."""
        return self._loading is not None and self._loading is self._in_turn

    def ready_ids(self) -> tuple[str, ...]:
        """Return the partitions that can run at once, or when their turn comes."""
        return tuple(
            held.id
            for held in self._held.values()
            if held.was_loaded and held.state is not _State.REFUSED and (held.is_runnable or not held.is_kept)
        )

    def refusals(self) -> tuple[tuple[str, str], ...]:
        """Return the partitions that cannot be had here, and why."""
        return tuple((held.id, held.reason) for held in self._held.values() if held.state is _State.REFUSED)

    def are_settled(self) -> bool:
        """Whether nothing more will change: all are ready or refused."""
        return len(self.ready_ids()) + len(self.refusals()) == len(self._held)

    def is_current(self, partition: str, digest: str) -> bool:
        """Whether this is one of the partitions, and not another one of its name."""
        held = self._held.get(partition)
        return held is not None and held.share.digest == digest

    def place(self, event: SetUp) -> tuple[list[NodeInstruction], list[str]]:
        """Take all partitions that there are to be; return what to do, and the ids that are gone or replaced."""
        shares = {share.task.id: share for share in event.shares}
        gone = [
            held for held in self._held.values() if held.id not in shares or shares[held.id].digest != held.share.digest
        ]
        steps: list[NodeInstruction] = [step for held in gone for step in self._drop(held)]
        before = {held.id: held for held in self._held.values() if held not in gone}
        self._held = {}
        for index, share in enumerate(event.shares):
            held = before.get(share.task.id) or Holding(share, index)
            held.index, self._held[held.id] = index, held
            if held.state is _State.REFUSED:
                held.move(PartitionTrigger.PLACED_AGAIN)
                held.was_loaded = False
        too_large = self._decide(event)
        for held in self._held.values():
            if held.id in too_large:
                steps += self._drop(held)
                self._held[held.id] = refused = Holding(held.share, held.index)
                refused.refuse("E_INFEASIBLE", too_large[held.id])
            elif held.state is _State.PLACED:
                steps.append(Obtain(held.id, held.share.digest))
        return [*steps, *self._unload_superfluous()], [held.id for held in gone]

    def note_obtained(self, partition: str) -> None:
        """Note that a partition's files are here."""
        if self._held[partition].state is _State.PLACED:
            self._held[partition].move(PartitionTrigger.OBTAINED)

    def note_not_obtained(self, partition: str, code: str, reason: str) -> bool:
        """Note that they cannot be; return whether that was news."""
        held = self._held[partition]
        if held.state is not _State.PLACED:
            return False
        held.refuse(code, reason)
        return True

    def note_loaded(self, partition: str, digest: str) -> list[NodeInstruction]:
        """Note that a `Load` is done; one of a partition that is no longer held is taken back."""
        loading = self._loading
        if loading is None or (loading.id, loading.share.digest) != (partition, digest):
            return []
        self._loading = None
        if self._held.get(partition) is not loading:
            return [Unload(partition, digest)]
        loading.was_loaded = True
        loading.move(PartitionTrigger.LOADED)
        return self._unload_superfluous()

    def note_load_failed(self, partition: str, digest: str, code: str, reason: str) -> bool:
        """Note that a `Load` failed; return whether that was of a partition that is held."""
        loading = self._loading
        if loading is None or (loading.id, loading.share.digest) != (partition, digest):
            return False
        self._loading = None
        if loading is self._in_turn:
            self._in_turn = None
        loading.refuse(code, reason)
        return self._held.get(partition) is loading

    def end_run(self, held: Holding) -> list[NodeInstruction]:
        """Note that a run of a partition is over; return what to do where it is in memory for nothing."""
        held.end_run()
        is_stray = not held.is_kept and held is not self._in_turn and self._held.get(held.id) is held
        return self._unload_superfluous() if is_stray else []

    def load_kept(self) -> list[NodeInstruction]:
        """Return what to do to have the next partition loaded that is to stay so."""
        if self._loading is not None:
            return []
        new = next((held for held in self._held.values() if held.is_kept and held.state is _State.OBTAINED), None)
        return [] if new is None else self._load(new)

    def obtained_for_turns(self) -> list[Holding]:
        """Return the partitions that are loaded for their turn only, and are not loaded."""
        return [held for held in self._held.values() if not held.is_kept and held.state is _State.OBTAINED]

    def load_for_turn(self, held: Holding) -> list[NodeInstruction]:
        """Return what to do to have one of those in memory instead of the one that is; nothing may run meanwhile."""
        steps = [] if self._in_turn is None else self._unload(self._in_turn)
        self._in_turn = held
        return steps + self._load(held)

    def fits_beside_turn(self, partition: str, held_nbytes: int) -> bool:
        """Return whether a partition can run, with so many bytes of tensors here, while the one in turn is loaded."""
        limit_nbytes, turn = self.residency.limit_nbytes, self._in_turn
        if limit_nbytes is None or turn is None or turn.id == partition:
            return True
        running = sum(held.runs * self._run_nbytes.get(held.id, 0) for held in self._held.values())
        own = self._run_nbytes.get(partition, 0)
        return self.weight_nbytes() + held_nbytes + running + own <= limit_nbytes

    def make_way(self, held_nbytes: int, partition: str = "") -> list[NodeInstruction]:
        """Return what to do where the one in turn takes the memory that tensors need, or a partition that is to run."""
        turn = self._in_turn
        if turn is None or turn.state is not _State.LOADED or self.fits_beside_turn(partition, held_nbytes):
            return []
        return self._unload(turn)

    def weight_nbytes(self) -> int:
        """Return the bytes of the weights that are in memory."""
        return sum(held.share.task.weight_nbytes for held in self._held.values() if held.state in _IN_MEMORY)

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        transient = [held for held in self._held.values() if not held.is_kept and held.state in _IN_MEMORY]
        idle = [held for held in transient if held is not self._in_turn and held.state is _State.LOADED]
        _require(not idle, "a partition is loaded for nothing")
        loading = [held for held in self._held.values() if held.state is _State.LOADING]
        _require(all(held is self._loading for held in loading), "two partitions are being loaded")
        for held in self._held.values():
            _require((held.runs > 0) == (held.state is _State.INFERRING), "a partition's runs are miscounted")

    def _decide(self, event: SetUp) -> dict[str, str]:
        """Decide what is kept; return those that are too large by themselves, and why."""
        tasks = [held.share.task for held in self._held.values()]
        too_large = self._too_large(tasks, event)
        tasks = [task for task in tasks if task.id not in too_large]
        live = live_activations(tasks, event.inputs, event.outputs, event.nbytes)
        crossing = sum(event.nbytes.get(name, 0) for name in (*event.inputs, *event.outputs))
        budget = self._budget_nbytes
        self.residency = residency_for_many(tasks, live, crossing, budget, self._base_nbytes)
        alive = max((live[task.id] + task.scratch_nbytes for task in tasks), default=0)
        self.has_room_for_speed = has_room_for_speed(tasks, self.residency, alive + crossing)
        self._run_nbytes = {
            task.id: task.scratch_nbytes + sum(event.nbytes.get(name, 0) for name in task.outputs) for task in tasks
        }
        for held in self._held.values():
            held.is_kept = held.id in self.residency.kept
        if budget is not None:
            kept = sum(task.weight_nbytes for task in tasks if task.id in self.residency.kept)
            self.room_nbytes = max(0, budget - self._base_nbytes - kept)
        return too_large

    def _too_large(self, tasks: list[Task], event: SetUp) -> dict[str, str]:
        if self._budget_nbytes is None:
            return {}
        live = live_activations(tasks, event.inputs, event.outputs, event.nbytes)
        needs = {
            task.id: self._base_nbytes + task.weight_nbytes + task.scratch_nbytes + live[task.id] for task in tasks
        }
        budget = format_nbytes(self._budget_nbytes)
        return {
            task: f"needs {format_nbytes(need)} with the process itself, more than the budget of {budget}"
            for task, need in needs.items()
            if need > self._budget_nbytes
        }

    def _unload_superfluous(self) -> list[NodeInstruction]:
        """Return what to do where something is loaded for its turn that was kept, or the other way round."""
        if self._in_turn is not None and self._in_turn.is_kept:
            self._in_turn = None
        steps: list[NodeInstruction] = []
        for held in self._held.values():
            if held.is_kept or held.state not in _IN_MEMORY or held is self._in_turn:
                continue
            if held.state is _State.LOADED:
                steps += self._unload(held)
            elif self._in_turn is None:
                self._in_turn = held
        return steps

    def _load(self, held: Holding) -> list[NodeInstruction]:
        self._loading = held
        held.move(PartitionTrigger.TOLD_TO_LOAD)
        return [Load(held.id, held.share.digest)]

    def _unload(self, held: Holding) -> list[NodeInstruction]:
        held.move(PartitionTrigger.UNLOADED)
        if held is self._in_turn:
            self._in_turn = None
        return [Unload(held.id, held.share.digest)]

    def _drop(self, held: Holding) -> list[NodeInstruction]:
        if held is self._in_turn:
            self._in_turn = None
        return [Unload(held.id, held.share.digest)] if held.is_runnable else []


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
