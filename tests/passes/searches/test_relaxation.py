"""What is told of constraints that cannot be met: the limit in the way, and the least that would do."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Problem
from hyps_passes.searches.goals import Cap
from hyps_passes.searches.relaxation import relaxations, with_cap
from problem_fixtures import all_pipelines, random_problem, two_machines
from search_fixtures import least_score, with_random_limits

LATENCY, BYTES = OBJECTIVES["latency"], OBJECTIVES["bytes"]


def has_placement(problem: Problem) -> bool:
    return math.isfinite(least_score(problem, BYTES, all_pipelines(problem)))


def check_relaxation(problem: Problem) -> str:
    """Assert that what is told is enough, and anything tighter is not; return what kind of answer it was."""
    told = relaxations(problem, LATENCY)
    if told is None:
        assert has_placement(problem)
        return "possible"
    assert not has_placement(problem)
    if not told.gives:
        unlimited = replace(
            problem,
            limits=Limits(),
            machines=tuple(replace(m, memory_bytes=None, max_share=1.0) for m in problem.machines),
            channels=tuple(replace(c, max_bytes=None) for c in problem.channels),
        )
        assert not has_placement(unlimited)
        return "stuck"
    assert has_placement(told.relaxed(problem))
    for cap in told.alternatives:
        assert has_placement(with_cap(problem, cap))
    for index, cap in enumerate(told.gives):
        gives = (*told.gives[:index], Cap(cap.goal, cap.most * 0.99), *told.gives[index + 1 :])
        assert not has_placement(replace(told, gives=gives).relaxed(problem))
    return "one" if len(told.gives) == 1 else "several"


def drawn(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, tasks=int(rng.integers(1, 6)), machines=int(rng.integers(1, 4)), branches=True)
    return with_random_limits(rng, problem, list(all_pipelines(problem)), share=0.7)


def test_what_is_told_is_enough_and_nothing_tighter_is() -> None:
    kinds = [check_relaxation(drawn(seed)) for seed in range(24)]
    assert kinds.count("possible") > 2
    assert kinds.count("one") > 3
    assert kinds.count("several") > 0


@pytest.mark.slow
def test_what_is_told_is_enough_on_a_thousand_problems() -> None:
    kinds = [check_relaxation(drawn(seed)) for seed in range(1000, 2000)]
    assert min(kinds.count(kind) for kind in ("possible", "one", "several")) > 50


def test_a_deadline_names_the_fastest_placement() -> None:
    told = relaxations(two_machines(deadline_s=0.01), LATENCY)
    assert told is not None
    assert told.message == "deadline 10 ms: the fastest placement takes 23.7 ms"
    assert told.hint == "raise deadline to 23.7 ms"


def test_the_figure_in_the_message_is_enough() -> None:
    told = relaxations(two_machines(deadline_s=0.01), LATENCY)
    assert told is not None
    assert told.gives[0].most == pytest.approx(0.02361)
    assert relaxations(two_machines(deadline_s=0.0237), LATENCY) is None
    assert relaxations(two_machines(deadline_s=0.0236), LATENCY) is not None


def test_memory_of_a_machine_names_the_least() -> None:
    problem = two_machines()
    machines = (replace(problem.machines[0], memory_bytes=100), replace(problem.machines[1], memory_bytes=1000))
    told = relaxations(replace(problem, machines=machines), LATENCY)
    assert told is not None
    assert told.message.startswith("memory of server 1.00 kB: the least is 2.")
    assert "raise memory of camera to" in told.hint


def test_limits_that_must_give_together_are_named_together() -> None:
    told = relaxations(two_machines(deadline_s=0.02, joules=0.2), LATENCY)
    assert told is not None
    assert told.message == (
        "deadline 20 ms and energy 0.2 J cannot be kept, and giving up one is not enough: "
        "together it takes deadline 23.7 ms, energy 2.187 J"
    )
    assert told.hint == "raise deadline to 23.7 ms and raise energy to 2.187 J"


def test_a_layer_with_nowhere_to_run_is_named() -> None:
    problem = two_machines()
    told = relaxations(replace(problem, seconds=(*problem.seconds[:2], (math.inf, math.inf))), LATENCY)
    assert told is not None
    assert told.message == "layer `c` may run on no device: it is banned from, or kept from, every one"


def test_a_missing_way_is_named() -> None:
    problem = two_machines()
    seconds = (*problem.seconds[:2], (math.inf, 0.01))
    told = relaxations(replace(problem, seconds=seconds, channels=problem.channels[:1]), LATENCY)
    assert told is not None
    assert told.message == "layer `c` may only run on server, and there is no way from camera to there and back"


def test_layers_held_together_by_a_tensor_are_named() -> None:
    problem = two_machines()
    flows = (*problem.flows[:2], replace(problem.flows[2], can_cross=False), problem.flows[3])
    seconds = (problem.seconds[0], (0.02, math.inf), (math.inf, 0.003))
    told = relaxations(replace(problem, flows=flows, seconds=seconds), LATENCY)
    assert told is not None
    assert told.message == "tensor `bc` cannot travel between devices, and no device may run `b` and `c`"


def test_a_layer_that_would_have_to_come_back_is_named() -> None:
    problem = two_machines()
    told = relaxations(replace(problem, seconds=((math.inf, 0.001), (0.02, 0.002), (0.03, math.inf))), LATENCY)
    assert told is not None
    assert told.message == "layer `c` may only run on camera, behind `a`, which may not run there"


def test_what_is_possible_needs_no_relaxation() -> None:
    assert relaxations(two_machines(), LATENCY) is None


def test_arrivals_that_nothing_keeps_up_with_are_named() -> None:
    problem = replace(random_problem(np.random.default_rng(4), tasks=4, machines=2, banned=0.0), arrival_rps=1e4)
    told = relaxations(problem, OBJECTIVES["latency"])
    assert told is not None
    assert "10000 requests/s arrive: the most that can be sustained is" in told.message.replace("1e+04", "10000")
    assert "lower `arrival`" in told.hint
