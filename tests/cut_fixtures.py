"""Cuts models in tests and runs what comes out with plain onnxruntime: no runtime of ours stands between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hyps.formats.plan import Optimization, Partition
from hyps_compiler.emit import emit_partitions
from hyps_compiler.measure import Measured, measure
from hyps_compiler.partition import Division
from hyps_compiler.source import open_source
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Cut:
    """A model that has been cut, and its partitions' files."""

    folder: Path
    staged: Staged
    measured: Measured
    graph: CutGraph
    division: Division
    partitions: tuple[Partition, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every tensor that the partitions make, by name, from a run of one after another."""
        known: dict[str, Array] = {name: feeds[name] for name in self.inputs}
        for partition in self.partitions:
            session = plain_session(self.folder / partition.file)
            assert {i.name for i in session.get_inputs()} == set(partition.inputs)
            assert [o.name for o in session.get_outputs()] == list(partition.outputs)
            results = session.run(list(partition.outputs), {name: known[name] for name in partition.inputs})
            assert not set(partition.outputs) & set(known)
            known.update(zip(partition.outputs, results, strict=True))
        return known


def stage(path: Path, folder: Path, optimization: Optimization = "none", feeds: Feeds | None = None) -> tuple[Any, ...]:
    """Return the staged model and what was measured of it."""
    folder.mkdir(parents=True)
    staged = stage_model(open_source(path), folder, optimization)
    return staged, measure(staged.model, staged.path, shapes={}, feeds=feeds)


def cut_model(
    path: Path,
    folder: Path,
    borders: Callable[[CutGraph], Sequence[int]] = CutGraph.legal_borders,
    *,
    grouped: bool = True,
    optimization: Optimization = "none",
    feeds: Feeds | None = None,
) -> Cut:
    """Cut the model file at the borders that `borders` chooses."""
    staged, measured = stage(path, folder / "stage", optimization, feeds)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused, grouped=grouped)
    return emit_cut(staged, measured, graph, folder / "plan", borders(graph))


def emit_cut(staged: Staged, measured: Measured, graph: CutGraph, folder: Path, borders: Sequence[int]) -> Cut:
    """Write the partitions of a cut graph."""
    division = Division(graph, tuple(sorted(borders)), (), ())
    partitions = emit_partitions(staged.model, division, folder)
    return Cut(
        folder,
        staged,
        measured,
        graph,
        division,
        partitions,
        tuple(str(value.name) for value in staged.model.graph.inputs),
        tuple(str(value.name) for value in staged.model.graph.outputs),
    )


def plain_session(model: Path | bytes, *, optimized: bool = False, threads: int = 1) -> Any:
    """Return a session as onnxruntime makes it, without graph optimizations unless asked for."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def whole_answer(model: Path | bytes, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Array]:
    """Return what onnxruntime computes with the whole model, without graph optimizations."""
    session = plain_session(model)
    wanted = list(names or [output.name for output in session.get_outputs()])
    wanted_feeds = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(wanted, session.run(wanted, wanted_feeds), strict=True))


def is_same(left: Array, right: Array) -> bool:
    """Return whether two arrays agree bit for bit."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def distance(expected: Array, actual: Array) -> float:
    """Return the largest difference relative to the largest expected magnitude; infinite for other shapes or NaNs."""
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return float("inf")
    if expected.tobytes() == actual.tobytes():
        return 0.0
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)) or not np.array_equal(left[~finite], right[~finite], True):
        return float("inf")
    scale = float(np.abs(left[finite]).max(initial=0.0))
    gap = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    return gap / scale if scale else float("inf") if gap else 0.0
