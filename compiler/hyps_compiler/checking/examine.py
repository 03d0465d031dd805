"""The process in which one model is converted, compiled and verified, so that one that crashes spoils no other's check.

Imports onnx and onnxruntime; the parent does not.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hyps.adapters.guard import become_expendable, limit_seconds
from hyps.containment import die_with_writer
from hyps.dependencies import check_safe
from hyps.errors import HypsError, InfeasibleError, InternalError
from hyps_compiler.arrays import read_npz
from hyps_compiler.checking.facts import (
    ConversionFacts,
    Facts,
    Layer,
    Measured,
    Outcome,
    layers_of,
    measured_difference,
    problem_of,
)
from hyps_compiler.checking.job import ModelJob
from hyps_compiler.checking.reading import read_facts
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.convert.conversion import Conversion
from hyps_compiler.converting import Converting
from hyps_compiler.driver import Compiled, Options, compile_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.output import scratch_folder
from hyps_compiler.partition import Request, parse_cuts
from hyps_compiler.quantizing_options import quantize_request
from hyps_compiler.verify import Report

if TYPE_CHECKING:
    from hyps_compiler.placement import PlacementRequest

_LESS = "check it on a machine with more memory, or with smaller inputs"


def main() -> None:
    """Do the `ModelJob` in the file `argv[1]`, and write its `Outcome` as JSON to the file `argv[2]`.

    Temporary files, those of its own children too, go to the folder of the first, which goes with the parent's work.
    Its last argument is the longest that one call of onnxruntime may take, in seconds, 0 for no limit. The process ends
    when its standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_seconds(float(sys.argv[3]) or None)
    os.environ["TMPDIR"] = tempfile.tempdir = os.path.dirname(sys.argv[1])
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ModelJob)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(examine(job)))


def examine(job: ModelJob) -> Outcome:
    """Return what comes of a model; a refusal is an outcome too."""
    start_s = time.monotonic()
    try:
        check_safe("onnx", "onnxruntime")
        with scratch_folder() as work:
            outcome = Outcome(facts=_facts(job, work))
    except HypsError as error:
        problem = msgspec.structs.replace(problem_of(error), layers=_layers_without_limits(job, error))
        outcome = Outcome(problem=problem)
    except MemoryError:
        outcome = Outcome(problem=problem_of(HypsError("there is not enough memory", _LESS, "E_MEMORY")))
    except Exception as error:  # the process's top: the other models are to be checked nonetheless
        traceback.print_exc()
        outcome = Outcome(problem=problem_of(InternalError(f"{type(error).__name__}: {error}")))
    return msgspec.structs.replace(outcome, seconds=time.monotonic() - start_s)


def _facts(job: ModelJob, work: Path) -> Facts:
    folder = Path(job.output) if job.output else work / "plan"
    folder.parent.mkdir(parents=True, exist_ok=True)
    compiled = compile_model(job.model, folder, _options(job, job.options))
    conversion = compiled.conversion
    return Facts(
        plan=read_facts(folder),
        difference=_largest_difference(compiled.report),
        unverified=compiled.unverified,
        conversion=None if conversion is None else _conversion_facts(conversion),
        notes=_notes(compiled, conversion),
    )


def _options(job: ModelJob, told: CompileOptions) -> Options:
    cuts, tensors = parse_cuts(told.cut)
    nbytes = told.max_tensor_bytes or MOST_TENSOR_NBYTES
    calibration = Path(told.calibration) if told.calibration else None
    return Options(
        request=Request(
            max_params=told.max_params,
            memory_bytes=told.memory_bytes,
            cuts=cuts,
            tensors=tensors,
            partitions=told.partitions,
        ),
        optimization=told.optimize,
        shapes=told.input,
        feeds=read_npz(Path(told.inputs)) if told.inputs else None,
        force=job.force,
        max_tensor_nbytes=nbytes,
        placement=_placement(job, told, nbytes),
        quantization=quantize_request(told.quantize, calibration, has_cluster=told.cluster is not None),
        converting=Converting(trust=job.trust),
    )


def _placement(job: ModelJob, told: CompileOptions, max_tensor_nbytes: int) -> "PlacementRequest | None":
    if told.cluster is None:
        return None
    from hyps_compiler.clusters import SiteRequest, load_site  # searches and their solver, which nothing else needs
    from hyps_compiler.placement import PlacementRequest

    profile = Path(told.profile) if told.profile else None
    request = SiteRequest(
        Path(told.cluster),
        profile,
        shapes=told.input,
        max_tensor_nbytes=max_tensor_nbytes,
        converting=Converting(trust=job.trust),
    )
    return PlacementRequest(load_site(job.model, request), objective=told.objective, strategy=told.strategy)


def _layers_without_limits(job: ModelJob, error: HypsError) -> tuple[Layer, ...]:
    """Return the layers of a model that cannot keep its limits, so that it can be said which of them grew."""
    if not isinstance(error, InfeasibleError):
        return ()
    without = {"memory_bytes": None, "max_params": None, "partitions": None, "cluster": None, "cut": ("mandatory",)}
    free = msgspec.structs.replace(job.options, **without)
    with suppress(HypsError), scratch_folder() as work:  # the sentence on the limit is complete without them
        compile_model(job.model, work / "plan", replace(_options(job, free), verify=False))
        return tuple(layers_of(read_facts(work / "plan").partitions).values())
    return ()


def _largest_difference(report: Report | None) -> Measured | None:
    if report is None or not report.outputs:
        return None
    worst = max(report.outputs, key=lambda found: found.relative)
    return measured_difference(worst.relative, worst.tensor)


def _conversion_facts(made: Conversion) -> ConversionFacts:
    worst = max(made.agreement, key=lambda found: found.difference, default=None)
    return ConversionFacts(
        kind=made.kind,
        converter=made.converter,
        framework=made.framework,
        difference=None if worst is None else measured_difference(worst.difference, worst.output),
        unverified=made.unverified,
    )


def _notes(compiled: Compiled, conversion: Conversion | None) -> tuple[str, ...]:
    notes = list(conversion.notes) if conversion else []
    if conversion and conversion.constant_outputs:
        notes.append(f"these outputs do not depend on the input: {', '.join(conversion.constant_outputs)}")
    if compiled.unverified:
        notes.append(f"the plan was not verified: {compiled.unverified}")
    return tuple(notes)


if __name__ == "__main__":
    main()
