"""The whole compile, top to bottom: a model file in, a verified plan folder out."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from msgspec import structs

from hyps.adapters.machine import cpu_family
from hyps.adapters.plan_files import PLAN_FILE
from hyps.adapters.resident import CODE_NBYTES
from hyps.errors import InfeasibleError, UsageError
from hyps.formats.plan import (
    ModelInfo,
    Optimization,
    Partition,
    Plan,
    Prediction,
    Quantization,
    Variant,
    encode_plan,
    plan_problems,
)
from hyps.formats.quantities import format_nbytes
from hyps_compiler import emit
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.children import run_child
from hyps_compiler.convert import Conversion
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.cut_names import cut_tensors
from hyps_compiler.forms import emit_forms
from hyps_compiler.frontend import open_model
from hyps_compiler.interop.dividing import divide_as_wanted
from hyps_compiler.interop.reading import follow_annotations
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import Feeds, Measured, measure
from hyps_compiler.output import OutputFolder, check_apart
from hyps_compiler.partition import BASE_BYTES, SPARE_BYTES, Division, Request, divide, sliced, smallest_memory
from hyps_compiler.snapshot import unchanged
from hyps_compiler.source import Source
from hyps_compiler.stage import Staged, stage_model
from hyps_compiler.verify import Report, verify_plan
from hyps_compiler.weighing import MEASURED_BEYOND_NBYTES, needed_nbytes, weigh_plan, with_measured_peaks
from hyps_passes import ops

if TYPE_CHECKING:
    from hyps_compiler.placement import Placed, PlacementRequest
    from hyps_compiler.quantizing import Quantized
    from hyps_compiler.quantizing_options import QuantizeOptions

LOCAL = "local"
"""Name of the one device and variant of a plan made without a cluster."""

_MEMORY_TRIES = 3
_FINER_NBYTES = 500_000


@dataclass(frozen=True, slots=True)
class Options:
    """What `hypsc compile` was asked for."""

    request: Request = field(default_factory=Request)
    optimization: Optimization = "portable"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs with open dimensions, for sizes and verification; the plan keeps them open."""
    feeds: Feeds | None = None
    """A request to verify on; None makes one."""
    verify: bool = True
    force: bool = False
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES
    """Most bytes that one tensor may take that the model computes; its weights may be larger."""
    placement: "PlacementRequest | None" = None
    """The cluster to divide the model for, and how; None: one device."""
    quantization: "QuantizeOptions | None" = None
    """How to quantize the model first; None leaves it as it is."""
    converting: Converting = UNTRUSTED
    """How to convert the model first, if it is no ONNX file."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan, where it lies, and what was found about it."""

    plan: Plan
    folder: Path
    division: Division
    report: Report | None
    """None where it was not verified; `unverified` says why."""
    unverified: str
    peak_bytes: int | None
    """Measured in a process of its own under `--memory`; None without, and where the request is no set of arrays."""
    placed: "Placed | None" = None
    """Where its partitions run, and why; None without a cluster."""
    fixed_inputs: tuple[str, ...] = ()
    """Inputs with a default value that a request could replace before; now they have it for good."""
    conversion: Conversion | None = None
    """How the model was made of one of another kind; None where it was ONNX."""


def compile_model(
    model: str | Path,
    output: Path,
    options: Options,
    step: Callable[[str], None] = lambda text: None,
) -> Compiled:
    """Cut a model into partitions and write the plan folder, whole or not at all.

    Args:
        model: a model file or `zoo:NAME`.
        output: the plan folder to make.
        options: what was asked for.
        step: called with what is being done, for a progress display.

    Raises:
        ModelError: the model cannot be read or onnxruntime refuses it.
        InfeasibleError: the limits cannot be met.
        OutputError: the folder exists, cannot be written, or would take the model's place.
        DifferenceError: the plan does not compute what the model computes.
    """
    check_apart(output, model)
    with OutputFolder(output, force=options.force) as target:
        work = target.scratch("work")
        step("reading the model")
        source = open_model(
            model,
            work,
            max_tensor_nbytes=options.max_tensor_nbytes,
            verify=options.verify,
            converting=options.converting,
        )
        options = replace(options, request=follow_annotations(options.request, source.path))
        quantized = _quantized(source, target, options, step)
        named = cut_tensors(
            quantized.source if quantized else source,
            options.request.tensors,
            target.scratch("names"),
            shapes=options.shapes,
            feeds=options.feeds,
            max_tensor_nbytes=options.max_tensor_nbytes,
        )
        options = replace(options, request=replace(options.request, tensors=named))
        reserve = 0
        for attempt in range(_MEMORY_TRIES):
            plan_folder = target.scratch(f"plan{attempt}")
            stage = target.scratch(f"stage{attempt}")
            with unchanged(source.stamps):
                compiled = _compile_once(quantized or source, stage, plan_folder, options, reserve, step)
            over = (compiled.peak_bytes or 0) - (options.request.memory_bytes or 0)
            if compiled.peak_bytes is None or over <= 0:
                step("putting the plan in place")
                target.publish(plan_folder)
                return replace(compiled, folder=output, conversion=source.conversion)
            reserve += over + _FINER_NBYTES  # the estimate was too low by this much: divide again, finer
    raise InfeasibleError(
        f"the plan was measured at {format_nbytes(compiled.peak_bytes or 0)} resident, more than --memory"
        f" {format_nbytes(options.request.memory_bytes or 0)}",
        f"give --memory {-(-((compiled.peak_bytes or 0) + SPARE_BYTES) // 10**6)}MB",
    )


def _quantized(
    source: Source, target: OutputFolder, options: Options, step: Callable[[str], None]
) -> "Quantized | None":
    """Return the model as it was asked to be quantized; None where it was not."""
    if options.quantization is None:
        return None
    from hyps_compiler.quantizing import quantize  # with what few compiles need

    if options.quantization.kind == "fp16" and options.optimization == "native":
        raise UsageError(
            "--optimize native lays weights out in float32, so that --quantize fp16 would save nothing",
            "use --optimize portable",
        )
    folder = target.scratch("quantized")
    return quantize(source, folder, options.quantization, max_tensor_nbytes=options.max_tensor_nbytes, step=step)


def _compile_once(
    model: "Source | Quantized",
    stage: Path,
    folder: Path,
    options: Options,
    reserve: int,
    step: Callable[[str], None],
) -> Compiled:
    source = model if isinstance(model, Source) else model.source
    step("optimizing" if options.optimization != "none" else "finding fusions")
    request = options.request
    staged = stage_model(source, stage, options.optimization, request.kept_in(source.made))
    step("measuring tensors")
    measured = measure(
        staged.model,
        staged.path,
        shapes=options.shapes,
        feeds=options.feeds,
        max_tensor_nbytes=options.max_tensor_nbytes,
    )
    _require_sizes(request, measured)
    step("cutting")
    if request.memory_bytes is not None:
        request = replace(request, reserve_bytes=reserve)
    quantization = None if isinstance(model, Source) else _loss(model, staged, measured, options, step)
    parameters = emit.model_parameters(staged.model)
    placed = _placed(source, staged, measured, options, step)
    division = placed.division if placed else _divided(source, staged, measured, options, request, stage)
    step("writing partitions")
    partitions = emit.emit_partitions(staged.model, division, folder)
    outputs = [str(value.name) for value in staged.model.graph.outputs]
    partitions = emit_forms(folder, partitions, outputs, measured.feeds)
    plan = _plan(source, staged, measured, division, partitions, options, parameters, placed, quantization)
    assert not plan_problems(plan), plan_problems(plan)
    (folder / PLAN_FILE).write_bytes(encode_plan(plan))
    if placed:
        emit.emit_devices(plan, folder)
    unverified = _reason_not_to_verify(staged, measured, options)
    report, peak, answers = None, None, None
    if options.request.memory_bytes is not None and _is_storable(measured.feeds):
        step("measuring memory")
        assert measured.feeds is not None
        plan = _weighed(plan, folder, stage, measured.feeds)
        needed = needed_nbytes(plan) + BASE_BYTES - MEASURED_BEYOND_NBYTES
        if needed > options.request.memory_bytes:
            return Compiled(plan, folder, division, None, unverified, needed, placed, source.initializer_inputs)
        peak, answer = _run_under_budget(folder, stage, measured.feeds)
        answers = [answer]
    if not unverified:
        step("verifying")
        assert measured.feeds is not None
        report = verify_plan(folder, plan, source, staged.path, [measured.feeds], answers=answers)
        report.check()
    return Compiled(plan, folder, division, report, unverified, peak, placed, source.initializer_inputs)


def _loss(
    model: "Quantized", staged: Staged, measured: Measured, options: Options, step: Callable[[str], None]
) -> Quantization:
    """Return what is known of the quantization, what it does to the answers included."""
    if any(ops.is_random(node) for node in staged.model.graph):
        return structs.replace(model.record, unmeasured="the model draws random numbers, so no two runs agree")
    step("measuring what quantization loses")
    return model.measured(measured.feeds, is_given=options.feeds is not None)


def _placed(
    source: Source, staged: Staged, measured: Measured, options: Options, step: Callable[[str], None]
) -> "Placed | None":
    """Return the division for the cluster that was asked for; None where none was."""
    if options.placement is None:
        return None
    from hyps_compiler.clusters import device_limit  # searches and their solver, which nothing else needs
    from hyps_compiler.placement import place

    limit = device_limit(options.placement.site.cluster)
    request = replace(limit, max_params=options.request.max_params)
    wanted = options.request.wanted
    divided = divide_as_wanted(staged.model, measured.sizes, staged.fused, wanted.shards if wanted else ())
    graph, rewrites = sliced(staged.model, measured.sizes, divided.fused, request)
    options.placement.site.check_profiles(graph, source.sha256)
    if wanted is not None:
        from hyps_compiler.interop.placing import place_as_wanted

        return place_as_wanted(graph, (*divided.rewrites, *rewrites), options.placement, wanted, divided)
    step("searching the best placement")
    return place(graph, rewrites, options.placement)


def _divided(
    source: Source, staged: Staged, measured: Measured, options: Options, request: Request, folder: Path
) -> Division:
    """Return the model's division for one device.

    Raises:
        InfeasibleError: it cannot keep the limits; the hint says too what would do for a model that can be cut further.
    """
    try:
        return divide(staged.model, measured.sizes, staged.fused, request)
    except InfeasibleError as error:
        if options.optimization != "native" or request.memory_bytes is None:
            raise
        (folder / "portable").mkdir()
        portable = stage_model(source, folder / "portable", "portable", request.kept_in(source.made))
        known = measure(
            portable.model,
            portable.path,
            shapes=options.shapes,
            feeds=options.feeds,
            max_tensor_nbytes=options.max_tensor_nbytes,
        )
        least = -(-(smallest_memory(portable.model, known.sizes, portable.fused) + SPARE_BYTES) // 10**6)
        told = f"{error.hint}; with --optimize portable, whose layers can be cut further, --memory {least}MB is enough"
        raise InfeasibleError(error.message, told, code=error.code) from error


def _is_storable(feeds: Mapping[str, Any] | None) -> bool:
    """Return whether another process can be given the request: a sequence or a map fits in no .npz file."""
    return feeds is not None and all(isinstance(value, np.ndarray) for value in feeds.values())


def _require_sizes(request: Request, measured: Measured) -> None:
    if request.memory_bytes is not None and measured.feeds is None:
        raise InfeasibleError(
            f"--memory needs all sizes, and no request was found on which the model runs: {measured.problem}",
            "give the shapes of its inputs with --input NAME:SHAPE",
            code="E_DYNAMIC_SHAPE",
        )


def _reason_not_to_verify(staged: Staged, measured: Measured, options: Options) -> str:
    if not options.verify:
        return "--no-verify was given"
    if measured.feeds is None:
        return f"no request was found on which the model runs ({measured.problem}); try --input NAME:SHAPE"
    if any(ops.is_random(node) for node in staged.model.graph):
        return "the model draws random numbers, so no two runs agree"
    return ""


def _plan(
    source: Source,
    staged: Staged,
    measured: Measured,
    division: Division,
    partitions: tuple[Partition, ...],
    options: Options,
    parameters: tuple[int, int],
    placed: "Placed | None",
    quantization: Quantization | None,
) -> Plan:
    graph = staged.model.graph
    return Plan(
        producer=f"hyps {version('hyps')}, onnxruntime {ort.__version__}",
        model=ModelInfo(
            name=source.name,
            sha256=source.sha256,
            ir_version=source.ir_version,
            opset=source.opset,
            inputs=emit.named_tensors(graph.inputs),
            outputs=emit.named_tensors(graph.outputs),
            parameters=parameters[0],
            weight_bytes=parameters[1],
        ),
        optimization=options.optimization,
        cpu_family=cpu_family() if options.optimization == "native" else None,
        passes=",".join(("normalize", *division.rewrites)),
        kept_tensors=options.request.kept_in(source.made),
        memory_bytes=options.request.memory_bytes,
        max_params=options.request.max_params,
        assumed_dims=dict(sorted(measured.assumed_dims.items())),
        lossy=(f"quantize {quantization.kind}",) if quantization else (),
        quantization=quantization,
        tensors=emit.tensor_infos(division, partitions),
        partitions=partitions,
        split_points=division.points,
        variants=placed.variants(partitions) if placed else (_local_variant(partitions),),
        entry=placed.request.site.cluster.entry if placed else None,
        strategy=placed.request.strategy if placed else None,
        objective=placed.request.objective if placed else None,
        regimes=placed.regimes() if placed else (),
    )


def _local_variant(partitions: tuple[Partition, ...], base_bytes: int = BASE_BYTES) -> Variant:
    peaks = [partition.peak_memory_bytes for partition in partitions]
    known = [peak for peak in peaks if peak is not None]
    memory = {LOCAL: max(known) + base_bytes} if known and len(known) == len(peaks) else {}
    return Variant(name=LOCAL, placement={p.id: LOCAL for p in partitions}, prediction=Prediction(memory_bytes=memory))


def _weighed(plan: Plan, folder: Path, scratch: Path, feeds: Feeds) -> Plan:
    """Return the plan with the measured peaks of its partitions, written anew; as it is where none can be measured."""
    weighing = weigh_plan(folder, scratch, feeds)
    if weighing is None:
        return plan
    partitions = with_measured_peaks(plan.partitions, weighing)
    variants = plan.variants if plan.entry else (_local_variant(partitions, weighing.base_nbytes + CODE_NBYTES),)
    plan = structs.replace(plan, partitions=partitions, variants=variants)
    (folder / PLAN_FILE).write_bytes(encode_plan(plan))
    return plan


def _run_under_budget(folder: Path, scratch: Path, feeds: Feeds) -> tuple[int | None, dict[str, Any]]:
    """Run one request in a fresh process under the plan's budget; return its peak resident bytes and its outputs."""
    request, answer = scratch / "request.npz", scratch / "answer.npz"
    write_npz(request, feeds)
    arguments = [os.fspath(path) for path in (folder, request, answer)]
    printed = run_child("hyps_compiler.peak", arguments, scratch, "measuring memory")
    return int(printed) or None, read_npz(answer)
