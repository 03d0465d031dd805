"""The truth about predictions: every cut between two devices, predicted and measured.

Each cluster of `truth.clusters` is built from namespaces, a tbf rate and a pacer (`testbed`). In it `hypsc profile`
runs on the device and on the server, and measures the link; from that the cost model predicts every cut, and the exact
search chooses one. Then requests are made through the cuts, in turns: the device runs the head and sends what crosses
to a `hyps-worker` on the server, which runs the tail and answers. All with one thread and everything loaded.

Profiles and measurements alternate too (`--sessions`), so that what disturbs one disturbs the other; a prediction is
the mean over the sessions, a measured latency the median over all requests. Of models with many borders some 20, spread
evenly, are measured, and always those that are chosen, those that are none (`local`, `remote`), and every natural
bottleneck that no border before it beats.

    python -m truth                                       # in bench/, as root
    python -m truth --model mobilenetv2 --pair camera     # one of them; results are added to those there are
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import testbed
from common import RESULTS, machine, write_results
from hyps.formats.profiles import LinkProfile
from hyps.terminal import table
from hyps_passes.graph import CutGraph
from hyps_passes.searches.split_points import bottlenecks
from testbed import Device
from truth.clusters import DEVICE, PAIRS, SERVER, Pair
from truth.measuring import Samples, measure_cuts, measure_link
from truth.plans import Model, Sides, read_model, write_sides
from truth.predicting import Prediction, build, choose, measure_profile, predict

MODELS = ("mobilenetv2", "resnet50", "googlenet", "alexnet", "densenet169", "vgg16", "encoder-small")
LOCAL, REMOTE, EXACT = "local", "remote", "exact"
"""Everything on the device, everything on the server, and what the search chose where that is no prefix."""

Head = tuple[int, ...]
"""The layers that the device runs."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How much is measured in a session."""

    rounds: int
    repeats: int
    profiled: int
    """The most borders that a profile measures."""


@dataclass(slots=True)
class Case:
    """One model on one cluster, as far as it has been seen."""

    model: Model
    pair: Pair
    heads: dict[str, Head]
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    """By session."""
    links: list[LinkProfile] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """Of the machine, when each session began."""


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--pair", "pairs", multiple=True, type=click.Choice(list(PAIRS)), default=list(PAIRS), show_default=True)
@click.option("--sessions", default=3, show_default=True, help="How often profiles and cuts are measured.")
@click.option("--rounds", default=2, show_default=True, help="Turns of every cut in a session.")
@click.option("--repeats", default=6, show_default=True, help="Requests in a turn.")
@click.option("--most", default=20, show_default=True, help="Most borders, beside those that are always measured.")
@click.option("--profiled", default=60, show_default=True, help="Most borders that a profile measures.")
@click.option("--fresh", is_flag=True, help="Forget the results there are.")
def main(
    models: tuple[str, ...],
    pairs: tuple[str, ...],
    sessions: int,
    rounds: int,
    repeats: int,
    most: int,
    profiled: int,
    fresh: bool,
) -> None:
    """Predict and measure every cut, and print how far they are apart."""
    results = [] if fresh else _earlier()
    turns = Turns(rounds, repeats, profiled)
    for name in models:
        with tempfile.TemporaryDirectory(prefix="hyps-truth-") as folder:
            (Path(folder) / "model").mkdir()
            model = read_model(name, Path(folder) / "model")
            sides: dict[Head, Sides] = {}
            for pair in pairs:
                start_s = time.monotonic()
                case = Case(model, PAIRS[pair], _candidates(model.graph, most))
                with testbed.build(case.pair.layout) as devices:
                    for _ in range(sessions):
                        run_session(case, devices, sides, Path(folder), turns)
                told = result(case)
                results = [r for r in results if (r["model"], r["pair"]) != (name, pair)] + [told]
                write_results("truth", {"machine": machine(), "results": results})
                print(f"{name} {pair}: {time.monotonic() - start_s:.0f} s", file=sys.stderr)
                print(show([told]), file=sys.stderr)
    print(show(results))


def run_session(
    case: Case,
    devices: Mapping[str, Device],
    sides: dict[Head, Sides],
    folder: Path,
    turns: Turns,
) -> None:
    """Measure profiles and link, predict, and measure the cuts; all of it is added to the case."""
    case.loads.append(round(os.getloadavg()[0], 2))
    _write(case, sides, folder)
    profiles = {
        name: measure_profile(case.model.name, devices[name], folder / f"{name}.json", turns.profiled)
        for name in (DEVICE, SERVER)
    }
    whole = sides[()].tail
    assert whole is not None
    case.links.append(measure_link(whole, devices))
    problem = build(case.model.graph, profiles[DEVICE], profiles[SERVER], case.links[-1])
    case.chosen.append(_name_of(case, choose(problem)))
    for name, head in case.heads.items():
        case.predictions.setdefault(name, []).append(predict(problem, head))
    _write(case, sides, folder)
    own = {name: sides[head] for name, head in case.heads.items()}
    measured = measure_cuts(case.model.name, own, devices, folder, rounds=turns.rounds, repeats=turns.repeats)
    for name, samples in measured.items():
        known = case.samples.setdefault(name, Samples([], []))
        known.whole_us.extend(samples.whole_us)
        known.head_us.extend(samples.head_us)


def _write(case: Case, sides: dict[Head, Sides], folder: Path) -> None:
    """Write the plans of the cuts that have none yet."""
    for head in case.heads.values():
        if head not in sides:
            sides[head] = write_sides(case.model, head, folder / f"cut{len(sides)}")


def _name_of(case: Case, head: Head) -> str:
    """Return the name of the cut, which is among those measured from now on."""
    known = next((name for name, other in case.heads.items() if other == head), None)
    if known is None:
        is_prefix = head == tuple(range(len(head)))
        known = _behind(head[-1]) if is_prefix else f"{EXACT}{len(case.heads)}"
        case.heads[known] = head
    return known


def _behind(border: int) -> str:
    return f"behind {border}"


def _candidates(graph: CutGraph, most: int) -> dict[str, Head]:
    legal = graph.legal_borders()
    spread = {legal[round(i * (len(legal) - 1) / max(1, most - 1))] for i in range(most)} if legal else set()
    spread |= {point.border for point in bottlenecks(graph) if point.is_compressive}
    everything = tuple(layer.index for layer in graph.layers)
    prefixes = {_behind(border): tuple(range(border + 1)) for border in sorted(spread)}
    return {LOCAL: everything, REMOTE: (), **prefixes}


def result(case: Case) -> dict[str, Any]:
    """Return what is kept of a case."""
    cuts = {name: _cut(case, name) for name in case.heads}
    chosen = max(case.chosen, key=case.chosen.count)
    best = min(cuts, key=lambda name: cuts[name]["median_s"])
    return {
        "model": case.model.name,
        "pair": case.pair.name,
        "cpu_fraction": case.pair.cpu_fraction,
        "bytes_per_s": case.pair.bytes_per_s,
        "layers": len(case.model.graph.layers),
        "borders": len(case.model.graph.legal_borders()),
        "load": case.loads,
        "links": [{"up": k.up_bytes_per_s, "latency_s": k.latency_s, "message_s": k.message_s} for k in case.links],
        "median_error": statistics.median(abs(cut["error"]) for cut in cuts.values()),
        "worst_error": max(abs(cut["error"]) for cut in cuts.values()),
        "chosen": chosen,
        "best": best,
        "regret": cuts[chosen]["median_s"] / cuts[best]["median_s"] - 1,
        "cuts": cuts,
    }


def _cut(case: Case, name: str) -> dict[str, Any]:
    predictions, samples = case.predictions[name], case.samples[name]
    told_s = statistics.fmean(p.latency_s for p in predictions)
    median_s = statistics.median(samples.whole_us) / 1e6
    return {
        "nbytes": _crossing_nbytes(case.model.graph, case.heads[name]),
        "predicted_s": told_s,
        "predicted_head_s": statistics.fmean(p.head_s for p in predictions),
        "predicted_tail_s": statistics.fmean(p.tail_s for p in predictions),
        "median_s": median_s,
        "p95_s": sorted(samples.whole_us)[int(0.95 * (len(samples.whole_us) - 1))] / 1e6,
        "median_head_s": statistics.median(samples.head_us) / 1e6,
        "error": told_s / median_s - 1,
        "predictions_s": [p.latency_s for p in predictions],
        "samples_us": samples.whole_us,
        "head_us": samples.head_us,
    }


def _crossing_nbytes(graph: CutGraph, head: Head) -> int:
    """Return the bytes that go up: what crosses, and the model's inputs that the tail reads."""
    inside = set(head)
    sent = [v for v in graph.values if (v.producer in inside or v.producer < 0) and set(v.consumers) - inside]
    return sum(value.nbytes or 0 for value in sent)


def show(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table."""
    rows = [
        (
            r["model"],
            r["pair"],
            len(r["cuts"]),
            f"{r['median_error']:.1%}",
            f"{r['worst_error']:.1%}",
            r["chosen"],
            r["best"],
            f"{r['cuts'][r['best']]['median_s'] * 1e3:.1f}",
            f"{r['regret']:.1%}",
        )
        for r in results
    ]
    headers = ("model", "cluster", "cuts", "error", "worst", "chosen", "best", "best ms", "regret")
    return table(rows, headers, "llrrrllrr", 100)


def _earlier() -> list[dict[str, Any]]:
    path = RESULTS / "truth.json"
    return json.loads(path.read_text())["results"] if path.exists() else []


if __name__ == "__main__":
    main()
