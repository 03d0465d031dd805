"""Every row of the table of strategies: sound placements or a sentence, the same again, never below what is proven."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import is_sound
from hyps_passes.estimate import violations
from hyps_passes.found import Found, judge
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Problem
from hyps_passes.searches.exact import exact
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.judging import space_of
from hyps_passes.strategies.strategy import Refusal, Settings
from problem_fixtures import random_problem
from strategy_fixtures import chain

SETTINGS = Settings(time_limit_s=10.0)


def problems(seed: int, count: int, limits: Limits | None = None) -> list[Problem]:
    rng = np.random.default_rng(seed)
    return [
        random_problem(rng, tasks=int(rng.integers(3, 7)), machines=int(rng.integers(2, 4)), limits=limits)
        for _ in range(count)
    ]


def test_the_default_stands_first() -> None:
    assert next(iter(STRATEGIES)) == "exact"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_tells_what_it_is(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.summary
    assert strategy.paper
    assert callable(strategy.place)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_placements_are_sound_and_scored_by_the_cost_model(name: str, objective: str) -> None:
    placed = 0
    for problem in problems(1, 8):
        found = STRATEGIES[name].place(problem, OBJECTIVES[objective], SETTINGS)
        if isinstance(found, Refusal):
            assert found.reason
            continue
        placed += 1
        assert is_sound(problem, found.assignment)
        score, told = judge(problem, OBJECTIVES[objective], found.assignment)
        assert found.score == pytest.approx(score)
        assert found.estimate == told
        assert found.reason
    assert placed > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_limits_are_kept_or_named(name: str) -> None:
    refused = 0
    for problem in problems(2, 10, Limits(peak_bytes=7000, wire_bytes=2500)):
        found = STRATEGIES[name].place(problem, OBJECTIVES["latency"], SETTINGS)
        if isinstance(found, Refusal):
            refused += 1
            assert len(found.reason) > 10
        else:
            assert violations(problem, found.estimate, found.assignment) == []
    assert refused > 0


@functools.cache
def proven(objective: str, limits: Limits) -> list[tuple[Problem, Found]]:
    """Return small problems that have a solution, and the best pipeline of each."""
    found = [(p, exact(p, OBJECTIVES[objective], time_limit_s=10.0)) for p in problems(3, 6, limits)]
    return [(problem, best) for problem, best in found if best is not None]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("limits", [Limits(), Limits(peak_bytes=9000)], ids=["free", "memory"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_is_below_what_is_proven(name: str, limits: Limits, objective: str) -> None:
    """Of the same space: `coedge` may come back to a device, which no pipeline of the bound does."""
    checked = 0
    for problem, best in proven(objective, limits):
        found = STRATEGIES[name].place(problem, OBJECTIVES[objective], SETTINGS)
        if isinstance(found, Found) and space_of(found.assignment) == "pipelines":
            assert found.score >= best.bound * (1 - 1e-6)
            checked += 1
    assert checked > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_problem_gives_the_same_placement(name: str) -> None:
    for problem in problems(4, 3):
        first = STRATEGIES[name].place(problem, OBJECTIVES["latency"], SETTINGS)
        again = STRATEGIES[name].place(replace(problem), OBJECTIVES["latency"], SETTINGS)
        assert first == again


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_device_alone_runs_everything_or_says_that_there_is_no_other(name: str) -> None:
    problem = chain([0.01, 0.02], [10, 10, 10], machines=1)
    found = STRATEGIES[name].place(problem, OBJECTIVES["latency"], SETTINGS)
    if isinstance(found, Found):
        assert found.score == pytest.approx(0.03)
    else:
        assert found.reason == "there is no second device that `m0` can reach"


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "exact"])
def test_a_device_that_cannot_answer_is_not_sent_to(name: str) -> None:
    problem = chain([0.01, 0.02], [10, 10, 10])
    one_way = replace(problem, channels=problem.channels[:1])
    found = STRATEGIES[name].place(one_way, OBJECTIVES["latency"], SETTINGS)
    assert isinstance(found, Refusal) or (found.score < math.inf and found.estimate.wire_bytes == 0)
