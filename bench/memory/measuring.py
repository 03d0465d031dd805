"""One model under every limit: contenders take turns, and each goes on until it has been measured or is no use."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import hyps
from memory import contenders
from memory.contenders import BEST, DEFAULT, NATIVE, PLAIN, PORTABLE, RIVALS, Files, PlanMade
from memory.predictions import weigh
from memory.processes import SD_CARD_BYTES_PER_S, Contender, Run, quick, run_once
from memory.subjects import MB, Subject

ENDLESS = 2**40
FRACTIONS = (2, 1, 1 / 2, 1 / 4, 1 / 8)
SPARE_NBYTES = 15 * MB
"""At the smallest limit that completes everything thrashes: limits leave this much beside the process itself."""

PARTS_FOR_SLOW_DISK = ("1/2", "1/4")

_LONG_TO_READ_NBYTES = 10**9
_LEAST_LIMIT_NBYTES = 16 * MB
_LEAST_DEADLINE_S, _MOST_DEADLINE_S = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    rounds: int
    """Processes per contender and limit, at most."""
    seconds: float
    """No further round begins after that."""


@dataclass(frozen=True, slots=True)
class Size:
    """What limits are fractions of, and what they are added to."""

    weight_bytes: int
    map_bytes: int
    """The most feature maps alive at once in the uncut model."""
    base_bytes: int
    """What onnxruntime's process has resident with a model of one node."""

    @property
    def nbytes(self) -> int:
        """The model's size: its weights, or its feature maps where these are more."""
        return max(self.weight_bytes, self.map_bytes)

    def limits(self, further: Sequence[int]) -> dict[str, int]:
        """Return the limits by name, the largest first.

        Fractions of the size as they are; where the smallest is below what a process takes without any model (and what
        it needs to spare), that is added to all of them.
        """
        floor = self.base_bytes + SPARE_NBYTES
        added = 0 if self.nbytes * FRACTIONS[-1] >= self.base_bytes else floor
        named = {_named(fraction, added): round(self.nbytes * fraction) + added for fraction in FRACTIONS}
        named |= {f"{nbytes // MB} MB": nbytes for nbytes in further}
        return {"none": ENDLESS, **dict(sorted(named.items(), key=lambda item: -item[1]))}


def measure_base(folder: Path) -> int:
    """Return what onnxruntime's process has resident at most with a model of one node."""
    made = contenders.write_files(Subject("nothing", _write_nothing, lambda: {"x": np.zeros(1, np.float32)}), folder)
    run = run_once(quick(contenders.rival(made, DEFAULT), ("cold",)), ENDLESS, _LEAST_DEADLINE_S)
    return run.memory["cold"]["peak_rss_bytes"]


def measure_size(files: Files, base_bytes: int) -> Size:
    """Return the sizes of a model, from its uncut plan."""
    made = contenders.compile_plan(files, PORTABLE, None)
    plan = hyps.load(made.folder)
    peak = max((partition.peak_memory_bytes or 0) for partition in plan.partitions)
    return Size(plan.model.weight_bytes, max(0, peak - plan.model.weight_bytes), base_bytes)


def measure_limit(files: Files, limit_bytes: int, effort: Effort, deadline_s: float) -> dict[str, Any]:
    """Return what every contender does under one limit."""
    budget = None if limit_bytes == ENDLESS else limit_bytes
    plans = contenders.compile_plans(files, budget)
    ways = {how: contenders.rival(files, how) for how in contenders.rivals(files)}
    ways |= {layout: contenders.parts(files, made, layout) for layout, made in plans.items() if not made.refusal}
    runs = _in_turns(ways, limit_bytes, effort, deadline_s)
    found: dict[str, Any] = {
        "limit_bytes": limit_bytes,
        "runs": {label: [asdict(run) for run in done] for label, done in runs.items()},
        "plans": {layout: plan_record(made) for layout, made in plans.items()},
    }
    best = best_of(files.layouts, found, "cold")
    if best is not None and budget is not None:
        found["plans"][best]["weighed"] = weigh(plans[best].folder, files.feeds)
    return found


def deadline_for(endless: Mapping[str, Any], size: Size) -> float:
    """Return how long a process may take: the unlimited one's time twenty times, and reading all at 100 MB/s."""
    samples = [s for run in endless["runs"].get(DEFAULT, []) for mode in run["samples_s"].values() for s in mode]
    whole_s = min(samples, default=1.0)
    wanted = _LEAST_DEADLINE_S + 20 * whole_s + size.weight_bytes / (100 * MB)
    return min(_MOST_DEADLINE_S, wanted) if whole_s < 1 else 20 * whole_s


def measure_slow_disks(files: Files, limits: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return what a slow disk makes of some of the limits; of models that take minutes to read, one."""
    parts = PARTS_FOR_SLOW_DISK[: 1 if size.weight_bytes > _LONG_TO_READ_NBYTES else None]
    chosen = {word: limit for word, limit in limits.items() if word.split()[0] in parts}
    return {word: measure_slow_disk(files, limit, size) for word, limit in chosen.items()}


def measure_slow_disk(files: Files, limit: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return one inference of each kind from a disk of an SD card's speed, of the ways that were best on the real one.

    Rivals that take three times as long as reading the model once are given up.
    """
    limit_bytes = int(limit["limit_bytes"])
    deadline_s = 30 + 3 * size.weight_bytes / SD_CARD_BYTES_PER_S
    chosen = [DEFAULT, best_of((BEST, PLAIN), limit, "cold"), best_of((PORTABLE, NATIVE), limit, "cold")]
    runs = {}
    for label in (label for label in chosen if label is not None and median_s(limit, label, "cold") is not None):
        way = _way(files, label, limit_bytes)
        runs[label] = [asdict(run_once(quick(way, ("slow",)), limit_bytes, deadline_s))]
    return {"limit_bytes": limit_bytes, "runs": runs}


def smallest_limits(files: Files, tried: Sequence[Mapping[str, Any]], deadline_s: float) -> dict[str, Any]:
    """Return, per contender, the smallest limit that completes an inference; of HyPS with its smallest plan."""
    smallest: dict[str, Any] = {}
    for how in contenders.rivals(files):
        smallest[how] = smallest_limit(contenders.rival(files, how), *bracket(how, tried), deadline_s)
    for layout in files.layouts:
        made = contenders.smallest_plan(files, layout)
        smallest[layout] = {"plan": plan_record(made)}
        if not made.refusal:
            budget = hyps.load(made.folder).memory_bytes or 0
            way = contenders.parts(files, made, layout)
            smallest[layout] |= smallest_limit(way, _LEAST_LIMIT_NBYTES, 2 * budget, deadline_s)
    return smallest


def bracket(label: str, tried: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the largest limit that was too little and the smallest that was enough, as far as it is known."""
    enough, too_little = ENDLESS, _LEAST_LIMIT_NBYTES
    for limit in sorted(tried, key=lambda one: -one["limit_bytes"]):
        runs = limit["runs"].get(label, [])
        if any(not run["failure"] for run in runs):
            peaks = [run["cgroup_peak_bytes"] or ENDLESS for run in runs if not run["failure"]]
            enough = min(enough, limit["limit_bytes"], max(peaks) + SPARE_NBYTES)
        elif runs:
            too_little = max(too_little, limit["limit_bytes"])
    return min(too_little, enough), enough


def smallest_limit(way: Contender, too_little: int, enough: int, deadline_s: float) -> dict[str, Any]:
    """Return the smallest limit that completes, within 5 % or 2 MB, and one inference there and with some to spare."""
    once = quick(way, ("cold",))
    best = run_once(once, enough, deadline_s)
    if best.failure:
        return {"limit_bytes": None, "failure": f"{enough // MB} MB: {best.failure}"}
    while enough - too_little > max(2 * MB, enough // 20):
        middle = (enough + too_little) // 2
        run = run_once(once, middle, deadline_s)
        if run.failure:
            too_little = middle
        else:
            enough, best = middle, run
    spared = run_once(once, enough + SPARE_NBYTES, deadline_s)
    return {"limit_bytes": enough, "run": asdict(best), "spared": asdict(spared)}


def best_of(labels: Sequence[str], limit: Mapping[str, Any], mode: str) -> str | None:
    """Return which of the contenders is fastest under a limit; None: none finishes."""
    known = [(median, label) for label in labels if (median := median_s(limit, label, mode)) is not None]
    return min(known)[1] if known else None


def median_s(limit: Mapping[str, Any], label: str, mode: str) -> float | None:
    """Return the median over all samples of all processes; None where not one finished."""
    runs = [run for run in limit["runs"].get(label, []) if mode in run["samples_s"]]
    samples = [seconds for run in runs for seconds in run["samples_s"][mode]]
    return statistics.median(samples) if samples else None


def plan_record(made: PlanMade) -> dict[str, Any]:
    """Return what the results tell of a plan."""
    record: dict[str, Any] = {"options": made.options, "compile_s": made.compile_s, "refusal": made.refusal}
    if not made.refusal:
        plan = hyps.load(made.folder)
        record["budget_bytes"] = plan.memory_bytes
        record["partitions"] = len(plan.partitions)
        record["predicted"] = {partition.id: partition.peak_memory_bytes for partition in plan.partitions}
    return record


def _write_nothing(path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "nothing", [value("x", 1, [1])], [value("y", 1, [1])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _way(files: Files, label: str, limit_bytes: int) -> Contender:
    if label in RIVALS:
        return contenders.rival(files, label)
    return contenders.parts(files, contenders.compile_plan(files, label, limit_bytes), label)


def _in_turns(
    ways: Mapping[str, Contender], limit_bytes: int, effort: Effort, deadline_s: float
) -> dict[str, list[Run]]:
    """Return the runs of each contender; one that failed twice is left out of further rounds."""
    runs: dict[str, list[Run]] = {label: [] for label in ways}
    begin = time.perf_counter()
    for turn in range(effort.rounds):
        if turn and time.perf_counter() - begin > effort.seconds:
            break
        for label, way in ways.items():
            if sum(bool(run.failure) for run in runs[label]) < 2:
                runs[label].append(run_once(way, limit_bytes, deadline_s))
    return runs


def _named(fraction: float, added: int) -> str:
    word = f"{fraction:.0f}x" if fraction >= 1 else f"1/{1 / fraction:.0f}"
    return f"{word} + {added // MB} MB" if added else word
