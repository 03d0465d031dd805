"""How far each published strategy falls short of the proven optimum: models x clusters x strategies, predicted.

Profiles are measured on this machine by `hypsc profile` (one thread) unless `--profiles` has them from before; the
clusters of `clusters/` say how much slower or faster their devices are. Nothing is run on a cluster here: `truth` shows
how well predictions hold. The best known is the best placement of any strategy, `exact` included; gaps are to it where
it is proven, and to the bound otherwise.

Beside that the choices on the link of ScissionLite (57 Mbit/s, 28 ms; section 4.2, figures 5 and 7) for VGG16 and
DenseNet169, for both speeds of device and server, free and with the first five layers kept on the device for privacy.

    python bench/strategies.py                                   # all models, all clusters
    python bench/strategies.py --model vgg16 --profiles folder/  # profile folder/vgg16.json; other models are kept
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from common import RESULTS, machine, write_results
from hyps.formats.profiles import Profile, encode_profile
from hyps.terminal import table
from hyps_compiler.clusters import SiteRequest, load_problem
from hyps_compiler.comparison import Comparison, compare, comparison_json
from hyps_compiler.profiling import ProfileOptions, profile_model, read_profile
from hyps_passes.found import Found
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Problem
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.strategy import Settings

MODELS = ("alexnet", "googlenet", "mobilenetv2", "resnet50", "vgg16", "densenet169", "encoder-small", "efficientnet-b0")
CLUSTERS = sorted(path.stem for path in (Path(__file__).parent / "clusters").glob("*.toml"))
PAPER_MODELS = ("vgg16", "densenet169")
PAPER_CLUSTER = "scissionlite"
PAPER_SPEEDS = {
    "CPUDevice-CPUEdge": (0.125, 1.0),
    "CPUDevice-GPUEdge": (0.125, 20.0),
    "GPUDevice-CPUEdge": (0.6, 1.0),
    "GPUDevice-GPUEdge": (0.6, 20.0),
}
"""The four test beds of ScissionLite's table I, as speeds against the machine that is profiled."""
PRIVATE_LAYERS = 5
TIME_LIMIT_S = 10.0


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--cluster", "clusters", multiple=True, default=CLUSTERS, show_default=True)
@click.option("--objective", "objectives", multiple=True, default=("latency", "throughput"), show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), help="Folder with profiles MODEL.json measured before.")
def main(
    models: tuple[str, ...], clusters: tuple[str, ...], objectives: tuple[str, ...], profiles: Path | None
) -> None:
    """Compare all strategies on all models and clusters, and write `results/strategies.json`."""
    rows, papers, measured = kept(models)
    with tempfile.TemporaryDirectory() as scratch:
        for model in models:
            path = measured_profile(model, profiles or Path(scratch))
            measured[model] = summary(read_profile(path))
            for cluster in clusters:
                problem = load_problem(f"zoo:{model}", SiteRequest(cluster_path(cluster), path)).problem
                rows += [compared(model, cluster, objective, problem) for objective in objectives]
                if model in PAPER_MODELS and cluster == PAPER_CLUSTER:
                    papers += list(paper_choices(model, problem))
            print(f"{model}: done", flush=True)
    print(show_gaps(rows))
    for paper in papers:
        print(f"\n{paper['model']}, {paper['testbed']}:\n{show_choices(paper)}")
    result = {"machine": machine(), "profiles": measured, "comparisons": rows, "scissionlite": papers}
    print(f"\nwrote {write_results('strategies', result)}")


def kept(models: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Return the comparisons, choices and profiles that an earlier run has of other models."""
    path = RESULTS / "strategies.json"
    told = json.loads(path.read_text()) if path.exists() else {"comparisons": [], "scissionlite": [], "profiles": {}}
    rows, papers = ([row for row in told[key] if row["model"] not in models] for key in ("comparisons", "scissionlite"))
    return rows, papers, {model: value for model, value in told["profiles"].items() if model not in models}


def measured_profile(model: str, folder: Path) -> Path:
    """Return the profile of a model, measured now where the folder has none."""
    path = folder / f"{model}.json"
    if not path.exists():
        path.write_bytes(encode_profile(profile_model(f"zoo:{model}", ProfileOptions(threads=1, repeats=5))))
    return path


def cluster_path(name: str) -> Path:
    """Return the file of a cluster of this bench."""
    return Path(__file__).parent / "clusters" / f"{name}.toml"


def summary(profile: Profile) -> dict[str, Any]:
    """Return what a profile rests on."""
    layers = profile.layers
    return {
        "layers": len(layers),
        "measured": sum(layer.source == "measured" for layer in layers),
        "layers_s": sum(layer.samples[1].median_s for layer in layers),
    }


def compared(model: str, cluster: str, objective: str, problem: Problem) -> dict[str, Any]:
    """Return every strategy on one problem."""
    start = time.perf_counter()
    found = compare(problem, OBJECTIVES[objective], Settings(time_limit_s=TIME_LIMIT_S))
    return {
        "model": model,
        "cluster": cluster,
        "objective": objective,
        "layers": len(problem.tasks),
        "devices": len(problem.machines),
        "seconds": time.perf_counter() - start,
        "proven": found.exact is not None and found.exact.is_proven,
        "space": found.exact.space if found.exact else None,
        **comparison_json(found),
    }


def show_gaps(rows: list[dict[str, Any]]) -> str:
    """Return for each strategy its median and largest gap, how often it is best, and how often it has no placement."""
    lines = []
    for objective in dict.fromkeys(row["objective"] for row in rows):
        own = [row for row in rows if row["objective"] == objective]
        lines.append(f"\n{objective}, {len(own)} problems, {sum(row['proven'] for row in own)} with a proven optimum:")
        cells = []
        for name in STRATEGIES:
            told = [s for row in own for s in row["strategies"] if s["strategy"] == name]
            gaps = [s["gap"] for s in told if s["gap"] is not None]
            shown = [f"{v:.1%}" for v in (statistics.median(gaps), max(gaps))] if gaps else ["-", "-"]
            best = sum(gap < 1e-4 for gap in gaps)
            cells.append((name, *shown, best, sum(s["latency_s"] is None for s in told)))
        lines.append(table(cells, ("strategy", "median gap", "largest", "best", "impossible"), "lrrrr"))
    return "\n".join(lines)


def paper_choices(model: str, problem: Problem) -> Iterator[dict[str, Any]]:
    """Yield what each strategy chooses on ScissionLite's link, for its four pairs of device and edge."""
    for testbed, (device, edge) in PAPER_SPEEDS.items():
        bed = at_speeds(problem, device / 0.125, edge)
        free = compare(bed, OBJECTIVES["latency"], Settings(time_limit_s=TIME_LIMIT_S))
        private = STRATEGIES["scission"].place(bed, OBJECTIVES["latency"], Settings(first_cut=PRIVATE_LAYERS))
        yield {
            "model": model,
            "testbed": testbed,
            "speeds": {"device": device, "edge": edge},
            "choices": [choice(row.strategy, free, row.result) for row in free.rows],
            "scission_private": private.reason,
        }


def at_speeds(problem: Problem, device: float, edge: float) -> Problem:
    """Return the problem with its two machines so many times as fast."""
    speeds = [device if index == problem.entry else edge for index in range(len(problem.machines))]
    return replace(
        problem,
        seconds=_divided(problem.seconds, speeds),
        export_s=_divided(problem.export_s, speeds),
        import_s=_divided(problem.import_s, speeds),
        machines=tuple(replace(m, run_s=m.run_s / s) for m, s in zip(problem.machines, speeds, strict=True)),
    )


def choice(strategy: str, comparison: Comparison, result: Any) -> dict[str, Any]:
    """Return what a strategy chose, and how much longer it takes than the best."""
    if not isinstance(result, Found):
        return {"strategy": strategy, "latency_s": None, "gap": None, "reason": result.reason}
    return {
        "strategy": strategy,
        "latency_s": result.score,
        "gap": comparison.gap(result),
        "reason": result.reason,
        "tasks_on_device": len(result.assignment.stages[0].tasks),
    }


def show_choices(paper: dict[str, Any]) -> str:
    """Return the choices as a table."""
    cells = []
    for row in paper["choices"]:
        is_placed = row["latency_s"] is not None
        figures = (
            (f"{row['latency_s'] * 1e3:.0f} ms", f"{row['gap']:.1%}", row["tasks_on_device"]) if is_placed else "---"
        )
        cells.append((row["strategy"], *figures, row["reason"]))
    lines = table(cells, ("strategy", "latency", "gap", "on device", "why"), "lrrrl", 110)
    return f"{lines}\nscission, {PRIVATE_LAYERS} layers kept: {paper['scission_private']}"


def _divided(seconds: tuple[tuple[float, ...], ...], by: list[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(s / b for s, b in zip(row, by, strict=True)) for row in seconds)


if __name__ == "__main__":
    main()
