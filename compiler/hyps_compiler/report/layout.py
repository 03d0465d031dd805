"""Where partitions are drawn: ranks from top to bottom, long models in several columns side by side."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NODE_WIDTH, NODE_HEIGHT = 208, 64
_GAP_X, _GAP_Y = 28, 44
_PITCH = NODE_HEIGHT + _GAP_Y
_GAP_COLUMN = 72
_FRAME = 12
"""Between the partitions of a group and the frame around them."""
_MOST_BESIDE = 8
"""Partitions in one row; those of one rank beyond it stand below."""
_ASPECT = 1.5
"""Width over height that the whole should have, as the picture's place on a page has."""
_MOST_COLUMNS = 40
_TOO_FEW = 2
"""Rows that are no column of their own."""
_FEW = 10
"""Rows that always stand below each other."""
_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the picture."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each node and group is, and how large the whole is."""

    nodes: tuple[Box, ...]
    groups: Mapping[str, Box]
    columns: tuple[int, ...]
    """Where each column begins."""
    width: int
    height: int


def lay_out(count: int, edges: Sequence[tuple[int, int]], groups: Mapping[int, str]) -> Layout:
    """Return where `count` nodes are drawn, which stand in an order in which they can run.

    Args:
        count: how many nodes.
        edges: from which node to which later one.
        groups: of some nodes, the group that they stand beside each other in.
    """
    ranks = _ranks(count, edges)
    columns = _columns([_rows(rank, groups) for rank in _ordered(ranks, edges, groups)])
    boxes: dict[int, Box] = {}
    starts = []
    left = height = 0
    for column in columns:
        starts.append(left)
        width = max(_row_width(row) for row in column)
        for index, row in enumerate(column):
            start = left + (width - _row_width(row)) // 2
            for place, node in enumerate(row):
                x = start + place * (NODE_WIDTH + _GAP_X)
                boxes[node] = Box(x, index * _PITCH, NODE_WIDTH, NODE_HEIGHT)
        left += width + _GAP_COLUMN
        height = max(height, len(column) * _PITCH - _GAP_Y)
    placed = tuple(boxes[node] for node in range(count))
    return Layout(placed, _frames(placed, groups, starts), tuple(starts), max(0, left - _GAP_COLUMN), height)


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the nodes by the length of the longest way to each."""
    rank = [0] * count
    for source, target in sorted(edges):  # by the source, which is through when its edges come
        rank[target] = max(rank[target], rank[source] + 1)
    ranks: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for node in range(count):
        ranks[rank[node]].append(node)
    return ranks


def _ordered(ranks: list[list[int]], edges: Sequence[tuple[int, int]], groups: Mapping[int, str]) -> list[list[int]]:
    """Order each rank by where its neighbours above and below stand, so that few edges cross; groups stay together."""
    neighbours: dict[int, list[int]] = {}
    for source, target in edges:
        neighbours.setdefault(source, []).append(target)
        neighbours.setdefault(target, []).append(source)
    place = {node: index / len(rank) for rank in ranks for index, node in enumerate(rank)}
    for _ in range(_SWEEPS if any(len(rank) > 1 for rank in ranks) else 0):
        for rank in ranks:
            mean = {node: _mean([place[n] for n in neighbours.get(node, ())], place[node]) for node in rank}
            together: dict[str, list[float]] = {}
            for node in rank:
                together.setdefault(groups.get(node, ""), []).append(mean[node])
            key = {
                node: (_mean(together[groups[node]], 0.0) if node in groups else mean[node], groups.get(node, ""), node)
                for node in rank
            }
            rank.sort(key=key.__getitem__)
            place.update({node: index / len(rank) for index, node in enumerate(rank)})
    return ranks


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _rows(rank: Sequence[int], groups: Mapping[int, str]) -> list[list[int]]:
    """Break a rank that is too wide; a group begins a row of its own where it would be torn apart needlessly."""
    rows: list[list[int]] = []
    row: list[int] = []
    for block in _blocks(rank, groups):
        if row and len(row) + len(block) > _MOST_BESIDE:
            rows.append(row)
            row = []
        row += block
        while len(row) > _MOST_BESIDE:
            rows.append(row[:_MOST_BESIDE])
            row = row[_MOST_BESIDE:]
    rows.append(row)
    return [row for row in rows if row]


def _blocks(rank: Sequence[int], groups: Mapping[int, str]) -> list[list[int]]:
    blocks: list[list[int]] = []
    for index, node in enumerate(rank):
        if index and node in groups and groups.get(rank[index - 1]) == groups[node]:
            blocks[-1].append(node)
        else:
            blocks.append([node])
    return blocks


def _columns(ranks: Sequence[list[list[int]]]) -> list[list[list[int]]]:
    """Divide the ranks into columns of about equal height, so many that the whole is nearly as wide as it should be."""
    count = sum(map(len, ranks))
    most = min(_MOST_COLUMNS, count) if count > _FEW else 1
    return min((_filled(ranks, -(-count // number)) for number in range(1, most + 1)), key=_misproportion)


def _misproportion(columns: Sequence[Sequence[Sequence[int]]]) -> float:
    """Return by how much the columns together are too wide or too high: 0 where they are just right."""
    height = max(map(len, columns)) * _PITCH
    width = sum(max(map(_row_width, column), default=0) + _GAP_COLUMN for column in columns)
    return abs(math.log(width / height / _ASPECT)) if width and height else 0.0


def _filled(ranks: Sequence[list[list[int]]], size: int) -> list[list[list[int]]]:
    """Fill columns of `size` rows with whole ranks."""
    columns: list[list[list[int]]] = [[]]
    for rows in ranks:
        if columns[-1] and len(columns[-1]) + len(rows) > size:
            columns.append([])
        columns[-1] += rows
    if len(columns) > 1 and len(columns[-1]) <= _TOO_FEW:
        last = columns.pop()
        columns[-1] += last
    return columns


def _row_width(row: Sequence[int]) -> int:
    return len(row) * (NODE_WIDTH + _GAP_X) - _GAP_X


def _frames(boxes: Sequence[Box], groups: Mapping[int, str], columns: Sequence[int]) -> dict[str, Box]:
    """Return the frame around each group that stands in one column."""
    members: dict[str, list[Box]] = {}
    for node, group in groups.items():
        members.setdefault(group, []).append(boxes[node])
    frames = {}
    for group, inside in members.items():
        if len({bisect.bisect_right(columns, box.x) for box in inside}) > 1:
            continue
        left, top = min(box.x for box in inside) - _FRAME, min(box.y for box in inside) - _FRAME
        right, bottom = max(box.x for box in inside) + NODE_WIDTH, max(box.y for box in inside) + NODE_HEIGHT
        frames[group] = Box(left, top, right - left + _FRAME, bottom - top + _FRAME)
    return frames
