"""The cost model: by hand on small cases, and its sum of terms on random ones."""

import math

import numpy as np
import pytest

from hyps_passes.assignment import Assignment, Stage, is_sound, pipeline, single
from hyps_passes.estimate import estimate, placed, violations
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import REQUEST, Channel, Flow, Machine, Problem, Task
from problem_fixtures import all_pipelines, random_problem, two_machines


def test_everything_at_the_entry_costs_its_layers() -> None:
    told = estimate(two_machines(), single(two_machines(), 0))
    assert told.latency_s == pytest.approx(0.061)
    assert told.throughput_rps == pytest.approx(1 / 0.061)
    assert told.bottleneck == "camera"
    assert told.wire_bytes == 0
    assert told.joules == pytest.approx(0.061 * 4)
    # base, weights, image (comes in), and the most alive: `ab` and `bc` and `answer` while c runs
    assert told.peak_bytes == (50 + 700 + 1000 + 610, 0)


def test_everything_at_the_server_sends_the_image_and_gets_the_answer() -> None:
    told = estimate(two_machines(), single(two_machines(), 1))
    up, down = 0.001 + 1000e-5, 0.0001 + 10e-6
    assert told.latency_s == pytest.approx(up + 0.004 + 0.0065 + down + 0.002)
    assert told.channel_bytes == (1000, 10)
    assert told.bottleneck == "camera to server"
    assert told.busy_s == pytest.approx((0.0, 0.0065))
    assert told.joules == pytest.approx(told.latency_s * 31 + 0.0065 * 70 + 1000 * 0.001)


def test_a_tensor_for_two_consumers_on_one_side_is_paid_once() -> None:
    told = estimate(two_machines(), pipeline(two_machines(), (0, 1), (0, 1, 1)))
    compute = 0.001 + 0.01 + 0.0003 + 0.0005 + 0.0002 + 0.005
    assert told.latency_s == pytest.approx(compute + 0.001 + 500e-5 + 0.004 + 0.0001 + 10e-6 + 0.002)
    assert told.channel_bytes == (500, 10)


def test_all_tensors_of_a_border_are_paid() -> None:
    told = estimate(two_machines(), pipeline(two_machines(), (0, 1), (0, 0, 1)))
    assert told.channel_bytes == (600, 10)
    assert told.peak_bytes[1] == 80 + 400 + 600 + 10


def test_early_exits_make_what_lies_behind_them_cheaper() -> None:
    problem = two_machines()
    tasks = (*problem.tasks[:2], Task("c", ((2, 400),), reach=0.25))
    exits = Problem(
        tasks, *(getattr(problem, n) for n in ("flows", "machines", "channels", "seconds", "export_s", "import_s"))
    )
    whole, early = estimate(problem, single(problem, 0)), estimate(exits, single(exits, 0))
    assert whole.latency_s - early.latency_s == pytest.approx(0.75 * 0.03)


def test_random_arrivals_wait_as_in_an_m_d_1_queue() -> None:
    problem = two_machines()
    fields = (problem.tasks, problem.flows, problem.machines, problem.channels, problem.seconds, problem.export_s)
    loaded = Problem(*fields, problem.import_s, arrival_rps=8.0)
    told = estimate(loaded, single(loaded, 0))
    busy = 8 * 0.061
    assert told.queue_s == pytest.approx(busy * 0.061 / (2 * (1 - busy)))
    assert math.isinf(estimate(Problem(*fields, problem.import_s, arrival_rps=20.0), single(loaded, 0)).latency_s)


def test_replicas_share_the_requests_by_their_speed() -> None:
    problem = two_machines()
    stages = (Stage((0,), ()), Stage((1, 0), (0, 1, 2)))
    told = estimate(problem, Assignment(stages, is_pipeline=False))
    assert told.throughput_rps == pytest.approx(min(1 / 0.0065 + 1 / 0.061, 1 / (0.001 + 1000e-5)))


def test_limits_that_are_broken_are_named() -> None:
    problem = two_machines(deadline_s=0.02, wire_bytes=100, joules=1.0, throughput_rps=1000.0)
    cut = pipeline(problem, (0, 1), (0, 1, 1))
    assert violations(problem, estimate(problem, cut), cut) == ["deadline", "energy", "bytes", "throughput"]
    local = single(problem, 0)
    assert violations(problem, estimate(problem, local), local) == ["deadline", "throughput"]


def test_parallel_branches_overlap_on_two_machines() -> None:
    problem = Problem(
        tasks=tuple(Task(name) for name in ("stem", "left", "right", "join")),
        flows=(
            Flow("in", 8, REQUEST, (0,)),
            Flow("stem", 100, 0, (1, 2)),
            Flow("left", 100, 1, (3,)),
            Flow("right", 100, 2, (3,)),
            Flow("out", 8, 3, (), is_output=True),
        ),
        machines=(Machine("one"), Machine("two")),
        channels=(Channel(0, 1, 1e-5), Channel(1, 0, 1e-5)),
        seconds=((0.01, 0.01), (0.05, 0.05), (0.05, 0.05), (0.01, 0.01)),
        export_s=((0.0, 0.0),) * 5,
        import_s=((0.0, 0.0),) * 5,
    )
    assignment = placed(problem, (0, 0, 1, 0))
    assert is_sound(problem, assignment)
    told = estimate(problem, assignment)
    assert told.latency_s == pytest.approx(0.01 + 0.001 + 0.05 + 0.001 + 0.01)
    assert estimate(problem, single(problem, 0)).latency_s == pytest.approx(0.12)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.terms])
def test_terms_of_a_pipeline_add_up_to_its_score(name: str) -> None:
    objective = OBJECTIVES[name]
    rng = np.random.default_rng(4)
    checked = 0
    for _ in range(30):
        problem = random_problem(rng, tasks=4, machines=3)
        for assignment in all_pipelines(problem):
            if not assignment.stages[0].tasks:
                continue
            machines = [stage.machine for stage in assignment.stages]
            stage_of = {task: i for i, stage in enumerate(assignment.stages) for task in stage.tasks}
            assert objective.terms is not None
            terms = objective.terms(problem, machines)
            total = terms.fixed[-1] + sum(terms.layers[task, stage] for task, stage in stage_of.items())
            for index, flow in enumerate(problem.flows):
                first = stage_of.get(flow.producer, 0)
                last = max((stage_of[c] for c in flow.consumers), default=first)
                total += sum(terms.hops[index, hop] for hop in range(first, last))
            assert is_sound(problem, assignment)
            assert objective.score(estimate(problem, assignment)) == pytest.approx(total)
            checked += 1
    assert checked > 200


def test_an_answer_that_the_entry_uses_too_is_sent_there_once() -> None:
    problem = Problem(
        tasks=(Task("a"), Task("b")),
        flows=(
            Flow("in", 8, REQUEST, (0,)),
            Flow("middle", 100, 0, (1,), is_output=True),
            Flow("out", 8, 1, (), is_output=True),
        ),
        machines=(Machine("one"), Machine("two")),
        channels=(Channel(0, 1, 1e-5), Channel(1, 0, 1e-5)),
        seconds=((0.01, 0.01), (0.01, 0.01)),
        export_s=((0.0, 0.0),) * 3,
        import_s=((0.0, 0.0),) * 3,
    )
    told = estimate(problem, Assignment((Stage((1,), (0,)), Stage((0,), (1,))), is_pipeline=False))
    assert told.channel_bytes == (8, 100)
