"""Which consecutive layers are worth dividing as one region, so that nothing large is merged between them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from hyps_passes.graph import CutGraph, CutValue, nbytes_of

_BACK = 12
_AHEAD = 40
"""How many layers before and behind the one that is too large a region may reach."""
_NEAR = 3
"""How far apart two layers may be that are both too large and are divided together."""
_PARTITION_S = 0.2e-3
_COPIED_BYTES_PER_S = 4e9


@dataclass(frozen=True, slots=True)
class Crossing:
    """What is in memory around consecutive layers, in bytes."""

    held: int
    """There before, while and after they run; what may lie in a scratch file does not count."""
    taken: int
    """There before, and not needed after them."""
    made: int
    """Of them, needed after them."""
    largest_made: int


class Flow:
    """How long each value of a cut graph is in memory."""

    def __init__(self, graph: CutGraph, *, may_spill: bool = False) -> None:
        """Take the layers, and whether values that nobody needs at the moment may lie in a scratch file.

        Values of unknown sizes count as nothing.
        """
        self.graph, self.may_spill = graph, may_spill
        self._starts = np.array([value.producer for value in graph.values], np.int64)
        self._stops = np.array([last_need(graph, value) for value in graph.values], np.int64)
        self._nbytes = np.array([value.nbytes or 0 for value in graph.values], np.int64)

    def crossing(self, first: int, last: int) -> Crossing:
        """Return what is in memory around layers `first` to `last`."""
        before, after = self._starts < first, self._stops > last
        held = int(self._nbytes[before & after].sum())
        if self.may_spill:
            held -= self.graph.window(first, last).passing_bytes
        made = self._nbytes[(self._starts >= first) & (self._starts <= last) & after]
        return Crossing(
            held=held,
            taken=int(self._nbytes[before & ~after & (self._stops >= first)].sum()),
            made=int(made.sum()),
            largest_made=int(made.max(initial=0)),
        )

    def likely_windows(
        self, blocker: int, blockers: Collection[int], peak_bytes: int | None, most: int, *, opened: bool
    ) -> list[tuple[int, int]]:
        """Return the regions around a layer that is too large: the layer alone first, then the most promising.

        A region is promising where what crosses its ends leaves room: the pieces of its outputs and the merged output
        are in memory at once, and so are its inputs and what is between.

        Args:
            blocker: the index of the layer.
            blockers: indices of all layers that are too large.
            peak_bytes: what a partition may take; None: any.
            most: how many regions to return beside the layer alone and the layer with the next one that is too large.
            opened: whether a piece need not hold the weights of all layers at once.
        """
        found = [(blocker, other) for other in sorted(blockers) if blocker < other <= blocker + _NEAR][:1]
        if peak_bytes is not None and self.graph.live_bytes[blocker] is not None:
            windows = sorted(self._windows(blocker, blockers, peak_bytes, opened=opened))
            found += [(first, last) for _, _, first, last in windows[:most]]
        return list(dict.fromkeys([(blocker, blocker), *found]))

    def _windows(
        self, blocker: int, blockers: Collection[int], peak_bytes: int, *, opened: bool
    ) -> Iterator[tuple[float, int, int, int]]:
        """Yield what each region costs at least for each layer that it makes fit, its length, first and last layer."""
        layers = self.graph.layers
        back = takewhile(lambda i: layers[i].shard is None, range(blocker, max(-1, blocker - _BACK), -1))
        for first in back:
            for last in takewhile(lambda i: layers[i].shard is None, range(blocker, len(layers))):
                if last >= blocker + _AHEAD:
                    break
                price_s = self._least_price(first, last, peak_bytes, opened=opened) if last > first else None
                if price_s is not None:
                    yield price_s / sum(first <= i <= last for i in blockers), last - first, first, last

    def _least_price(self, first: int, last: int, peak_bytes: int, *, opened: bool) -> float | None:
        """Return the seconds that dividing the layers costs at least; None where no division leaves room."""
        crossing = self.crossing(first, last)
        layers = self.graph.layers[first : last + 1]
        weights = {id(w): nbytes_of(w) for layer in layers for w in layer.weights}
        weight_bytes = max(layer.weight_bytes for layer in layers) if opened else sum(weights.values())
        around = crossing.held + crossing.taken + crossing.made
        room = peak_bytes - around - weight_bytes
        if room <= 0 or crossing.held + crossing.made + crossing.largest_made > peak_bytes:
            return None
        inside = max(self.graph.live_bytes[index] or 0 for index in range(first, last + 1)) - around
        copied = crossing.taken + 2 * crossing.made
        return max(2, -(-inside // room)) * _PARTITION_S + copied / _COPIED_BYTES_PER_S


def last_need(graph: CutGraph, value: CutValue) -> int:
    """Return the last layer at which the value is in memory; behind all layers for an output of the model."""
    if value.is_output:
        return len(graph.layers)
    return value.consumers[-1] if value.consumers else value.producer
