"""Strategies that spread a model over several devices: each one's own rule."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import is_sound
from hyps_passes.estimate import estimate
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Problem
from hyps_passes.searches.pipeline_dp import best_consecutive
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.coedge import shortest_way, visits
from hyps_passes.strategies.judging import cut_tensors
from hyps_passes.strategies.scission import ranking
from hyps_passes.strategies.strategy import Refusal, Settings
from hyps_passes.strategies.thesis import split_points
from problem_fixtures import random_problem
from strategy_fixtures import chain

LATENCY = OBJECTIVES["latency"]


def place(name: str, problem: Problem, objective: str = "latency", settings: Settings | None = None) -> Found:
    found = STRATEGIES[name].place(problem, OBJECTIVES[objective], settings or Settings())
    assert isinstance(found, Found), found
    return found


def counts(found: Found) -> list[int]:
    return [len(stage.tasks) for stage in found.assignment.stages]


def random_chain(rng: np.random.Generator, layers: int, machines: int) -> Problem:
    seconds = [float(s) for s in rng.integers(1, 90, layers) / 1000]
    nbytes = [int(n) for n in rng.integers(10, 50_000, layers + 1)]
    problem = chain(seconds, nbytes, machines=machines, s_per_byte=1e-7)
    spread = rng.uniform(0.05, 20, (layers, machines))
    return replace(
        problem,
        seconds=tuple(
            tuple(s * f for s, f in zip(a, b, strict=True)) for a, b in zip(problem.seconds, spread, strict=True)
        ),
    )


@pytest.mark.parametrize(
    ("layers", "machines", "expected"), [(9, 3, [3, 3, 3]), (10, 3, [3, 4, 3]), (7, 4, [2, 2, 1, 2])]
)
def test_defer_gives_every_device_as_many_layers(layers: int, machines: int, expected: list[int]) -> None:
    found = place("defer", chain([0.01] * layers, [100] * (layers + 1), machines=machines))
    assert counts(found) == expected
    assert max(expected) - min(expected) <= 1
    assert [stage.machine for stage in found.assignment.stages] == list(range(machines))


def test_defer_moves_a_cut_off_what_must_not_travel() -> None:
    problem = chain([0.01] * 6, [100] * 7)
    flows = tuple(replace(flow, can_cross=flow.name != "t2") for flow in problem.flows)
    assert counts(place("defer", replace(problem, flows=flows))) == [2, 4]


def test_defer_wants_a_layer_for_every_device() -> None:
    found = STRATEGIES["defer"].place(chain([0.01], [100, 10]), LATENCY, Settings())
    assert found == Refusal("there are 2 devices and only 1 layers")


def test_even_memory_makes_the_fullest_device_hold_the_least() -> None:
    rng = np.random.default_rng(10)
    for _ in range(20):
        weights = [int(n) for n in rng.integers(1, 1000, 7)]
        problem = chain([0.01] * 7, [100] * 8, machines=3, weights=weights)
        found = place("even-memory", problem)
        held = max(sum(weights[task] for task in stage.tasks) for stage in found.assignment.stages)
        cuts = itertools.combinations_with_replacement(range(8), 2)
        assert held == min(max(sum(weights[:a]), sum(weights[a:b]), sum(weights[b:])) for a, b in cuts)


def test_even_memory_counts_tied_weights_once() -> None:
    problem = chain([0.01] * 4, [100] * 5, weights=[10] * 4)
    tied = tuple(replace(task, weights=((0, 50),)) if i < 3 else task for i, task in enumerate(problem.tasks))
    assert counts(place("even-memory", replace(problem, tasks=tied))) == [3, 1]


def test_pipeedge_is_the_dynamic_program_for_throughput() -> None:
    rng = np.random.default_rng(11)
    for _ in range(10):
        problem = random_chain(rng, 6, 3)
        best = best_consecutive(problem, OBJECTIVES["throughput"])
        found = place("pipeedge", problem)
        assert best is not None
        assert found.assignment == best.assignment
        assert found.score == pytest.approx(found.estimate.latency_s)
        assert place("pipeedge", problem, "throughput").score == pytest.approx(best.score)


def test_coedge_is_the_best_of_all_ways_through_a_chain() -> None:
    rng = np.random.default_rng(12)
    revisits = 0
    for _ in range(15):
        problem = random_chain(rng, 5, 3)
        found = place("coedge", problem)
        ways = itertools.product(range(3), repeat=5)
        assert found.score == pytest.approx(min(estimate(problem, visits(problem, list(w))).latency_s for w in ways))
        machines = [stage.machine for stage in found.assignment.stages]
        revisits += len(set(machines)) < len(machines)
    assert revisits > 0


def test_coedge_is_the_best_of_all_ways_through_a_graph() -> None:
    rng = np.random.default_rng(13)
    for _ in range(15):
        problem = random_problem(rng, tasks=5, machines=3)
        ways = (visits(problem, list(way)) for way in itertools.product(range(3), repeat=5))
        best = min(estimate(problem, way).latency_s for way in ways if is_sound(problem, way))
        assert place("coedge", problem).score == pytest.approx(best)


def test_coedge_knows_when_there_is_no_way() -> None:
    problem = chain([0.01, 0.02], [10, 10, 10])
    banned = replace(problem, seconds=((0.01, float("inf")), (float("inf"), 0.01)))
    stuck = replace(banned, flows=tuple(replace(flow, can_cross=flow.name != "t0") for flow in problem.flows))
    assert shortest_way(banned) == [0, 1]
    assert shortest_way(stuck) is None
    assert isinstance(STRATEGIES["coedge"].place(stuck, LATENCY, Settings()), Refusal)


def test_scission_is_the_best_of_all_cuts_on_up_to_three_devices() -> None:
    rng = np.random.default_rng(14)
    for _ in range(8):
        problem = random_problem(rng, tasks=5, machines=4)
        scores = []
        for order in itertools.chain.from_iterable(itertools.permutations(range(1, 4), n) for n in (0, 1, 2)):
            for positions in itertools.combinations(range(5), len(order)):
                way = [(0, *order)[sum(p <= task for p in positions)] for task in range(5)]
                assignment = visits(problem, way)
                if is_sound(problem, assignment):
                    scores.append(estimate(problem, assignment).latency_s)
        assert place("scission", problem).score == pytest.approx(min(scores))


def test_scission_ranks_and_keeps_to_the_users_criteria() -> None:
    problem = chain([0.01, 0.02, 0.03], [30_000, 2000, 9000, 10], machines=3)
    ranked = ranking(problem, LATENCY, Settings())
    assert [cut.score for cut in ranked] == sorted(cut.score for cut in ranked)
    assert ranked[0].score == pytest.approx(place("scission", problem).score)
    assert cut_tensors(problem, place("scission", problem).assignment) == ["t0"]
    later = place("scission", problem, settings=Settings(first_cut=2))
    assert cut_tensors(problem, later.assignment) == ["t1"]
    all_three = place("scission", problem, settings=Settings(required=frozenset(("m0", "m1", "m2"))))
    assert {stage.machine for stage in all_three.assignment.stages if stage.tasks} == {0, 1, 2}
    refused = STRATEGIES["scission"].place(problem, LATENCY, Settings(required=frozenset(("m9",))))
    assert refused == Refusal("no sequence of up to three devices meets the criteria")


def test_hyps_cuts_around_what_a_device_cannot_hold_and_behind_pooling() -> None:
    weights = [100, 100, 100, 5000, 100]
    sizes = [1000, 800, 800, 200, 100, 10]
    problem = chain([0.01] * 5, sizes, machines=3, weights=weights, pooling=(2,), memory_bytes=(3000, 9000, 3000))
    assert split_points(problem) == {3: "mandatory", 4: "mandatory"}
    found = place("hyps", problem)
    assert counts(found) == [3, 1, 1]
    assert found.reason.startswith("mandatory split point")
    easy = chain([0.01] * 5, sizes, machines=3, weights=weights, pooling=(0, 2))
    assert split_points(easy) == {1: "pooling", 3: "pooling"}
    assert counts(place("hyps", easy)) == [1, 2, 2]


def test_hyps_takes_the_point_that_the_fewest_bytes_cross() -> None:
    sizes = [1000, 900, 300, 200, 250, 10]
    problem = chain([0.1] * 5, sizes, weights=[1] * 5, pooling=(0, 2, 3), s_per_byte=1e-6)
    assert cut_tensors(problem, place("hyps", problem).assignment) == ["t2"]


def test_hyps_says_when_no_device_can_hold_a_layer() -> None:
    problem = chain([0.01] * 3, [100] * 4, weights=[10, 9000, 10], memory_bytes=(5000, 5000))
    found = STRATEGIES["hyps"].place(problem, LATENCY, Settings())
    assert isinstance(found, Refusal)
    assert (
        found.reason == "no choice of its 2 split points keeps the limits; of no cut, memory of m0: 9.32 kB of 5.00 kB"
    )
