import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from hyps_passes.searches.min_cut import REQUEST, Flows, TierCut, tier_cost, tier_cut

INFINITE = math.inf


@dataclass(frozen=True)
class Case:
    """A small instance."""

    seconds: np.ndarray
    producers: list[int]
    consumers: list[list[int]]
    hop_costs: np.ndarray

    @property
    def flows(self) -> Flows:
        return Flows.of(self.producers, self.consumers, self.hop_costs)

    def solve(self) -> TierCut | None:
        return tier_cut(self.seconds, self.flows)

    def all_costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every labelling, and what each costs: the definition written down, without networks."""
        tasks, tiers = self.seconds.shape
        every = np.array(list(itertools.product(range(tiers), repeat=tasks)), np.int64).reshape(-1, tasks)
        costs = self.seconds[np.arange(tasks), every].sum(axis=1)
        for producer, consumers, hop_costs in zip(self.producers, self.consumers, self.hop_costs, strict=True):
            made = np.zeros(len(every), np.int64) if producer == REQUEST else every[:, producer]
            for consumer in consumers:
                costs[every[:, consumer] < made] = INFINITE
            for hop, cost in enumerate(hop_costs):
                used_behind = np.any([every[:, consumer] > hop for consumer in consumers], axis=0)
                costs[(made <= hop) & used_behind] += cost
        return every, costs


def random_case(rng: np.random.Generator, tasks: int, tiers: int, *, whole: bool = True) -> Case:
    """Draw a DAG with shared flows, bans, flows that cannot cross, gains and costs of nothing."""
    seconds = rng.integers(-3, 10, (tasks, tiers)).astype(float)
    seconds[rng.random((tasks, tiers)) < rng.choice([0, 0.1, 0.3])] = INFINITE
    producers, consumers = [], []
    for producer in [REQUEST, REQUEST, *range(tasks), *range(tasks)]:
        later = np.arange(producer + 1, tasks)
        producers.append(producer)
        consumers.append(sorted(rng.choice(later, rng.integers(0, min(4, len(later)) + 1), replace=False).tolist()))
    hop_costs = rng.integers(0, 8, (len(producers), tiers - 1)).astype(float)
    hop_costs[rng.random(hop_costs.shape) < rng.choice([0, 0.1, 0.3])] = INFINITE
    if not whole:
        seconds, hop_costs = seconds * rng.random(seconds.shape), hop_costs * rng.random(hop_costs.shape)
    return Case(seconds, producers, consumers, hop_costs)


def cases(count: int, *, whole: bool = True) -> Iterator[Case]:
    rng = np.random.default_rng(4)
    for index in range(count):
        tiers, most = [(2, 9), (3, 6), (4, 5)][index % 3]
        yield random_case(rng, int(rng.integers(1, most + 1)), tiers, whole=whole)


def test_thousands_of_small_graphs_cost_what_trying_everything_finds() -> None:
    infeasible = 0
    for case in cases(3000):
        every, costs = case.all_costs()
        found = case.solve()
        if costs.min() == INFINITE:
            infeasible += 1
            assert found is None
            continue
        assert found is not None
        assert found.cost == found.bound == costs.min()
        assert costs[(every == found.tiers).all(axis=1)] == [costs.min()]
    assert 300 < infeasible < 2000


def test_costs_that_are_no_whole_numbers_are_met_within_the_rounding_of_floats() -> None:
    for case in cases(600, whole=False):
        every, costs = case.all_costs()
        found = case.solve()
        if found is not None:
            assert found.cost == pytest.approx(costs.min(), rel=1e-12, abs=1e-12)
            assert costs[(every == found.tiers).all(axis=1)] == pytest.approx(found.cost, rel=1e-12, abs=1e-12)
            assert found.bound <= found.cost
            assert found.bound == pytest.approx(found.cost, rel=1e-12, abs=1e-12)
        else:
            assert costs.min() == INFINITE


def test_of_equal_cuts_every_task_is_on_its_lowest_tier() -> None:
    ties = 0
    for finer in cases(1200):
        case = replace(finer, seconds=np.ceil(finer.seconds / 4), hop_costs=np.ceil(finer.hop_costs / 4))
        every, costs = case.all_costs()
        found = case.solve()
        if found is not None:
            best = every[costs == costs.min()]
            ties += len(best) > 1
            np.testing.assert_array_equal(found.tiers, best.min(axis=0))
    assert ties > 100


def test_the_cost_of_any_tiers_is_what_the_definition_says() -> None:
    for case in cases(60):
        every, costs = case.all_costs()
        assert [tier_cost(case.seconds, case.flows, tiers) for tiers in every] == costs.tolist()


def test_a_flow_with_many_consumers_is_paid_once() -> None:
    fan_out = Flows.of([REQUEST, 0], [[0], [1, 2, 3]], [[INFINITE], [5.0]])
    found = tier_cut(np.array([[1.0, 1.0], *[[3.0, 0.0]] * 3]), fan_out)
    assert found is not None
    assert found.tiers.tolist() == [0, 1, 1, 1]
    assert found.cost == 6


def test_work_never_comes_back_to_a_lower_tier() -> None:
    chain = Flows.of([REQUEST, 0, 1], [[0], [1], [2]], np.zeros((3, 1)))
    found = tier_cut(np.array([[0.0, 9.0], [4.0, 0.0], [0.0, 3.0]]), chain)
    assert found is not None
    assert (found.tiers.tolist(), found.cost) == ([0, 1, 1], 3.0)


def test_what_only_a_split_pays_is_a_task_behind_all_others() -> None:
    """Case 2 of the docstring: two tiers, a latency that is paid once if anything runs on tier 1, and on tier 0."""
    rng = np.random.default_rng(5)
    chosen = set()
    for _ in range(300):
        tasks = int(rng.integers(1, 6))
        case = random_case(rng, tasks, 2)
        latency, start = rng.integers(1, 12, 2).astype(float)
        every, costs = case.all_costs()
        costs = costs + np.where((every == 1).any(axis=1), latency, 0) + np.where((every == 0).any(axis=1), start, 0)
        consumers = [*case.consumers, *[[tasks] for _ in range(tasks)], list(range(tasks))]
        producers = [*case.producers, *range(tasks), tasks + 1]
        hop_costs = np.vstack([case.hop_costs, np.zeros((tasks + 1, 1))])
        seconds = np.vstack([case.seconds, [[0, latency], [start, 0]]])
        found = tier_cut(seconds, Flows.of(producers, consumers, hop_costs))
        assert (found.cost if found else INFINITE) == costs.min()
        if found:
            chosen.add((found.tiers[:tasks].min(), found.tiers[:tasks].max()))
    assert chosen == {(0, 0), (0, 1), (1, 1)}


def test_costs_of_any_size_keep_their_resolution() -> None:
    for scale in (1e-200, 1e-12, 1.0, 1e200):
        chain = Flows.of([REQUEST, 0], [[0], [1]], np.array([[3.0], [1.0]]) * scale)
        found = tier_cut(np.array([[1.0, 0.0], [9.0, 2.0 + 2**-40]]) * scale, chain)
        assert found is not None
        assert found.tiers.tolist() == [0, 1]
        assert found.bound == pytest.approx(found.cost, rel=1e-15)


def test_what_a_long_chain_of_small_costs_adds_up_to_is_exact() -> None:
    tasks = 2_000
    chain = Flows.of([REQUEST, *range(tasks - 1)], [[task] for task in range(tasks)], np.full((tasks, 2), 1e-3))
    seconds = np.tile([3e-6, 2e-6, 1e-6], (tasks, 1))
    found = tier_cut(seconds, chain)
    assert found is not None
    assert found.tiers.tolist() == [2] * tasks
    assert found.cost == pytest.approx(tasks * 1e-6 + 2e-3, rel=1e-12)


def test_thousands_of_pinned_layers_do_not_overflow() -> None:
    tasks = 20_000
    flows = Flows.of(range(-1, tasks - 1), [[task] for task in range(tasks)], np.full((tasks, 1), 1e9))
    seconds = np.full((tasks, 2), 1e9)
    seconds[: tasks // 2, 1] = seconds[tasks // 2 :, 0] = INFINITE
    found = tier_cut(seconds, flows)
    assert found is not None
    assert found.tiers.tolist() == [0] * (tasks // 2) + [1] * (tasks // 2)
    assert found.cost == found.bound == (tasks + 1) * 1e9
    assert tier_cut(seconds[:, ::-1], flows) is None


@pytest.mark.parametrize("tiers", [1, 2, 3])
def test_a_graph_without_tasks_costs_nothing(tiers: int) -> None:
    found = tier_cut(np.zeros((0, tiers)), Flows.of([REQUEST], [[]], np.zeros((1, tiers - 1))))
    assert found is not None
    assert (found.tiers.tolist(), found.cost) == ([], 0)


def test_with_one_tier_everything_runs_there() -> None:
    flows = Flows.of([REQUEST, 0], [[0], [1]], np.zeros((2, 0)))
    found = tier_cut(np.array([[1.0], [2.0]]), flows)
    assert found is not None
    assert (found.tiers.tolist(), found.cost, found.bound) == ([0, 0], 3.0, 3.0)
    assert tier_cut(np.array([[1.0], [INFINITE]]), flows) is None


def test_where_everything_costs_nothing_nothing_leaves_tier_0() -> None:
    found = tier_cut(np.zeros((3, 4)), Flows.of([REQUEST, 0], [[0], [1, 2]], np.zeros((2, 3))))
    assert found is not None
    assert found.tiers.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("seconds", "hop_costs", "words"),
    [
        ([[math.nan, 1]], [[0]], "seconds of a task"),
        ([[-INFINITE, 1]], [[0]], "seconds of a task"),
        ([[1, 1]], [[-1]], "cost of a hop"),
        ([[1, 1]], [[math.nan]], "cost of a hop"),
        ([[1, 1]], [[1, 1]], "by flow and hop"),
    ],
)
def test_costs_that_are_none_are_refused(seconds: list[list[float]], hop_costs: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tier_cut(np.array(seconds, float), Flows.of([REQUEST], [[0]], hop_costs))
