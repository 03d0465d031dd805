"""`hypsc verify`: an existing plan against the model file it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyps.adapters import feeds
from hyps.adapters.plan_files import check_files, read_plan
from hyps.errors import DifferenceError, ModelError, TensorError, printable
from hyps_compiler.frontend import open_model
from hyps_compiler.measure import Feeds, measure, sample_request
from hyps_compiler.ort import open_session
from hyps_compiler.output import scratch_folder
from hyps_compiler.stage import stage_model
from hyps_compiler.verify import Report, verify_plan
from hyps_passes import ops


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a plan is from a model file."""

    report: Report
    model_has_changed: bool
    """Whether the file is not the one that the plan was made from, byte for byte."""

    def difference(self) -> DifferenceError | None:
        """Return what is wrong, naming the first tensor that differs; None when the plan is proved."""
        try:
            self.report.check()
        except DifferenceError as error:
            changed = "the model file has changed since the plan was made: compile it again"
            altered = "the plan has been altered, or this machine computes differently: compile the model here again"
            return DifferenceError(error.message, changed if self.model_has_changed else altered)
        return None

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            DifferenceError: names the first tensor that differs.
        """
        difference = self.difference()
        if difference is not None:
            raise difference


def verify_folder(folder: Path, model: str, inputs: Mapping[str, Any] | None, samples: int) -> Verification:
    """Run the plan and the model on the same requests and return how far they are apart.

    Args:
        folder: the plan folder.
        model: the model that the plan was made from.
        inputs: a request to run; None makes `samples` seeded random ones.
        samples: how many requests to make.

    Raises:
        PlanError: the plan is wrong or altered.
        ModelError: the model cannot be read, or is another one than the plan's.
        TensorError: the request does not fit the model, or none can be made up on which it runs.
    """
    plan = read_plan(folder)
    check_files(folder, plan)
    if inputs is not None:
        inputs = feeds.Feeds(plan.model.inputs).checked(inputs)
    with scratch_folder() as scratch:
        stage = scratch / "stage"
        stage.mkdir()
        source = open_model(model, scratch)
        if [tensor.name for tensor in plan.model.outputs] != list(source.outputs):
            raise ModelError(
                f"the plan was made from another model than `{printable(model)}`: their outputs have other names",
                f"give the model that is called `{printable(plan.model.name)}`",
            )
        staged = stage_model(source, stage, plan.optimization, plan.kept_tensors)
        if any(ops.is_random(node) for node in staged.model.graph):
            raise ModelError("the model draws random numbers, so that no two runs agree", code="E_RANDOM")
        shapes = {} if inputs else _assumed_shapes(plan.model.inputs, plan.assumed_dims)
        measured = measure(staged.model, staged.path, shapes=shapes, feeds=inputs)
        if measured.feeds is None:
            raise TensorError(
                f"no request was found on which the model runs: {measured.problem}", "give one with --inputs"
            )
        requests: list[Feeds] = [measured.feeds]
        if inputs is None and samples > 1:
            session = open_session(staged.path, "none")
            requests += [sample_request(session, measured.feeds, seed) for seed in range(1, samples)]
        report = verify_plan(folder, plan, source, staged.path, requests)
        return Verification(report, source.sha256 != plan.model.sha256)


def _assumed_shapes(inputs: Any, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the inputs' shapes at the sizes that the plan was made for; without those that are not all known."""
    shapes = {}
    for tensor in inputs:
        sizes = [
            size if isinstance(size, int) else dims.get(size or f"{tensor.name}:{axis}")
            for axis, size in enumerate(tensor.shape or ())
        ]
        if tensor.shape is not None and None not in sizes:
            shapes[tensor.name] = tuple(size for size in sizes if size is not None)
    return shapes
