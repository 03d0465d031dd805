"""One model: cut at every legal place, run in parts, compared with onnxruntime on the whole model."""

import math
import random
import re
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import onnx_ir as ir

from conformance import answers
from conformance.divisions import attempts
from conformance.suites import Model, Request
from hyps.errors import DifferenceError, HypsError
from hyps.formats.plan import Optimization, Partition
from hyps.local import LocalRunner
from hyps_compiler import driver
from hyps_compiler.emit import emit_partitions
from hyps_compiler.measure import Measured, measure
from hyps_compiler.partition import Division
from hyps_compiler.partition import Request as Wish
from hyps_compiler.source import open_source
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import DenseLayer, SliceDense, find_dense
from hyps_passes.searches import split_points

THEIRS = "onnxruntime: "
"""How the reason begins where onnxruntime itself refuses the whole model."""

Status = Literal["identical", "tolerance", "refused", "wrong"]
STATUSES: tuple[Status, ...] = ("identical", "tolerance", "refused", "wrong")
"""From best to worst: a model's status is the worst of its cuts'."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How many cuts are tried."""

    levels: tuple[Optimization, ...] = ("none", "portable", "native")
    two_part: int = 40
    """Most two-part cuts per level, spread over the model; and as many between the nodes of layers."""
    weight_bytes: int = 10**9
    """Most weights written for two-part cuts per level: fewer of these are tried of large models, three at least."""
    random_cuts: int = 3
    slices: int = 4
    """Most sliceable layers tried, spread over the model."""
    pieces: int = 12
    """Most regions divided into pieces per level, drawn at random, and as many recurrent layers and tables."""
    product: bool = True
    """Also compile with `hypsc`'s own steps, verify, and run as a worker does."""


@dataclass(slots=True)
class Finding:
    """What one way of cutting gave."""

    level: str
    cut: str
    status: Status
    reason: str = ""


@dataclass(slots=True)
class Trial:
    """All findings of one model."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is odd about onnxruntime itself: it differs from the stored answer, or from itself."""
    seconds: float = 0.0
    undivided: Counter[str] = field(default_factory=Counter)
    """Why regions were not divided, names left out."""

    def add(self, level: str, cut: str, status: Status, reason: str = "") -> None:
        """Note a finding."""
        self.findings.append(Finding(level, cut, status, " ".join(reason.split())[:300]))


@dataclass(frozen=True, slots=True)
class _Oracle:
    """The whole model's answers to one request."""

    feeds: dict[str, Any]
    at: dict[str, dict[str, Any]]
    """By level."""
    is_random: bool


_Judge = Callable[[_Oracle, str, Mapping[str, Any]], tuple[Status, str]]
"""Compares what was found with the whole model's answer at a level."""


_Answer = TypeVar("_Answer")


class RefusedError(Exception):
    """There is nothing to compare with: onnxruntime refuses the whole model, or HyPS does before any cut."""


def try_model(model: Model, effort: Effort, step: Callable[[str], None] = lambda text: None) -> Trial:
    """Cut the model in every way that `effort` allows and compare; `step` is told what is being done."""
    trial, start = Trial(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hyps-conformance-") as scratch:
        folder = Path(scratch)
        try:
            sessions = _theirs(lambda: {level: answers.open_session(model.path, level) for level in answers.LEVELS})
            requests = model.requests or _made_up(model, folder, step)
            oracles = [_ask(model, request, sessions, trial) for request in requests]
            for level in effort.levels:
                _try_level(model, oracles, level, effort, folder / level, trial, step)
            if effort.product:
                step("product")
                _try_product(model, oracles, folder / "product", trial)
        except RefusedError as refusal:
            trial.add("", "whole", "refused", str(refusal))
    trial.seconds = round(time.perf_counter() - start, 3)
    return trial


def _theirs(ask: Callable[[], _Answer]) -> _Answer:
    """Return what onnxruntime says of the whole model; what it raises is its own refusal."""
    try:
        return ask()
    except Exception as error:  # onnxruntime's errors have no common parent
        raise RefusedError(f"{THEIRS}{_reason(error)}") from error


def _made_up(model: Model, folder: Path, step: Callable[[str], None]) -> tuple[Request, ...]:
    """Return a request that HyPS makes up."""
    step("made-up request")
    folder = folder / "made-up"
    folder.mkdir()
    try:
        staged = stage_model(open_source(model.path), folder, "none")
        measured = measure(staged.model, staged.path, shapes={}, feeds=None)
    except HypsError as error:
        raise RefusedError(error.message) from error
    if measured.feeds is None:
        raise RefusedError(f"no request is stored, and none was found: {measured.problem}")
    return (Request(dict(measured.feeds)),)


_PLACES = re.compile(r"\[ONNXRuntimeError\] : |Load model from \S+ failed:\s*|/\S+?\.(?:cc|h):\d+ |Name:\S* |'[^']*' ?")


def _reason(error: Exception) -> str:
    """Return what onnxruntime says, without names and places, so that equal reasons read equal."""
    return " ".join(_PLACES.sub("", str(error).splitlines()[0]).split())


def _ask(model: Model, request: Request, sessions: Mapping[str, Any], trial: Trial) -> _Oracle:
    at = _theirs(lambda: {level: answers.answer(session, request.feeds) for level, session in sessions.items()})
    again = _theirs(lambda: answers.answer(sessions["none"], request.feeds))
    is_random = not all(answers.is_same(value, again[name]) for name, value in at["none"].items())
    if is_random:
        trial.notes.append("random: two runs of the whole model differ, so that only types and shapes are compared")
    elif request.expected is not None and not answers.matches_stored(
        request.expected, at["native"], model.rtol, model.atol
    ):
        trial.notes.append("onnxruntime's answer is not the stored one")
    return _Oracle(request.feeds, at, is_random)


def _try_level(
    model: Model,
    oracles: Sequence[_Oracle],
    level: Optimization,
    effort: Effort,
    folder: Path,
    trial: Trial,
    step: Callable[[str], None],
) -> None:
    folder.mkdir()
    try:
        staged = stage_model(open_source(model.path), folder, level)
        measured = measure(staged.model, staged.path, shapes={}, feeds=oracles[0].feeds)
    except HypsError as error:
        trial.add(level, "stage", "refused", error.message)
        return
    seed = zlib.crc32(str(model.path.name).encode())
    for grouped in (True, False) if level == "none" else (True,):
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused, grouped=grouped)
        for cut, borders in _cuts(graph, effort, random.Random(seed), grouped=grouped):
            step(f"{level} {cut}")
            division = Division(graph, tuple(borders), (), ())
            _try_cut(staged.model, division, oracles, level, cut, folder / "plan", trial, _judge)
    for cut, sliced, division in _slices(staged, measured, effort):
        step(f"{level} {cut}")
        _try_cut(sliced, division, oracles, level, cut, folder / "plan", trial, _judge_with_noise)
    if effort.pieces:
        _try_pieces(staged, measured, oracles, level, effort, folder / "plan", trial, step, random.Random(seed))


def _try_pieces(
    staged: Staged,
    measured: Measured,
    oracles: Sequence[_Oracle],
    level: str,
    effort: Effort,
    folder: Path,
    trial: Trial,
    step: Callable[[str], None],
    rng: random.Random,
) -> None:
    """Divide regions, recurrent layers and tables into pieces, one at a time."""
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    held = sum(layer.weight_bytes for layer in graph.layers) + 1
    for attempt in attempts(staged, measured, graph, rng, min(effort.pieces, max(3, effort.weight_bytes // held))):
        if isinstance(attempt, str):
            trial.undivided[_NAMES.sub("`…`", attempt)] += 1
            continue
        step(f"{level} {attempt.title}")
        try:
            model, division = attempt.divide(staged, measured)
        except IndivisibleError as error:
            trial.undivided[_NAMES.sub("`…`", error.reason)] += 1
        except Exception as error:  # a bug of ours
            trial.add(level, attempt.title, "wrong", f"{type(error).__name__}: {error}")
        else:
            _try_cut(model, division, oracles, level, attempt.title, folder, trial, _judge_with_noise)


_NAMES = re.compile(r"`[^`]*`")


def _cuts(graph: CutGraph, effort: Effort, rng: random.Random, *, grouped: bool) -> Iterator[tuple[str, list[int]]]:
    """Yield what to call a way of cutting, and its borders."""
    legal = graph.legal_borders()
    held = sum(layer.weight_bytes for layer in graph.layers) + 1
    two_part = min(effort.two_part, max(3, effort.weight_bytes // held))
    kind = "layers" if grouped else "nodes"
    if grouped:
        yield "uncut", []
    for border in _spread(legal, two_part):
        if len(legal) > 1:
            yield f"two parts, {kind} {border}", [border]
    if legal:
        yield f"all {kind}", legal
    pooling = sorted(set(split_points.pooling_borders(graph)) & set(legal))
    if grouped and pooling:
        yield "pooling", pooling
    for index in range(effort.random_cuts if len(legal) > 2 else 0):
        yield f"random {index}, {kind}", sorted(rng.sample(legal, rng.randint(2, len(legal) - 1)))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[math.floor(index * (len(items) - 1) / (count - 1))] for index in range(count)] if count > 1 else []


def _slices(staged: Staged, measured: Measured, effort: Effort) -> Iterator[tuple[str, ir.Model, Division]]:
    """Yield the model with one dense layer in H-partitions, and its division around them, for every such layer."""
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    dense = [(layer, found) for layer in graph.layers if isinstance(found := find_dense(layer), DenseLayer)]
    for layer, found in _spread(dense, effort.slices):
        for count in sorted({2, 3, min(found.rows, 7)} & set(range(2, found.rows + 1))):
            trial, sizes = staged.model.clone(), dict(measured.sizes)
            twin = find_dense(build_cut_graph(trial, sizes, fused=staged.fused).layers[layer.index])
            assert isinstance(twin, DenseLayer)
            fused = staged.fused - {str(value.name) for value in twin.product.inputs if value is not None}
            SliceDense(layer.name, count).apply(trial, twin, sizes)
            sliced = build_cut_graph(trial, sizes, fused=fused)
            borders = sorted(set(split_points.shard_borders(sliced)) & set(sliced.legal_borders()))
            yield f"layer {layer.index} in {count} slices", trial, Division(sliced, tuple(borders), (), ())


def _try_cut(
    model: ir.Model,
    division: Division,
    oracles: Sequence[_Oracle],
    level: str,
    cut: str,
    folder: Path,
    trial: Trial,
    judge: "_Judge",
) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            partitions = emit_partitions(model, division, Path(scratch))
            sessions = [answers.open_session(Path(scratch) / part.file) for part in partitions]
            found = [_run_parts(partitions, sessions, oracle.feeds) for oracle in oracles]
    except HypsError as error:
        trial.add(level, cut, "refused", error.message)
    except Exception as error:  # whatever it is, onnxruntime runs the whole model and we do not
        trial.add(level, cut, "wrong", f"{type(error).__name__}: {error}")
    else:
        for oracle, parts in zip(oracles, found, strict=True):
            trial.add(level, cut, *judge(oracle, level, parts))


def _run_parts(partitions: Sequence[Partition], sessions: Sequence[Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
    known = answers.usable(feeds)
    for part, session in zip(partitions, sessions, strict=True):
        results = session.run(list(part.outputs), {name: known[name] for name in part.inputs})
        known.update(zip(part.outputs, results, strict=True))
    return known


def _judge(oracle: _Oracle, level: str, found: Mapping[str, Any]) -> tuple[Status, str]:
    """Compare with the whole model at the same level of optimization."""
    worst: tuple[Status, str] = ("identical", "")
    for name, value in oracle.at[level].items():
        if name not in found:
            return "wrong", f"output {name} is missing"
        if oracle.is_random:
            if _outline(value) != _outline(found[name]):
                return "wrong", f"output {name} has another type or shape"
            worst = ("tolerance", "random numbers: only types and shapes are compared")
        elif not answers.is_same(value, found[name]):
            gap = answers.distance(value, found[name])
            if gap > answers.tolerance(value):
                return "wrong", f"output {name} differs by {gap:.3g}"
            worst = ("tolerance", f"output {name} differs by {gap:.3g}")
    return worst


def _try_product(model: Model, oracles: Sequence[_Oracle], folder: Path, trial: Trial) -> None:
    """Compile as `hypsc` does, verified, with a cut between all layers; run as a worker does."""
    feeds = oracles[0].feeds
    options = driver.Options(request=Wish(cuts=("all",)), feeds=feeds, verify=True)
    try:
        compiled = driver.compile_model(model.path, folder, options)
        with LocalRunner(folder, threads=1) as runner:
            found = [runner.run(oracle.feeds) for oracle in oracles]
    except DifferenceError as error:
        trial.add("portable", "product", "wrong", f"verification: {error.message}")
        return
    except HypsError as error:
        trial.add("portable", "product", "refused", error.message)
        return
    except Exception as error:  # a bug of ours
        trial.add("portable", "product", "wrong", f"{type(error).__name__}: {error}")
        return
    if compiled.unverified and not oracles[0].is_random:
        trial.notes.append(f"not verified: {compiled.unverified}")
    for oracle, outputs in zip(oracles, found, strict=True):
        trial.add("portable", "product", *_judge_with_noise(oracle, "native", outputs))


def _outline(value: Any) -> Any:
    """Return what is left of a value without its numbers."""
    if isinstance(value, list):
        return [_outline(item) for item in value]
    return type(value), getattr(value, "dtype", None), getattr(value, "shape", None)


def _judge_with_noise(oracle: _Oracle, level: str, found: Mapping[str, Any]) -> tuple[Status, str]:
    """Compare likewise, and allow twice what onnxruntime's own optimizations move an output by.

    Where the last bits of a layer may differ, a deep model spreads them as it spreads those of its own optimizations.
    """
    status, reason = _judge(oracle, level, found)
    if status != "wrong":
        return status, reason
    for name, value in oracle.at[level].items():
        noise = answers.distance(oracle.at["none"][name], oracle.at["native"][name])
        if answers.distance(value, found.get(name)) > max(answers.tolerance(value), 2 * noise):
            return status, reason
    return "tolerance", f"{reason}, as onnxruntime's own optimizations do"


def as_record(trial: Trial) -> dict[str, Any]:
    """Return the trial as JSON has it: counts per status, and what is not identical."""
    counts = {status: sum(f.status == status for f in trial.findings) for status in STATUSES}
    present = [status for status in STATUSES if counts[status]]
    return {
        "status": present[-1] if present else "identical",
        "counts": counts,
        "seconds": trial.seconds,
        "notes": list(dict.fromkeys(trial.notes)),
        "undivided": dict(trial.undivided.most_common()),
        "findings": [
            {"level": f.level, "cut": f.cut, "status": f.status, "reason": f.reason}
            for f in trial.findings
            if f.status != "identical"
        ],
    }
