"""Which cut is best where: the whole table over bandwidth and load, calculated from its corners, not sampled.

A cut costs `constant + x * slope_x + y * slope_y`: say, x is the seconds per byte and slope_x the bytes that cross, y
how much slower the server is and slope_y the seconds that it computes. The least cost of all cuts is then concave, and
each cut is best on a convex part of the plane. With one parameter this is the method of Eisner and Severance
(Mathematical Techniques for Efficient Record Segmentation in Large Shared Databases, 1976), which asks for the best cut
where two known ones cost the same; with two it asks at the corners of the parts.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Generic, TypeAlias, TypeVar

Key = TypeVar("Key", bound=Hashable)
"""What tells cuts apart."""

_Point: TypeAlias = tuple[Fraction, Fraction]
_Polygon: TypeAlias = list[_Point]
_Plane: TypeAlias = tuple[Fraction, Fraction, Fraction]
"""Constant, slope over x, slope over y."""

_SLACK = 1e-9
"""Part of a cost beyond which floats settle a comparison; below it fractions do."""


@dataclass(frozen=True)
class CutCost(Generic[Key]):
    """What a cut costs at any x and y."""

    key: Key
    constant: float
    slope_x: float
    slope_y: float

    def at(self, x: float, y: float) -> float:
        """Return the cost at a point."""
        return self.constant + x * self.slope_x + y * self.slope_y

    @cached_property
    def plane(self) -> _Plane:
        """The same numbers, to be calculated with without rounding."""
        return Fraction(self.constant), Fraction(self.slope_x), Fraction(self.slope_y)


@dataclass(frozen=True, slots=True)
class Region(Generic[Key]):
    """Where a cut is best."""

    cost: CutCost[Key]
    vertices: tuple[tuple[float, float], ...]
    """Corners of a convex polygon, counterclockwise from the lowest of the leftmost; two ends if the box is a line."""


@dataclass(frozen=True, slots=True)
class Box:
    """The parameters in question; where both ends of an interval are the same, that parameter is fixed."""

    x: tuple[float, float]
    y: tuple[float, float]

    def __post_init__(self) -> None:
        """Refuse ends that are no interval.

        Raises:
            ValueError: an end is infinite or no number, or the lower one is the higher one.
        """
        if not all(math.isfinite(end) for end in (*self.x, *self.y)) or self.x[0] > self.x[1] or self.y[0] > self.y[1]:
            raise ValueError(f"not a box: {self}")

    @property
    def dimensions(self) -> int:
        """How many of the parameters vary."""
        return int(self.x[0] < self.x[1]) + int(self.y[0] < self.y[1])


Oracle: TypeAlias = Callable[[float, float], CutCost[Key]]
"""Returns a cut than which none costs less at a point."""


@dataclass(slots=True)
class _Cell(Generic[Key]):
    """The part of the box in which a cut is the cheapest of those known."""

    cost: CutCost[Key]
    polygon: _Polygon
    corners: list[tuple[float, float]] = field(init=False)
    """The polygon's, rounded."""

    def __post_init__(self) -> None:
        self.corners = [(float(x), float(y)) for x, y in self.polygon]

    def is_clear_of(self, other: CutCost[Key]) -> bool:
        """Return whether its cut is cheaper than another in the whole cell, by far more than floats round."""
        return all(
            other.at(x, y) - self.cost.at(x, y) > _SLACK * (_magnitude(other, x, y) + _magnitude(self.cost, x, y))
            for x, y in self.corners
        )


def best_regions(oracle: Oracle[Key], seeds: Sequence[CutCost[Key]], box: Box) -> tuple[Region[Key], ...]:
    """Return the regions that cover the box, and in each the cut that is best in all of it.

    The known cuts divide the box into cells, in each of which one of them is the cheapest known. The oracle is asked at
    every corner of every cell; a cheaper cut gets a cell of its own. When no corner has one there is none: the least
    cost is concave, so between corners at which it is known it lies nowhere below the plane through them. Corners are
    fractions without rounding, so that the cells neither overlap nor leave a gap; only those returned are rounded.

    Args:
        oracle: finds the best cut at one point; asked once per corner. It need not know the seeds.
        seeds: cuts that are candidates whatever the oracle says, with costs of their own (do not split, send
            everything). Of cuts that cost the same everywhere the first seed is taken.
        box: the parameters to cover.

    Returns:
        Regions, ordered by their corners. Those too thin for floats to tell their corners apart are left out.
    """

    def cheapest(point: _Point) -> CutCost[Key]:
        x, y = float(point[0]), float(point[1])
        offers = [min(seeds, key=lambda seed: seed.at(x, y)), oracle(x, y)] if seeds else [oracle(x, y)]
        return min(offers, key=lambda offer: _at(offer.plane, point))

    corners = _corners(box)
    cells = [_Cell(cheapest(corners[0]), corners)]
    open_points, asked = [(point, cells[0].cost) for point in corners], set[_Point]()
    while open_points:
        point, known = open_points.pop()
        if point in asked:
            continue
        asked.add(point)
        found = cheapest(point)
        if _at(found.plane, point) < _at(known.plane, point):
            cells, added = _with_cell(cells, found, box)
            open_points += [(corner, found) for corner in added]
    regions = [Region(cell.cost, vertices) for cell in cells if (vertices := _rounded(cell, box))]
    return tuple(sorted(regions, key=lambda region: region.vertices))


def best(regions: Iterable[Region[Key]], x: float, y: float) -> CutCost[Key]:
    """Return the cut that is best at a point of the box; outside, the cheapest of those that are best inside."""
    return min((region.cost for region in regions), key=lambda cost: cost.at(x, y))


def _with_cell(cells: list[_Cell[Key]], cost: CutCost[Key], box: Box) -> tuple[list[_Cell[Key]], _Polygon]:
    """Return the cells with one more and its corners; it takes its part from the others, and some vanish.

    Only cells that it touches bound it. There is no such cell where cells found meanwhile leave it no part.
    """
    touched = [cell for cell in cells if not cell.is_clear_of(cost)]
    polygon = _corners(box)
    for cell in touched:
        if cell.cost.plane == cost.plane:
            return cells, []
        polygon = _clip(polygon, _difference(cost.plane, cell.cost.plane))
    if len(polygon) <= box.dimensions:
        return cells, []
    left = [cell for cell in cells if cell.is_clear_of(cost)]
    for cell in touched:
        rest = _clip(cell.polygon, _difference(cell.cost.plane, cost.plane))
        if len(rest) > box.dimensions:
            left.append(_Cell(cell.cost, rest))
    return [*left, _Cell(cost, polygon)], polygon


def _corners(box: Box) -> _Polygon:
    (left, right), (low, high) = box.x, box.y
    around = [(left, low), (right, low), (right, high), (left, high)]
    return [(Fraction(x), Fraction(y)) for x, y in dict.fromkeys(around)]


def _clip(polygon: _Polygon, plane: _Plane) -> _Polygon:
    """Return the part of a convex polygon, or of a line between two points, in which a plane is not above 0."""
    heights = [_at(plane, point) for point in polygon]
    if all(height <= 0 for height in heights):
        return polygon
    kept: _Polygon = []
    for index, (point, height) in enumerate(zip(polygon, heights, strict=True)):
        before, height_before = polygon[index - 1], heights[index - 1]
        if height * height_before < 0:
            kept.append(_between(before, point, height_before / (height_before - height)))
        if height <= 0:
            kept.append(point)
    return list(dict.fromkeys(kept))  # a line is walked to and fro, and crossed at one point


def _between(start: _Point, end: _Point, part: Fraction) -> _Point:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _at(plane: _Plane, point: _Point) -> Fraction:
    return plane[0] + point[0] * plane[1] + point[1] * plane[2]


def _difference(first: _Plane, second: _Plane) -> _Plane:
    return first[0] - second[0], first[1] - second[1], first[2] - second[2]


def _magnitude(cost: CutCost[Key], x: float, y: float) -> float:
    return abs(cost.constant) + abs(x * cost.slope_x) + abs(y * cost.slope_y)


def _rounded(cell: _Cell[Key], box: Box) -> tuple[tuple[float, float], ...]:
    """Return the corners as floats, the first one first; none where too few are distinct."""
    points = list(dict.fromkeys(cell.corners))
    first = points.index(min(points))
    return tuple(points[first:] + points[:first]) if len(points) > box.dimensions else ()
