"""`hypsc compile --quantize`: a quantized model in the place of the model, before anything is cut.

Everything behind it sees a model like any other: what is proved of the plan is proved against the quantized model. What
the quantization itself does to the answers is measured and stands in the plan.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from msgspec import structs
from onnxruntime import InferenceSession

from hyps.errors import ExecutionError, HypsError, ModelError, UsageError, printable
from hyps.formats.plan import Quantization
from hyps_compiler.arrays import write_npz
from hyps_compiler.calibration import Calibration, read_calibration, run_problem
from hyps_compiler.children import run_child
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.loss import measure_loss
from hyps_compiler.measure import Feeds, sample_request
from hyps_compiler.ort import open_session, run
from hyps_compiler.quantizing_job import QUANTIZED, Job, Outcome
from hyps_compiler.quantizing_options import QuantizeOptions
from hyps_compiler.source import Source, open_source, read_proto
from hyps_compiler.walk import bodies

_QUANTIZED_OPERATORS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QMoE",
        "QuantizeLinear",
    }
)
_QUANTIZED_PREFIX = "QLinear"
_MADE_UP = 8
"""Seeded random requests on which the loss is measured where none were given."""
_CALIBRATE = "give requests like those to come with --calibration FILE.npz or a folder of such files"


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized model, and what it was made from."""

    source: Source
    """The quantized model, under the name and the digest of the original."""
    original: Source
    record: Quantization
    """Without the loss, which needs a request."""
    calibration: Calibration | None

    def measured(self, request: Feeds | None, *, is_given: bool) -> Quantization:
        """Return the record with the loss, measured on calibration data or else on `request` and ones like it.

        Args:
            request: one on which the model runs; None where there is none.
            is_given: whether a user gave it, so that no others are made up.
        """
        if self.calibration is not None:
            fitted = "static" in self.record.methods
            requests = (fitted and self.calibration.held_out) or self.calibration.all
            seen = fitted and not self.calibration.held_out
            told = structs.replace(self.record, measured_on="calibration" if seen else "held-out")
            return measure_loss(told, self.original, self.source, requests)
        if request is None:
            return structs.replace(self.record, unmeasured="no request was found on which the model runs")
        if is_given:
            told = structs.replace(self.record, measured_on="given")
            return measure_loss(told, self.original, self.source, [request])
        return measure_loss(self.record, self.original, self.source, made_up(self.original, request, _MADE_UP))


def made_up(source: Source, request: Feeds, count: int) -> list[Feeds]:
    """Return a request on which the model runs, and others of its shapes with other seeded random values.

    Those on which the model fails, as one may whose shapes follow from values, are left out.
    """
    session = open_session(source.path, "none")
    others = [sample_request(session, request, seed) for seed in range(1, count)]
    return [request, *(other for other in others if _runs(session, other))]


def _runs(session: InferenceSession, request: Feeds) -> bool:
    try:
        run(session, [output.name for output in session.get_outputs()], request)
    except ExecutionError:
        return False
    return True


def quantize(
    source: Source,
    folder: Path,
    options: QuantizeOptions,
    *,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
    step: Callable[[str], None] = lambda text: None,
) -> Quantized:
    """Return the model quantized, in `folder`; onnxruntime's quantizer works in a process of its own.

    Raises:
        UsageError: it cannot be quantized without requests to calibrate with.
        TensorError: the requests do not fit.
        ModelError: the model is quantized already, has nothing to quantize, or the quantizer fails on it.
    """
    _refuse_quantized(source)
    calibration = _calibration(source, options, step)
    step("quantizing")
    outcome = _run(source, folder, options, calibration)
    if outcome.needs_calibration:
        raise UsageError(
            f"{_shown(source)} is mostly convolutions, whose int8 needs the ranges that values take in requests",
            f"{_CALIBRATE}; fp16 needs none",
        )
    if not outcome.methods or outcome.left_bytes >= outcome.weight_bytes[0]:
        raise ModelError(
            f"{_shown(source)} has nothing that --quantize {options.kind} makes smaller",
            "compile it without --quantize",
            code="E_NOTHING_TO_QUANTIZE",
        )
    made = open_source(folder / QUANTIZED, max_tensor_nbytes=max_tensor_nbytes)
    shown = replace(
        made,
        name=source.name,
        sha256=source.sha256,
        initializer_inputs=source.initializer_inputs,
        is_packed="weights" in outcome.methods,
    )
    record = Quantization(
        kind=options.kind,
        methods=outcome.methods,
        weight_bytes=outcome.weight_bytes,
        left_bytes=outcome.left_bytes,
        calibration_requests=len(calibration.told) if calibration and "static" in outcome.methods else 0,
    )
    return Quantized(shown, source, record, calibration)


def _refuse_quantized(source: Source) -> None:
    nodes = [node.op_type for body, _ in bodies(read_proto(source.path)) for node in body.node]
    found = [kind for kind in nodes if kind in _QUANTIZED_OPERATORS or kind.startswith(_QUANTIZED_PREFIX)]
    if found:
        raise ModelError(
            f"{_shown(source)} is quantized already, as its `{printable(found[0])}` shows",
            "compile it without --quantize",
            code="E_QUANTIZED",
        )


def _calibration(source: Source, options: QuantizeOptions, step: Callable[[str], None]) -> Calibration | None:
    """Return the user's requests, after the model has run on the first."""
    if options.calibration is None:
        return None
    step("reading calibration requests")
    session = open_session(source.path, "none")
    calibration = read_calibration(options.calibration, session)
    try:
        run(session, [output.name for output in session.get_outputs()], calibration.told[0])
    except ExecutionError as error:
        raise run_problem(error) from error
    return calibration


def _run(source: Source, folder: Path, options: QuantizeOptions, calibration: Calibration | None) -> Outcome:
    requests = []
    for number, request in enumerate(calibration.told if calibration and options.kind == "int8" else ()):
        path = folder / f"request-{number}.npz"
        write_npz(path, request)
        requests.append(os.fspath(path.absolute()))
    job = Job(
        kind=options.kind,
        source=os.fspath(source.path.absolute()),
        folder=os.fspath(folder.absolute()),
        requests=tuple(requests),
    )
    told = folder / "job.json"
    told.write_bytes(msgspec.json.encode(job))
    try:
        printed = run_child("hyps_compiler.quantizing_child", [os.fspath(told)], folder, "quantizing")
    except HypsError as error:
        raise ModelError(f"{_shown(source)} cannot be quantized: {error.message}", error.hint, error.code) from error
    outcome = msgspec.json.decode(printed, type=Outcome)
    if outcome.refusal:
        raise ModelError(
            f"onnxruntime's quantizer fails on {_shown(source)}: {printable(outcome.refusal, 300)}",
            "compile it without --quantize" if options.kind == "fp16" else "compile it without --quantize, or try fp16",
            code="E_UNSUPPORTED",
        )
    return outcome


def _shown(source: Source) -> str:
    return f"`{printable(source.name)}`"
