"""Placements by mixed-integer program, against brute force."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import Assignment, is_sound, single
from hyps_passes.found import judge
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Machine, Problem
from hyps_passes.searches import pipeline_mip
from hyps_passes.searches.pipeline_dp import best_consecutive
from hyps_passes.searches.placement import best_pipeline, best_placement
from problem_fixtures import all_pipelines, random_problem
from search_fixtures import all_placements, least_score, with_random_limits

LATENCY = OBJECTIVES["latency"]


def drawn(seed: int, *, tasks: int, machines: int, queue: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    count, places = int(rng.integers(1, tasks + 1)), int(rng.integers(1, machines + 1))
    problem = random_problem(rng, tasks=count, machines=places, branches=True)
    if rng.random() < 0.3:
        reach = np.minimum.accumulate(rng.random(count))
        layers = tuple(replace(t, reach=float(r)) for t, r in zip(problem.tasks, reach, strict=True))
        problem = replace(problem, tasks=layers)
    if rng.random() < 0.7:
        problem = with_random_limits(rng, problem, list(all_pipelines(problem)))
    return replace(problem, arrival_rps=float(rng.random() * 8)) if queue else problem


def check_pipelines(problem: Problem, names: Iterable[str] = OBJECTIVES) -> bool:
    """Assert that the best of all pipelines is found; return whether there was one."""
    pipelines = list(all_pipelines(problem))
    is_found = False
    for name in names:
        best = least_score(problem, OBJECTIVES[name], pipelines)
        found = best_pipeline(problem, OBJECTIVES[name], time_limit_s=20)
        is_found = found is not None
        if found is None:
            assert math.isinf(best)
            continue
        assert is_sound(problem, found.assignment)
        assert judge(problem, OBJECTIVES[name], found.assignment)[0] == found.score
        assert found.bound <= best * (1 + 1e-9)
        if problem.arrival_rps:  # waiting is bounded by tangents: not to the last digit
            assert best * (1 - 1e-9) <= found.score <= best * (1 + found.gap + 1e-6)
        else:
            assert found.is_proven
            assert found.score == pytest.approx(best, rel=1e-6)
    return is_found


def test_pipelines_under_limits_are_never_worse_than_brute_force() -> None:
    feasible = [check_pipelines(drawn(seed, tasks=6, machines=3)) for seed in range(20)]
    assert 5 < sum(feasible) < 20


def test_pipelines_under_load_are_bounded() -> None:
    feasible = [check_pipelines(drawn(seed, tasks=4, machines=3, queue=True), ["latency"]) for seed in range(20)]
    assert sum(feasible) > 3


@pytest.mark.slow
def test_a_thousand_problems_of_pipelines_are_solved_like_brute_force() -> None:
    feasible = [check_pipelines(drawn(seed, tasks=7, machines=3)) for seed in range(1000, 2000)]
    assert 300 < sum(feasible) < 1000


@pytest.mark.slow
def test_pipelines_over_four_machines_are_solved_like_brute_force() -> None:
    for seed in range(3000, 3100):
        check_pipelines(drawn(seed, tasks=5, machines=4), ["latency", "throughput", "memory"])


def check_placements(problem: Problem) -> tuple[int, int]:
    """Assert that no placement is below the bound; return how many were searched for, and found at their best."""
    placements = list(all_placements(problem))
    searched = exact = 0
    for objective in OBJECTIVES.values():
        best = least_score(problem, objective, placements)
        found = best_placement(problem, objective, time_limit_s=20)
        if found is None:  # the search may miss what only just keeps the limits
            exact, searched = exact + math.isinf(best), searched + 1
            continue
        assert is_sound(problem, found.assignment)
        assert judge(problem, objective, found.assignment)[0] == found.score
        assert found.bound <= best * (1 + 1e-9)
        assert found.score >= best * (1 - 1e-9)
        assert found.score <= best * (1 + found.gap + 1e-6)
        searched += 1
        exact += found.score <= best * (1 + 1e-9)
    return searched, exact


def test_no_placement_is_below_the_bound() -> None:
    counts = [check_placements(drawn(seed, tasks=5, machines=3)) for seed in range(12)]
    searched, exact = (sum(column) for column in zip(*counts, strict=True))
    assert exact >= 0.9 * searched


@pytest.mark.slow
def test_no_placement_of_a_thousand_problems_is_below_the_bound() -> None:
    counts = [check_placements(drawn(seed, tasks=6, machines=3)) for seed in range(5000, 6000)]
    searched, exact = (sum(column) for column in zip(*counts, strict=True))
    assert exact >= 0.95 * searched


@pytest.mark.parametrize("seed", [5028, 5285, 5441, 5671, 5732])
def test_the_solver_does_not_prove_a_bound_that_is_wrong(seed: int) -> None:
    """HiGHS or SCIP took worse solutions for the optimum while variables counted in bytes and seconds."""
    check_placements(drawn(seed, tasks=6, machines=3))


def two_branches() -> Problem:
    """Return two equal branches that one machine runs one after another, over a link that costs little."""
    problem = random_problem(np.random.default_rng(0), tasks=4, machines=2, has_borders=False, cannot_cross=0, banned=0)
    flows = tuple(
        replace(flow, producer=producer, consumers=consumers, is_output=not consumers, nbytes=10, can_cross=True)
        for flow, producer, consumers in zip(
            problem.flows, (-1, 0, 1, 2, 3), ((0,), (1, 2), (3,), (3,), ()), strict=False
        )
    )
    return replace(problem, flows=flows, seconds=((0.01, 0.01), (0.1, 0.1), (0.1, 0.1), (0.01, 0.01)))


def test_branches_run_side_by_side() -> None:
    problem = two_branches()
    found = best_placement(problem, LATENCY, time_limit_s=10)
    pipelined = best_pipeline(problem, LATENCY, time_limit_s=10)
    assert found is not None
    assert pipelined is not None
    assert found.score < 0.7 * pipelined.score
    assert len(set(found.assignment.machine_of().values())) == 2


def test_nothing_is_worse_than_what_it_begins_from() -> None:
    for seed in range(6):
        problem = drawn(seed, tasks=6, machines=3)
        warm = single(problem, problem.entry)
        score, _ = judge(problem, LATENCY, warm)
        for search in (best_pipeline, best_placement):
            found = search(problem, LATENCY, warm=warm, time_limit_s=0.0)
            assert (math.inf if found is None else found.score) <= score


def test_time_that_is_up_leaves_a_bound_that_holds() -> None:
    problem = drawn(4, tasks=6, machines=3)
    problem = replace(problem, limits=Limits())
    found = best_pipeline(problem, LATENCY, warm=single(problem, 0), time_limit_s=0.0)
    assert found is not None
    assert found.bound <= least_score(problem, LATENCY, all_pipelines(problem))


def test_too_many_orders_of_machines_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_mip, "MOST_SEQUENCES", 2)
    problem = random_problem(np.random.default_rng(1), tasks=4, machines=3, banned=0)
    found = best_pipeline(problem, LATENCY, time_limit_s=10)
    assert found is not None
    assert found.bound == 0.0


def test_limits_met_to_the_last_byte_are_kept() -> None:
    """As many bytes as the placement needs are enough, and one less is not."""
    problem = replace(random_problem(np.random.default_rng(7), tasks=6, machines=2, banned=0), limits=Limits())
    best = best_consecutive(problem, OBJECTIVES["memory"])
    assert best is not None
    for less, is_possible in ((0, True), (1, False)):
        limit = int(best.score) - less
        machines: tuple[Machine, ...] = tuple(replace(m, memory_bytes=limit) for m in problem.machines)
        tight = replace(problem, machines=machines)
        found: list[Assignment] = [f.assignment for f in [best_pipeline(tight, LATENCY, time_limit_s=10)] if f]
        assert bool(found) == is_possible
