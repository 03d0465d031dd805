"""Measures the way to a running worker: bytes per second up and down, latency, and what each message costs."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hyps.errors import BusyError, PeerError
from hyps.formats.messages import MAX_PROBE_NBYTES, MachineFacts, PartitionSeconds
from hyps.formats.profiles import LinkProfile, Sample
from hyps.remote import RemoteRunner, connect

_T = TypeVar("_T")

_SMALL_PROBES = 21
_BURST = 8
"""Messages at once; the connection holds 16."""
_LARGE_PROBES = 5
_LONG_S = 0.1
"""A burst that takes so long tells the rate; shorter ones are mostly latency."""
_FIRST_NBYTES = 16 * 1024
_BUSY_S = 30.0
_LEAST_S = 1e-6
"""Of a burst beyond what its messages cost empty: a clock tells no less."""


def probe_link(address: str) -> LinkProfile:
    """Return what the way from here to the worker at `address` costs, and what its partitions took of late.

    Takes a few seconds; on a slow link as long as a few megabytes take.

    Raises:
        UsageError: no address.
        BusyError: the worker had requests to compute for half a minute.
        PeerError: no worker answers there, or one that does not know probes.
    """
    runner = connect(address)
    try:
        return measure_link(runner, address)
    finally:
        runner.close()


def measure_link(runner: RemoteRunner, address: str) -> LinkProfile:
    """Return what the way to the worker of `runner` costs; see `probe_link`."""
    single_s = _typical(_SMALL_PROBES, lambda: runner.probe()[0])
    burst_s = _typical(_SMALL_PROBES, lambda: runner.probe(count=_BURST)[0])
    most = min(MAX_PROBE_NBYTES, runner.max_nbytes)
    message_s = max(0.0, (burst_s - single_s) / (_BURST - 1))
    return LinkProfile(
        peer=address,
        device=runner.device,
        up_bytes_per_s=_rate(most, burst_s, lambda nbytes: runner.probe(nbytes, 0, _BURST)[0]),
        down_bytes_per_s=_rate(most, burst_s, lambda nbytes: runner.probe(0, nbytes, _BURST)[0]),
        latency_s=max(0.0, single_s / 2 - message_s),  # an empty message there and one back
        message_s=message_s,
        n=_LARGE_PROBES,
        partitions={told.partition: _sample(told) for told in _patiently(lambda: _seconds(runner))},
    )


def probe_machine(runner: RemoteRunner) -> MachineFacts:
    """Return what the machine of a running worker can do.

    Raises:
        BusyError: the worker had requests to compute for half a minute.
        PeerError: it is gone, or does not tell.
    """
    told = _patiently(lambda: runner.probe(wants_seconds=True)[1].machine)
    if told is None:
        raise PeerError("the worker does not tell what its machine can do", "upgrade hyps there")
    return told


def _sample(told: PartitionSeconds) -> Sample:
    return Sample(median_s=told.median_s, p95_s=told.p95_s, n=told.n)


def _seconds(runner: RemoteRunner) -> tuple[PartitionSeconds, ...]:
    return runner.probe(wants_seconds=True)[1].seconds


def _typical(runs: int, seconds: Callable[[], float]) -> float:
    return statistics.median(_patiently(seconds) for _ in range(runs))


def _rate(most_nbytes: int, empty_s: float, burst: Callable[[int], float]) -> float:
    """Return the bytes per second of bursts that take long enough to tell, or of the largest that there can be.

    Args:
        most_nbytes: of one message.
        empty_s: what a burst of empty messages takes.
        burst: the seconds of a burst of messages of so many bytes.
    """
    nbytes = min(_FIRST_NBYTES, most_nbytes)
    while nbytes < most_nbytes and _patiently(partial(burst, nbytes)) < empty_s + _LONG_S:
        nbytes = min(4 * nbytes, most_nbytes)
    typical_s = _typical(_LARGE_PROBES, partial(burst, nbytes))
    return _BURST * nbytes / max(typical_s - empty_s, _LEAST_S)


def _patiently(ask: Callable[[], _T]) -> _T:
    """Return what `ask` returns, once the worker has time for it."""
    deadline_s = time.monotonic() + _BUSY_S
    while True:
        try:
            return ask()
        except BusyError as error:
            if time.monotonic() + error.retry_after_s > deadline_s:
                raise
            time.sleep(error.retry_after_s)
