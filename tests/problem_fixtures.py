"""Placement problems without models: small ones drawn at random, for tests of searches against brute force."""

import itertools
from collections.abc import Iterator

import numpy as np

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.problem import REQUEST, Channel, Flow, Limits, Machine, Problem, Task


def two_machines(**limits: float) -> Problem:
    """Return three layers in a row: 10, 20 and 30 ms on the camera, a tenth on the server."""
    return Problem(
        tasks=(Task("a", ((0, 100),), 7), Task("b", ((1, 200),)), Task("c", ((2, 400),))),
        flows=(
            Flow("image", 1000, REQUEST, (0,)),
            Flow("ab", 500, 0, (1, 2)),
            Flow("bc", 100, 1, (2,)),
            Flow("answer", 10, 2, (), is_output=True),
        ),
        machines=(
            Machine("camera", 5000, 50, 0.001, 4.0, 1.0, 0.001),
            Machine("server", None, 80, 0.0005, 100.0, 30.0),
        ),
        channels=(Channel(0, 1, 1e-5, 0.004, 0.001), Channel(1, 0, 1e-6, 0.002, 0.0001, 20)),
        seconds=((0.01, 0.001), (0.02, 0.002), (0.03, 0.003)),
        export_s=((0.0, 0.0), (0.0003, 0.0), (0.0005, 0.0), (0.0, 0.0)),
        import_s=((0.0, 0.0), (0.0, 0.0002), (0.0, 0.0004), (0.0, 0.0)),
        limits=Limits(**limits),  # type: ignore[arg-type]  # the tests name fields
    )


def random_problem(
    rng: np.random.Generator,
    *,
    tasks: int,
    machines: int,
    limits: Limits | None = None,
    has_borders: bool = True,
    cannot_cross: float = 0.1,
    banned: float = 0.1,
    branches: bool = False,
) -> Problem:
    """Return a DAG of layers with fan-out, tied weights and a direct link between each two of the machines.

    Without `branches` each layer needs the one before it, so that stages are always consecutive.
    """
    flows = list(_flows(rng, tasks, cannot_cross, 1.1 if branches else 1.5))
    seconds = rng.integers(1, 100, (tasks, machines)) / 1000.0
    seconds[:, 1:][rng.random((tasks, machines - 1)) < banned] = np.inf
    borders = rng.integers(0, 5, (2, len(flows), machines)) / 1000.0 * has_borders
    return Problem(
        tasks=tuple(
            Task(f"layer{i}", ((int(rng.integers(tasks + 3)), 1000),), int(rng.integers(500))) for i in range(tasks)
        ),
        flows=tuple(flows),
        machines=tuple(
            Machine(
                f"m{i}",
                run_s=float(rng.integers(0, 3)) / 1000,
                active_w=float(rng.integers(3, 9)),
                idle_w=float(rng.integers(0, 3)),
                joules_per_byte=float(rng.integers(0, 3)) * 1e-4,
            )
            for i in range(machines)
        ),
        channels=tuple(
            Channel(
                a,
                b,
                float(rng.integers(1, 60)) * 1e-6,
                float(rng.integers(0, 9)) / 1000,
                float(rng.integers(0, 2)) / 1000,
            )
            for a in range(machines)
            for b in range(machines)
            if a != b
        ),
        seconds=tuple(tuple(map(float, row)) for row in seconds),
        export_s=tuple(tuple(map(float, row)) for row in borders[0]),
        import_s=tuple(tuple(map(float, row)) for row in borders[1]),
        limits=limits or Limits(),
    )


def all_pipelines(problem: Problem) -> Iterator[Assignment]:
    """Yield every pipeline from the entry on over different machines whose stages never fall along an edge.

    Stages in the middle may only pass on what they get: a way over another machine may be faster than the direct one.
    """
    others = [m for m in range(len(problem.machines)) if m != problem.entry]
    for count in range(len(others) + 1):
        for sequence in itertools.permutations(others, count):
            machines = (problem.entry, *sequence)
            for stages in itertools.product(range(len(machines)), repeat=len(problem.tasks)):
                if max(stages) == len(machines) - 1 and _is_allowed(problem, machines, stages):
                    yield pipeline(problem, machines, stages)


def _is_allowed(problem: Problem, machines: tuple[int, ...], stages: tuple[int, ...]) -> bool:
    if any(np.isinf(problem.seconds[task][machines[stage]]) for task, stage in enumerate(stages)):
        return False
    for flow in problem.flows:
        first = stages[flow.producer] if flow.producer != REQUEST else 0
        lasts = [stages[consumer] for consumer in flow.consumers]
        if any(last < first for last in lasts) or (not flow.can_cross and any(last > first for last in lasts)):
            return False
    return True


def _flows(rng: np.random.Generator, tasks: int, cannot_cross: float, nearness: float) -> Iterator[Flow]:
    yield Flow("input", int(rng.integers(1, 3000)), REQUEST, (0,))
    used: set[int] = {0}
    for task in range(tasks):
        later = [int(c) for c in range(task + 1, tasks) if rng.random() < nearness / (c - task + 0.5)]
        crosses = bool(rng.random() >= cannot_cross)
        used.update(later)
        yield Flow(f"value{task}", int(rng.integers(1, 3000)), task, tuple(later), not later, crosses or not later)
    late = [task for task in range(1, tasks) if task not in used]
    if late:
        yield Flow("second", int(rng.integers(1, 3000)), REQUEST, tuple(late))
