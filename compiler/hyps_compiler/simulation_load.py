"""When simulated requests arrive, and by how much computing times differ: drawn from seeded generators."""

import itertools
from collections.abc import Iterator
from typing import assert_never

import numpy as np

from hyps_compiler.simulation_system import Closed, Listed, Load, Open

_BLOCK = 4096


def arrivals(load: Load, requests: int, seed: int) -> Iterator[float]:
    """Return when requests arrive by themselves, ascending; of a closed load none do."""
    match load:
        case Closed():
            return iter(())
        case Listed(times_s):
            return iter(times_s[:requests])
        case Open(rps, is_random=True):
            return itertools.islice(_poisson(rps, np.random.default_rng([seed, 0])), requests)
        case Open(rps):
            return (number / rps for number in range(requests))
        case _ as never:
            assert_never(never)


def _poisson(rps: float, rng: np.random.Generator) -> Iterator[float]:
    now = 0.0
    while True:
        for gap_s in rng.exponential(1 / rps, _BLOCK).tolist():
            now += gap_s
            yield now


def factors(jitter: float, seed: int) -> Iterator[float]:
    """Yield lognormal factors with a mean of 1."""
    rng = np.random.default_rng([seed, 1])
    while True:
        yield from rng.lognormal(-jitter * jitter / 2, jitter, _BLOCK).tolist()
