"""The table of two devices against brute force over all cuts, anywhere in it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.estimate import estimate
from hyps_passes.problem import Channel, Problem
from hyps_passes.searches.regimes import best_intervals, cut_regions
from problem_fixtures import all_pipelines, random_problem

BANDWIDTHS, LOADS = (1e3, 1e8), (0.0, 0.9)


def two_devices(rng: np.random.Generator, tasks: int = 5) -> Problem:
    """Return a problem with a server ten times as fast, and a link of one unit whose ways keep a ratio of two."""
    problem = random_problem(rng, tasks=tasks, machines=2, banned=0.05)
    seconds = tuple((row[0], row[1] / 10) for row in problem.seconds)
    channels = (Channel(0, 1, 1e-6, 0.004, 0.0005), Channel(1, 0, 2e-6, 0.002))
    return replace(problem, seconds=seconds, channels=channels)


def at(problem: Problem, x: float, y: float) -> Problem:
    """Return the problem at x seconds per byte and a server y times as slow, made anew."""
    channels = tuple(replace(c, s_per_byte=x * (1 + c.source)) for c in problem.channels)
    slowed = [tuple((a, b * y) for a, b in rows) for rows in (problem.seconds, problem.export_s, problem.import_s)]
    machines = (problem.machines[0], replace(problem.machines[1], run_s=problem.machines[1].run_s * y))
    parts = {"channels": channels, "machines": machines}
    return replace(problem, **parts, seconds=slowed[0], export_s=slowed[1], import_s=slowed[2])  # type: ignore[arg-type]


def test_no_cut_is_better_than_the_table_says_anywhere() -> None:
    rng = np.random.default_rng(12)
    several = 0
    for _ in range(15):
        problem = two_devices(rng)
        regions = cut_regions(problem, bandwidths=BANDWIDTHS, loads=LOADS)
        several += len(regions) > 2
        cuts = list(all_pipelines(problem))
        for bandwidth, load in itertools.product(np.geomspace(*BANDWIDTHS, 7), np.linspace(*LOADS, 4)):
            x, y = 1 / float(bandwidth), 1 / (1 - float(load))
            moment = at(problem, x, y)
            best = min(estimate(moment, cut).latency_s for cut in cuts)
            told = min(regions, key=lambda region: region.cost.at(x, y))
            assert told.cost.at(x, y) == pytest.approx(best, rel=1e-9)
            assert estimate(moment, told.assignment).latency_s == pytest.approx(best, rel=1e-9)
    assert several > 3


def test_what_does_not_fit_is_in_no_region() -> None:
    rng = np.random.default_rng(2)
    kept = 0
    for _ in range(20):
        problem = two_devices(rng)
        machines = tuple(replace(machine, memory_bytes=9000) for machine in problem.machines)
        limited = replace(problem, machines=machines)
        for region in cut_regions(limited, bandwidths=BANDWIDTHS, loads=LOADS):
            assert max(estimate(limited, region.assignment).peak_bytes) <= 9000
            kept += 1
    assert kept > 5


def test_intervals_join_and_cover_every_bandwidth() -> None:
    problem = two_devices(np.random.default_rng(12), tasks=7)
    regions = cut_regions(problem, bandwidths=BANDWIDTHS, loads=LOADS)
    intervals = sorted(best_intervals(regions).values(), key=lambda interval: interval[0])
    assert intervals[0][0] == 0.0
    assert intervals[-1][1] is None
    for (_, high), (low, _) in itertools.pairwise(intervals):
        assert high == pytest.approx(low)


def test_three_devices_have_no_table() -> None:
    assert cut_regions(random_problem(np.random.default_rng(0), tasks=3, machines=3)) == ()
