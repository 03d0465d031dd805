"""How soon a manager knows where partitions shall run: from the question to the reply of the child that searches.

Partitions in a row (or with a branch at every third), drawn by seed, on devices of three speeds, every one with memory
for a part of them. `first` starts the child, `next` asks it again; processor seconds are those of the child, and depend
little on what else the machine does. Each is asked `--repeats` times.

    python bench/replanning.py
"""

import random
import resource
import statistics
import threading
import time
from typing import Any

import click

from common import load, machine, write_results
from hyps.adapters.planner import ChildPlanner
from hyps.formats.replanning import Aim, Answer, DeviceFacts, PartitionFacts, Question, Reply, Weight
from hyps.terminal import table

SIZES = ((6, 3), (30, 8), (60, 8), (200, 4), (30, 20))
"""Partitions and devices."""
WAIT_S = 60.0


def question(partitions: int, devices: int, aim: Aim, *, has_branches: bool, seed: int = 1) -> Question:
    """Return a question of that size; what runs now cannot go on, so that nothing is searched but what is needed."""
    rng = random.Random(seed)
    names = [f"p{index:03}" for index in range(partitions)]
    parts = tuple(
        PartitionFacts(
            id=name,
            inputs=_inputs(index, has_branches=has_branches),
            outputs=(f"t{index + 1}",),
            weights=(Weight(key=name, nbytes=rng.randint(1, 30) * 10**6),),
            work_bytes=10**6,
            macs=rng.randint(1, 100) * 10**7,
        )
        for index, name in enumerate(names)
    )
    weights = sum(weight.nbytes for part in parts for weight in part.weights)
    return Question(
        number=seed,
        partitions=parts,
        tensor_bytes={f"t{index}": rng.randint(1, 800) * 1000 for index in range(partitions + 1)},
        model_inputs=("t0",),
        model_outputs=(f"t{partitions}",),
        devices=tuple(
            DeviceFacts(
                name=f"d{index:02}",
                memory_bytes=100 * 10**6 + 2 * weights // devices,
                base_bytes=60 * 10**6,
                macs_per_s=rng.choice((1, 2, 4)) * 1e9,
            )
            for index in range(devices)
        ),
        aim=aim,
        current=dict.fromkeys(names, ("gone",)),
    )


def measured(asked: Question, repeats: int) -> dict[str, Any]:
    """Return seconds and processor seconds of the first and the next replies, and what they say."""
    first, again, spent, replies = [], [], [], []
    for _ in range(repeats):
        before_s = _child_cpu_s()
        woken = threading.Event()
        with ChildPlanner(woken.set) as planner:
            first.append(_asked(planner, asked, woken)[0])
            seconds, reply = _asked(planner, asked, woken)
            again.append(seconds)
            replies.append(reply)
        spent.append(_child_cpu_s() - before_s)
    reply = replies[-1]
    told = {"reason": reply.reason} if isinstance(reply, Answer) else {"refusal": reply.message}
    return {"first_s": first, "next_s": again, "both_cpu_s": spent, **told}


def _asked(planner: ChildPlanner, asked: Question, woken: threading.Event) -> tuple[float, Reply]:
    woken.clear()
    start_s = time.perf_counter()
    planner.ask(asked)
    if not woken.wait(WAIT_S):
        raise TimeoutError(f"no reply within {WAIT_S} s")
    seconds, reply = time.perf_counter() - start_s, planner.poll()
    if reply is None:
        raise RuntimeError("woken without a reply")
    return seconds, reply


def _inputs(index: int, *, has_branches: bool) -> tuple[str, ...]:
    skips = has_branches and index >= 3 and index % 3 == 0
    return (f"t{index}", f"t{index - 2}") if skips else (f"t{index}",)


def _child_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(size: tuple[int, int], kind: str, aim: Aim, told: dict[str, Any]) -> tuple[str, ...]:
    first, again, spent = (told[key] for key in ("first_s", "next_s", "both_cpu_s"))
    shown = [f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" for values in (first, again)]
    return (f"{size[0]} on {size[1]}", kind, aim, *shown, f"{statistics.median(spent):.2f}")


@click.command()
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(min=1))
def main(repeats: int) -> None:
    """Measure all sizes."""
    rows, raw = [], []
    aims: tuple[Aim, ...] = ("latency", "throughput")
    for size in SIZES:
        for kind in ("row", "branches"):
            for aim in aims:
                told = measured(question(*size, aim, has_branches=kind == "branches"), repeats)
                rows.append(_row(size, kind, aim, told))
                raw.append({"partitions": size[0], "devices": size[1], "kind": kind, "aim": aim, **told})
                click.echo("  ".join(rows[-1]), err=True)
    write_results("replanning", {"machine": machine(), "load": load(), "samples": raw})
    click.echo(table(rows, ("partitions", "kind", "aim", "first, s", "next, s", "both, processor s"), "lllrrr", 120))


if __name__ == "__main__":
    main()
