"""`hypsc compare`'s rows: in order, with gaps to what is proven, null where there is nothing, 80 columns wide."""

import json
from dataclasses import replace

import pytest

from hyps.errors import InfeasibleError
from hyps_compiler.comparison import Comparison, compare, comparison_json, require_possible, show_comparison
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Limits, Problem
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.strategy import Settings
from strategy_fixtures import chain

KEYS = {"strategy", "latency_s", "throughput_rps", "lower_bound_s", "gap", "cut", "reason"}


def three_devices(limits: Limits | None = None) -> Problem:
    return chain(
        [0.05, 0.04, 0.03, 0.02],
        [60_000, 20_000, 4000, 9000, 100],
        machines=3,
        weights=[1000, 2000, 3000, 9000],
        pooling=(1,),
        limits=limits,
    )


def compared(objective: str = "latency", problem: Problem | None = None) -> Comparison:
    return compare(problem or three_devices(), OBJECTIVES[objective], Settings(time_limit_s=10.0))


def test_every_strategy_has_a_row_and_the_best_comes_first() -> None:
    found = compared()
    assert {row.strategy for row in found.rows} == set(STRATEGIES)
    scores = [row.result.score for row in found.rows if isinstance(row.result, Found)]
    assert scores == sorted(scores)
    assert found.rows[0].strategy == "exact"


def test_gaps_are_to_the_proven_optimum() -> None:
    found = compared()
    assert found.exact is not None
    assert found.exact.is_proven
    for row in found.rows:
        if isinstance(row.result, Found):
            assert found.gap(row.result) == pytest.approx(row.result.score / found.exact.score - 1, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_json_has_the_fields_of_the_contract_and_no_number_that_json_lacks(objective: str) -> None:
    value = json.loads(json.dumps(comparison_json(compared(objective)), allow_nan=False))
    assert list(value) == ["objective", "proven", "space", "strategies"]
    for row in value["strategies"]:
        assert set(row) == KEYS
        assert isinstance(row["cut"], list)
        assert row["reason"]
        assert (row["lower_bound_s"] is not None) == (objective in ("latency", "throughput"))


def test_a_strategy_without_a_placement_is_null_and_says_why() -> None:
    found = compared(problem=three_devices(Limits(peak_bytes=90_000, wire_bytes=30_000)))
    rows = {row["strategy"]: row for row in comparison_json(found)["strategies"]}
    remote = rows["remote"]
    assert [remote[key] for key in ("latency_s", "throughput_rps", "lower_bound_s", "gap", "cut")] == [None] * 5
    assert "bytes: 60.1 kB of 30.0 kB" in remote["reason"]
    assert rows["exact"]["latency_s"] is not None
    assert "not here: bytes: 60.1 kB of 30.0 kB; memory of m" in " ".join(show_comparison(found).split())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_table_is_80_columns_wide_whatever_layers_are_called(objective: str) -> None:
    problem = three_devices()
    long = tuple(replace(task, name="block/" * 30 + f"{i}\x1b[31m") for i, task in enumerate(problem.tasks))
    shown = show_comparison(compared(objective, replace(problem, tasks=long)))
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert sum(line.startswith("*") for line in shown.splitlines()) == 1


def test_the_table_says_what_is_proven_and_over_what() -> None:
    shown = show_comparison(compared())
    assert " ".join(shown.split()).endswith("Gaps are to the best latency of all pipelines, which is proven: 61.5 ms.")


def test_nothing_is_claimed_where_nothing_is_proven() -> None:
    found = compared()
    assert found.exact is not None
    unproven = replace(found, exact=replace(found.exact, bound=0.0))
    assert "Nothing is proven of the best latency" in show_comparison(unproven)
    assert all(row["gap"] is None and row["lower_bound_s"] is None for row in comparison_json(unproven)["strategies"])
    loose = replace(found, exact=replace(found.exact, bound=found.exact.score / 2))
    assert "within 100.0%" in " ".join(show_comparison(loose).split())


def test_a_placement_outside_what_is_proven_may_be_below_it() -> None:
    """The second layer is fast on the other device alone: there and back is no pipeline over different machines."""
    problem = chain([0.01, 0.5, 0.01], [1000, 1000, 1000, 10])
    problem = replace(problem, seconds=((0.01, 0.9), (0.5, 0.01), (0.01, 0.9)))
    found = compared(problem=problem)
    assert found.rows[0].strategy == "coedge"
    assert isinstance(found.rows[0].result, Found)
    assert (found.gap(found.rows[0].result) or 0) < 0
    assert "`coedge` is below" in " ".join(show_comparison(found).split())


def test_nothing_possible_is_refused_with_what_binds() -> None:
    found = compared(problem=three_devices(Limits(deadline_s=1e-6)))
    assert all(not isinstance(row.result, Found) for row in found.rows)
    with pytest.raises(InfeasibleError, match="deadline"):
        require_possible(three_devices(Limits(deadline_s=1e-6)), found)
    require_possible(three_devices(), compared())
