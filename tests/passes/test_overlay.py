import numpy as np
import pytest

from hyps_passes.assignment import is_sound
from hyps_passes.estimate import estimate
from hyps_passes.overlay import overlay
from problem_fixtures import all_pipelines, random_problem


def test_blocks_make_every_placement_and_run_in_their_order() -> None:
    rng = np.random.default_rng(6)
    for _ in range(30):
        problem = random_problem(rng, tasks=6, machines=2, banned=0.0, has_borders=False)
        cuts = list(all_pipelines(problem))
        chosen = [cuts[int(i)] for i in rng.integers(len(cuts), size=3)]
        covered = overlay(problem, chosen)
        assert sorted(covered.order) == list(range(6))
        place = {task: index for index, task in enumerate(covered.order)}
        for flow in problem.flows:
            assert all(flow.producer < 0 or place[flow.producer] < place[consumer] for consumer in flow.consumers)
        for cut, placement, machines in zip(chosen, covered.placements, covered.machines, strict=True):
            assert is_sound(problem, placement)
            assert placement.machine_of() == cut.machine_of()
            where = {task: m for block, m in zip(covered.blocks, machines, strict=True) for task in block}
            assert {task: m[0] for task, m in where.items()} == cut.machine_of()


def test_one_placement_keeps_its_stages() -> None:
    problem = random_problem(np.random.default_rng(1), tasks=5, machines=2, banned=0.0)
    for cut in all_pipelines(problem):
        covered = overlay(problem, [cut])
        assert len(covered.blocks) == len([stage for stage in cut.stages if stage.tasks])
        assert estimate(problem, covered.placements[0]).latency_s == pytest.approx(estimate(problem, cut).latency_s)
