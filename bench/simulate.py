"""How fast the simulation is, and how well it agrees with the one cost model it shares its seconds with.

Speed: requests through a pipeline of four stages on four devices, and through eight shards with a merge. Agreement: the
simulated over the estimated, for random placement problems (those of the tests): the latency of a request alone, the
throughput with many in flight, the wait at random arrivals. A ratio below 1 is where tensors overlap on a way over
several links, or answers leave early, which the estimate of a pipeline does not count on.

    python bench/simulate.py                 # two minutes
    python bench/simulate.py --requests 10000 --problems 20
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from common import machine, write_results
from hyps.terminal import table
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_problem import system_of
from hyps_compiler.simulation_system import (
    REQUEST,
    Closed,
    Dataflow,
    Device,
    Link,
    Load,
    Open,
    Partition,
    System,
    Tensor,
)
from hyps_passes.assignment import Assignment, single
from hyps_passes.estimate import estimate, placed
from hyps_passes.problem import Problem

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from problem_fixtures import all_pipelines, random_problem  # lies beside the tests

REPEATS = 5
BUSY = (0.3, 0.6, 0.8)


@click.command()
@click.option("--requests", default=100_000, show_default=True, help="In each run of the speed part.")
@click.option("--problems", default=100, show_default=True, help="Random problems of the agreement part.")
def main(requests: int, problems: int) -> None:
    """Measure both parts, print their tables and write the raw numbers."""
    speed = [run_speed(*case, requests) for case in speed_cases()]
    print(show_speed(speed))
    ratios = dict(sorted(agreement(problems).items()))
    print(show_agreement(ratios))
    write_results("simulate", {"machine": machine(), "requests": requests, "speed": speed, "agreement": ratios})


def speed_cases() -> Iterator[tuple[str, System, Load]]:
    """Yield what is timed: a name, a system, a load."""
    pipeline = four_stages()
    yield "4 stages, one at a time", pipeline, Closed()
    yield "4 stages, 8 in flight", pipeline, Closed(8)
    yield "4 stages, random arrivals", pipeline, Open(60.0)
    yield "8 shards and a merge, 8 in flight", eight_shards(), Closed(8)


def run_speed(name: str, system: System, load: Load, requests: int) -> dict[str, Any]:
    """Return the seconds of each repeat, of the processor: others may use it meanwhile."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        told = simulate(system, load, requests)
        seconds.append(time.process_time() - start)
        assert len(told.requests) == requests, "every request is answered"
    return {"case": name, "requests": requests, "seconds": seconds}


def four_stages() -> System:
    """Return four devices in a ring, a partition of 10 to 13 ms on each."""
    count = 4
    tensors = [Tensor("in", 1000, REQUEST, (0,))]
    tensors += [Tensor(f"t{i}", 10_000, i, (i + 1,)) for i in range(count - 1)]
    return System(
        devices=tuple(Device(f"d{i}") for i in range(count)),
        links=tuple(Link(f"d{i}", i, (i + 1) % count, 1e-7, 0.001) for i in range(count)),
        dataflows=(
            Dataflow(
                "pipeline",
                tuple(Partition(f"p{i}", ((i, 0.01 + i * 1e-3),)) for i in range(count)),
                (*tensors, Tensor("out", 100, count - 1, (), True)),
            ),
        ),
    )


def eight_shards() -> System:
    """Return a star: eight devices run a shard each, the entry merges."""
    count = 8
    return System(
        devices=tuple(Device(f"d{i}") for i in range(count + 1)),
        links=tuple(Link(f"{a} to {b}", a, b, 1e-8) for i in range(1, count + 1) for a, b in ((0, i), (i, 0))),
        dataflows=(
            Dataflow(
                "shards",
                (
                    *(Partition(f"s{i}", ((i + 1, 0.01),)) for i in range(count)),
                    Partition("merge", ((0, 0.001),)),
                ),
                (
                    Tensor("in", 1000, REQUEST, tuple(range(count))),
                    *(Tensor(f"t{i}", 1000, i, (count,)) for i in range(count)),
                    Tensor("out", 100, count, (), True),
                ),
            ),
        ),
    )


def agreement(problems: int) -> dict[str, list[float]]:
    """Return simulated over estimated, by what is compared."""
    ratios: dict[str, list[float]] = {}
    rng = np.random.default_rng(4)

    def note(what: str, simulated: float, estimated: float) -> None:
        ratios.setdefault(what, []).append(simulated / estimated)

    for _ in range(problems):
        problem = random_problem(rng, tasks=5, machines=3)
        ways = "direct links" if all(len(path) == 1 for path in problem.paths.values()) else "ways over two links"
        for assignment in all_pipelines(problem):
            note(f"latency, pipeline of {len(assignment.stages)}, {ways}", *_latencies(problem, assignment))
        machine_of = [int(rng.choice(problem.allowed(task))) for task in range(5)]
        assignment = placed(problem, machine_of)
        note(f"latency, any placement, {ways}", *_latencies(problem, assignment))
        told = simulate(system_of(problem, assignment), Closed(40), 4000)
        note("throughput, 40 in flight", told.throughput_rps, estimate(problem, assignment).throughput_rps)
    for busy in BUSY:
        for seed in range(max(1, problems // 10)):
            problem = random_problem(rng, tasks=5, machines=2)
            note(f"wait, one machine, {busy:.0%} busy", *_waits(problem, busy, seed))
    return ratios


def _latencies(problem: Problem, assignment: Assignment) -> tuple[float, float]:
    alone = simulate(system_of(problem, assignment), Closed(), 1)
    return float(alone.latencies_s[0]), estimate(problem, assignment).latency_s


def _waits(problem: Problem, busy: float, seed: int) -> tuple[float, float]:
    assignment = single(problem, 0)
    service_s = estimate(problem, assignment).latency_s
    loaded = replace(problem, arrival_rps=busy / service_s)
    told = simulate(system_of(loaded, assignment), Open(busy / service_s), 100_000, seed=seed)
    return told.mean_s - service_s, estimate(loaded, assignment).queue_s


def show_speed(speed: list[dict[str, Any]]) -> str:
    """Return requests in a second by case: least, median, most."""
    rows = [
        (r["case"], r["requests"], *(f"{r['requests'] / f(r['seconds']):,.0f}" for f in _spread(max, min)))
        for r in speed
    ]
    return table(rows, ("case", "requests", "least/s", "median/s", "most/s"), "lrrrr")


def show_agreement(ratios: dict[str, list[float]]) -> str:
    """Return simulated over estimated by what is compared: least, median, most."""
    rows = [(what, len(values), *(f"{f(values):.4f}" for f in _spread(min, max))) for what, values in ratios.items()]
    return table(rows, ("simulated / estimated", "cases", "least", "median", "most"), "lrrrr")


def _spread(first: Callable[..., float], last: Callable[..., float]) -> tuple[Callable[..., float], ...]:
    return first, statistics.median, last


if __name__ == "__main__":
    main()
