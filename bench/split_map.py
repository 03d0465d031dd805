"""Draws which split of EfficientNet-B4 is best at which batch size and data rate (dynamic-split, figure 2).

Two maps side by side: what `dynamic-split` may choose among (its compressive natural bottlenecks, no and full
offloading), and every cut of the graph, from the exact parametric search. Both are intervals of the data rate for each
batch size of the profile, not samples: at a given batch every cut costs a constant and so many bytes.

    hypsc profile zoo:efficientnet-b4 --threads 1 --batch 1,2,4,8,16 -o efficientnet-b4.json
    python bench/split_map.py efficientnet-b4.json
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import click

from common import machine, write_results
from hyps.terminal import table
from hyps_compiler.clusters import Planning, SiteRequest, load_problem
from hyps_compiler.profiling import read_profile
from hyps_passes.assignment import pipeline, single
from hyps_passes.estimate import estimate
from hyps_passes.graph import CutGraph
from hyps_passes.problem import Problem
from hyps_passes.searches.regimes import best_intervals, cut_regions
from hyps_passes.strategies.dynamic_split import compressive

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "efficientnet-b4-map.svg"
RATES = (1e6, 128e6)
"""Bytes per second, as in the paper."""
COLOURS = ("#4b2c6f", "#2d5f9a", "#1f8f8c", "#58b368", "#c3cf3f", "#f2a541", "#d9583b", "#8c2d2d", "#6d6d6d", "#b07aa1")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where one split is the best."""

    batch: int
    split: str
    low: float
    """Bytes per second; so the other."""
    high: float


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "--cluster", type=click.Path(path_type=Path), default=Path(__file__).parent / "clusters/dynamic-split.toml"
)
def main(profile: Path, cluster: Path) -> None:
    """Write the picture, and `results/split_map.json`, from a PROFILE of several batch sizes."""
    batches = sorted(read_profile(profile).layers[0].samples)
    planning = load_problem("zoo:efficientnet-b4", SiteRequest(cluster, profile, tuple(batches)))
    problems = {batch: planning.site.problem(planning.graph, batch) for batch in batches}
    paper = [found for batch in batches for found in restricted(planning, batch, problems[batch])]
    every = [found for batch in batches for found in parametric(planning, batch, problems[batch])]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(batches, {"natural bottlenecks that compress": paper, "every cut": every}))
    for name, found in (("bottlenecks", paper), ("every cut", every)):
        cells = [(f.batch, f.split, f"{f.low / 1e6:.3g}", f"{f.high / 1e6:.3g}") for f in found]
        print(f"{name}\n{table(cells, ('batch', 'split', 'from MB/s', 'to MB/s'), 'rlrr')}\n")
    rows = {
        name: [[f.batch, f.split, f.low, f.high] for f in found]
        for name, found in (("bottlenecks", paper), ("every", every))
    }
    print(f"wrote {PICTURE.name} and {write_results('split_map', {'machine': machine(), **rows})}")


def restricted(planning: Planning, batch: int, problem: Problem) -> list[Interval]:
    """Return the best of the compressive bottlenecks, no and full offloading, by data rate."""
    count = len(problem.tasks)
    positions = [0, *(task + 1 for task in compressive(problem)), count]
    lines = {split_name(planning.graph, p): line(problem, p) for p in positions}
    edges = {1 / rate for rate in RATES}
    for (a, b), (c, d) in itertools.combinations(lines.values(), 2):
        if b != d and 1 / RATES[1] < (c - a) / (b - d) < 1 / RATES[0]:
            edges.add((c - a) / (b - d))
    found: list[Interval] = []
    for low, high in itertools.pairwise(sorted(edges)):
        middle = (low + high) / 2
        split = min(lines, key=lambda name: lines[name][0] + lines[name][1] * middle)
        if found and found[-1].split == split:
            found[-1] = replace(found[-1], low=1 / high)
        else:
            found.append(Interval(batch, split, 1 / high, 1 / low))
    return found


def line(problem: Problem, position: int) -> tuple[float, float]:
    """Return the latency of a cut without transfer, and the bytes that it adds for each second per byte."""
    count = len(problem.tasks)
    cut = single(problem, problem.entry)
    if position < count:
        stages = [0 if task < position else 1 for task in range(count)]
        cut = pipeline(problem, (problem.entry, 1 - problem.entry), stages)
    quick, slow = (estimate(at_rate(problem, s), cut).latency_s for s in (0.0, 1e-6))
    return quick, (slow - quick) * 1e6


def at_rate(problem: Problem, s_per_byte: float) -> Problem:
    """Return the problem with both directions of its link that fast."""
    return replace(problem, channels=tuple(replace(c, s_per_byte=s_per_byte) for c in problem.channels))


def parametric(planning: Planning, batch: int, problem: Problem) -> list[Interval]:
    """Return the best of every cut of the graph, by data rate."""
    regions = cut_regions(problem, bandwidths=RATES, loads=(0.0, 0.5))
    found = []
    for away, (low, high) in best_intervals(regions).items():
        position = len(problem.tasks) - len(away)
        name = split_name(planning.graph, position)
        if set(away) != set(range(position, len(problem.tasks))):
            name = f"across, {name}"
        found.append(Interval(batch, name, max(low, RATES[0]), min(high or RATES[1], RATES[1])))
    return sorted(found, key=lambda interval: -interval.low)


def split_name(graph: CutGraph, position: int) -> str:
    """Return how a cut of the running order is called: the block that it ends, or the layer it stands behind."""
    if position == 0:
        return "full offloading"
    if position == len(graph.layers):
        return "no offloading"
    before, behind = (_BLOCK.search(graph.layers[i].name) for i in (position - 1, position))
    if before and (behind is None or before[1] != behind[1]):
        return f"block {before[1]}"
    return f"inside block {before[1]}" if before else f"behind {graph.layers[position - 1].name}"


def draw(batches: Sequence[int], maps: dict[str, list[Interval]]) -> str:
    """Return the picture: for each map a row per batch size, data rate to the right on a logarithmic axis."""
    left, top, width, row, gap = 70, 64, 380, 40, 40
    height = top + row * len(batches)
    names = ordered({interval.split for found in maps.values() for interval in found})
    colour = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    total = left + len(maps) * (width + gap)
    per_line = 4
    whole = height + 78 + 22 * math.ceil(len(names) / per_line)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {whole}" width="{total}" height="{whole}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{total}" height="{whole}" fill="#ffffff"/>',
        text(left, 24, "EfficientNet-B4: the best split by batch size and data rate", size=16),
    ]
    for index, (title, found) in enumerate(maps.items()):
        x0 = left + index * (width + gap)
        parts.append(text(x0, top - 12, title))
        parts += cells(found, batches, colour, x0, top, width, row)
        parts += axis(x0, height, width)
    for index, batch in enumerate(batches):
        parts.append(text(left - 10, top + row * (len(batches) - index) - row / 2 + 5, str(batch), anchor="end"))
    sideways = f"translate(18 {top + row * len(batches) / 2}) rotate(-90)"
    parts.append(f'<g transform="{sideways}">{text(0, 0, "batch size", anchor="middle")}</g>')
    step = (total - left) / per_line
    for index, name in enumerate(names):
        x, y = left + index % per_line * step, height + 66 + 22 * (index // per_line)
        parts += [
            f'<rect x="{x:.0f}" y="{y}" width="14" height="14" fill="{colour[name]}"/>',
            text(x + 20, y + 12, name),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def cells(
    found: list[Interval],
    batches: Sequence[int],
    colour: dict[str, str],
    x0: float,
    top: float,
    width: float,
    row: float,
) -> list[str]:
    """Return the coloured intervals of one map."""
    parts = []
    for interval in found:
        x, end = (x0 + width * place(rate) for rate in (interval.low, interval.high))
        y = top + row * (len(batches) - 1 - batches.index(interval.batch))
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{end - x:.1f}" height="{row}" fill="{colour[interval.split]}"'
            ' stroke="#ffffff" stroke-width="1"/>'
        )
    return parts


def axis(x0: float, y: float, width: float) -> list[str]:
    """Return the axis of data rates below one map."""
    parts = []
    for megabytes in (1, 2, 4, 8, 16, 32, 64, 128):
        x = x0 + width * place(megabytes * 1e6)
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 5}" stroke="#333333"/>')
        parts.append(text(x, y + 19, str(megabytes), anchor="middle"))
    return [*parts, text(x0 + width / 2, y + 40, "data rate, MB/s", anchor="middle")]


def place(rate: float) -> float:
    """Return where a data rate stands between the least and the largest, from 0 to 1."""
    return math.log(rate / RATES[0]) / math.log(RATES[1] / RATES[0])


def ordered(names: set[str]) -> list[str]:
    """Return the splits from full to no offloading."""

    def depth(name: str) -> tuple[float, str]:
        number = re.search(r"\d+", name)
        if name == "full offloading":
            return (-2, name)
        if name == "no offloading":
            return (math.inf, name)
        return (float(number[0]) if number and "block" in name else -1.0, name)

    return sorted(names, key=depth)


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13) -> str:
    """Return words in the picture."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">{escape(words)}</text>'
    )


if __name__ == "__main__":
    main()
