"""Cuts the running order of a cut graph into consecutive partitions: exact dynamic programs over its borders."""

from collections.abc import Collection
from dataclasses import dataclass

from hyps_passes.graph import CutGraph, Window


@dataclass(frozen=True, slots=True)
class Limits:
    """What one partition may hold; None is no limit."""

    parameters: int | None = None
    peak_bytes: int | None = None
    """Weights and activations, without the process's base."""
    may_spill: bool = False
    """Whether activations that the partition neither takes nor makes may lie in a scratch file while it runs."""
    reads_rows: bool = False
    """Whether of tables only those rows are read that a request looks up."""

    def allow(self, window: Window) -> bool:
        """Return whether the window keeps the limits. A window of unknown sizes is judged by its weights."""
        over = self.parameters is not None and window.parameters > self.parameters
        return not over and (self.peak_bytes is None or self.needed_nbytes(window) <= self.peak_bytes)

    def needed_nbytes(self, window: Window) -> int:
        """Return the memory that a partition cannot do without, or its weights where sizes are unknown."""
        if window.peak_bytes is None:
            return window.weight_bytes
        spared = window.absent_bytes if self.reads_rows else 0
        return window.peak_bytes - spared - (window.passing_bytes if self.may_spill else 0)


def fewest_partitions(
    graph: CutGraph, forced: Collection[int], limits: Limits, most_weight_bytes: int | None = None
) -> list[int] | None:
    """Return the borders of the fewest partitions that keep the limits, of those with the fewest bytes crossing.

    Args:
        graph: the layers in running order.
        forced: borders that must be cut.
        limits: what each partition may hold.
        most_weight_bytes: how much weight a partition of several layers should have at most; None: whatever fits.

    Returns:
        Borders, ascending; None where a single layer breaks the limits.
    """
    count = len(graph.layers)
    unreached = (count + 1, 0)
    best: list[tuple[int, int]] = [(0, 0)] + [unreached] * count
    back = [0] * (count + 1)
    for first in range(count):
        if best[first] == unreached:
            continue
        for window in graph.windows(first):
            is_heavy = most_weight_bytes is not None and window.weight_bytes > most_weight_bytes
            if not limits.allow(window) or (is_heavy and window.last > first):
                break
            end = window.last + 1
            score = (best[first][0] + 1, best[first][1] + _crossing_bytes(graph, window.last))
            if (end == count or graph.is_legal(window.last)) and score < best[end]:
                best[end], back[end] = score, first
            if window.last in forced:
                break
    return _walk_back(back, count) if best[count] != unreached else None


def balanced_partitions(graph: CutGraph, forced: Collection[int], limits: Limits, count: int) -> list[int] | None:
    """Return the borders of exactly `count` partitions whose largest is smallest; then with the fewest bytes crossing.

    Size is the peak memory of a partition, or its weights where sizes are unknown.

    Returns:
        Borders, ascending; None where no such division keeps the limits.
    """
    sizes = sorted(
        {limits.needed_nbytes(window) for first in range(len(graph.layers)) for window in graph.windows(first)}
    )
    low, high = 0, len(sizes) - 1
    found = None
    while low <= high:
        middle = (low + high) // 2
        borders = _exactly(graph, forced, limits, count, sizes[middle])
        if borders is None:
            low = middle + 1
        else:
            found, high = borders, middle - 1
    return found


def _exactly(graph: CutGraph, forced: Collection[int], limits: Limits, count: int, size: int) -> list[int] | None:
    layers = len(graph.layers)
    best: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}] + [{} for _ in range(layers)]
    for first in range(layers):
        if not best[first]:
            continue
        for window in graph.windows(first):
            if not limits.allow(window) or limits.needed_nbytes(window) > size:
                break
            end = window.last + 1
            if end == layers or graph.is_legal(window.last):
                crossing = _crossing_bytes(graph, window.last)
                for parts, (nbytes, _) in best[first].items():
                    offer = (nbytes + crossing, first)
                    if parts < count and offer < best[end].get(parts + 1, (offer[0] + 1, 0)):
                        best[end][parts + 1] = offer
            if window.last in forced:
                break
    borders, end = [], layers
    for parts in range(count, 0, -1):
        if parts not in best[end]:
            return None
        end = best[end][parts][1]
        borders.append(end - 1)
    return sorted(borders)[1:] if end == 0 else None


def _walk_back(back: list[int], end: int) -> list[int]:
    borders = []
    while end > 0:
        end = back[end]
        borders.append(end - 1)
    return sorted(borders)[1:]


def _crossing_bytes(graph: CutGraph, border: int) -> int:
    return sum(value.nbytes or 0 for value in graph.borders[border])
