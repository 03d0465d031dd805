"""How well a profile predicts: every cut in two, predicted from the profile and measured directly.

The profile is made as a user makes it. Then, in a process of its own per model, the partitions that `hypsc compile`
would write for every border are opened as a worker opens them, and timed one after the other; the profile's own figures
for heads and tails are not used, only what layers and values cost. What is compared is the sum of both sides.

    python bench/profile_accuracy.py                                  # five models, one thread
    python bench/profile_accuracy.py --model resnet50 --threads 2
"""

import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from common import machine, write_results
from hyps.adapters.sessions import Mode, Sessions
from hyps.formats.profiles import Profile, decode_profile
from hyps.terminal import table
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.emit import emit_partitions
from hyps_compiler.frontend import open_model
from hyps_compiler.measure import measure
from hyps_compiler.partition import Division
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.costs import Costs, profile_costs
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph

MODELS = ("mobilenetv2", "resnet50", "googlenet", "encoder-small", "vgg16")
ROUNDS, WARM_UP = 2, 2
"""In each round every border is opened anew and timed, in another order: the machine is not always the same."""


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--repeats", default=7, show_default=True, help="Timed runs of each side of each border and round.")
@click.option("--child", hidden=True, is_flag=True, help="Measure what the parent writes.")
def main(models: tuple[str, ...], threads: int, repeats: int, child: bool) -> None:
    """Profile each model, measure each of its cuts, and print how far apart they are."""
    if child:
        serve_times(threads, repeats)
        return
    results = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(name, Path(folder), threads, repeats))
        print(show(results[-1:]), file=sys.stderr)
    print(show(results))
    write_results(
        "profile-accuracy" if threads == 1 else f"profile-accuracy-{threads}-threads",
        {"machine": machine(), "results": results},
    )


def compare(name: str, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Return predicted and measured seconds of every border of one model."""
    start_s = time.perf_counter()
    path = folder / "profile.json"
    command = ["hypsc", "profile", f"zoo:{name}", "-o", str(path), "--threads", str(threads), "-q"]
    subprocess.run(command, check=True)
    profile_s = time.perf_counter() - start_s
    profile = decode_profile(path.read_bytes())
    staged, graph = stage(name, folder)
    measured = measure_cuts(staged, graph, folder, threads, repeats)
    costs = profile_costs(graph, profile, 1)
    borders = [
        {
            "border": border,
            "tensors": len(graph.borders[border]),
            "predicted_s": predict(graph, costs, border),
            "measured_s": rounds,
        }
        for border, rounds in sorted(measured.items())
    ]
    return {"model": name, "threads": threads, "profile_s": profile_s, **spread(profile), "borders": borders}


def stage(name: str, folder: Path) -> tuple[Staged, CutGraph]:
    """Prepare a model as the compiler does, and write a request for it."""
    (folder / "work").mkdir()
    (folder / "stage").mkdir()
    staged = stage_model(open_model(f"zoo:{name}", folder / "work"), folder / "stage", "portable")
    found = measure(staged.model, staged.path, shapes={}, feeds=None)
    assert found.feeds is not None
    write_npz(folder / "request.npz", found.feeds)
    return staged, build_cut_graph(staged.model, found.sizes, fused=staged.fused)


def measure_cuts(
    staged: Staged, graph: CutGraph, folder: Path, threads: int, repeats: int
) -> dict[int, list[tuple[float, float, float]]]:
    """Return, for every legal border, the seconds of both sides as the partitions of a plan, and those of the whole."""
    command = [sys.executable, __file__, "--child", "--threads", str(threads), "--repeats", str(repeats)]
    found: dict[int, list[tuple[float, float, float]]] = {}
    order, shuffler = graph.legal_borders(), random.Random(1)
    whole = emit_partitions(staged.model, Division(graph, (), (), ()), folder / "whole")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(ROUNDS):
            shuffler.shuffle(order)
            for border in order:
                cut = folder / "cut"
                parts = emit_partitions(staged.model, Division(graph, (border,), (), ()), cut)
                sides = [(str(cut / part.file), part.inputs, part.outputs) for part in parts]
                sides += [(str(folder / "whole" / part.file), part.inputs, part.outputs) for part in whole]
                child.stdin.write(msgspec.json.encode((str(folder / "request.npz"), sides)).decode() + "\n")
                child.stdin.flush()
                head_s, tail_s, whole_s = map(float, child.stdout.readline().split())
                found.setdefault(border, []).append((head_s, tail_s, whole_s))
                shutil.rmtree(cut)
        child.stdin.close()
    return found


def serve_times(threads: int, repeats: int) -> None:
    """Answer each line, a request and partitions, with the seconds of each; a file that was there before stays open."""
    sessions = Sessions(threads, share_pool=True)
    whole: dict[str, Any] = {}
    for line in sys.stdin:
        request, sides = msgspec.json.decode(line)
        known = read_npz(Path(request))
        last = sides[-1][0]
        whole.setdefault(last, None)
        if whole[last] is None:
            whole[last] = sessions.open(Path(last), Mode.FAST, "portable")
        loaded = [(sessions.open(Path(file), Mode.FAST, "portable"), i, o) for file, i, o in sides[:-1]]
        loaded.append((whole[last], *sides[-1][1:]))
        seconds: list[list[float]] = [[] for _ in loaded]
        for index in range(repeats + WARM_UP):
            for place, (session, inputs, outputs) in enumerate(loaded):
                feeds = {name: known[name] for name in inputs}
                start_s = time.perf_counter()
                made = session.run(list(outputs), feeds)
                if index >= WARM_UP:
                    seconds[place].append(time.perf_counter() - start_s)
                known.update(zip(outputs, made, strict=True))
        print(*map(statistics.median, seconds), flush=True)


def spread(profile: Profile) -> dict[str, float]:
    """Return seconds of the whole model, typical and at the 95th percentile."""
    assert profile.whole is not None
    return {"whole_s": profile.whole[1].median_s, "whole_p95_s": profile.whole[1].p95_s}


def predict(graph: CutGraph, costs: Costs, border: int) -> tuple[float, float]:
    """Return the seconds of both sides of a border."""
    names = [value.name for value in graph.borders[border]]
    head_s = sum(costs.layer_s[: border + 1]) + sum(costs.export_s[name] for name in names)
    tail_s = sum(costs.layer_s[border + 1 :]) + sum(costs.import_s[name] for name in names)
    return costs.session_s + head_s, costs.session_s + tail_s


def errors_of(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the relative errors of the predicted seconds of both sides together, from the smallest on.

    First against the seconds measured; then against them in units of the whole model's in the same minute, beside the
    whole model's in the profile: without what the machine was slower or faster then.
    """
    plain, steady = [], []
    for border in result["borders"]:
        predicted_s = sum(border["predicted_s"])
        measured_s = statistics.median(head + tail for head, tail, _ in border["measured_s"])
        ratio = statistics.median((head + tail) / whole for head, tail, whole in border["measured_s"])
        plain.append(abs(predicted_s / measured_s - 1))
        steady.append(abs(predicted_s / result["whole_s"] / ratio - 1))
    return sorted(plain), sorted(steady)


def show(results: list[dict[str, Any]]) -> str:
    """Return the errors as a table."""
    rows = []
    for result in results:
        plain, steady = errors_of(result)
        late = math.ceil(0.95 * len(plain)) - 1
        rows.append(
            (
                result["model"],
                result["threads"],
                len(plain),
                f"{result['whole_s'] * 1e3:.1f}",
                f"{result['whole_p95_s'] / result['whole_s'] - 1:.0%}",
                *(f"{errors[place]:.1%}" for errors in (plain, steady) for place in (len(errors) // 2, late)),
                f"{result['profile_s']:.0f}",
            )
        )
    headers = ("model", "threads", "cuts", "whole ms", "p95", "error", "p95", "steady error", "p95", "profile s")
    return table(rows, headers, "lrrrrrrrrr", 100)


if __name__ == "__main__":
    main()
