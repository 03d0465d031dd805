"""Throughput of pipelines: 2, 4 and 8 workers with a small part of a core each, against one such worker.

`hypsc profile` measures the model on a core here, `hypsc compile --cluster --objective throughput` divides it for so
many devices of that part of the speed, and manager and workers run the plan in namespaces of their own on a switch,
with several requests on their way at once. Beside it: one worker with the uncut plan, and unsplit onnxruntime, under
the same quota; and what the cost model says no pipeline of these stages can exceed. Variants have their turns in a new
order each round, in fresh processes.

    python pipeline.py                                    # in bench/, as root
    python pipeline.py --model resnet50 --rounds 1        # one of them; results are added to those there are
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import testbed
from common import RESULTS, load, machine, write_results
from fleet.plans import move_plan
from fleet.running import MANAGER, Question, ask, fleet, make_question, run_whole
from hyps.formats.plan import Plan, decode_plan
from hyps.terminal import table
from testbed import SWITCH, Device, Layout, Machine, Wire

MODELS = ("vgg16", "resnet50", "mobilenetv2")
COUNTS = (2, 4, 8)
CPU_FRACTION, PERIOD_S = 0.12, 0.02
"""Eight of them use one of two cores; the other is for links, the manager and those that ask."""
MBIT_PER_S = 1000
AIM = 0.9
PUBLISHED = {("resnet50", 8): "DEFER: 1.53"}
WHOLE, ONE = "unsplit", "one worker"

_HYPSC = Path(sys.executable).with_name("hypsc")
_WINDOWS = 10
_FILL = 0.3
"""The part of a turn that is left out, while the pipeline fills."""
_ROUND_TRIPS = 24
"""A turn takes as long as one worker takes for so many requests, divided by the workers, within these seconds."""
_SHORTEST_S, _LONGEST_S = 10.0, 30.0


@dataclass(slots=True)
class Variant:
    """A number of workers, and what was measured of them."""

    folder: Path
    names: tuple[str, ...]
    rates: list[float] = field(default_factory=list)
    """Answers per second in a part of a turn each."""
    latencies_s: list[float] = field(default_factory=list)
    runs_s: list[dict[str, float]] = field(default_factory=list)
    """Of each turn: mean seconds that partitions took."""

    @property
    def plan(self) -> Plan:
        """What is run."""
        return decode_plan((self.folder / "plan.json").read_bytes())


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--workers", "counts", multiple=True, type=int, default=COUNTS, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Turns of every variant.")
def main(models: tuple[str, ...], counts: tuple[int, ...], rounds: int) -> None:
    """Measure and print the table."""
    path = RESULTS / "pipeline.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for model in models:
        with tempfile.TemporaryDirectory(prefix="hyps-pipeline-") as scratch:
            results[model] = {"load": load(), **measure(model, counts, rounds, Path(scratch))}
            write_results("pipeline", {"machine": machine(), "results": results})
            print(show({model: results[model]}), file=sys.stderr)
    print(show(results))


def measure(model: str, counts: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Divide a model, let every variant have its turns, and return the figures."""
    question = make_question(model, folder)
    variants = divide(question.model, counts, folder)
    single_s = statistics.median(run_whole(question, 5)) / CPU_FRACTION
    whole_s: list[float] = []
    order, shuffler = [*variants, WHOLE], random.Random(0)
    with testbed.build(layout(max(counts))) as devices:
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                if name == WHOLE:
                    whole_s += run_whole(question, 15, devices["w1"])
                else:
                    take_turn(variants[name], question, devices, single_s, folder / "fleet")
    told = {name: figures(variant) for name, variant in variants.items()}
    return {"cpu_fraction": CPU_FRACTION, "mbit_per_s": MBIT_PER_S, "unsplit_s": whole_s, "variants": told}


def layout(count: int) -> Layout:
    """Return so many workers and the manager's machine on a switch."""
    names = [f"w{index + 1}" for index in range(count)]
    machines = {name: Machine(CPU_FRACTION, period_s=PERIOD_S) for name in names}
    wires = tuple(Wire(name, SWITCH, MBIT_PER_S * 1e6 / 8) for name in (*names, MANAGER))
    return Layout({**machines, MANAGER: Machine()}, wires)


def divide(model: Path, counts: Sequence[int], folder: Path) -> dict[str, Variant]:
    """Return the variants, compiled as users compile."""
    profile = folder / "profile.json"
    with testbed.build(layout(1)) as devices:  # where nothing that runs beside takes the core away
        hypsc("profile", model, "-o", profile, "--threads", 1, run=devices[MANAGER].run)
    hypsc("compile", model, "-o", folder / "plan-1", "--no-verify")
    move_plan(folder / "plan-1", lambda _: "w1")
    variants = {ONE: Variant(folder / "plan-1", ("w1",))}
    for count in counts:
        names = tuple(f"w{index + 1}" for index in range(count))
        cluster = folder / f"cluster-{count}.toml"
        defaults = f'speed = {CPU_FRACTION}\nthreads = 1\nup = "{MBIT_PER_S}Mbit/s"\n'
        cluster.write_text(f"[defaults]\n{defaults}" + "".join(f'[[devices]]\nname = "{name}"\n' for name in names))
        plan = folder / f"plan-{count}"
        options = ("--cluster", cluster, "--profile", profile, "--objective", "throughput", "--no-verify")
        hypsc("compile", model, "-o", plan, *options)
        variants[f"{count} workers"] = Variant(plan, names)
    return variants


def hypsc(*words: object, run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run) -> None:
    """Run `hypsc`, here or, with a device's `run`, there.

    Raises:
        RuntimeError: it failed.
    """
    done = run([_HYPSC, *map(str, words), "-q"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`hypsc {words[0]}` failed: {done.stderr}")


def take_turn(
    variant: Variant, question: Question, devices: Mapping[str, Device], single_s: float, folder: Path
) -> None:
    """Start manager and workers, keep them busy for a while, and add what was measured."""
    count = len(variant.names)
    seconds = min(_LONGEST_S, max(_SHORTEST_S, _ROUND_TRIPS * single_s / count))
    used = sorted(set(variant.plan.variants[0].placement.values()))
    with fleet(variant.folder, used, devices, folder) as made:
        asked = ask(made, question, warm_up=2, in_flight=2 * count + 1, seconds=seconds)
    variant.latencies_s += asked.latencies_s
    variant.runs_s += asked.runs_s
    variant.rates += rates_of(asked.done_s, seconds)


def rates_of(done_s: Sequence[float], seconds: float) -> list[float]:
    """Return the answers per second in each part of a turn, between answers, once the pipeline is full."""
    steady = [moment for moment in done_s if _FILL * seconds <= moment <= seconds]
    edges = [round(index * (len(steady) - 1) / _WINDOWS) for index in range(_WINDOWS + 1)]
    spans = [(b - a, steady[b] - steady[a]) for a, b in pairwise(edges)]
    return [count / span for count, span in spans if count]


def figures(variant: Variant) -> dict[str, Any]:
    """Return the raw numbers of a variant, and what its plan predicts."""
    plan = variant.plan
    told = plan.variants[0]
    predicted_s, busy_s = dict.fromkeys(told.placement.values(), 0.0), dict.fromkeys(told.placement.values(), 0.0)
    for partition, device in told.placement.items():
        predicted_s[device] += told.prediction.partition_s.get(partition, 0.0)
        busy_s[device] += statistics.fmean(runs.get(partition, 0.0) for runs in variant.runs_s)
    return {
        "workers": len(variant.names),
        "used": len(set(told.placement.values())),
        "partitions": len(plan.partitions),
        "predicted_rps": told.prediction.throughput_rps,
        "predicted_s": predicted_s,
        "busy_s": busy_s,
        "rates": variant.rates,
        "latencies_s": variant.latencies_s,
    }


def show(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table."""
    rows: list[tuple[object, ...]] = []
    for model, told in results.items():
        unsplit_rps = 1 / statistics.median(told["unsplit_s"])
        one_rps = statistics.median(told["variants"][ONE]["rates"])
        rows.append((model, WHOLE, "", f"{unsplit_rps:.2f}", "", "", f"{unsplit_rps / one_rps:.2f}", "", "", ""))
        for name, variant in told["variants"].items():
            rows.append(line(model, name, variant, one_rps))
    headers = (
        "model",
        "variant",
        "n",
        "rps",
        "predicted bound",
        "bound",
        "speed-up",
        "of the bound",
        "least",
        "published",
    )
    return table(rows, headers, "llrrrrrrrl", 140)


def line(model: str, name: str, variant: Mapping[str, Any], one_rps: float) -> tuple[object, ...]:
    """Return a line of the table: the speed-up over one worker, beside what its stages' balance allows."""
    rates, bound = variant["rates"], balance(variant["busy_s"])
    gain = statistics.median(rates) / one_rps
    share = f"{gain / bound:.2f}" if variant["workers"] > 1 else ""
    published = PUBLISHED.get((model, variant["workers"]), "")
    bounds = (f"{balance(variant['predicted_s']):.2f}", f"{bound:.2f}")
    speeds = (f"{gain:.2f}", share, f"{min(rates) / one_rps:.2f}")
    return (model, name, len(rates), f"{statistics.median(rates):.2f}", *bounds, *speeds, published)


def balance(busy_s: Mapping[str, float]) -> float:
    """Return what a pipeline of devices that are so busy with each request can win: the sum over the busiest."""
    return sum(busy_s.values()) / max(busy_s.values()) if any(busy_s.values()) else 1.0


if __name__ == "__main__":
    main()
