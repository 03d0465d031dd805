"""Strategies that cut between a device and one server: each one's own rule."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import is_sound, pipeline, single
from hyps_passes.estimate import estimate
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Problem
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.dynamic_split import compressive
from hyps_passes.strategies.judging import cut_tensors
from hyps_passes.strategies.strategy import Settings
from problem_fixtures import random_problem
from strategy_fixtures import chain, fork, two_tier_pipelines

LATENCY = OBJECTIVES["latency"]


def place(name: str, problem: Problem, objective: str = "latency") -> Found:
    found = STRATEGIES[name].place(problem, OBJECTIVES[objective], Settings())
    assert isinstance(found, Found), found
    return found


def best_of_all(problem: Problem, score: str) -> float:
    """Return the best of every cut of the graph between the entry and one server."""
    sound = (a for a in two_tier_pipelines(problem) if is_sound(problem, a))
    return min(OBJECTIVES[score].score(estimate(problem, a)) for a in sound)


def test_local_sends_nothing_and_remote_only_the_request() -> None:
    problem = chain([0.01, 0.02], [1000, 10, 10], machines=3)
    assert place("local", problem).estimate.wire_bytes == 0
    remote = place("remote", problem)
    assert remote.assignment == single(problem, 2)
    assert remote.reason == "only the request is sent: m2 300 µs + links 1.01 ms"


def test_neurosurgeon_never_crosses_two_tensors() -> None:
    rng = np.random.default_rng(5)
    cuts = 0
    for _ in range(30):
        problem = random_problem(rng, tasks=6, machines=2, banned=0.0, cannot_cross=0.0)
        quick = tuple(replace(channel, s_per_byte=1e-6, latency_s=0.0) for channel in problem.channels)
        problem = replace(problem, channels=quick)
        found = place("neurosurgeon", problem)
        tasks = [stage.tasks for stage in found.assignment.stages]
        if len(tasks) > 1 and tasks[0]:
            assert len(cut_tensors(problem, found.assignment)) == 1
            cuts += 1
    assert cuts > 3


def test_neurosurgeon_misses_the_cut_behind_two_branches() -> None:
    problem = fork(10)
    assert cut_tensors(problem, place("dads-light", problem).assignment) == ["left", "right"]
    assert cut_tensors(problem, place("neurosurgeon", problem).assignment) == ["stem"]


def test_neurosurgeon_is_the_best_cut_of_a_chain() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        problem = chain(list(rng.integers(1, 90, 6) / 1000), [int(n) for n in rng.integers(10, 50_000, 7)], machines=3)
        for objective in ("latency", "energy"):
            assert place("neurosurgeon", problem, objective).score == pytest.approx(best_of_all(problem, objective))


def test_dads_light_is_the_best_of_every_cut_of_the_graph() -> None:
    rng = np.random.default_rng(7)
    for _ in range(25):
        problem = random_problem(rng, tasks=6, machines=3)
        assert place("dads-light", problem).score == pytest.approx(best_of_all(problem, "latency"))


def test_dads_heavy_is_within_the_papers_bound_and_often_best() -> None:
    """The weighted sums find what lies on the hull of all loads; what lies behind it, no weights do."""
    rng = np.random.default_rng(8)
    ratios = []
    for _ in range(25):
        problem = random_problem(rng, tasks=6, machines=2)
        found = place("dads-heavy", problem, "throughput")
        ratios.append(found.score / best_of_all(problem, "throughput"))
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) <= 3
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) > len(ratios) / 2


def test_dads_heavy_balances_what_dads_light_leaves_to_one() -> None:
    problem = chain([0.01, 0.09], [10_000, 10_000, 10], s_per_byte=1e-7)
    problem = replace(problem, seconds=((0.01, 0.008), (0.09, 0.014)))
    light, heavy = (place(name, problem) for name in ("dads-light", "dads-heavy"))
    assert cut_tensors(problem, light.assignment) == ["request"]
    assert cut_tensors(problem, heavy.assignment) == ["t0"]
    assert heavy.estimate.throughput_rps == pytest.approx(1 / 0.014)
    assert heavy.reason.startswith("10.0 kB before layer1, no two-device cut is below 1")


def test_dynamic_split_knows_only_compressive_bottlenecks() -> None:
    problem = chain([0.01] * 5, [1000, 2000, 800, 900, 300, 10])
    assert compressive(problem) == (1, 3)
    rng = np.random.default_rng(9)
    for _ in range(10):
        sizes = [1000, *(int(n) for n in rng.integers(100, 2000, 5)), 10]
        problem = chain([0.01] * 6, sizes, s_per_byte=1e-5)
        allowed = {0, 6, *(task + 1 for task in compressive(problem))}
        scores = {p: estimate(problem, pipeline(problem, (0, 1), [int(p <= t) for t in range(6)])) for p in range(7)}
        assert place("dynamic-split", problem).score == pytest.approx(min(scores[p].latency_s for p in allowed))


def test_dynamic_split_finds_no_bottleneck_where_something_must_not_travel() -> None:
    problem = chain([0.05, 0.05, 0.05], [100_000, 50, 100, 10])
    flows = (problem.flows[0], replace(problem.flows[1], can_cross=False), *problem.flows[2:])
    assert compressive(replace(problem, flows=flows)) == (1,)


def test_branchy_weighs_what_few_requests_reach() -> None:
    """Behind the exit one request in ten goes on: the first layers stay, though the others would send the image."""
    seconds, nbytes = [0.02, 0.3], [30_000, 20_000, 10]
    certain = chain(seconds, nbytes)
    assert cut_tensors(certain, place("branchy", certain).assignment) == ["request"]
    exits = chain(seconds, nbytes, reach=[1.0, 0.1])
    branchy, light = place("branchy", exits), place("dads-light", exits)
    assert cut_tensors(exits, branchy.assignment) == ["t0"]
    assert cut_tensors(exits, light.assignment) == ["request"]
    assert branchy.estimate.latency_s == pytest.approx(0.02 + 0.1 * (0.02 + 0.03 + 10e-6))
    assert branchy.score < light.score
    assert branchy.reason.startswith("best cut, 10% of requests reach the end")


@pytest.mark.parametrize("name", ["neurosurgeon", "branchy", "dynamic-split", "dads-light"])
def test_what_breaks_a_limit_makes_room_for_the_next(name: str) -> None:
    free = chain([0.05, 0.05, 0.05], [100_000, 5000, 100, 10])
    assert place(name, free).estimate.wire_bytes > 1000
    bound = replace(free, limits=Limits(wire_bytes=1000))
    assert place(name, bound).estimate.wire_bytes <= 1000
    assert math.isfinite(place(name, bound).score)
