"""Which ready work item of a node runs next, and which partition is loaded for its turn next."""

import heapq
import math

from hyps.core.holdings import Holding, Holdings
from hyps.core.node_events import NodeInstruction


class WorkQueue:
    """Ready work items, each a request and a partition.

    Those of partitions that are kept loaded go by the age of their requests. A partition that is loaded for its turn
    runs what waited for it then, or when another began to wait for its own turn, and then makes way.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._items: set[tuple[int, str]] = set()
        self._of_kept: list[tuple[int, int, str]] = []
        """Items of loaded kept partitions, the oldest request first; those that are gone stay until met."""
        self._waiting: dict[str, dict[int, None]] = {}
        """Requests of the other items, by partition."""
        self._newest = 0
        self._horizon: int | None = None
        """Newest request that goes before the partitions that wait to be loaded; None: none waits."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: tuple[int, str]) -> bool:
        """Whether an item is here, where it is looked for."""
        number, partition = item
        is_found = any(entry[0] == number and entry[2] == partition for entry in self._of_kept)
        return item in self._items and (is_found or number in self._waiting.get(partition, {}))

    def note_request(self, number: int) -> None:
        """A request was heard of."""
        self._newest = max(self._newest, number)

    def add(self, number: int, partition: str) -> None:
        """An item is ready."""
        self._items.add((number, partition))
        held = self._holdings[partition]
        if held.is_kept and held.is_runnable:
            heapq.heappush(self._of_kept, (number, held.index, partition))
        else:
            self._waiting.setdefault(partition, {})[number] = None

    def discard(self, number: int, partition: str) -> None:
        """An item is wanted no more."""
        self._items.discard((number, partition))
        waiting = self._waiting.get(partition, {})
        waiting.pop(number, None)
        if not waiting:
            self._waiting.pop(partition, None)

    def take_all_of(self, partition: str) -> list[int]:
        """Return the requests of all items that wait for a partition, which are not here any more."""
        numbers = list(self._waiting.pop(partition, {}))
        self._items.difference_update((number, partition) for number in numbers)
        return numbers

    def is_waiting_for(self, partition: str) -> bool:
        """Return whether an item waits for a partition that is not kept, or not loaded."""
        return partition in self._waiting

    def waiting_partitions(self) -> list[str]:
        """Return the partitions that are not kept or not loaded, and have items."""
        return list(self._waiting)

    def on_loaded(self, held: Holding) -> None:
        """A partition that is kept has been loaded."""
        for number in self._waiting.pop(held.id, {}):
            heapq.heappush(self._of_kept, (number, held.index, held.id))

    def sort_anew(self) -> None:
        """Look for each item where its partition, which may be kept now and not before, has it looked for."""
        self._of_kept.clear()
        self._waiting.clear()
        for number, partition in sorted(self._items):
            self.add(number, partition)

    def clear(self) -> None:
        """Forget everything, also which requests were heard of."""
        self._items.clear()
        self.sort_anew()
        self._newest, self._horizon = 0, None

    def take(self, held_nbytes: int) -> tuple[int, str] | None:
        """Take the next item of a loaded partition, unless those that wait to be loaded come first.

        What does not fit beside the partition in turn and `held_nbytes` of tensors waits until that has run.
        """
        while self._of_kept and (self._of_kept[0][0], self._of_kept[0][2]) not in self._items:
            heapq.heappop(self._of_kept)
        best = self._of_kept[0] if self._of_kept and self._may_go(self._of_kept[0][0]) else None
        turn = self._holdings.in_turn
        if turn is not None and turn.is_runnable:
            if best is not None and turn.runs and not self._holdings.fits_beside_turn(best[2], held_nbytes):
                best = None
            best = self._of_turn(turn, best, held_nbytes)
        if best is None:
            return None
        if self._of_kept and best == self._of_kept[0]:
            heapq.heappop(self._of_kept)
        self.discard(best[0], best[2])
        return best[0], best[2]

    def _of_turn(
        self, turn: Holding, best: tuple[int, int, str] | None, held_nbytes: int
    ) -> tuple[int, int, str] | None:
        """Return the next item of the partition in turn, or the `best` of the others where that comes first."""
        waiting = self._waiting.get(turn.id)
        if not waiting or not self._may_go(min(waiting)):
            return best
        own = (min(waiting), turn.index, turn.id)
        is_first = best is None or own < best or not self._holdings.fits_beside_turn(best[2], held_nbytes)
        return own if is_first else best

    def load_next(self, is_running: bool) -> list[NodeInstruction]:
        """Return what to do to have the next partition loaded for its turn, once nothing goes before it.

        That is the one with the oldest request of those that wait; one that was never tried comes behind them.
        """
        waiting = [] if self._holdings.is_loading else self._waiting_for_turns()
        if not waiting:
            self._horizon = None
            return []
        if self._horizon is None:
            self._horizon = self._newest
        if is_running:
            return []
        self._horizon = self._newest  # one from before all that waits would have turns taken and nothing run
        return self._holdings.load_for_turn(min(waiting, key=lambda entry: entry[:2])[2])

    def _may_go(self, number: int) -> bool:
        if self._horizon is not None and number > self._horizon:
            if self._waiting_for_turns():
                return False
            self._horizon = None
        return True

    def _waiting_for_turns(self) -> list[tuple[float, int, Holding]]:
        """Return the partitions that wait to be loaded for their turn, each behind its oldest request and its place."""
        return [
            (min(self._waiting.get(held.id, ()), default=math.inf), held.index, held)
            for held in self._holdings.obtained_for_turns()
            if held.id in self._waiting or not held.was_loaded
        ]
