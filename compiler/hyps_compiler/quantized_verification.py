"""`hypsc verify` of a quantized plan: whether it still loses no more against the model than when it was made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace as with_fields

from hyps.adapters.machine import rss_nbytes
from hyps.adapters.plan_files import check_cpu, check_files, read_plan
from hyps.errors import DifferenceError, ModelError, PlanError, TensorError, printable
from hyps.formats.plan import OutputLoss, Plan, Quantization
from hyps.formats.signature import assumed_shapes
from hyps.local import LocalRunner
from hyps_compiler.calibration import requests_in
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.loss import compare_answers, whole_answers
from hyps_compiler.measure import Feeds, measure
from hyps_compiler.ort import open_session
from hyps_compiler.output import scratch_folder
from hyps_compiler.quantizing import made_up
from hyps_compiler.source import Source
from hyps_compiler.stage import stage_model
from hyps_passes import ops

_MARGIN = 2.0
"""How many times the recorded mean difference other requests, or another processor, may make of it. The largest is no
measure: one request in a hundred with a value that calibration had not seen multiplies it."""
_LEAST_ALLOWED = 1e-5
"""Relative: what another order of accumulation may do where nothing was lost."""
_LARGE_BYTES = 10**9


@dataclass(frozen=True, slots=True)
class LossCheck:
    """What a quantized plan loses now, beside what it was measured to lose."""

    plan: Plan
    losses: tuple[OutputLoss, ...]
    requests: int
    model_has_changed: bool

    @property
    def record(self) -> Quantization:
        """What the plan says."""
        assert self.plan.quantization is not None, "only quantized plans are checked so"
        return self.plan.quantization

    @property
    def exit_status(self) -> int:
        """What a command ends with."""
        difference = self.difference()
        return 0 if difference is None else difference.exit_status

    def allowed(self, output: str) -> float | None:
        """Return the mean relative difference that the output may have; None where none was recorded."""
        known = {loss.output: loss.mean for loss in self.record.losses}.get(output)
        return None if known is None else max(_MARGIN * known, _LEAST_ALLOWED)

    def difference(self) -> DifferenceError | None:
        """Return what is wrong; None where every output loses no more than the plan says it may."""
        for loss in self.losses:
            allowed = self.allowed(loss.output)
            if allowed is None or (loss.mean is not None and loss.mean <= allowed):
                continue
            found = (
                "by no finite number" if loss.mean is None else f"by {loss.mean:.2g} of its largest value on average"
            )
            changed = "the model file has changed since the plan was made: compile it again"
            other = "give a request like those it was calibrated with, or compile it again with more of them"
            return DifferenceError(
                f"the quantized plan loses more than it was measured to lose: output `{printable(loss.output)}` differs"
                f" {found}, and {allowed:.2g} is allowed",
                changed if self.model_has_changed else other,
            )
        return None

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            DifferenceError: names the first output that loses more than is allowed.
        """
        difference = self.difference()
        if difference is not None:
            raise difference


def verify_loss(
    folder: Path,
    model: str,
    inputs: Mapping[str, Any] | None,
    samples: int,
    *,
    max_tensor_nbytes: int,
    converting: Converting = UNTRUSTED,
    step: Callable[[str], None] = lambda text: None,
) -> LossCheck:
    """Run the plan and the unquantized model on the same requests.

    Args:
        folder: the plan folder.
        model: the model that was quantized.
        inputs: requests, in a form that calibration takes; None makes `samples` seeded random ones.
        samples: how many to make.
        max_tensor_nbytes: most bytes that one tensor may take that the model computes.
        converting: how to convert the model first, if it is no ONNX file.
        step: called with what is being done, for a progress display.

    Raises:
        PlanError: the plan is wrong or altered, or does not say what it loses.
        ModelError: the model cannot be read, or is another one than the plan's.
        TensorError: the request does not fit, or made-up ones would tell nothing.
    """
    plan = read_plan(folder)
    check_cpu(plan)
    check_files(folder, plan)
    record = plan.quantization
    assert record is not None, "only quantized plans are checked so"
    if all(loss.mean is None for loss in record.losses):
        reason = f": {printable(record.unmeasured)}" if record.unmeasured else ""
        raise PlanError(
            f"the plan does not say what its quantization loses, which was not measured{reason}",
            "compile the model again with a request on which it runs, given with --inputs",
        )
    if inputs is None and record.calibration_requests:
        raise TensorError(
            "the plan was quantized for requests like those it was calibrated with, and random ones are not like them",
            "give a real one with --inputs FILE.npz",
        )
    with scratch_folder() as scratch:
        step("reading the model")
        source = open_model(model, scratch, max_tensor_nbytes=max_tensor_nbytes, converting=converting)
        _check_outputs(plan, source, model)
        if inputs is None:
            requests = _requests(plan, source, scratch, samples, max_tensor_nbytes)
        else:
            requests = requests_in(inputs, plan.model.inputs, lambda: open_session(source.path, "none"))
        if not requests:
            raise TensorError("there is no request to compare on", "give one with --inputs FILE.npz")
        step("comparing")
        losses = compare_answers(source.outputs, whole_answers(source, requests), _plan_answers(folder, plan, requests))
        return LossCheck(plan, losses, len(requests), source.sha256 != plan.model.sha256)


def _check_outputs(plan: Plan, source: Source, model: str) -> None:
    if [tensor.name for tensor in plan.model.outputs] != list(source.outputs):
        raise ModelError(
            f"the plan was made from another model than `{printable(model)}`: their outputs have other names",
            f"give the model that is called `{printable(plan.model.name)}`",
        )


def _requests(plan: Plan, source: Source, scratch: Path, samples: int, max_tensor_nbytes: int) -> list[Feeds]:
    stage = scratch / "stage"
    stage.mkdir()
    staged = stage_model(source, stage, "portable")
    if any(ops.is_random(node) for node in staged.model.graph):
        raise ModelError("the model draws random numbers, so that no two runs agree", code="E_RANDOM")
    shapes = assumed_shapes(plan.model.inputs, plan.assumed_dims)
    known = measure(staged.model, staged.path, shapes=shapes, feeds=None, max_tensor_nbytes=max_tensor_nbytes)
    if known.feeds is None:
        raise TensorError(f"no request was found on which the model runs: {known.problem}", "give one with --inputs")
    return made_up(source, known.feeds, samples)


def _plan_answers(folder: Path, plan: Plan, requests: list[Feeds]) -> list[dict[str, Any]]:
    """Run the plan as a worker with memory for all of it does; with large weights, as one that leaves them mapped."""
    large = plan.model.weight_bytes > _LARGE_BYTES
    budget = (rss_nbytes() or 0) + plan.model.weight_bytes + _LARGE_BYTES if large else None
    with LocalRunner(folder, plan=with_fields(plan, memory_bytes=budget), check=False) as parts:
        return [parts.run(request) for request in requests]
