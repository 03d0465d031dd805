"""Simulated time: one request takes what the estimate says, many wait for each other as queues do, none is lost."""

import itertools
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.core.events import Event, Execute, Executed, Load, Loaded, Submitted, TensorArrived
from hyps.core.residency import Task, decide_residency, live_activations
from hyps.core.worker_state import WorkerState
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_problem import system_of
from hyps_compiler.simulation_result import Simulated, Span
from hyps_compiler.simulation_system import (
    REQUEST,
    Closed,
    Dataflow,
    Device,
    Down,
    Link,
    Listed,
    Open,
    Partition,
    Step,
    System,
    Tensor,
)
from hyps_compiler.simulation_system import Load as Arrivals
from hyps_passes import problem as searched
from hyps_passes.assignment import Assignment, Stage, single
from hyps_passes.estimate import estimate, placed
from problem_fixtures import all_pipelines, random_problem

SEEDS = st.integers(0, 2**32 - 1)


def chain(*seconds: float, link: Link | None = None) -> System:
    """Return a pipeline: a device for each partition, 1000 bytes between two, 10 bytes back to the first."""
    count = len(seconds)
    like = link or Link("", 0, 0, 1e-5)
    tensors = [Tensor("in", 1000, REQUEST, (0,))]
    tensors += [Tensor(f"t{i}", 1000, i, (i + 1,)) for i in range(count - 1)]
    return System(
        devices=tuple(Device(f"d{i}") for i in range(count)),
        links=tuple(
            replace(like, name=f"d{a} to d{b}", source=a, target=b)
            for a in range(count)
            for b in range(count)
            if a != b
        ),
        dataflows=(
            Dataflow(
                "chain",
                tuple(Partition(f"p{i}", ((i, s),)) for i, s in enumerate(seconds)),
                (*tensors, Tensor("out", 10, count - 1, (), True)),
            ),
        ),
    )


def is_direct(problem: searched.Problem) -> bool:
    """Return whether every way is one link: over two of them tensors overlap, which the estimate does not count on."""
    return all(len(path) == 1 for path in problem.paths.values())


def alone_s(problem: searched.Problem, assignment: Assignment) -> float:
    return float(simulate(system_of(problem, assignment), Closed(), 1).latencies_s[0])


# Against the estimate.


def test_a_request_alone_in_a_pipeline_takes_what_the_estimate_says() -> None:
    rng = np.random.default_rng(1)
    exact = bounded = 0
    for _ in range(40):
        problem = random_problem(rng, tasks=4, machines=3)
        for assignment in all_pipelines(problem):
            told = estimate(problem, assignment).latency_s
            if len(assignment.stages) <= 2 and is_direct(problem):
                assert alone_s(problem, assignment) == pytest.approx(told, rel=1e-9)
                exact += 1
            else:  # here what overlaps is faster than an estimate that lets nothing overlap
                assert alone_s(problem, assignment) <= told * (1 + 1e-9) + _ways_back_s(problem, assignment)
                bounded += 1
    assert exact > 50
    assert bounded > 200


def _ways_back_s(problem: searched.Problem, assignment: Assignment) -> float:
    """The latency of answers of other than the last stage, which the estimate leaves out."""
    makers = [s for s in assignment.stages[1:-1] if any(problem.flows[f].is_output for f in _made(problem, s))]
    return max((problem.latency_s(stage.machine, problem.entry) for stage in makers), default=0.0)


def _made(problem: searched.Problem, stage: Stage) -> list[int]:
    return [flow for task in stage.tasks for flow in problem.made_by.get(task, ())]


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_a_request_alone_on_any_placement_takes_as_long_as_the_schedule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, tasks=7, machines=3)
    direct = tuple(replace(c, s_per_byte=1e-5, latency_s=0.002) for c in problem.channels)
    problem = replace(problem, channels=direct)
    machine_of = [int(rng.choice(problem.allowed(task))) for task in range(7)]
    assignment = placed(problem, machine_of)
    assert alone_s(problem, assignment) == pytest.approx(estimate(problem, assignment).latency_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_throughput_under_many_requests_is_that_of_the_estimate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, tasks=5, machines=3)
    machine_of = [int(rng.choice(problem.allowed(task))) for task in range(5)]
    for assignment in (placed(problem, machine_of), single(problem, 0)):
        told = simulate(system_of(problem, assignment), Closed(30), 1500)
        assert told.throughput_rps == pytest.approx(estimate(problem, assignment).throughput_rps, rel=0.01)


def test_random_arrivals_wait_as_long_as_the_estimate_says() -> None:
    problem = replace(random_problem(np.random.default_rng(3), tasks=5, machines=2), arrival_rps=0.0)
    assignment = single(problem, 0)
    service_s = estimate(problem, assignment).latency_s
    for busy in (0.3, 0.6, 0.8):
        loaded = replace(problem, arrival_rps=busy / service_s)
        told = simulate(system_of(loaded, assignment), Open(busy / service_s), 60_000, seed=5)
        queue_s = told.mean_s - service_s
        assert queue_s == pytest.approx(estimate(loaded, assignment).queue_s, rel=0.04)


def test_replicas_share_the_work_by_their_speed() -> None:
    problem = random_problem(np.random.default_rng(8), tasks=4, machines=3, banned=0.0)
    channels = tuple(replace(c, s_per_byte=1e-9, latency_s=0.0, message_s=0.0) for c in problem.channels)
    problem = replace(problem, channels=channels)
    assignment = Assignment((Stage((1, 2), (0, 1, 2, 3)),), is_pipeline=False)
    told = simulate(system_of(problem, assignment), Closed(20), 2000)
    assert told.throughput_rps == pytest.approx(estimate(problem, assignment).throughput_rps, rel=0.01)
    assert alone_s(problem, assignment) == pytest.approx(estimate(problem, assignment).latency_s, rel=1e-9)


# By hand.


def test_stages_of_successive_requests_overlap() -> None:
    told = simulate(chain(0.02, 0.03), Closed(2), 3)
    # the second stage is free for the second request at 60 ms; the third comes when the first is answered, at 60.1 ms
    assert told.latencies_s == pytest.approx([0.0601, 0.0901, 0.0601])
    assert told.most_in_flight == 2


def test_shards_run_side_by_side_and_meet_in_their_merge() -> None:
    system = System(
        devices=(Device("hub"), Device("left"), Device("right")),
        links=tuple(Link(f"{a}{b}", a, b, 1e-5, latency_s=0.001) for a, b in itertools.permutations(range(3), 2)),
        dataflows=(
            Dataflow(
                "shards",
                (
                    Partition("fc1_s0", ((1, 0.05),)),
                    Partition("fc1_s1", ((2, 0.06),)),
                    Partition("merge", ((0, 0.001),)),
                ),
                (
                    Tensor("in", 1000, REQUEST, (0, 1)),
                    Tensor("s0", 500, 0, (2,)),
                    Tensor("s1", 500, 1, (2,)),
                    Tensor("out", 10, 2, (), True),
                ),
            ),
        ),
    )
    told = simulate(system, Closed(), 1)
    assert told.latencies_s[0] == pytest.approx(0.01 + 0.001 + 0.06 + 0.005 + 0.001 + 0.001)


def test_a_message_takes_the_bandwidth_of_every_moment() -> None:
    # 1000 bytes at 10 us each; from 22 ms on, after 200 of them, half as fast; from 26 ms on nothing moves until 30 ms
    link = Link("", 0, 0, 1e-5, steps=(Step(0.022, 2e-5), Step(0.026, np.inf), Step(0.03, 1e-6)))
    told = simulate(chain(0.02, 0.03, link=link), Closed(), 1)
    arrives_s = 0.03 + 600e-6
    assert told.latencies_s[0] == pytest.approx(arrives_s + 0.03 + 10e-6)


def test_a_message_that_a_fault_breaks_off_is_sent_again() -> None:
    link = Link("", 0, 0, 1e-5, downs=(Down(0.025, 0.04),))
    told = simulate(chain(0.02, 0.03, link=link), Closed(), 1)
    assert told.latencies_s[0] == pytest.approx(0.04 + 0.01 + 0.03 + 0.0001)
    assert [use.redone for use in told.links if use.done] == [1, 0]
    assert told.links[0].lost_s == pytest.approx(0.005)


def test_a_partition_that_a_fault_breaks_off_runs_again() -> None:
    system = chain(0.02, 0.03)
    broken = replace(system, devices=(system.devices[0], Device("d1", (Down(0.04, 0.1), Down(0.2, 0.3)))))
    told = simulate(broken, Closed(), 1, traced=1)
    assert told.latencies_s[0] == pytest.approx(0.1 + 0.03 + 0.0001)
    assert [span.is_lost for span in told.spans if span.resource == "d1"] == [True, False]
    assert told.devices[1].redone == 1


def test_a_replica_takes_over_while_a_device_is_down() -> None:
    system = chain(0.02, 0.03, 0.04)
    flow = Dataflow(
        "both",
        (Partition("p0", ((0, 0.02),)), Partition("p1", ((1, 0.03), (2, 0.05)))),
        (Tensor("t", 1000, 0, (1,)), Tensor("out", 10, 1, (), True)),
    )
    broken = replace(system, dataflows=(flow,), devices=(Device("d0"), Device("d1", (Down(0.0, 9.0),)), Device("d2")))
    assert simulate(broken, Closed(), 1).latencies_s[0] == pytest.approx(0.02 + 0.01 + 0.05 + 0.0001)


def test_those_that_find_no_room_are_refused() -> None:
    told = simulate(chain(0.1, 0.1), Listed((0.0, 0.001, 0.002, 0.003), in_flight=1, most_waiting=2), 4)
    assert told.refused == (3,)
    assert told.most_waiting == 2
    assert sorted(told.requests) == [0, 1, 2]


def test_a_tensor_for_two_partitions_of_a_device_is_sent_once() -> None:
    flow = Dataflow(
        "two",
        (Partition("p0", ((0, 0.01),)), Partition("p1", ((1, 0.01),)), Partition("p2", ((1, 0.01),))),
        (Tensor("t", 1000, 0, (1, 2)), Tensor("a", 10, 1, (), True), Tensor("b", 10, 2, (), True)),
    )
    told = simulate(replace(chain(0.01, 0.01), dataflows=(flow,)), Closed(), 1)
    assert told.links[0].done == 1
    assert told.latencies_s[0] == pytest.approx(0.01 + 0.01 + 0.02 + 0.0001)


def test_an_output_that_the_entry_uses_as_well_comes_back_once() -> None:
    flow = Dataflow(
        "loop",
        (Partition("p0", ((1, 0.01),)), Partition("p1", ((0, 0.02),))),
        (Tensor("in", 1000, REQUEST, (0,)), Tensor("t", 1000, 0, (1,), True), Tensor("out", 10, 1, (), True)),
    )
    told = simulate(replace(chain(0.01, 0.01), dataflows=(flow,)), Closed(), 1)
    assert [use.done for use in told.links] == [1, 1]
    assert told.latencies_s[0] == pytest.approx(0.01 + 0.01 + 0.01 + 0.02)


# What always holds.


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[System, Arrivals, int, float]:
    """Draw random placements with faults, steps of the bandwidth, swapped partitions and any load."""
    rng = np.random.default_rng(draw(SEEDS))
    problem = random_problem(rng, tasks=6, machines=3)
    machine_of = [int(rng.choice(problem.allowed(task))) for task in range(6)]
    system = system_of(problem, placed(problem, machine_of))
    downs = (Down(0.05, 0.1), Down(0.3, 0.31)) if draw(st.booleans()) else ()
    steps = (Step(0.02, 1e-4), Step(0.2, 1e-6), Step(0.6, 3e-5)) if draw(st.booleans()) else ()
    flow = system.dataflows[0]
    if draw(st.booleans()):
        partitions = tuple(replace(p, is_swapped=i % 2 == 0, load_s=0.005) for i, p in enumerate(flow.partitions))
        flow = replace(flow, partitions=partitions)
    if draw(st.booleans()):
        more = ((0, 0.03), (1, 0.04), (2, 0.01))
        flow = replace(flow, partitions=(replace(flow.partitions[0], seconds=more), *flow.partitions[1:]))
    system = replace(
        system,
        devices=tuple(replace(d, downs=downs, room=draw(st.sampled_from((None, 1, 3)))) for d in system.devices),
        links=tuple(replace(link, downs=downs, steps=steps) for link in system.links),
        dataflows=(flow,),
    )
    loads: tuple[Arrivals, ...] = (
        Closed(4),
        Open(20.0),
        Open(200.0, is_random=False, in_flight=3, most_waiting=5),
        Listed(tuple(i * 0.01 for i in range(40)), in_flight=2),
    )
    return system, draw(st.sampled_from(loads)), 40, draw(st.sampled_from((0.0, 0.5)))


@settings(deadline=None, max_examples=60)
@given(scenarios())
def test_every_request_ends_once_and_nothing_does_two_things_at_a_time(
    scenario: tuple[System, Arrivals, int, float],
) -> None:
    system, load, count, jitter = scenario
    told = simulate(system, load, count, jitter=jitter, seed=2, traced=count)
    assert sorted([*told.requests.tolist(), *told.refused]) == list(range(count))
    assert len(told.lives) == len(told.requests)
    _check_one_at_a_time(told.spans)
    runs = Counter((span.request, span.name) for span in told.spans if span.kind == "compute" and not span.is_lost)
    assert set(runs.values()) == {1}
    assert len(runs) == len(told.requests) * sum(any(s for _, s in p.seconds) for p in system.dataflows[0].partitions)
    _check_uses(told)


def _check_one_at_a_time(spans: tuple[Span, ...]) -> None:
    for name in {span.resource for span in spans}:
        mine = sorted((span.start_s, span.end_s) for span in spans if span.resource == name)
        assert all(a[1] <= b[0] + 1e-12 for a, b in itertools.pairwise(mine)), name
    assert all(span.queued_s <= span.start_s <= span.end_s for span in spans)


def _check_uses(told: Simulated) -> None:
    for use in (*told.devices, *told.links):
        mine = [span for span in told.spans if span.resource == use.name and not span.is_lost]
        assert use.busy_s == pytest.approx(sum(span.end_s - span.start_s for span in mine), abs=1e-9)
        assert use.done == sum(span.kind != "load" for span in mine)
        assert 0 <= told.utilization(use) <= 1 + 1e-9


@settings(deadline=None, max_examples=60)
@given(scenarios())
def test_the_same_seed_gives_the_same_bits(scenario: tuple[System, Arrivals, int, float]) -> None:
    system, load, count, jitter = scenario
    first, second = (simulate(system, load, count, jitter=jitter, seed=7, traced=5) for _ in range(2))
    assert first.latencies_s.tobytes() == second.latencies_s.tobytes()
    assert first.spans == second.spans
    assert first.devices == second.devices


def test_another_seed_gives_other_arrivals_and_other_times() -> None:
    system = chain(0.02, 0.03)
    one, two = (simulate(system, Open(10.0), 50, seed=seed) for seed in (0, 1))
    assert one.end_s != two.end_s
    one, two = (simulate(system, Closed(), 50, seed=seed, jitter=0.2) for seed in (0, 1))
    assert one.latencies_s.tolist() != two.latencies_s.tolist()


def test_jitter_spreads_times_about_their_mean() -> None:
    told = simulate(chain(0.05), Closed(), 20_000, jitter=0.3)
    assert told.mean_s == pytest.approx(0.05, rel=0.01)
    assert np.log(told.latencies_s).std() == pytest.approx(0.3, rel=0.03)


def test_nothing_is_kept_of_a_finished_request_but_its_latency() -> None:
    def peak_nbytes(requests: int) -> int:
        tracemalloc.start()
        simulate(chain(0.01, 0.02, 0.01), Closed(4), requests)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_nbytes(10)
    assert peak_nbytes(4000) - peak_nbytes(1000) < 3000 * 48


# Against the runtime's own state machine.


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 200), st.integers(1, 6), st.integers(1, 9))
def test_a_device_loads_and_runs_in_the_order_of_the_worker(
    weights: list[int], spare: int, requests: int, activation: int
) -> None:
    tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight) for i, weight in enumerate(weights)]
    outputs = [f"t{len(tasks)}"]
    sizes = {f"t{i}": activation for i in range(len(tasks) + 1)}
    live = live_activations(tasks, ["t0"], outputs, sizes)
    smallest = max(task.weight_nbytes + live[task.id] for task in tasks)
    residency = decide_residency(tasks, live, smallest + spare, 0)
    worker = WorkerState(tasks, residency, ["t0"], outputs, sizes)
    assert residency.spare_nbytes is not None
    system = System(
        devices=(Device("d", room=1 + residency.spare_nbytes // max(live.values())),),
        links=(),
        dataflows=(
            Dataflow(
                "chain",
                tuple(Partition(t.id, ((0, 0.01),), t.id not in residency.kept, 0.002) for t in tasks),
                (
                    Tensor("t0", activation, REQUEST, (0,)),
                    *(Tensor(f"t{i}", activation, i - 1, (i,)) for i in range(1, len(tasks))),
                    Tensor(outputs[0], activation, len(tasks) - 1, (), True),
                ),
            ),
        ),
    )
    told = simulate(system, Closed(requests), requests, traced=requests)
    simulated = [(span.kind, span.request if span.kind == "compute" else -1, span.name) for span in told.spans]
    assert simulated == _order_of_worker(worker, residency.kept, requests, activation)


def _order_of_worker(
    worker: WorkerState, kept: frozenset[str], requests: int, activation: int
) -> list[tuple[str, int, str]]:
    order: list[tuple[str, int, str]] = []
    for partition in kept:
        worker.handle(Loaded(partition))
    names = [str(number) for number in range(requests)]
    events: list[Event] = [e for n in names for e in (Submitted(n), TensorArrived(n, "t0", activation))]
    while events:
        steps = worker.handle(*events)
        events = []
        for step in steps:
            if isinstance(step, Load):
                order.append(("load", -1, step.partition))
                events.append(Loaded(step.partition))
            elif isinstance(step, Execute):
                order.append(("compute", int(step.request), step.partition))
                made = f"t{int(step.partition[1:]) + 1}"
                events.append(Executed(step.request, step.partition, ((made, activation),)))
    assert worker.is_idle
    return order
