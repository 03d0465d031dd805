"""What a hop costs: a feature map's way to another process on the same machine, one way and as a stream.

Every way has a server in a process of its own; all run at the same time and take turns, so that what disturbs one
disturbs the others, and every sample is kept. One way is half of there and back, of the whole tensor each time. The
streams end when the receiver says that it has had all.

    python bench/hop.py                       # what is installed: grpcio, paho-mqtt and mosquitto are optional
    python bench/hop.py --rounds 5 --size 803000
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from common import machine, write_results
from hop_rivals import RIVALS, WAIT_S, Caller, Rival
from hyps.formats.quantities import format_nbytes
from hyps.terminal import table

SIZES = (4096, 65536, 802_816, 3_211_264, 12_845_056)
"""Bytes; the last three are feature maps of VGG16: 7 x 7 x 4096, 56 x 56 x 256 and 224 x 224 x 64 floats."""

WARM_UP = 3
_BURST_NBYTES = 50_000_000
_BURST_MESSAGES = 100


@click.command()
@click.option("--rounds", default=30, show_default=True, help="Turns of each way.")
@click.option("--size", "sizes", multiple=True, type=int, default=SIZES, show_default=True, help="Bytes of the tensor.")
@click.option("--child", hidden=True, nargs=2, type=str, help="Be one server.")
def main(rounds: int, sizes: tuple[int, ...], child: tuple[str, str] | None) -> None:
    """Measure every way at every size and print times, rates, and ratios to raw sockets."""
    if child:
        next(rival for rival in RIVALS if rival.name == child[0]).serve(child[1])
        return
    results: dict[str, Any] = {"machine": machine(), "rounds": rounds, "sizes": {}}
    with contextlib.ExitStack() as stack:
        callers = {}
        for rival in RIVALS:
            if rival.missing():
                click.echo(f"without {rival.name}: `{rival.missing()}`", err=True)
            else:
                callers[rival.name] = stack.enter_context(serving(rival))
        for nbytes in sizes:
            samples = measure(callers, nbytes, rounds)
            results["sizes"][nbytes] = samples
            show(nbytes, samples)
    click.echo(f"raw numbers: {write_results('hop', results)}")


@contextlib.contextmanager
def serving(rival: Rival) -> Iterator[Caller]:
    """Start a rival's server and yield who calls it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", rival.name, f"ipc://{folder}/socket"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            caller = rival.call(process.stdout.readline().strip())
            yield caller
            caller.close()
        finally:
            process.terminate()
            process.wait(WAIT_S)


def measure(callers: dict[str, Caller], nbytes: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds of echoes, and bytes per second of streams, per way."""
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).data
    echoes, count = (10, _BURST_MESSAGES) if nbytes < 1_000_000 else (3, max(4, _BURST_NBYTES // nbytes))
    samples: dict[str, dict[str, list[float]]] = {name: {"echo_s": [], "bytes_per_s": []} for name in callers}
    for turn in range(WARM_UP + rounds):
        for name, caller in callers.items():
            taken_s = [timed(lambda caller=caller: caller.echo(data)) for _ in range(echoes)]
            stream_s = timed(lambda caller=caller: caller.stream(data, count))
            if turn >= WARM_UP:
                samples[name]["echo_s"] += taken_s
                samples[name]["bytes_per_s"].append(count * nbytes / stream_s)
    return samples


def timed(action: Any) -> float:
    """Return the seconds that an action takes."""
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def show(nbytes: int, samples: dict[str, dict[str, list[float]]]) -> None:
    """Print one size."""
    base = samples[RIVALS[0].name]
    rows = []
    for name, taken in samples.items():
        one_way_s = [seconds / 2 for seconds in taken["echo_s"]]
        late_s = statistics.quantiles(one_way_s, n=20)[-1]
        rate = statistics.median(taken["bytes_per_s"])
        rows.append(
            (
                name,
                f"{statistics.median(one_way_s) * 1e6:.0f} µs",
                f"{late_s * 1e6:.0f} µs",
                f"{statistics.median(taken['echo_s']) / statistics.median(base['echo_s']):.2f}",
                f"{rate / 1e9:.2f} GB/s",
                f"{rate / statistics.median(base['bytes_per_s']):.2f}",
            )
        )
    click.echo(f"\n{format_nbytes(nbytes)}")
    click.echo(table(rows, ("way", "one way", "p95", "ratio", "stream", "ratio"), "lrrrrr"))


if __name__ == "__main__":
    main()
