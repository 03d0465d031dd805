"""The tensors of the requests under way: in memory, or in a scratch file where the budget says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyps.adapters.feeds import nbytes_of
from hyps.adapters.spill_file import SpillCounts, SpillFile, Stored
from hyps.core.residency import Task
from hyps.core.spilling import Forecast, Held, leaving, next_use, uses_of


@dataclass(slots=True)
class _Request:
    pinned: frozenset[str]
    """What it brought: its sender holds it as well."""
    here: dict[str, Any]
    away: dict[str, Stored] = field(default_factory=dict)
    """What lies in the file; some of it may be in memory too."""


class TensorStore:
    """Names and values per request; without a forecast of spilling everything stays in memory."""

    def __init__(
        self, tasks: Sequence[Task], outputs: Sequence[str], nbytes: Mapping[str, int], spills: Forecast | None
    ) -> None:
        """Take partitions in running order, the model's outputs, bytes per tensor, and what leaves; None: nothing."""
        self._tasks = {task.id: (place, task) for place, task in enumerate(tasks)}
        self._uses = uses_of(tasks, outputs)
        self._nbytes = nbytes
        self._spills = spills
        self._file = SpillFile()
        self._requests: dict[str, _Request] = {}

    def __len__(self) -> int:
        """Return how many requests are known."""
        return len(self._requests)

    @property
    def counts(self) -> SpillCounts:
        """What went to the scratch file and came back, ever."""
        return self._file.counts

    def add(self, request: str, feeds: Mapping[str, Any]) -> None:
        """Take a new request with what it brought."""
        self._requests[request] = _Request(frozenset(feeds), dict(feeds))

    def make_room(self, partition: str) -> None:
        """Send away what must not be in memory while the partition runs; to be called before its weights come in.

        Raises:
            OutputError: the scratch file cannot be written.
        """
        if self._spills is not None:
            self._leave(partition, list(self._requests))

    def feeds(self, request: str, partition: str) -> dict[str, Any]:
        """Return the inputs of the partition that runs next: brought back, and what is in the way sent away.

        Raises:
            OutputError: the scratch file cannot be written or read.
        """
        if self._spills is not None:
            self._leave(partition, [request])
        return self._bring(self._requests[request], self._tasks[partition][1].inputs)

    def put(self, request: str, made: Mapping[str, Any]) -> None:
        """Take what a partition has made for a request."""
        self._requests[request].here.update(made)

    def drop(self, request: str, tensor: str) -> None:
        """Forget a tensor that nobody needs any more; one that is not there is forgotten already."""
        known = self._requests.get(request)
        if known is not None:
            known.here.pop(tensor, None)
            self._free(known, tensor)

    def answer(self, request: str, outputs: Sequence[str]) -> dict[str, Any]:
        """Return those of `outputs` that the request has.

        Raises:
            OutputError: the scratch file cannot be read.
        """
        known = self._requests[request]
        return self._bring(known, [name for name in outputs if name in known.here or name in known.away])

    def forget(self, request: str) -> None:
        """Forget all of a request."""
        known = self._requests.pop(request, None)
        if known is not None:
            for tensor in list(known.away):
                self._free(known, tensor)

    def clear(self) -> None:
        """Forget every request."""
        for request in list(self._requests):
            self.forget(request)

    def close(self) -> None:
        """Forget every request and end the scratch file."""
        self.clear()
        self._file.close()

    def _leave(self, partition: str, requests: Sequence[str]) -> None:
        """Make room for a partition and what it makes; its inputs for `requests` stay."""
        assert self._spills is not None
        place, task = self._tasks[partition]
        needed = {(request, name) for request in requests for name in task.inputs}
        coming = sum(self._away_nbytes(self._requests[request], name) for request, name in needed)
        made = sum(self._nbytes.get(name, 0) for name in dict.fromkeys(task.outputs))
        room_nbytes = self._spills.room_nbytes[partition] - made - coming
        for request, name in leaving(self._held(place), needed, room_nbytes):
            self._send_away(self._requests[request], name)

    def _away_nbytes(self, known: _Request, name: str) -> int:
        return known.away[name].nbytes if name in known.away and name not in known.here else 0

    def _held(self, place: int) -> dict[tuple[str, str], Held]:
        return {
            (request, name): self._as_held(known, name, place)
            for request, known in self._requests.items()
            for name in known.here
        }

    def _as_held(self, known: _Request, name: str, place: int) -> Held:
        value = known.here[name]
        use = next_use(self._uses.get(name, ()), place)
        may_leave = name not in known.pinned and SpillFile.takes(value)
        return Held(nbytes_of(value), place if use is None else use, may_leave)

    def _send_away(self, known: _Request, name: str) -> None:
        if name not in known.away:
            known.away[name] = self._file.write(known.here[name])
        del known.here[name]

    def _bring(self, known: _Request, names: Sequence[str]) -> dict[str, Any]:
        for name in names:
            if name not in known.here:
                known.here[name] = self._file.read(known.away[name])
        return {name: known.here[name] for name in names}

    def _free(self, known: _Request, tensor: str) -> None:
        stored = known.away.pop(tensor, None)
        if stored is not None:
            self._file.free(stored)
