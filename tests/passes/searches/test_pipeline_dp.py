"""The dynamic program over consecutive pipelines, against brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import is_sound
from hyps_passes.found import judge
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Problem
from hyps_passes.searches.pipeline_dp import best_consecutive
from problem_fixtures import random_problem
from search_fixtures import all_consecutive, all_replicated, least_score, with_random_limits


def drawn(seed: int, *, limits: bool = True, queue: bool = True) -> Problem:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, tasks=int(rng.integers(1, 7)), machines=int(rng.integers(1, 5)), branches=True)
    if rng.random() < 0.3:
        reach = np.minimum.accumulate(rng.random(len(problem.tasks)))
        tasks = tuple(replace(t, reach=float(r)) for t, r in zip(problem.tasks, reach, strict=True))
        problem = replace(problem, tasks=tasks)
    if limits and rng.random() < 0.7:
        problem = with_random_limits(rng, problem, list(all_consecutive(problem)))
    if queue and rng.random() < 0.3:
        problem = replace(problem, arrival_rps=float(rng.random() * 8))
    return problem


def check_against_brute_force(problem: Problem) -> bool:
    """Assert that the program finds the best, and return whether there was one."""
    pipelines = list(all_consecutive(problem))
    for objective in OBJECTIVES.values():
        best = least_score(problem, objective, pipelines)
        found = best_consecutive(problem, objective)
        if found is None:
            assert math.isinf(best)
            continue
        assert is_sound(problem, found.assignment)
        assert judge(problem, objective, found.assignment)[0] == found.score
        assert found.score == pytest.approx(best, rel=1e-12)
        assert found.bound == found.score
    return found is not None


def test_consecutive_pipelines_are_never_worse_than_brute_force() -> None:
    feasible = [check_against_brute_force(drawn(seed)) for seed in range(30)]
    assert 10 < sum(feasible) < 30


@pytest.mark.slow
def test_thousands_of_consecutive_pipelines_are_never_worse_than_brute_force() -> None:
    feasible = [check_against_brute_force(drawn(seed)) for seed in range(100, 3100)]
    assert 1000 < sum(feasible) < 3000


def check_replicas(problem: Problem) -> None:
    everything = list(all_replicated(problem))
    for name in ("throughput", "latency"):
        found = best_consecutive(problem, OBJECTIVES[name], replicas=True)
        best = least_score(problem, OBJECTIVES[name], everything)
        assert (found.score if found else math.inf) == pytest.approx(best, rel=1e-12)


def test_replicated_stages_are_never_worse_than_brute_force() -> None:
    rng = np.random.default_rng(8)
    for _ in range(8):
        problem = random_problem(rng, tasks=int(rng.integers(1, 5)), machines=int(rng.integers(1, 4)), branches=True)
        check_replicas(with_random_limits(rng, problem, list(all_consecutive(problem))))
