"""What the hub has of every request: which tensors, for how long, and in how many bytes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hyps.errors import InternalError


class EntryState(Enum):
    """Where a tensor of a request is in its life at the hub."""

    ABSENT = "absent"
    HELD = "held"
    DURABLE = "durable"
    """Held, and it would survive the hub's own end."""
    RELEASED = "released"


class EntryTrigger(Enum):
    """What moves it on."""

    CAME = "came"
    WRITTEN = "written"
    NOT_NEEDED = "not needed any more"
    BEGUN_ANEW = "its request was begun anew"


TRANSITIONS: Mapping[tuple[EntryState, EntryTrigger], EntryState] = {
    (EntryState.ABSENT, EntryTrigger.CAME): EntryState.HELD,
    (EntryState.HELD, EntryTrigger.WRITTEN): EntryState.DURABLE,
    (EntryState.HELD, EntryTrigger.NOT_NEEDED): EntryState.RELEASED,
    (EntryState.DURABLE, EntryTrigger.NOT_NEEDED): EntryState.RELEASED,
    (EntryState.ABSENT, EntryTrigger.BEGUN_ANEW): EntryState.ABSENT,
    (EntryState.RELEASED, EntryTrigger.BEGUN_ANEW): EntryState.ABSENT,
    (EntryState.HELD, EntryTrigger.BEGUN_ANEW): EntryState.HELD,
    (EntryState.DURABLE, EntryTrigger.BEGUN_ANEW): EntryState.DURABLE,
}
"""Every change of an entry's state; what is not in here cannot happen."""

_HERE = (EntryState.HELD, EntryState.DURABLE)


class Arrival(Enum):
    """What becomes of a tensor that comes."""

    KEPT = "kept"
    SECOND = "second"
    """It is here already, or was and is not needed any more."""
    STALE = "stale"
    """Its request has ended or was begun anew since."""


@dataclass(slots=True)
class _Entry:
    state: EntryState = EntryState.ABSENT
    nbytes: int = 0
    unsent: int = 0
    """Times that it was given to a link and has not been taken from it."""
    is_wanted: bool = True
    """Whether it is held although nothing sends it."""


@dataclass(slots=True)
class _Record:
    reserved_nbytes: int
    """Promised to the request: what it has and what will come."""
    epoch: int = 1
    held_nbytes: int = 0
    entries: dict[str, _Entry] = field(default_factory=dict)


class HubState:
    """The tensors of requests, and of the work that several of them are merged into; both have numbers.

    What a request may need is reserved before it begins: the bytes held stay within the bound, but for one request
    that is larger than it and has the hub to itself, and but for tensors larger than the plan foresees.
    """

    def __init__(self, max_nbytes: int) -> None:
        self.max_nbytes = max_nbytes
        self.used_nbytes = 0
        """Per request what it has reserved, or more where it holds more; of all."""
        self.held_nbytes = 0
        self.passed_nbytes = 0
        """Of tensors passed on between devices since the start."""
        self._records: dict[int, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, number: int) -> bool:
        return number in self._records

    @property
    def tensors(self) -> int:
        """How many are held."""
        return sum(entry.state in _HERE for record in self._records.values() for entry in record.entries.values())

    def has_room(self, nbytes: int) -> bool:
        """Return whether so much can be reserved; anything can while nothing is here."""
        return self.used_nbytes + nbytes <= self.max_nbytes or not self._records

    def open(self, number: int, tensors: Mapping[str, int]) -> None:
        """Begin to hold a request's `tensors`."""
        if number in self._records:
            raise InternalError(f"request {number} was opened twice at the hub")
        record = self._records[number] = _Record(0)
        for name, nbytes in tensors.items():
            self._come(record, name, nbytes)

    def reserve(self, number: int, nbytes: int) -> None:
        """Reserve so much for what is to come, beside what is here."""
        record = self._records[number]
        self._charge(record, record.held_nbytes + nbytes - record.reserved_nbytes)

    def begin_anew(self, number: int, epoch: int) -> None:
        """Take no more of an earlier epoch; what is held stays, since it would be made again as it is."""
        record = self._records[number]
        record.epoch = epoch
        for entry in record.entries.values():
            self._move(entry, EntryTrigger.BEGUN_ANEW)
            entry.unsent = 0

    def arrive(self, number: int, epoch: int, tensor: str, nbytes: int, *, is_wanted: bool) -> Arrival:
        """Take a tensor that comes: the first of its name and epoch is kept."""
        record = self._records.get(number)
        if record is None or record.epoch != epoch:
            return Arrival.STALE
        entry = record.entries.get(tensor)
        if entry is not None and entry.state is not EntryState.ABSENT:
            return Arrival.SECOND
        self._come(record, tensor, nbytes, is_wanted=is_wanted)
        return Arrival.KEPT

    def add(self, number: int, tensor: str, nbytes: int) -> bool:
        """Hold one more tensor of a request, whatever its epoch; return whether it was not here."""
        record = self._records.get(number)
        entry = None if record is None else record.entries.get(tensor)
        if record is None or (entry is not None and entry.state is not EntryState.ABSENT):
            return False
        self._come(record, tensor, nbytes)
        return True

    def note_written(self, number: int, tensor: str) -> None:
        """A held tensor survives the hub's end from now on."""
        self._move(self._records[number].entries[tensor], EntryTrigger.WRITTEN)

    def note_sent(self, number: int, tensor: str) -> int:
        """A held tensor was given to a link; return its bytes."""
        entry = self._records[number].entries[tensor]
        entry.unsent += 1
        return entry.nbytes

    def note_taken(self, number: int, epoch: int, tensor: str) -> bool:
        """A tensor has arrived where it was sent; return whether it is released by that."""
        record = self._records.get(number)
        if record is None or record.epoch != epoch:
            return False
        entry = record.entries.get(tensor)
        if entry is None or entry.state not in _HERE or not entry.unsent:
            return False
        entry.unsent -= 1
        if entry.unsent or entry.is_wanted:
            return False
        self.passed_nbytes += entry.nbytes
        self._release(record, entry)
        return True

    def held(self, number: int) -> list[str]:
        """Return the tensors that are here."""
        return [name for name, entry in self._records[number].entries.items() if entry.state in _HERE]

    def has(self, number: int, tensor: str) -> bool:
        """Return whether a tensor is here."""
        record = self._records.get(number)
        entry = None if record is None else record.entries.get(tensor)
        return entry is not None and entry.state in _HERE

    def keep_only(self, number: int, wanted: Collection[str]) -> list[str]:
        """Release all but the `wanted`, and what was reserved; return what is released."""
        record = self._records[number]
        dropped = []
        for name, entry in record.entries.items():
            if entry.state in _HERE and name not in wanted:
                self._release(record, entry)
                dropped.append(name)
        self._charge(record, record.held_nbytes - record.reserved_nbytes)
        return dropped

    def close(self, number: int) -> list[str]:
        """Forget a request; return what is released."""
        dropped = self.keep_only(number, ())
        del self._records[number]
        return dropped

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        for number, record in self._records.items():
            held = sum(entry.nbytes for entry in record.entries.values() if entry.state in _HERE)
            _require(held == record.held_nbytes, f"the bytes held of request {number} are miscounted")
        records = self._records.values()
        _require(self.held_nbytes == sum(r.held_nbytes for r in records), "the bytes held are miscounted")
        used = sum(max(r.reserved_nbytes, r.held_nbytes) for r in records)
        _require(self.used_nbytes == used, "the bytes in use are miscounted")

    def _come(self, record: _Record, name: str, nbytes: int, *, is_wanted: bool = True) -> None:
        entry = record.entries.setdefault(name, _Entry())
        self._move(entry, EntryTrigger.CAME)
        entry.nbytes, entry.is_wanted = nbytes, is_wanted
        self._hold(record, nbytes)

    def _release(self, record: _Record, entry: _Entry) -> None:
        self._move(entry, EntryTrigger.NOT_NEEDED)
        self._hold(record, -entry.nbytes)

    def _hold(self, record: _Record, nbytes: int) -> None:
        before = max(record.reserved_nbytes, record.held_nbytes)
        record.held_nbytes += nbytes
        self.held_nbytes += nbytes
        self.used_nbytes += max(record.reserved_nbytes, record.held_nbytes) - before

    def _charge(self, record: _Record, nbytes: int) -> None:
        before = max(record.reserved_nbytes, record.held_nbytes)
        record.reserved_nbytes += nbytes
        self.used_nbytes += max(record.reserved_nbytes, record.held_nbytes) - before

    @staticmethod
    def _move(entry: _Entry, trigger: EntryTrigger) -> None:
        after = TRANSITIONS.get((entry.state, trigger))
        if after is None:
            raise InternalError(f"a tensor at the hub was {entry.state.value} and then {trigger.value}")
        entry.state = after


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
