"""Predicts the latency of every cut from what was measured on each device and on the link, with the one cost model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyps.formats.cluster import Cluster, Link
from hyps.formats.cluster import Device as ClusterDevice
from hyps.formats.profiles import LinkProfile, Profile, decode_profile
from hyps_passes.assignment import pipeline
from hyps_passes.costs import profile_costs
from hyps_passes.estimate import estimate
from hyps_passes.graph import CutGraph
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.placing import build_problem
from hyps_passes.problem import Problem
from hyps_passes.searches.exact import exact
from testbed import Device
from truth.clusters import DEVICE, SERVER

_REPEATS = 5
_HYPSC = Path(sys.executable).with_name("hypsc")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a request is predicted to take, and how much of it each side computes."""

    latency_s: float
    head_s: float
    tail_s: float


def measure_profile(model: Path, device: Device, path: Path, borders: int) -> Profile:
    """Return what a model costs on a device of the testbed, measured there by `hypsc profile`."""
    command = [_HYPSC, "profile", model, "-o", path, "--device", device.name, "--threads", 1, "-q", "--force"]
    command += ["--layers", borders, "--repeats", _REPEATS]
    done = device.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"`hypsc profile` failed on {device.name}: {done.stderr}")
    return decode_profile(path.read_bytes())


def build(graph: CutGraph, device: Profile, server: Profile, link: LinkProfile, request_s: float = 0.0) -> Problem:
    """Return the problem of dividing a model between the two.

    Args:
        graph: the model's layers.
        device: what they cost on the device.
        server: what they cost on the server.
        link: from the device to the server.
        request_s: what a request to the server takes beside.
    """
    costs = {DEVICE: profile_costs(graph, device, 1), SERVER: profile_costs(graph, server, 1)}
    problem = build_problem(graph, _cluster(link), costs)
    here, there = problem.machines
    return replace(problem, machines=(here, replace(there, run_s=there.run_s + request_s)))


def predict(problem: Problem, head: Sequence[int]) -> Prediction:
    """Return what a cut is predicted to take, of which the device runs the layers `head`."""
    told = estimate(problem, pipeline(problem, (0, 1), _stages(problem, head)))
    return Prediction(told.latency_s, told.busy_s[0], told.busy_s[1])


def choose(problem: Problem) -> tuple[int, ...]:
    """Return the layers that the device runs in the cut of the smallest predicted latency, of all cuts there are."""
    found = exact(problem, OBJECTIVES["latency"])
    assert found is not None
    return tuple(task for stage in found.assignment.stages if stage.machine == 0 for task in stage.tasks)


def _stages(problem: Problem, head: Sequence[int]) -> list[int]:
    inside = set(head)
    return [int(task not in inside) for task in range(len(problem.tasks))]


def _cluster(link: LinkProfile) -> Cluster:
    devices = (ClusterDevice(name=DEVICE, tier="device"), ClusterDevice(name=SERVER, tier="cloud"))
    between = Link(
        between=(DEVICE, SERVER),
        up_bytes_per_s=link.up_bytes_per_s,
        down_bytes_per_s=link.down_bytes_per_s,
        latency_s=link.latency_s,
        message_s=link.message_s,
    )
    return Cluster(devices=devices, links=(between,), entry=DEVICE)
