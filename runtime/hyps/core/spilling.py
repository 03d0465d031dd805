"""Which tensors leave memory for a scratch file, and when, where the tensors alive at once exceed the budget.

A tensor that no partition needs at the moment can leave; that whose next use is farthest goes first. It is written once
and read back when it is needed, as often as that may be. What a request brings stays: whoever sent it holds it anyway.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hyps.core.residency import Task

Key = TypeVar("Key", str, tuple[str, str])
"""A tensor, or a request and its tensor."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in memory."""

    nbytes: int
    next_use: int
    """Place of the partition that needs it next, or past the last where the answer does."""
    may_leave: bool = True


@dataclass(frozen=True, slots=True)
class Passage:
    """What happens around one partition."""

    leaving: tuple[str, ...]
    """Before its weights come in: kept in the scratch file from then on."""
    returning: tuple[str, ...]
    """After that, and before it runs: its inputs."""
    live_nbytes: int
    """Tensors in memory while it runs, those that it makes included."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """How one request passes through the partitions."""

    passages: Mapping[str, Passage]
    """By partition, in running order."""
    room_nbytes: Mapping[str, int]
    """What tensors may take while a partition runs."""
    written_nbytes: int
    read_nbytes: int
    last_returning: tuple[str, ...] = ()
    """Outputs of the model that come back for the answer."""
    live_nbytes: Mapping[str, int] = field(init=False)
    """Tensors in memory per partition, as `live_activations` gives them where nothing leaves."""

    def __post_init__(self) -> None:
        live = {partition: passage.live_nbytes for partition, passage in self.passages.items()}
        object.__setattr__(self, "live_nbytes", live)

    @property
    def is_feasible(self) -> bool:
        """Whether what each partition itself needs fits the room it has."""
        return all(self.live_nbytes[partition] <= room for partition, room in self.room_nbytes.items())


def leaving(held: Mapping[Key, Held], needed: Collection[Key], room_nbytes: int) -> list[Key]:
    """Return what must leave so that the rest takes `room_nbytes` at most, farthest next use first.

    What is in `needed` stays, and so does a tensor that a larger, nearer one has made it needless to send away. Where
    even that is too little everything that may leave does.
    """
    over = sum(one.nbytes for one in held.values()) - room_nbytes
    free = [key for key, one in held.items() if one.may_leave and one.nbytes and key not in needed]
    chosen: list[Key] = []
    for key in sorted(free, key=lambda key: (-held[key].next_use, -held[key].nbytes, key)):
        if over <= 0:
            break
        chosen.append(key)
        over -= held[key].nbytes
    for key in reversed(chosen.copy()):
        if held[key].nbytes <= -over:
            chosen.remove(key)
            over += held[key].nbytes
    return chosen


def uses_of(tasks: Sequence[Task], outputs: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return the places of the partitions that use each tensor, ascending; the answer's is past the last."""
    uses: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        for name in dict.fromkeys(task.inputs):
            uses.setdefault(name, []).append(place)
    for name in outputs:
        uses.setdefault(name, []).append(len(tasks))
    return {name: tuple(places) for name, places in uses.items()}


def next_use(uses: Sequence[int], place: int) -> int | None:
    """Return the first use at `place` or behind it; None: there is none."""
    return next((use for use in uses if use >= place), None)


def forecast(
    tasks: Sequence[Task],
    inputs: Collection[str],
    outputs: Collection[str],
    nbytes: Mapping[str, int],
    room_nbytes: Mapping[str, int],
) -> Forecast:
    """Return what leaves and what comes back when one request passes, and the bytes that this moves.

    Tensors of unknown size count as nothing. See `Forecast.is_feasible`.
    """
    walk = _Walk(uses_of(tasks, outputs), frozenset(inputs), nbytes)
    walk.make([name for name in inputs if name in walk.uses], 0)
    passages = {}
    for place, task in enumerate(tasks):
        gone, back = walk.bring(place, task.inputs, room_nbytes[task.id] - walk.size_of(task.outputs))
        walk.make(task.outputs, place)
        passages[task.id] = Passage(gone, back, walk.size_of(walk.here))
        walk.forget(place + 1)
    last_back: tuple[str, ...] = ()
    if tasks:
        last = tasks[-1]
        _, last_back = walk.bring(len(tasks), outputs, room_nbytes[last.id])
        passage = passages[last.id]
        live = max(passage.live_nbytes, walk.size_of(walk.here))
        passages[last.id] = Passage(passage.leaving, passage.returning, live)
    return Forecast(passages, dict(room_nbytes), walk.written_nbytes, walk.read_nbytes, last_back)


def forecast_spills(
    tasks: Sequence[Task],
    inputs: Collection[str],
    outputs: Collection[str],
    nbytes: Mapping[str, int],
    live_nbytes: Mapping[str, int],
    available_nbytes: int | None,
) -> Forecast | None:
    """Return what must leave under a budget; None where nothing has to.

    Of two ways the one that moves fewer bytes is taken: all weights stay in memory and tensors have the rest, or only
    those of the partition that runs. Where neither is feasible the second shows which partition needs too much.

    Args:
        tasks: the partitions in running order.
        inputs: what a request brings.
        outputs: what it wants.
        nbytes: bytes per tensor, as far as they are known.
        live_nbytes: per partition, the tensors alive while it runs.
        available_nbytes: the budget without the process's own base; None: no budget.
    """
    if available_nbytes is None:
        return None
    alone = {task.id: available_nbytes - task.weight_nbytes - task.scratch_nbytes for task in tasks}
    if all(live_nbytes[partition] <= room for partition, room in alone.items()):
        return None
    weights = sum(task.weight_nbytes for task in tasks)
    together = {task.id: available_nbytes - weights - task.scratch_nbytes for task in tasks}
    ways = [(forecast(tasks, inputs, outputs, nbytes, room), read) for room, read in ((together, 0), (alone, weights))]
    possible = [(way.written_nbytes + way.read_nbytes + read, way) for way, read in ways if way.is_feasible]
    return min(possible, key=lambda found: found[0])[1] if possible else ways[-1][0]


@dataclass(slots=True)
class _Walk:
    """One request under way: what is in memory, what is in the scratch file, and what was moved."""

    uses: Mapping[str, tuple[int, ...]]
    pinned: frozenset[str]
    nbytes: Mapping[str, int]
    here: dict[str, Held] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    written_nbytes: int = 0
    read_nbytes: int = 0

    def size_of(self, names: Collection[str]) -> int:
        return sum(self.nbytes.get(name, 0) for name in dict.fromkeys(names))

    def make(self, names: Collection[str], place: int) -> None:
        """Note that tensors were made, also those that nobody needs: they are there until the partition has ended."""
        for name in names:
            use = next_use(self.uses.get(name, ()), place)
            self.here[name] = Held(self.size_of([name]), place if use is None else use, name not in self.pinned)

    def bring(self, place: int, needed: Collection[str], room_nbytes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Make room, then bring back what is needed; return what left and what came."""
        absent = [name for name in dict.fromkeys(needed) if name not in self.here]
        gone = leaving(self.here, frozenset(needed), room_nbytes - self.size_of(absent))
        self.written_nbytes += self.size_of([name for name in gone if name not in self.written])
        self.written.update(gone)
        self.read_nbytes += self.size_of(absent)
        for name in gone:
            del self.here[name]
        self.make(absent, place)
        return tuple(gone), tuple(absent)

    def forget(self, place: int) -> None:
        """Drop what nobody needs from `place` on, and look up the next use of the rest."""
        left = {name: next_use(self.uses.get(name, ()), place) for name in self.here}
        self.here = {
            name: Held(self.here[name].nbytes, use, self.here[name].may_leave)
            for name, use in left.items()
            if use is not None
        }
