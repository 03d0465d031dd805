"""The Pareto front against all pipelines."""

from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import Assignment
from hyps_passes.found import judge
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import REQUEST, Flow, Problem
from hyps_passes.searches import pareto
from hyps_passes.searches.dominance import nondominated, nondominated_by_group
from hyps_passes.searches.goals import caps_of, goal_of
from hyps_passes.searches.pareto import Front, front
from hyps_passes.searches.pipeline_dp import front as consecutive_front
from problem_fixtures import all_pipelines, random_problem
from search_fixtures import all_consecutive, with_random_limits

Scores = set[tuple[float, ...]]


def rounded(scores: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{score:.9e}") for score in scores)


def front_of(problem: Problem, assignments: list[Assignment]) -> Scores:
    """Return the scores that no other beats, by comparing each with each."""
    scores = set()
    for assignment in assignments:
        told = [judge(problem, objective, assignment)[0] for objective in OBJECTIVES.values()]
        if max(told) < np.inf:
            scores.add(rounded(tuple(told)))
    return {s for s in scores if not any(o != s and all(a <= b for a, b in zip(o, s, strict=True)) for o in scores)}


def shown(found: Front) -> Scores:
    return {rounded(point.scores) for point in found.points}


def drawn(seed: int, *, limits: bool = True) -> Problem:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, tasks=int(rng.integers(2, 6)), machines=int(rng.integers(1, 4)), branches=True)
    return with_random_limits(rng, problem, list(all_pipelines(problem)), share=0.15) if limits else problem


@pytest.mark.parametrize("seed", range(15))
def test_the_front_of_few_pipelines_is_that_of_all(seed: int) -> None:
    problem = drawn(seed)
    found = front(problem)
    assert (found.is_complete, found.space) == (True, "pipelines")
    assert shown(found) == front_of(problem, list(all_pipelines(problem)))
    assert [point.scores for point in found.points] == sorted(point.scores for point in found.points)


@pytest.mark.parametrize("seed", range(15))
def test_the_front_of_consecutive_pipelines_is_that_of_all_of_them(seed: int) -> None:
    problem = drawn(seed)
    goals = [goal_of(objective) for objective in OBJECTIVES.values()]
    assignments = consecutive_front(problem, goals, caps_of(problem))
    assert assignments is not None
    assert front_of(problem, assignments) == front_of(problem, list(all_consecutive(problem)))


def test_the_front_of_a_chain_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pareto, "_MOST_STEPS", 0)
    problem = drawn(1, limits=False)
    count = len(problem.tasks)
    flows = (
        Flow("input", 500, REQUEST, (0,)),
        *(Flow(f"v{t}", 100 * (count - t), t, (t + 1,)) for t in range(count - 1)),
        Flow("output", 10, count - 1, (), is_output=True),
    )
    borders = tuple((0.0,) * len(problem.machines) for _ in flows)
    chain = replace(problem, flows=flows, export_s=borders, import_s=borders)
    found = front(chain)
    assert (found.is_complete, found.space) == (True, "pipelines")
    assert shown(found) == front_of(chain, list(all_pipelines(chain)))


def test_the_front_of_many_pipelines_holds_the_best_of_each_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pareto, "_MOST_STEPS", 0)
    problem = random_problem(np.random.default_rng(6), tasks=5, machines=3, branches=True)
    every = list(all_pipelines(problem))
    found = front(problem, time_limit_s=3)
    assert found.space == "consecutive pipelines"
    for index, objective in enumerate(OBJECTIVES.values()):
        best = min(judge(problem, objective, assignment)[0] for assignment in every)
        assert min(point.scores[index] for point in found.points) == pytest.approx(best, rel=1e-6)
    scores = shown(found)
    assert front_of(problem, [point.assignment for point in found.points]) == scores


def test_nothing_that_keeps_the_limits_is_an_empty_front() -> None:
    problem = drawn(2, limits=False)
    machines = tuple(replace(machine, memory_bytes=1) for machine in problem.machines)
    assert front(replace(problem, machines=machines)).points == ()


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_nondominated_points_are_those_that_no_other_beats(columns: int) -> None:
    rng = np.random.default_rng(columns)
    points = rng.integers(0, 6, (700, columns)).astype(float)
    groups = rng.integers(0, 2, 700)
    for group in (0, 1):
        rows = [tuple(p) for p, g in zip(points, groups, strict=True) if g == group]
        expected = {p for p in rows if not any(o != p and all(a <= b for a, b in zip(o, p, strict=True)) for o in rows)}
        kept = [row for row in nondominated_by_group(groups, points) if groups[row] == group]
        assert sorted(tuple(points[row]) for row in kept) == sorted(expected)
    assert len(nondominated(points[:0])) == 0
