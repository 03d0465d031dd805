"""The words of strategies: what crosses, where time goes, and which limit is in the way."""

from dataclasses import replace

import pytest

from hyps_passes.assignment import Assignment, Stage, pipeline, single
from hyps_passes.estimate import estimate, placed
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Machine
from hyps_passes.strategies.judging import (
    Candidate,
    best_allowed,
    cut_tensors,
    first_allowed,
    judged,
    space_of,
    spell_cut,
    spell_latency,
    without_exits,
)
from hyps_passes.strategies.strategy import Refusal
from strategy_fixtures import chain, fork

LATENCY = OBJECTIVES["latency"]


def test_time_is_told_by_machine_and_for_the_links() -> None:
    problem = chain([0.01, 0.02], [10, 1000, 10])
    told = estimate(problem, pipeline(problem, (0, 1), (0, 1)))
    assert spell_latency(problem, told) == "m0 10 ms + m1 2 ms + links 1.01 ms"
    assert spell_latency(problem, estimate(problem, single(problem, 0))) == "m0 30 ms"


def test_waiting_is_told_apart() -> None:
    problem = replace(chain([0.01], [10, 10]), arrival_rps=50.0)
    assert spell_latency(problem, estimate(problem, single(problem, 0))) == "m0 10 ms + waiting 5 ms"


def test_a_cut_is_named_by_its_bytes_and_the_layer_behind_it() -> None:
    problem = fork(2000)
    assert spell_cut(problem, pipeline(problem, (0, 1), (0, 0, 0, 1))) == "4.00 kB before join"
    assert spell_cut(problem, single(problem, 0)) == "all on camera"
    assert spell_cut(problem, single(problem, 1)) == "100 kB before stem"


def test_what_crosses_is_named_once() -> None:
    problem = fork(2000)
    assert cut_tensors(problem, pipeline(problem, (0, 1), (0, 0, 0, 1))) == ["left", "right"]
    assert cut_tensors(problem, pipeline(problem, (0, 1), (0, 1, 1, 1))) == ["stem"]
    assert cut_tensors(problem, single(problem, 0)) == []
    assert cut_tensors(problem, single(problem, 1)) == ["image"]
    assert cut_tensors(problem, placed(problem, (0, 0, 1, 0))) == ["stem", "right"]


def test_a_pipeline_that_comes_back_is_none() -> None:
    back = Assignment((Stage((0,), (0,)), Stage((1,), (1,)), Stage((0,), (2,))))
    assert space_of(back) == "placements"
    assert space_of(Assignment(back.stages[:2])) == "pipelines"
    assert space_of(replace(back, is_pipeline=False)) == "placements"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(deadline_s=0.02), "its latency is 30 ms, the deadline 20 ms"),
        (Limits(throughput_rps=100.0), "it sustains 33.3 requests/s of 100"),
        (Limits(peak_bytes=10), "memory of m0: 1.12 kB of 10 B"),
    ],
)
def test_the_limit_in_the_way_is_told_with_both_figures(limits: Limits, reason: str) -> None:
    problem = chain([0.01, 0.02], [10, 100, 10], weights=[500, 500], limits=limits)
    found = judged(problem, LATENCY, Candidate(single(problem, 0), "nothing is sent"))
    assert found == Refusal(reason)


def test_energy_and_bytes_in_the_way_are_told() -> None:
    problem = chain([0.01, 0.02], [10, 100, 10], limits=Limits(joules=0.01, wire_bytes=50))
    machines = (Machine("m0", active_w=1.0), Machine("m1"))
    cut = pipeline(problem, (0, 1), (0, 1))
    found = judged(replace(problem, machines=machines, limits=Limits(wire_bytes=50)), LATENCY, Candidate(cut, "cut"))
    assert found == Refusal("bytes: 110 B of 50 B")
    alone = judged(replace(problem, machines=machines), LATENCY, Candidate(single(problem, 0), "local"))
    assert alone == Refusal("it takes 0.03 J of 0.01 J")


def test_layers_where_they_must_not_run_are_told() -> None:
    problem = chain([0.01, 0.02], [10, 100, 10])
    banned = replace(problem, seconds=((0.01, 0.001), (0.02, float("inf"))))
    found = judged(banned, LATENCY, Candidate(pipeline(problem, (0, 1), (0, 1)), "cut"))
    assert found == Refusal("its cut puts `layer1` on `m1`, which must not run it")


def test_the_first_that_keeps_the_limits_is_taken_and_the_first_of_all_explained() -> None:
    problem = chain([0.01, 0.02], [10, 100, 10], limits=Limits(wire_bytes=50))
    cut, remote, local = (Candidate(pipeline(problem, (0, 1), s), str(s)) for s in ((0, 1), (1, 1), (0, 0)))
    found = first_allowed(problem, LATENCY, [cut, remote, local])
    assert isinstance(found, Found)
    assert found.assignment == remote.assignment
    assert first_allowed(problem, LATENCY, [cut]) == Refusal("bytes: 110 B of 50 B")
    cut_off = first_allowed(problem, LATENCY, [cut, cut, remote], most=2)
    assert cut_off == Refusal("none of its 2 best keeps the limits; of the first, bytes: 110 B of 50 B")
    assert isinstance(first_allowed(problem, LATENCY, []), Refusal)


def test_the_best_by_the_strategys_own_rule_is_taken() -> None:
    problem = chain([0.01, 0.02], [10, 100, 10])
    cut, local = (Candidate(pipeline(problem, (0, 1), s), str(s)) for s in ((0, 1), (0, 0)))
    found = best_allowed(problem, LATENCY, lambda told: float(told.wire_bytes), [cut, local])
    assert isinstance(found, Found)
    assert found.assignment == local.assignment
    assert isinstance(best_allowed(problem, LATENCY, LATENCY.score, []), Refusal)


def test_without_exits_every_request_goes_the_whole_way() -> None:
    problem = chain([0.01, 0.02], [10, 100, 10], reach=[1.0, 0.3])
    assert [task.reach for task in without_exits(problem).tasks] == [1.0, 1.0]
    plain = chain([0.01, 0.02], [10, 100, 10])
    assert without_exits(plain) is plain
