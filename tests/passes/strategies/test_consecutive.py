"""The scores of all cuts at once: those that the cost model gives one by one."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from hyps_passes.assignment import Assignment, crossing_flows, is_sound, pipeline, single
from hyps_passes.estimate import estimate
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import crossing_bytes, crossing_counts, measure_cuts
from problem_fixtures import random_problem
from strategy_fixtures import fork


def cut_at(problem: Problem, machines: Sequence[int], positions: Sequence[int]) -> Assignment:
    return pipeline(problem, machines, [sum(p <= task for p in positions) for task in range(len(problem.tasks))])


@pytest.mark.parametrize("name", ["latency", "energy"])
def test_scores_of_one_and_two_cuts_are_the_cost_models(name: str) -> None:
    objective = OBJECTIVES[name]
    rng = np.random.default_rng(8)
    finite = 0
    for _ in range(12):
        problem = random_problem(rng, tasks=5, machines=3)
        two = measure_cuts(problem, objective, (0, 2)).two()
        three = measure_cuts(problem, objective, (0, 2, 1)).three()
        whole = measure_cuts(problem, objective, (0,)).none()
        assert whole == pytest.approx(objective.score(estimate(problem, single(problem, 0))))
        for position in range(6):
            assignment = cut_at(problem, (0, 2), (position,))
            if position < 5 and is_sound(problem, assignment):
                assert two[position] == pytest.approx(objective.score(estimate(problem, assignment)))
                finite += 1
            else:
                assert np.isinf(two[position])
        for first, second in itertools.product(range(6), repeat=2):
            assignment = cut_at(problem, (0, 2, 1), (first, second))
            if first < second < 5 and is_sound(problem, assignment):
                assert three[first, second] == pytest.approx(objective.score(estimate(problem, assignment)))
                finite += 1
            else:
                assert np.isinf(three[first, second])
    assert finite > 60


def test_an_objective_that_is_no_sum_is_stood_in_for_by_latency() -> None:
    problem = fork(100)
    cuts = [measure_cuts(problem, OBJECTIVES[name], (0, 1)).two() for name in ("latency", "throughput")]
    assert (cuts[0] == cuts[1]).all()


def test_what_crosses_is_counted_and_weighed_at_every_position() -> None:
    problem = fork(2000)
    assert crossing_counts(problem).tolist() == [1, 1, 2, 2, 0]
    assert crossing_bytes(problem).tolist() == [100_000, 50_000, 52_000, 4000, 0]


def test_crossing_bytes_are_those_of_the_flows_that_cross() -> None:
    rng = np.random.default_rng(9)
    for _ in range(10):
        problem = random_problem(rng, tasks=6, machines=2, cannot_cross=0.0, banned=0.0)
        told = crossing_bytes(problem)
        for position in range(6):
            crossing = crossing_flows(problem, cut_at(problem, (0, 1), (position,)))[0]
            assert told[position] == sum(problem.flows[flow].nbytes for flow in crossing)
