"""Compiles ONNX models into plans: `hypsc` on the command line, `compile` from Python."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from hyps.formats.plan import Optimization, Plan
    from hyps_compiler.quantizing_job import Kind

__all__ = ["compile"]


def compile(  # noqa: A001  # the contract's name; it compiles models as `re.compile` compiles patterns
    model: str | Path,
    output: str | Path,
    *,
    max_params: int | None = None,
    memory: int | str | None = None,
    cut: str | Sequence[str] = "mandatory",
    configuration: str | None = None,
    partitions: int | None = None,
    optimize: "Optimization" = "portable",
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: "Mapping[str, np.ndarray[Any, Any]] | None" = None,
    max_tensor: int | str | None = None,
    cluster: str | Path | None = None,
    profile: str | Path | None = None,
    objective: str = "latency",
    strategy: str = "exact",
    quantize: "Kind | None" = None,
    calibration: str | Path | None = None,
    trust: bool = False,
    modules: Sequence[str] = (),
    verify: bool = True,
    force: bool = False,
) -> "Plan":
    """Cut a model into partitions, write the plan folder, verify it and return the plan.

    Args:
        model: an ONNX file, whatever `hypsc convert` takes, or `zoo:NAME`.
        output: the plan folder to make; it appears whole or not at all.
        max_params: most parameters one partition may hold.
        memory: most memory one worker process may use, in bytes or as `256MB`.
        cut: `mandatory`, `pooling`, `strided`, `bottleneck`, `all`, `annotations` (where the model itself says), or
            names of tensors; several may be given.
        configuration: with `annotations`: which device configuration of the model to follow, or `split_assignments`.
        partitions: exactly so many partitions, the largest as small as can be.
        optimize: `none`, `portable` (any CPU) or `native` (this CPU family, fastest).
        input_shapes: shapes to assume for inputs with open dimensions; the plan keeps them open.
        inputs: a request to measure and verify with, instead of a made one.
        max_tensor: most memory that one tensor that the model computes may take, in bytes or as `4GB`; 2 GiB unless
            given, and four times as much for all that follows from constants together. Weights may be larger.
        cluster: a cluster file; the search then decides where to cut and what runs where, or with `annotations` the
            model itself, and `max_params` is the only other limit that may be given.
        profile: a profile of a device of speed 1, for devices of the cluster without their own; measured here unless
            given.
        objective: what to make best on the cluster: `latency`, `throughput`, `memory`, `energy` or `bytes`.
        strategy: how to place layers; `hyps_passes.strategies.STRATEGIES` has all.
        quantize: `int8` or `fp16` quantizes the model first, which changes answers; the plan says by how much.
        calibration: requests for `int8`, an `.npz` file or a folder of them.
        trust: whether code in a model that is to be converted may be run, as reading a pickle does.
        modules: Python modules that register classes of a model that is to be converted.
        verify: whether to prove the plan against the model.
        force: whether to replace an existing plan.

    Raises:
        HypsError: of the kind that says whose fault it is; see `hyps.errors`.
    """
    from hyps.errors import UsageError
    from hyps.formats.quantities import parse_nbytes
    from hyps_compiler.converting import Converting
    from hyps_compiler.driver import Options, compile_model
    from hyps_compiler.limits import MOST_TENSOR_NBYTES
    from hyps_compiler.partition import Request, parse_cuts
    from hyps_compiler.quantizing_options import quantize_request

    cuts, tensors = parse_cuts([cut] if isinstance(cut, str) else cut)
    is_free = cuts in (("mandatory",), ("annotations",)) and not tensors
    if cluster is not None and (not is_free or partitions or memory or optimize != "portable"):
        raise UsageError(
            "a cluster's search decides where to cut",
            "leave out cut, partitions, memory and optimize, or write limits into the cluster file",
        )
    request = Request(
        max_params=max_params,
        memory_bytes=parse_nbytes(memory) if isinstance(memory, str) else memory,
        cuts=cuts,
        configuration=configuration,
        tensors=tensors,
        partitions=partitions,
    )
    quantization = quantize_request(
        quantize, None if calibration is None else Path(calibration), has_cluster=cluster is not None
    )
    options = Options(
        request=request,
        optimization=optimize,
        shapes=input_shapes or {},
        feeds=inputs,
        verify=verify,
        force=force,
        max_tensor_nbytes=MOST_TENSOR_NBYTES if max_tensor is None else parse_nbytes(str(max_tensor)),
        quantization=quantization,
        converting=Converting(trust, tuple(modules)),
    )
    if cluster is not None:
        from hyps_compiler.clusters import SiteRequest, load_site
        from hyps_compiler.placement import PlacementRequest

        files = SiteRequest(
            Path(cluster),
            None if profile is None else Path(profile),
            shapes=options.shapes,
            max_tensor_nbytes=options.max_tensor_nbytes,
            converting=options.converting,
        )
        placement = PlacementRequest(load_site(str(model), files), objective=objective, strategy=strategy)
        options = replace(options, placement=placement)
    return compile_model(model, Path(output), options).plan
