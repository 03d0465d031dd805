"""Chains and branches to place by hand, for tests of strategies."""

import itertools
from collections.abc import Iterator, Sequence

from hyps_passes.assignment import Assignment, pipeline
from hyps_passes.problem import REQUEST, Channel, Flow, Limits, Machine, Problem, Task

FASTER = 10.0
"""How much faster the second machine is than the first; the third as much again."""


def chain(
    seconds: Sequence[float],
    nbytes: Sequence[int],
    *,
    machines: int = 2,
    s_per_byte: float = 1e-6,
    weights: Sequence[int] | None = None,
    pooling: Sequence[int] = (),
    reach: Sequence[float] | None = None,
    memory_bytes: Sequence[int | None] | None = None,
    limits: Limits | None = None,
) -> Problem:
    """Return layers in a row.

    Args:
        seconds: of each layer on the entry.
        nbytes: of the request, then of what each layer makes; the last is the answer.
        machines: how many; each is `FASTER` times as fast as the one before.
        s_per_byte: of every channel.
        weights: bytes of each layer.
        pooling: layers that pool.
        reach: how likely a request comes to each layer.
        memory_bytes: of each machine.
        limits: of the problem.
    """
    count = len(seconds)
    flows = [Flow("request", nbytes[0], REQUEST, (0,))]
    flows += [Flow(f"t{i}", nbytes[i + 1], i, (i + 1,) if i + 1 < count else (), i + 1 == count) for i in range(count)]
    return Problem(
        tasks=tuple(
            Task(
                f"layer{i}",
                ((i, weights[i]),) if weights else (),
                reach=reach[i] if reach else 1.0,
                downsampling="pooling" if i in pooling else None,
            )
            for i in range(count)
        ),
        flows=tuple(flows),
        machines=tuple(Machine(f"m{i}", memory_bytes[i] if memory_bytes else None) for i in range(machines)),
        channels=tuple(Channel(a, b, s_per_byte) for a, b in itertools.permutations(range(machines), 2)),
        seconds=tuple(tuple(s / FASTER**m for m in range(machines)) for s in seconds),
        export_s=((0.0,) * machines,) * (count + 1),
        import_s=((0.0,) * machines,) * (count + 1),
        limits=limits or Limits(),
    )


def fork(crossing: int) -> Problem:
    """Return a stem with two branches that join: 100 kB in, 50 kB out of the stem, `crossing` out of each branch."""
    sizes = [("image", 100_000, REQUEST, (0,)), ("stem", 50_000, 0, (1, 2)), ("left", crossing, 1, (3,))]
    sizes += [("right", crossing, 2, (3,)), ("answer", 10, 3, ())]
    return Problem(
        tasks=tuple(Task(name) for name in ("stem", "left", "right", "join")),
        flows=tuple(Flow(name, size, made, used, not used) for name, size, made, used in sizes),
        machines=(Machine("camera"), Machine("server")),
        channels=(Channel(0, 1, 1e-6), Channel(1, 0, 1e-6)),
        seconds=((0.01, 0.001), (0.01, 0.001), (0.01, 0.001), (0.1, 0.01)),
        export_s=((0.0, 0.0),) * 5,
        import_s=((0.0, 0.0),) * 5,
    )


def two_tier_pipelines(problem: Problem) -> Iterator[Assignment]:
    """Yield every cut of the graph between the entry and one other machine, no cut and everything there among them."""
    for server in range(len(problem.machines)):
        if server == problem.entry:
            continue
        for stages in itertools.product((0, 1), repeat=len(problem.tasks)):
            yield pipeline(problem, (problem.entry, server), stages)
