"""`hypsc verify`: an existing plan against the model file it was made from, and what is wrong where they differ."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyps.adapters import feeds
from hyps.adapters.plan_files import check_cpu, check_files, read_plan
from hyps.errors import DifferenceError, ModelError, OutputError, TensorError, printable
from hyps.formats.plan import Plan
from hyps.formats.signature import assumed_shapes
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import Feeds, Measured, measure, sample_request
from hyps_compiler.narrow import LayerRef, Locator, Place
from hyps_compiler.oracle import open_oracle
from hyps_compiler.ort import open_session
from hyps_compiler.output import OutputFolder, scratch_folder
from hyps_compiler.reduce import Reduced, reduce_difference
from hyps_compiler.reproduction import MARKER, write_reproduction
from hyps_compiler.source import Source
from hyps_compiler.stage import Staged, stage_model
from hyps_compiler.suspects import Scene, choose_suspect
from hyps_compiler.verify import Report, verify_plan
from hyps_passes import ops
from hyps_passes.layers import build_cut_graph

Step = Callable[[str], None]

_REDUCE_S = 120.0
_PLACES = 8
"""Looking into a partition opens it twice more; of many that are wrong the first say enough."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A reproduction that has been written."""

    folder: Path
    reduced: Reduced
    still_differs: bool | None
    """Whether it was seen to differ in a process of its own."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a plan is from a model file."""

    report: Report
    plan: Plan
    model_has_changed: bool
    """Whether the file is not the one that the plan was made from, byte for byte."""
    samples: int = 1
    """Requests that were compared."""
    first: Place | None = None
    """What lies before the first border that differs in the plan's own run."""
    places: tuple[Place, ...] = ()
    """Where the first partitions that are wrong by themselves are wrong."""
    reproduction: Reproduction | None = None

    def difference(self) -> DifferenceError | None:
        """Return what is wrong, naming the first tensor that differs; None when the plan is proved."""
        try:
            self.report.check()
        except DifferenceError as error:
            changed = "the model file has changed since the plan was made: compile it again"
            altered = "the plan has been altered, or this machine computes differently: compile the model here again"
            reduce = "" if self.reproduction else "; --reduce DIR writes a minimal reproduction"
            return DifferenceError(error.message, (changed if self.model_has_changed else altered) + reduce)
        return None

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            DifferenceError: names the first tensor that differs.
        """
        difference = self.difference()
        if difference is not None:
            raise difference


def verify_folder(
    folder: Path,
    model: str,
    inputs: Mapping[str, Any] | None,
    samples: int,
    *,
    reduce_to: Path | None = None,
    force: bool = False,
    reduce_s: float = _REDUCE_S,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
    converting: Converting = UNTRUSTED,
    step: Step = lambda text: None,
) -> Verification:
    """Run the plan and the model on the same requests and return how far they are apart, and where it begins.

    Args:
        folder: the plan folder.
        model: the model that the plan was made from.
        inputs: a request to run; None makes `samples` seeded random ones.
        samples: how many requests to make.
        reduce_to: where to write a minimal reproduction if they differ; None writes none.
        force: whether to replace a reproduction that is there.
        reduce_s: seconds that reduction may take.
        max_tensor_nbytes: most bytes that one tensor may take that the model computes.
        converting: how to convert the model first, if it is no ONNX file.
        step: called with what is being done, for a progress display.

    Raises:
        PlanError: the plan is wrong or altered.
        ModelError: the model cannot be read, or is another one than the plan's.
        TensorError: the request does not fit the model, or none can be made up on which it runs.
        OutputError: the reproduction cannot be written there.
    """
    plan = read_plan(folder)
    check_cpu(plan)
    check_files(folder, plan)
    if inputs is not None:
        inputs = feeds.Feeds(plan.model.inputs).checked(inputs)
    with scratch_folder() as scratch, _reproduction_folder(reduce_to, force) as output:
        step("reading the model")
        source = open_model(model, scratch, max_tensor_nbytes=max_tensor_nbytes, converting=converting)
        _check_outputs(plan, source, model)
        step("preparing the model")
        stage = scratch / "stage"
        stage.mkdir()
        staged = stage_model(source, stage, plan.optimization, plan.kept_tensors)
        if any(ops.is_random(node) for node in staged.model.graph):
            raise ModelError("the model draws random numbers, so that no two runs agree", code="E_RANDOM")
        measured, requests = _requests(plan, staged, inputs, samples, max_tensor_nbytes)
        step("comparing")
        report = verify_plan(folder, plan, source, staged.path, requests, step=step)
        has_changed = source.sha256 != plan.model.sha256
        if not report.problems():
            return Verification(report, plan, has_changed, len(requests))
        step("locating the difference")
        scene = Scene(folder, plan, source, staged.path, open_oracle(staged.path, folder, plan), requests)
        report, first, places = _locate(scene, report, _layers(staged, measured))
        reproduction = None
        if output is not None and reduce_to is not None:
            reproduction = _reproduce(scene, report, first, places, output, reduce_to, reduce_s, step)
        return Verification(report, plan, has_changed, len(requests), first, places, reproduction)


def _check_outputs(plan: Plan, source: Source, model: str) -> None:
    if [tensor.name for tensor in plan.model.outputs] != list(source.outputs):
        raise ModelError(
            f"the plan was made from another model than `{printable(model)}`: their outputs have other names",
            f"give the model that is called `{printable(plan.model.name)}`",
        )


def _requests(
    plan: Plan, staged: Staged, inputs: Mapping[str, Any] | None, samples: int, max_tensor_nbytes: int
) -> tuple[Measured, list[Feeds]]:
    """Return the requests to compare on, and what the first one tells of the model's tensors."""
    shapes = {} if inputs else assumed_shapes(plan.model.inputs, plan.assumed_dims)
    measured = measure(staged.model, staged.path, shapes=shapes, feeds=inputs, max_tensor_nbytes=max_tensor_nbytes)
    if measured.feeds is None:
        raise TensorError(f"no request was found on which the model runs: {measured.problem}", "give one with --inputs")
    requests: list[Feeds] = [measured.feeds]
    if inputs is None and samples > 1:
        session = open_session(staged.path, "none")
        requests += [sample_request(session, measured.feeds, seed) for seed in range(1, samples)]
    return measured, requests


def _layers(staged: Staged, measured: Measured) -> dict[str, LayerRef]:
    """Return the layer that makes each tensor of the model."""
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    return {
        str(value.name): LayerRef(layer.name, layer.kind)
        for layer in graph.layers
        for node in layer.nodes
        for value in node.outputs
    }


def _locate(
    scene: Scene, report: Report, layers: Mapping[str, LayerRef]
) -> tuple[Report, Place | None, tuple[Place, ...]]:
    """Return the report with each fault laid at the right door, and the places of the first ones."""
    locator = Locator(scene.folder, scene.plan, scene.oracle, layers, scene.requests)
    first = report.first()
    between = None if first is None else locator.between(report.made_by[first.tensor], first.tensor)
    faults = (*map(locator.blame, report.faults[:_PLACES]), *report.faults[_PLACES:])
    places = tuple(locator.place(fault) for fault in faults[:_PLACES])
    return replace(report, faults=faults), between, places


def _reproduce(
    scene: Scene,
    report: Report,
    first: Place | None,
    places: Sequence[Place],
    output: OutputFolder,
    folder: Path,
    limit_s: float,
    step: Step,
) -> Reproduction | None:
    """Reduce the difference and put its reproduction in place; None where it shows in the whole plan only."""
    step("reducing")
    suspect = choose_suspect(scene, report, places)
    reduced = None if suspect is None else reduce_difference(suspect, limit_s=limit_s, step=step)
    if reduced is None:
        return None
    step("writing the reproduction")
    written = output.scratch("reproduction")
    still_differs = write_reproduction(written, reduced, scene.plan, places[0] if places else first)
    output.publish(written)
    return Reproduction(folder, reduced, still_differs)


@contextlib.contextmanager
def _reproduction_folder(path: Path | None, force: bool) -> Iterator[OutputFolder | None]:
    """Yield where to make the reproduction, refused before any work is done; None where none is wanted."""
    if path is None:
        yield None
        return
    try:
        with OutputFolder(path, force=force, marker=MARKER, holds="a reproduction") as output:
            yield output
    except OutputError as error:
        raise OutputError(error.message, error.hint.replace("`-o`", "`--reduce`"), error.code) from error
