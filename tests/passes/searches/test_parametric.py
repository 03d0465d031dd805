import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hyps_passes.searches.min_cut import REQUEST, Flows, tier_cut
from hyps_passes.searches.parametric import Box, CutCost, Region, best, best_regions

Key = tuple[int, ...]

BOX = Box((0.5, 8.0), (1.0, 20.0))
"""Seconds per megabyte, and how much slower the server is."""


@dataclass(frozen=True)
class Split:
    """A small graph on two devices, whose split has costs that neither whole has."""

    device_s: np.ndarray
    server_s: np.ndarray
    edges: list[tuple[int, list[int]]]
    """Producer and consumers; the first is the request's input, the last task makes the answer."""
    megabytes: np.ndarray
    """By edge; the answer's is the last."""
    latency_s: float

    def cost(self, key: Key) -> CutCost[Key]:
        """Return the cost of a set of tasks on the server: the definition, without networks."""
        away = set(key)
        crossing = [
            nbytes
            for (producer, consumers), nbytes in zip(self.edges, self.megabytes, strict=False)
            if producer not in away and away & set(consumers)
        ]
        device_s = sum(s for task, s in enumerate(self.device_s) if task not in away)
        last = len(self.device_s) - 1
        returned = [self.megabytes[-1]] if last in away else []
        constant = float(device_s + (self.latency_s if away else 0))
        return CutCost(key, constant, float(sum(crossing + returned)), float(sum(self.server_s[list(away)])))

    def every_cost(self) -> list[CutCost[Key]]:
        """Return the cost of all sets that work may be moved in: whatever uses what they make is in them too."""
        tasks = range(len(self.device_s))
        sets = itertools.chain.from_iterable(itertools.combinations(tasks, size) for size in range(len(tasks) + 1))
        return [
            self.cost(key)
            for key in sets
            if all(producer not in key or set(consumers) <= set(key) for producer, consumers in self.edges)
        ]

    def cheapest(self, x: float, y: float) -> CutCost[Key]:
        """Return the best cut by one minimum cut, in which a last task of no work pays the latency."""
        tasks = len(self.device_s)
        server_s = self.server_s * y
        server_s[-1] += x * self.megabytes[-1]
        seconds = np.vstack([np.column_stack([self.device_s, server_s]), [[0.0, self.latency_s]]])
        producers = [producer for producer, _ in self.edges] + list(range(tasks))
        consumers = [used for _, used in self.edges] + [[tasks]] * tasks
        hops = np.append(self.megabytes[:-1] * x, np.zeros(tasks)).reshape(-1, 1)
        cut = tier_cut(seconds, Flows.of(producers, consumers, hops))
        assert cut is not None
        return self.cost(tuple(np.flatnonzero(cut.tiers[:tasks]).tolist()))

    def wholes(self) -> list[CutCost[Key]]:
        return [self.cost(()), self.cost(tuple(range(len(self.device_s))))]


def random_split(rng: np.random.Generator, tasks: int) -> Split:
    edges = [(REQUEST, [0])]
    for producer in range(tasks - 1):
        later = np.arange(producer + 1, tasks)
        edges.append((producer, sorted(rng.choice(later, rng.integers(1, min(3, len(later)) + 1), replace=False))))
    return Split(
        rng.integers(5, 60, tasks).astype(float),
        rng.integers(1, 6, tasks).astype(float),
        [(producer, [int(task) for task in consumers]) for producer, consumers in edges],
        np.sort(rng.integers(1, 30, tasks + 1).astype(float))[::-1].copy(),
        float(rng.integers(0, 20)),
    )


def splits(count: int) -> list[Split]:
    rng = np.random.default_rng(6)
    return [random_split(rng, int(rng.integers(2, 9))) for _ in range(count)]


def least(costs: Sequence[CutCost[Any]], points: np.ndarray) -> np.ndarray:
    planes = np.array([[cost.constant, cost.slope_x, cost.slope_y] for cost in costs])
    lowest: np.ndarray = (np.column_stack([np.ones(len(points)), points]) @ planes.T).min(axis=1)
    return lowest


def grid(box: Box, steps: int = 40) -> np.ndarray:
    """Return points of the box, the corners among them, and as many at random."""
    x, y = (np.linspace(*ends, steps if ends[0] < ends[1] else 1) for ends in (box.x, box.y))
    even = np.array(list(itertools.product(x, y)))
    random = np.random.default_rng(7).random(even.shape)
    return np.vstack([even, even.min(axis=0) + random * np.ptp(even, axis=0)])


def holders(regions: Sequence[Region[Any]], points: np.ndarray, slack: float) -> np.ndarray:
    """Return which polygons (rows) hold which points; with a negative slack, points close to an edge are not held."""
    held = []
    for region in regions:
        corners = np.array(region.vertices)
        along = np.roll(corners, -1, axis=0) - corners
        offsets = points[:, np.newaxis] - corners
        side = along[:, 0] * offsets[..., 1] - along[:, 1] * offsets[..., 0]
        held.append((side >= -slack * np.hypot(*along.T)).all(axis=1))
    return np.array(held)


def area(region: Region[Any]) -> float:
    x, y = np.array(region.vertices).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_in_every_region_its_cut_costs_what_the_best_of_all_cuts_costs() -> None:
    counts = []
    points = grid(BOX)
    for split in splits(60):
        regions = best_regions(split.cheapest, split.wholes(), BOX)
        expected = least(split.every_cost(), points)
        held = holders(regions, points, 1e-9)
        for region, inside in zip(regions, held, strict=True):
            np.testing.assert_allclose(least([region.cost], points[inside]), expected[inside], rtol=1e-9)
        assert held.any(axis=0).all()
        found = [best(regions, float(x), float(y)).at(x, y) for x, y in points[::97]]
        np.testing.assert_allclose(found, expected[::97], rtol=1e-12)
        counts.append(len(regions))
    assert max(counts) >= 6
    assert min(counts) == 1


def test_regions_cover_the_box_and_do_not_overlap() -> None:
    points = grid(BOX)
    for split in splits(60):
        regions = best_regions(split.cheapest, split.wholes(), BOX)
        assert sum(area(region) for region in regions) == pytest.approx(7.5 * 19, rel=1e-12)
        assert all(area(region) > 0 for region in regions)
        assert (holders(regions, points, -1e-9).sum(axis=0) <= 1).all()
        keys = [region.cost.key for region in regions]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("box", [Box((0.5, 8.0), (3.0, 3.0)), Box((2.0, 2.0), (1.0, 20.0))])
def test_with_one_parameter_fixed_regions_are_intervals_that_meet(box: Box) -> None:
    axis = 0 if box.x[0] < box.x[1] else 1
    ends = (box.x, box.y)[axis]
    points = grid(box, 300)
    counts = []
    for split in splits(60):
        regions = best_regions(split.cheapest, split.wholes(), box)
        expected = least(split.every_cost(), points)
        intervals = [(low[axis], high[axis]) for low, high in (region.vertices for region in regions)]
        assert [ends[0], *(high for _, high in intervals)] == [*(low for low, _ in intervals), ends[1]]
        for region, (low, high) in zip(regions, intervals, strict=True):
            inside = (points[:, axis] >= low) & (points[:, axis] <= high)
            np.testing.assert_allclose(least([region.cost], points[inside]), expected[inside], rtol=1e-9)
        counts.append(len(regions))
    assert max(counts) >= 3


def test_at_a_point_there_is_one_region() -> None:
    split = splits(1)[0]
    (region,) = best_regions(split.cheapest, split.wholes(), Box((2.0, 2.0), (3.0, 3.0)))
    assert region.cost.at(2.0, 3.0) == least(split.every_cost(), np.array([[2.0, 3.0]])).item()


def test_the_oracle_is_asked_about_as_often_as_the_table_has_corners() -> None:
    for split in splits(20):
        asked: list[tuple[float, float]] = []

        def ask(x: float, y: float, split: Split = split, asked: list[tuple[float, float]] = asked) -> CutCost[Key]:
            asked.append((x, y))
            return split.cheapest(x, y)

        regions = best_regions(ask, split.wholes(), BOX)
        assert len(asked) <= 4 + 8 * len(regions)
        assert all(BOX.x[0] <= x <= BOX.x[1] and BOX.y[0] <= y <= BOX.y[1] for x, y in asked)


def test_hundreds_of_cuts_that_are_best_somewhere_all_have_their_region() -> None:
    """Planes that touch a concave surface: each is best around the point at which it touches."""
    touch = np.random.default_rng(8).random((100, 2)) + 0.1
    costs = [CutCost(i, (a**0.5 + b**0.5) / 2, 0.5 / a**0.5, 0.5 / b**0.5) for i, (a, b) in enumerate(touch.tolist())]
    box = Box((0.1, 1.1), (0.1, 1.1))
    regions = best_regions(lambda x, y: min(costs, key=lambda cost: cost.at(x, y)), [], box)
    assert sorted(region.cost.key for region in regions) == [cost.key for cost in costs]
    assert sum(area(region) for region in regions) == pytest.approx(1, rel=1e-12)
    held = holders(regions, touch, 1e-12)
    assert all(held[index, region.cost.key] for index, region in enumerate(regions))


def test_of_cuts_that_cost_the_same_the_seed_is_taken() -> None:
    seed, twin = CutCost("do not split", 1.0, 2.0, 0.0), CutCost("the same", 1.0, 2.0, 0.0)
    (region,) = best_regions(lambda x, y: twin, [seed], BOX)
    assert region.cost is seed
    assert region.vertices == ((0.5, 1.0), (8.0, 1.0), (8.0, 20.0), (0.5, 20.0))


def test_a_cut_that_ties_at_a_line_only_has_no_region() -> None:
    seeds = [CutCost("flat", 1.0, 0.0, 0.0), CutCost("touches", 0.5, 1.0, 0.0)]
    assert [region.cost.key for region in best_regions(lambda x, y: seeds[0], seeds, BOX)] == ["flat"]


def test_many_cuts_through_one_point_and_one_line_are_told_apart() -> None:
    """Edges that meet in one corner, and one edge along which two others end."""
    costs = [
        CutCost("a", 0.0, 1.0, 0.0),
        CutCost("b", 0.0, 0.0, 1.0),
        CutCost("c", 1.0, 0.5, -0.5),
        CutCost("d", 2.0, -0.5, 0.0),
        CutCost("e", 0.5, 0.5, 0.0),
    ]
    box = Box((0.0, 4.0), (0.0, 4.0))
    regions = best_regions(lambda x, y: min(costs, key=lambda cost: cost.at(x, y)), [], box)
    points = grid(box)
    found = [best(regions, x, y).at(x, y) for x, y in points.tolist()]
    np.testing.assert_allclose(found, least(costs, points), rtol=1e-12, atol=1e-12)
    assert sum(area(region) for region in regions) == pytest.approx(16)


@pytest.mark.parametrize(
    ("x", "y"), [((1.0, 0.5), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0)), ((0.0, math.inf), (0.0, 1.0))]
)
def test_ends_that_are_no_interval_are_refused(x: tuple[float, float], y: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not a box"):
        Box(x, y)
