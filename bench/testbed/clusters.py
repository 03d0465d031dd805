"""The layout that stands for a cluster file."""

import os

from hyps.errors import UsageError
from hyps.formats.cluster import Cluster, Device
from testbed.layout import Layout, Machine, Wire

MOST_CORES_USED = 1.5
"""Of two cores: quotas that sum to more let devices take each other's time, and speed-ups are artefacts."""


def layout_of(cluster: Cluster, *, scale: float = 1.0, paced: bool = False) -> Layout:
    """Return machines and wires for a cluster: speeds as parts of a core, memory, rates and latencies.

    Devices that no link joins reach each other over others. Of links only rate and latency are emulated: what a
    message and its serialization cost is what they cost here.

    Args:
        cluster: what there is to be.
        scale: the speed of one core here; with 0.5 a device of speed 0.25 has an eighth of a core.
        paced: pin every device to a core of its own and slow that evenly.

    Raises:
        UsageError: more devices than cores are to be paced, or the layout is impossible.
    """
    cores = sorted(os.sched_getaffinity(0))
    if paced and len(cluster.devices) > len(cores):
        raise UsageError(f"{len(cluster.devices)} devices cannot have a core each of {len(cores)}", "leave out --paced")
    machines = {
        device.name: Machine(_fraction(device, scale), device.memory_bytes, cores[index] if paced else None)
        for index, device in enumerate(cluster.devices)
    }
    wires = tuple(
        Wire(*link.between, link.up_bytes_per_s, link.down_bytes_per_s, link.latency_s) for link in cluster.links
    )
    return Layout(machines, wires, is_forwarding=True)


def cores_used(layout: Layout) -> float:
    """Return how many cores the devices may use together."""
    cores = len(os.sched_getaffinity(0))
    return sum(cores if machine.cpu_fraction is None else machine.cpu_fraction for machine in layout.machines.values())


def _fraction(device: Device, scale: float) -> float:
    return min(device.speed * (1 - device.load) * scale, float(device.threads or len(os.sched_getaffinity(0))))
