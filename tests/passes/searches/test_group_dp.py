"""Rows of stages over groups of machines, against all that there are."""

import itertools
import math

import numpy as np
import pytest

from hyps_passes.searches.group_dp import Candidate, Combine, Table, best_row, groups_of, most_machines


def _table(rng: np.random.Generator, machines: int, cuts: int, combine: Combine, *, has_groups: bool) -> Table:
    costs = rng.integers(1, 50, (64, cuts, cuts)).astype(float)
    costs[rng.random(costs.shape) < 0.3] = math.inf
    groups = groups_of(machines, has_groups=has_groups)
    barred = np.tri(cuts, dtype=bool)
    candidates = [Candidate(group, np.where(barred, math.inf, costs[i])) for i, group in enumerate(groups)]
    first, last = rng.integers(0, 20, (2, machines)).astype(float)
    return Table(candidates, first, rng.integers(0, 20, (machines, machines, cuts)).astype(float), last, combine)


def _by_force(table: Table) -> float:
    cuts, best = table.hops.shape[2], math.inf
    for count in range(1, min(cuts - 1, len(table.last)) + 1):
        for chosen in itertools.permutations(table.candidates, count):
            members = [machine for candidate in chosen for machine in candidate.machines]
            if len(members) == len(set(members)):
                for inner in itertools.combinations(range(1, cuts - 1), count - 1):
                    best = min(best, _amount(table, chosen, (0, *inner, cuts - 1)))
    return best


def _amount(table: Table, chosen: tuple[Candidate, ...], ends: tuple[int, ...]) -> float:
    leaders = [candidate.machines[0] for candidate in chosen]
    parts = [float(c.cost[a, b]) for c, (a, b) in zip(chosen, itertools.pairwise(ends), strict=True)]
    parts += [float(table.hops[a, b, cut]) for (a, b), cut in zip(itertools.pairwise(leaders), ends[1:], strict=False)]
    parts += [float(table.first[leaders[0]]), float(table.last[leaders[-1]])]
    return sum(parts) if table.combine == "sum" else max(parts)


@pytest.mark.parametrize("combine", ["sum", "most"])
@pytest.mark.parametrize(("machines", "has_groups"), [(1, False), (4, False), (3, True)])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_row_is_that_of_brute_force(seed: int, machines: int, has_groups: bool, combine: Combine) -> None:
    table = _table(np.random.default_rng(seed), machines, 5, combine, has_groups=has_groups)

    found = best_row(table)

    best = _by_force(table)
    if found is None:
        assert best == math.inf
        return
    assert found.value == best
    by_machines = {candidate.machines: candidate for candidate in table.candidates}
    ends = (0, *(end for _, _, end in found.stages))
    assert [start for _, start, _ in found.stages] == list(ends[:-1])
    assert _amount(table, tuple(by_machines[group] for group, _, _ in found.stages), ends) == best


def test_groups_name_every_leader_once() -> None:
    assert groups_of(2, has_groups=False) == [(0,), (1,)]
    assert groups_of(2, has_groups=True) == [(0,), (1,), (0, 1), (1, 0)]
    assert len(groups_of(8, has_groups=True)) == 8 * 2**7


@pytest.mark.parametrize(("cuts", "has_groups", "most"), [(31, True, 9), (31, False, 10), (201, True, 6)])
def test_more_machines_are_searched_where_there_are_fewer_cuts(cuts: int, has_groups: bool, most: int) -> None:
    assert most_machines(cuts, has_groups=has_groups) == most
