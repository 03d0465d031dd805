from dataclasses import replace

import numpy as np
import pytest

from hyps.errors import InfeasibleError
from hyps_compiler.pareto_report import front_json, require_points, show_front
from hyps_passes.problem import Limits
from hyps_passes.searches.pareto import front
from problem_fixtures import random_problem


def test_no_point_that_is_shown_beats_another() -> None:
    problem = random_problem(np.random.default_rng(7), tasks=6, machines=3, banned=0.0)
    told = front_json(problem, front(problem))
    assert told["complete"]
    keys = ("latency_s", "memory_bytes", "energy_joules", "wire_bytes")
    points = [(*(point[key] for key in keys), -point["throughput_rps"]) for point in told["points"]]
    assert len(points) > 2
    for one in points:
        assert not any(other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in points)
    assert [point[0] for point in points] == sorted(point[0] for point in points)


def test_the_table_is_as_wide_as_a_terminal() -> None:
    problem = random_problem(np.random.default_rng(7), tasks=6, machines=3, banned=0.0)
    assert all(len(line) <= 80 for line in show_front(problem, front(problem)).splitlines())


def test_an_empty_front_is_refused() -> None:
    problem = replace(random_problem(np.random.default_rng(7), tasks=4, machines=2), limits=Limits(deadline_s=1e-9))
    with pytest.raises(InfeasibleError):
        require_points(front(problem))
