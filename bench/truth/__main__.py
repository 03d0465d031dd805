"""The truth about predictions: every cut between two devices, predicted and measured.

Each cluster of `truth.clusters` is built from namespaces, a tbf rate and a pacer (`testbed`). In it `hypsc profile`
runs on the device and on the server, and measures the link; from that the cost model predicts every cut, and the exact
search chooses one. Then requests are made through the cuts, in turns: the device runs the head and sends what crosses
to a `hyps-worker` on the server, which runs the tail and answers. All with one thread and everything loaded.

Every case is predicted twice: with what the product knows of a link, and with what a request costs beside it as well
(`truth.link` measures that). The second shows how much of the first's error that is.

Profiles and measurements alternate too (`--sessions`), so that what disturbs one disturbs the other; a prediction is
the mean over the sessions, a measured latency the median over all requests. Of models with many borders some 20, spread
evenly, are measured, and always those that are chosen, those that are none (`local`, `remote`), and every natural
bottleneck that no border before it beats. Cuts with a tensor of more than 2.5 s on its way are left out.

    python -m truth                                       # in bench/, as root
    python -m truth --model mobilenetv2 --pair camera     # one of them; results are added to those there are
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import testbed
from common import RESULTS, machine, write_results
from hyps_passes.graph import CutGraph
from hyps_passes.searches.split_points import bottlenecks
from testbed import Device
from truth.clusters import DEVICE, PAIRS, SERVER, Pair
from truth.measuring import Samples, measure_cuts, measure_way
from truth.outcome import Case, Head, result, show
from truth.plans import Sides, read_model, write_empty, write_sides
from truth.predicting import build, choose, measure_profile, predict

MODELS = ("mobilenetv2", "resnet50", "googlenet", "alexnet", "densenet169", "vgg16", "encoder-small")
LOCAL, REMOTE, EXACT = "local", "remote", "exact"
"""Everything on the device, everything on the server, and what the search chose where that is no prefix."""

_LONGEST_MESSAGE_S = 2.5
"""A tensor that takes over three seconds on its way ends the connection: workers hear no heartbeat behind it."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How much is measured in a session."""

    rounds: int
    repeats: int
    profiled: int
    """The most borders that a profile measures."""


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
                case = Case(model, PAIRS[pair], _candidates(model.graph, PAIRS[pair], most))
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
        name: measure_profile(case.model.path, devices[name], folder / f"{name}.json", turns.profiled)
        for name in (DEVICE, SERVER)
    }
    way = measure_way(_empty(folder), devices)
    case.ways.append(way)
    for forecast, request_s in zip(case.forecasts.values(), (0.0, way.request_s), strict=True):
        problem = build(case.model.graph, profiles[DEVICE], profiles[SERVER], way.link, request_s)
        forecast.chosen.append(_name_of(case, choose(problem)))
        forecast.add({name: predict(problem, head) for name, head in case.heads.items()})
    _write(case, sides, folder)
    own = {name: sides[head] for name, head in case.heads.items()}
    measured = measure_cuts(case.model.name, own, devices, folder, rounds=turns.rounds, repeats=turns.repeats)
    for name, samples in measured.items():
        known = case.samples.setdefault(name, Samples([], []))
        known.whole_us.extend(samples.whole_us)
        known.head_us.extend(samples.head_us)


def _empty(folder: Path) -> Path:
    return folder / "empty" if (folder / "empty").exists() else write_empty(folder / "empty")


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


def _candidates(graph: CutGraph, pair: Pair, most: int) -> dict[str, Head]:
    """Return the cuts that are measured whatever the search chooses."""
    longest_nbytes = pair.bytes_per_s * _LONGEST_MESSAGE_S
    able = [
        border
        for border in graph.legal_borders()
        if all((value.nbytes or 0) <= longest_nbytes for value in graph.borders[border])
    ]
    spread = {able[round(i * (len(able) - 1) / max(1, most - 1))] for i in range(most)} if able else set()
    spread |= {point.border for point in bottlenecks(graph) if point.is_compressive and point.border in able}
    everything = tuple(layer.index for layer in graph.layers)
    prefixes = {_behind(border): tuple(range(border + 1)) for border in sorted(spread)}
    return {LOCAL: everything, REMOTE: (), **prefixes}


def _earlier() -> list[dict[str, Any]]:
    path = RESULTS / "truth.json"
    return json.loads(path.read_text())["results"] if path.exists() else []


if __name__ == "__main__":
    main()
