"""What a request costs beside its computing: time, and processor seconds of manager, workers and client.

A plan is served by a manager and workers on this machine, in several placements, all at the same time; they take turns,
with one request at a time and with many under way. Beside them the same plan runs in one process without any of that
(`LocalRunner`): what is more than that is overhead. What a work item and a hop cost are differences of placements.

    python bench/overhead.py
    python bench/overhead.py --model mobilenetv2 --partitions 4 --rounds 3
"""

import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import hyps_models
from common import load, machine, write_results
from fleet.plans import move_plan
from hyps.formats.plan import Partition, Plan, decode_plan
from hyps.local import LocalRunner
from hyps.remote import RemoteRunner, connect
from hyps.terminal import table

DEVICES = ("a", "b")
LOCAL = "local"
_BIN = Path(sys.executable).parent
_READY = re.compile(rb"serving at (\S+):")
_WAIT_S = 30.0


@dataclass(slots=True)
class Turn:
    """What a turn with a number of requests took."""

    seconds: list[float] = field(default_factory=list)
    """Per request, one at a time."""
    per_s: list[float] = field(default_factory=list)
    """Requests, with many under way."""
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    """Of the processor, per request while many are under way, by who used it."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of having a plan run."""

    run: Callable[[dict[str, Any]], dict[str, Any]]
    start: Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]
    """Begins a request and returns what waits for its answer."""
    processes: Mapping[str, int]
    """Numbers of the processes beside this one."""


@click.command()
@click.option("--model", default="digits", show_default=True, help="A reference model.")
@click.option("--partitions", type=int, help="Of the plan; as many as there can be if not given.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each placement.")
@click.option("--requests", default=600, show_default=True, help="Of a turn with many under way; a fifth one by one.")
@click.option("--under-way", default=32, show_default=True)
def main(model: str, partitions: int | None, rounds: int, requests: int, under_way: int) -> None:
    """Measure all placements and print times, rates, processor seconds, and ratios to one process."""
    feeds = {name: np.asarray(value) for name, value in hyps_models.sample_inputs(model).items()}
    before = load()
    with tempfile.TemporaryDirectory(prefix="hyps-overhead-") as scratch, contextlib.ExitStack() as stack:
        plans = make_plans(model, partitions, Path(scratch))
        ways = {LOCAL: stack.enter_context(local(plans["1 worker"]))}
        for name, folder in plans.items():
            ways[name] = stack.enter_context(fleet(folder, Path(scratch) / f"{folder.name}-logs"))
        expected = ways[LOCAL].run(feeds)
        turns = {name: Turn() for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                taken = Turn() if number == 0 else turns[name]  # the first warms up
                take_turn(way, feeds, requests, under_way, taken)
                check(way.run(feeds), expected)
        counts = {name: counted(folder) for name, folder in plans.items()}
    costs = derived(turns, counts)
    click.echo(show(turns, costs))
    facts = {"model": model, "rounds": rounds, "requests": requests, "under_way": under_way, "load": before}
    raw = {name: {"s": t.seconds, "per_s": t.per_s, "cpu_s": t.cpu_s} for name, t in turns.items()}
    results = {"machine": machine(), **facts, "counts": counts, "costs": costs, "turns": raw}
    click.echo(f"raw numbers: {write_results('overhead' if model == 'digits' else f'overhead-{model}', results)}")


def make_plans(model: str, partitions: int | None, folder: Path) -> dict[str, Path]:
    """Return the plan in every placement."""
    path = folder / f"{model}.onnx"
    hyps_models.save(model, path)
    cut = ("--cut", "all") if partitions is None else ("--partitions", partitions)
    layouts: dict[str, tuple[tuple[object, ...], Callable[[int, int], int]]] = {
        "uncut": (("--partitions", 1), lambda _index, _count: 0),
        "1 worker": (cut, lambda _index, _count: 0),
        "2, 1 hop": (cut, lambda index, count: 2 * index // count),
        "2, hops": (cut, lambda index, _count: index % 2),
    }
    plans = {}
    for name, (options, place) in layouts.items():
        plans[name] = folder / name.replace(" ", "-").replace(",", "")
        words = [_BIN / "hypsc", "compile", path, "-o", plans[name], *options, "--no-verify", "-q"]
        subprocess.run(list(map(str, words)), check=True)
        order = [part.id for part in read(plans[name]).partitions]
        placement = {part: DEVICES[place(index, len(order))] for index, part in enumerate(order)}
        move_plan(plans[name], partial(_placed, placement))
    return plans


def _placed(placement: Mapping[str, str], part: Partition) -> str:
    return placement[part.id]


def read(folder: Path) -> Plan:
    """Return the plan in a folder."""
    return decode_plan((folder / "plan.json").read_bytes())


def counted(folder: Path) -> dict[str, int]:
    """Return how many work items a request is, and how many hops from worker to worker."""
    plan = read(folder)
    placement = plan.variants[0].placement
    makers = {name: part.id for part in plan.partitions for name in part.outputs}
    hops = {
        (name, placement[part.id])
        for part in plan.partitions
        for name in part.inputs
        if name in makers and placement[makers[name]] != placement[part.id]
    }
    return {"items": len(plan.partitions), "hops": len(hops)}


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Way]:
    """Run a plan in this process."""
    with LocalRunner(folder, threads=1) as runner:

        def start(feeds: dict[str, Any]) -> Callable[[], dict[str, Any]]:
            made = runner.run(feeds)
            return lambda: made

        yield Way(runner.run, start, {})


@contextlib.contextmanager
def fleet(folder: Path, logs: Path) -> Iterator[Way]:
    """Run a manager and the workers that the plan names."""
    logs.mkdir()
    with contextlib.ExitStack() as stack:
        manager = ["hyps-manager", folder, "--bind", "tcp://127.0.0.1:0", "--fixed"]
        numbers = {"manager": stack.enter_context(running(manager, logs / "manager"))}
        address = await_address(logs / "manager")
        for device in sorted(set(read(folder).variants[0].placement.values())):
            worker = ["hyps-worker", folder, "--manager", address, "--device", device, "--threads", 1]
            numbers[f"worker {device}"] = stack.enter_context(running(worker, logs / device))
        runner: RemoteRunner = stack.enter_context(contextlib.closing(connect(address, timeout_s=_WAIT_S)))

        def start(feeds: dict[str, Any]) -> Callable[[], dict[str, Any]]:
            return runner.submit(feeds).result

        yield Way(runner.run, start, numbers)


@contextlib.contextmanager
def running(words: list[Any], log: Path) -> Iterator[int]:
    """Run a command for the block and yield its process's number."""
    with log.open("wb") as file:
        process = subprocess.Popen([str(_BIN / words[0]), *map(str, words[1:])], stderr=file)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_address(log: Path) -> str:
    """Return where a manager serves, once it does.

    Raises:
        TimeoutError: it does not.
    """
    deadline_s = time.monotonic() + _WAIT_S
    while (found := _READY.search(log.read_bytes())) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(log.read_text())
        time.sleep(0.02)
    return found[1].decode()


def take_turn(way: Way, feeds: dict[str, Any], requests: int, under_way: int, turn: Turn) -> None:
    """Ask one by one, then many at once."""
    for _ in range(requests // 5):
        begin_s = time.perf_counter()
        way.run(feeds)
        turn.seconds.append(time.perf_counter() - begin_s)
    before, own_s, begin_s = cpu_seconds(way.processes), time.process_time(), time.perf_counter()
    waiting: deque[Callable[[], dict[str, Any]]] = deque()
    for _ in range(requests):
        if len(waiting) == under_way:
            waiting.popleft()()
        waiting.append(way.start(feeds))
    while waiting:
        waiting.popleft()()
    turn.per_s.append(requests / (time.perf_counter() - begin_s))
    used = {name: after - before[name] for name, after in cpu_seconds(way.processes).items()}
    for name, seconds in {**used, "client": time.process_time() - own_s}.items():
        turn.cpu_s.setdefault(name, []).append(seconds / requests)


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """Return what each process has used of the processor so far, all its threads together."""
    return {
        name: sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{number}/task").glob("*/schedstat")) / 1e9
        for name, number in processes.items()
    }


def check(made: dict[str, Any], expected: dict[str, Any]) -> None:
    """Make sure that an answer is right."""
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=0, atol=1e-4 * float(np.abs(value).max()))


def derived(turns: Mapping[str, Turn], counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return what is overhead per request, per work item and per hop, one at a time, and with many under way."""
    seconds = {name: statistics.median(turn.seconds) for name, turn in turns.items()}
    work = {name: sum(statistics.median(used) for used in turn.cpu_s.values()) for name, turn in turns.items()}
    one, whole, each = "1 worker", "uncut", "2, hops"
    items = max(1, counts[one]["items"] - counts[whole]["items"])
    hops = max(1, counts[each]["hops"])
    return {
        "request_s": seconds[one] - seconds[LOCAL],
        "request_cpu_s": work[one] - work[LOCAL],
        "item_s": (seconds[one] - seconds[whole]) / items,
        "item_cpu_s": (work[one] - work[whole]) / items,
        "hop_s": (seconds[each] - seconds[one]) / hops,
        "hop_cpu_s": (work[each] - work[one]) / hops,
    }


def show(turns: Mapping[str, Turn], costs: Mapping[str, float]) -> str:
    """Return the tables."""
    base = turns[LOCAL]
    rows = []
    for name, turn in turns.items():
        used = {who: statistics.median(seconds) for who, seconds in turn.cpu_s.items()}
        workers_s = sum(seconds for who, seconds in used.items() if who.startswith("worker"))
        late_s = statistics.quantiles(turn.seconds, n=20)[-1]
        cells = (
            f"{statistics.median(turn.seconds) * 1e3:.2f} ms",
            f"{late_s * 1e3:.2f} ms",
            f"{statistics.median(turn.seconds) / statistics.median(base.seconds):.1f}",
            f"{statistics.median(turn.per_s):.0f}",
            f"{statistics.median(turn.per_s) / statistics.median(base.per_s):.3f}",
            *(f"{seconds * 1e3:.2f} ms" for seconds in (used.get("manager", 0.0), workers_s, used["client"])),
        )
        rows.append((name, *cells))
    heads = ("placement", "request", "p95", "ratio", "per s", "ratio", "manager", "workers", "client")
    lines = [f"{name}: {seconds * 1e3:.3f} ms" for name, seconds in costs.items()]
    return "\n".join([table(rows, heads, "lrrrrrrrr"), *lines])


if __name__ == "__main__":
    main()
