"""Reads what a placement starts from: the cluster file, the profiles it names, what layers cost on each device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from hyps.errors import ClusterError, ProfileError, UsageError, printable
from hyps.formats.cluster import Cluster, decode_cluster
from hyps.formats.profiles import Profile, scaled
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import measure
from hyps_compiler.output import scratch_folder
from hyps_compiler.partition import BASE_BYTES, NODE_BASE_BYTES, Request, sliced
from hyps_compiler.profiling import ProfileOptions, profile_model, read_profile
from hyps_compiler.stage import stage_model
from hyps_passes.costs import Costs, profile_costs
from hyps_passes.graph import CutGraph
from hyps_passes.placing import build_problem
from hyps_passes.problem import Problem

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster with the profiles of its devices."""

    cluster: Cluster
    profiles: Mapping[str, Profile]
    """By device, as fast as the device is."""

    def unloaded(self) -> "Site":
        """Return the site as it is while nobody else uses its devices."""
        devices = tuple(msgspec.structs.replace(device, load=0.0) for device in self.cluster.devices)
        return replace(self, cluster=msgspec.structs.replace(self.cluster, devices=devices))

    def costs(self, graph: CutGraph, batch: int) -> dict[str, Costs]:
        """Return what the layers of a graph cost on each device."""
        return {name: profile_costs(graph, profile, batch) for name, profile in self.profiles.items()}

    def modelled(self, graph: CutGraph) -> int:
        """Return of how many layers the seconds are modelled, on the device where that are most."""
        return max(costs.modelled for costs in self.costs(graph, 1).values())

    def check_profiles(self, graph: CutGraph, sha256: str) -> None:
        """Refuse profiles of another model that tell nothing of this one: guesses would be proven optimal.

        Raises:
            ProfileError: no layer of the model is in the profile of a device.
        """
        for name, costs in self.costs(graph, 1).items():
            profile = self.profiles[name]
            if graph.layers and costs.modelled == len(graph.layers) and profile.sha256 != sha256:
                raise ProfileError(
                    f"the profile for device `{printable(name)}` is of the model `{printable(profile.model)}` and has"
                    " none of this model's layers",
                    "measure this model with `hypsc profile`",
                )

    def problem(self, graph: CutGraph, batch: int = 1) -> Problem:
        """Return the problem of placing the layers of a graph on the devices."""
        costs = self.costs(graph, batch)
        return build_problem(graph, self.cluster, costs, base_bytes=NODE_BASE_BYTES, batch=batch)


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """Where the cluster and the profiles are."""

    cluster: Path
    profile: Path | None = None
    """Of a device of speed 1; None measures this machine, where a device needs it."""
    batches: tuple[int, ...] = (1,)
    """What to measure, where this machine is measured."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES
    converting: Converting = UNTRUSTED
    """How to convert the model first, if it is no ONNX file."""


@dataclass(frozen=True, slots=True)
class Planning:
    """A model and a site, put together."""

    model: str
    graph: CutGraph
    site: Site
    problem: Problem


def load_problem(model: str, request: SiteRequest, step: Step = lambda text: None) -> Planning:
    """Return the problem of placing a model on a cluster.

    A layer that no device can hold is sliced, if it can be.

    Raises:
        ModelError: the model cannot be read.
        ClusterError: the cluster file cannot be read or is wrong; ProfileError: so is a profile.
        InfeasibleError: a layer fits no device and cannot be sliced, or a size is unknown.
    """
    site = load_site(model, request, step)
    with scratch_folder() as folder:
        stage = folder / "stage"
        stage.mkdir()
        step("optimizing")
        source = open_model(model, folder, max_tensor_nbytes=request.max_tensor_nbytes, converting=request.converting)
        staged = stage_model(source, stage, "portable")
        step("measuring tensors")
        measured = measure(
            staged.model,
            staged.path,
            shapes=request.shapes,
            feeds=None,
            max_tensor_nbytes=request.max_tensor_nbytes,
        )
        graph, _ = sliced(staged.model, measured.sizes, staged.fused, device_limit(site.cluster))
        site.check_profiles(graph, source.sha256)
        return Planning(source.name, graph, site, site.problem(graph, request.batches[0]))


def load_site(model: str, request: SiteRequest, step: Step = lambda text: None) -> Site:
    """Return the cluster and the profile of each of its devices; measures this machine where none is given.

    Raises:
        ClusterError: the cluster file cannot be read or is wrong.
        ProfileError: a profile cannot be read or is wrong.
        ModelError: the model cannot be measured.
    """
    cluster = read_cluster(request.cluster)
    base = None if request.profile is None else read_profile(request.profile)
    if base is None and any(device.profile is None for device in cluster.devices):
        step("measuring layers here")
        base = profile_model(model, _measuring(cluster, request), step)
    profiles = {}
    for device in cluster.devices:
        if device.profile is not None:
            profiles[device.name] = read_profile(request.cluster.parent / device.profile)
        else:
            assert base is not None
            profiles[device.name] = scaled(base, device.speed, device.name)
    return Site(cluster, profiles)


def read_cluster(path: Path) -> Cluster:
    """Return the cluster in a TOML file.

    Raises:
        ClusterError: it cannot be read, or is wrong.
    """
    shown = printable(str(path))
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError as error:
        raise ClusterError(
            f"cluster file `{shown}` does not exist", "`hypsc cluster` writes one", "E_NOT_FOUND"
        ) from error
    except OSError as error:
        raise ClusterError(f"cluster file `{shown}` cannot be read: {error.strerror}") from error
    return decode_cluster(text, path.name)


def device_limit(cluster: Cluster) -> Request:
    """Return what the largest device can hold, as a limit on one partition; placing counts whole tables too."""
    memories = [device.memory_bytes for device in cluster.devices]
    most = max((memory for memory in memories if memory is not None), default=None)
    return Request(
        memory_bytes=None if None in memories else most,
        carry=False,
        reads_rows=False,
        reserve_bytes=NODE_BASE_BYTES - BASE_BYTES,
    )


def _measuring(cluster: Cluster, request: SiteRequest) -> ProfileOptions:
    """Return how to measure this machine in the place of the devices that have no profile.

    Raises:
        UsageError: these devices use different numbers of threads, which one measurement cannot tell of.
    """
    threads = {device.threads for device in cluster.devices if device.profile is None}
    if len(threads) > 1:
        raise UsageError(
            "devices of different `threads` cannot share one measurement",
            "measure each with `hypsc profile` and name the files in the cluster file",
        )
    return ProfileOptions(
        batches=request.batches,
        threads=threads.pop(),
        shapes=request.shapes,
        max_tensor_nbytes=request.max_tensor_nbytes,
        converting=request.converting,
    )
