"""The best placement against brute force over all pipelines, on thousands of small problems."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.assignment import Assignment, is_sound, single
from hyps_passes.found import judge
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.problem import Limits, Machine, Problem
from hyps_passes.searches.exact import exact
from problem_fixtures import all_pipelines, random_problem

ADDITIVE = [name for name, objective in OBJECTIVES.items() if objective.terms]


def brute_force(problem: Problem, objective: Objective) -> float:
    """Return the best score of all pipelines, those that start beyond the entry as well."""
    return min((judge(problem, objective, assignment)[0] for assignment in all_pipelines(problem)), default=math.inf)


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize(("tasks", "machines", "count"), [(5, 2, 150), (4, 3, 40)])
def test_the_best_of_all_pipelines_is_found_and_proven(name: str, tasks: int, machines: int, count: int) -> None:
    objective, rng = OBJECTIVES[name], np.random.default_rng(tasks)
    split = 0
    for _ in range(count):
        problem = random_problem(rng, tasks=tasks, machines=machines, branches=True)
        found, best = exact(problem, objective), brute_force(problem, objective)
        assert found is not None
        assert is_sound(problem, found.assignment)
        assert found.score == pytest.approx(best, rel=1e-9)
        assert found.is_proven
        assert found.bound <= best * (1 + 1e-9)
        split += len([stage for stage in found.assignment.stages if stage.tasks]) > 1
    assert split > count / 20, "the problems must be such that splitting is often best"


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize(("tasks", "machines", "count"), [(7, 2, 2000), (5, 3, 500), (4, 4, 60)])
def test_the_best_of_many_more_pipelines_is_found(name: str, tasks: int, machines: int, count: int) -> None:
    test_the_best_of_all_pipelines_is_found_and_proven(name, tasks, machines, count)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_under_limits_nothing_that_keeps_them_is_better(name: str) -> None:
    objective, rng = OBJECTIVES[name], np.random.default_rng(11)
    feasible = 0
    for _ in range(25):
        problem = limited(rng, random_problem(rng, tasks=4, machines=2, branches=True))
        found, best = exact(problem, objective, time_limit_s=10), brute_force(problem, objective)
        assert (found is None) == math.isinf(best)
        if found is not None:
            feasible += 1
            assert found.score == pytest.approx(best, rel=1e-6)
            assert found.bound <= best * (1 + 1e-6)
    assert 5 < feasible < 25


def limited(rng: np.random.Generator, problem: Problem) -> Problem:
    """Return the problem with memory, a share and a deadline that some placements break."""
    whole, _ = judge(problem, OBJECTIVES["latency"], single(problem, 0))

    def tightened(machine: Machine) -> Machine:
        return replace(machine, memory_bytes=int(rng.integers(6000, 16000)), max_share=float(rng.choice([1.0, 0.8])))

    limits = Limits(deadline_s=whole * float(rng.choice([0.8, 1.5, 4.0])))
    return replace(problem, machines=tuple(map(tightened, problem.machines)), limits=limits)


def test_what_is_best_alone_is_always_a_candidate() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        problem = random_problem(rng, tasks=5, machines=3, banned=0.0)
        for name in ADDITIVE:
            found = exact(problem, OBJECTIVES[name])
            assert found is not None
            alone = [judge(problem, OBJECTIVES[name], single(problem, m))[0] for m in range(3)]
            assert found.score <= min(alone) * (1 + 1e-12)


def test_slow_links_leave_the_model_whole_and_fast_ones_send_it_away() -> None:
    problem = random_problem(np.random.default_rng(5), tasks=6, machines=2, banned=0.0, cannot_cross=0.0)
    seconds = tuple((row[0], row[0] / 50) for row in problem.seconds)
    for s_per_byte, machine in ((1.0, 0), (1e-12, 1)):
        channels = tuple(replace(c, s_per_byte=s_per_byte, latency_s=0.0, message_s=0.0) for c in problem.channels)
        found = exact(replace(problem, channels=channels, seconds=seconds), OBJECTIVES["latency"])
        assert found is not None
        assert found.assignment == single(problem, machine)


def test_waiting_is_added_and_never_makes_the_bound_too_high() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        problem = random_problem(rng, tasks=4, machines=2, banned=0.0)
        loaded = replace(problem, arrival_rps=5.0)
        found, best = exact(loaded, OBJECTIVES["latency"]), brute_force(loaded, OBJECTIVES["latency"])
        if found is None:
            assert math.isinf(best)
            continue
        assert found.bound <= best * (1 + 1e-9) <= found.score * (1 + 2e-9)


def test_an_impossible_problem_has_no_placement() -> None:
    problem = random_problem(np.random.default_rng(1), tasks=3, machines=2)
    assert exact(replace(problem, limits=Limits(deadline_s=1e-9)), OBJECTIVES["latency"]) is None


def test_a_model_without_layers_is_placed() -> None:
    problem = Problem((), (), (Machine("only"),), (), (), (), ())
    found = exact(problem, OBJECTIVES["latency"])
    assert found is not None
    assert isinstance(found.assignment, Assignment)


def test_private_tensors_never_come_to_machines_that_are_not_trusted() -> None:
    rng = np.random.default_rng(21)
    away = 0
    for _ in range(40):
        problem = random_problem(rng, tasks=5, machines=4, banned=0.0)
        private = {0, *problem.flows[0].consumers}
        machines = tuple(replace(m, is_trusted=index != 2) for index, m in enumerate(problem.machines))
        seconds = tuple(
            tuple(math.inf if m == 2 and task in private else s / (1 + 9 * m) for m, s in enumerate(row))
            for task, row in enumerate(problem.seconds)
        )
        secret = replace(problem, machines=machines, seconds=seconds, is_private=True)
        found = exact(secret, OBJECTIVES["latency"])
        assert found is not None
        reached: set[int] = set()
        order = [stage.machine for stage in found.assignment.stages]
        last = max(i for i, stage in enumerate(found.assignment.stages) if private.intersection(stage.tasks))
        for source, target in itertools.pairwise(order[: last + 1]):
            reached.update(secret.channels[channel].target for channel in secret.paths[source, target])
        assert 2 not in reached
        away += len(order) > 1
    assert away > 10
