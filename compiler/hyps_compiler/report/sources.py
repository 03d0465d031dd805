"""Reads what a report is made from: the plan, the model's layers, profiles, the cluster, a run of the plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hyps.adapters.plan_files import read_plan
from hyps.errors import InfeasibleError, PlanError, UsageError, printable
from hyps.formats.plan import Plan
from hyps.formats.profiles import Profile, scaled
from hyps_compiler.arrays import write_npz
from hyps_compiler.children import run_child
from hyps_compiler.clusters import Site, device_limit, read_cluster
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import measure
from hyps_compiler.output import scratch_folder
from hyps_compiler.partition import sliced
from hyps_compiler.profiling import read_profile
from hyps_compiler.report.trial import Trial
from hyps_compiler.running import random_request
from hyps_compiler.stage import stage_model
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user gave."""

    plan: Path
    model: str | None = None
    profiles: tuple[Path, ...] = ()
    cluster: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES
    is_run: bool = False
    """Whether one request is run here."""
    converting: Converting = UNTRUSTED
    """How to convert the model first, if it is no ONNX file."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known."""

    plan: Plan
    layers: CutGraph | None = None
    """Of the whole model, before anything was divided; None: no model was given."""
    pieces: CutGraph | None = None
    """The same with what no device of the cluster can hold divided; None: no model, no cluster, or it cannot be."""
    blocked: str = ""
    """Why it cannot be."""
    profiles: tuple[Profile, ...] = ()
    site: Site | None = None
    """The cluster with its profiles; None: either is missing."""
    measured: Trial | None = None


def read_sources(wanted: Wanted, step: Step) -> Sources:
    """Return everything that the user gave files for.

    Raises:
        HypsError: a file cannot be read, is wrong, or belongs to something else.
    """
    step("reading the plan")
    plan = read_plan(wanted.plan)
    profiles = tuple(read_profile(path) for path in wanted.profiles)
    site = None if wanted.cluster is None else site_of(wanted.cluster, profiles)
    layers, pieces, blocked = (None, None, "") if wanted.model is None else _graphs(plan, wanted, site, step)
    measured = _run(wanted.plan, plan, step) if wanted.is_run else None
    return Sources(plan, layers, pieces, blocked, profiles, site, measured)


def site_of(path: Path, profiles: Sequence[Profile]) -> Site:
    """Return a cluster with the profiles of its devices, as far as there are some.

    A device has the profile that its cluster file names, else the one that was measured on a device of its name, else
    the first, made as fast as the device is.

    Raises:
        ClusterError: the cluster cannot be read or is wrong; ProfileError: so is a profile that it names.
    """
    cluster = read_cluster(path)
    named = {profile.device: profile for profile in profiles}
    known = {}
    for device in cluster.devices:
        if device.profile is not None:
            known[device.name] = read_profile(path.parent / device.profile)
        elif device.name in named:
            known[device.name] = named[device.name]
        elif profiles:
            known[device.name] = scaled(profiles[0], device.speed, device.name)
    return Site(cluster, known)


def _graphs(plan: Plan, wanted: Wanted, site: Site | None, step: Step) -> tuple[CutGraph, CutGraph | None, str]:
    """Return the model's layers, whole and as the cluster needs them, and what is in the way of the latter.

    Raises:
        ModelError: the model cannot be read.
        PlanError: the plan is of another model.
    """
    assert wanted.model is not None, "called with a model only"
    with scratch_folder() as folder:
        stage = folder / "stage"
        stage.mkdir()
        step("reading the model")
        source = open_model(
            wanted.model, folder, max_tensor_nbytes=wanted.max_tensor_nbytes, converting=wanted.converting
        )
        if source.sha256 != plan.model.sha256:
            raise PlanError(
                f"the plan is of another model than `{printable(wanted.model)}`",
                "give the model that it was compiled from, or leave --model out",
                "E_OTHER_MODEL",
            )
        staged = stage_model(source, stage, plan.optimization, plan.kept_tensors)
        step("measuring tensors")
        shapes = {**_assumed(plan), **wanted.shapes}
        measured = measure(
            staged.model, staged.path, shapes=shapes, feeds=None, max_tensor_nbytes=wanted.max_tensor_nbytes
        )
        whole = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
        if site is None:
            return whole, None, ""
        try:
            pieces, _ = sliced(staged.model, dict(measured.sizes), staged.fused, device_limit(site.cluster))
        except InfeasibleError as error:  # the rest of the page can do without
            return whole, None, error.message
        return whole, pieces, ""


def _assumed(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the plan's bytes are for, of inputs with open dimensions that it says sizes of."""
    shapes = {}
    for tensor in plan.model.inputs:
        if tensor.shape is None or all(isinstance(size, int) for size in tensor.shape):
            continue
        dims = [
            size if isinstance(size, int) else plan.assumed_dims.get(size or f"{tensor.name}:{axis}")
            for axis, size in enumerate(tensor.shape)
        ]
        if None not in dims:
            shapes[tensor.name] = tuple(size for size in dims if size is not None)
    return shapes


def _run(folder: Path, plan: Plan, step: Step) -> Trial:
    """Run one request of made-up values in a process of its own.

    Raises:
        UsageError: the plan is for several devices.
        HypsError: it cannot be run.
    """
    if plan.entry is not None:
        raise UsageError("--run is for a plan for one device, and this one is for a cluster", "leave it out")
    step("running one request")
    with scratch_folder() as scratch:
        request = scratch / "request.npz"
        write_npz(request, random_request(plan.model.inputs, plan.assumed_dims))
        told = run_child("hyps_compiler.report.trial", [str(folder), str(request)], scratch, "running the plan")
    return msgspec.json.decode(told, type=Trial)


def single_batch(plan: Plan) -> int:
    """Return how many requests the plan's first variant takes together."""
    return plan.variants[0].prediction.batch


def without_load(site: Site) -> Site:
    """Return the site as it is while requests come one at a time."""
    cluster = msgspec.structs.replace(site.cluster, arrival_rps=0.0)
    return Site(cluster, site.profiles)
