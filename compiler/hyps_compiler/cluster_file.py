"""Writes a cluster file from what running workers and the ways to them tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w
from msgspec import to_builtins

from hyps.adapters.machine import available_nbytes
from hyps.adapters.sessions import Sessions
from hyps.adapters.yardstick import macs_per_s
from hyps.errors import UsageError, printable
from hyps.formats.messages import MachineFacts
from hyps.formats.profiles import LinkProfile
from hyps.formats.quantities import format_nbytes
from hyps.probe import measure_link, probe_machine
from hyps.remote import connect
from hyps.terminal import table

_LEAST_SPEED = 0.001


@dataclass(frozen=True, slots=True)
class Peer:
    """A running worker."""

    name: str
    endpoint: str
    machine: MachineFacts
    link: LinkProfile


@dataclass(frozen=True, slots=True)
class Survey:
    """This machine, from which requests are sent, and the workers it can reach."""

    name: str
    machine: MachineFacts
    peers: tuple[Peer, ...]


def ask_worker(endpoint: str) -> Peer:
    """Return what a running worker, and the way to it, can do; takes some seconds.

    Raises:
        UsageError: no address.
        PeerError: no worker answers there.
    """
    runner = connect(endpoint)
    try:
        return Peer(runner.device, endpoint, probe_machine(runner), measure_link(runner, endpoint))
    finally:
        runner.close()


def survey(name: str, threads: int | None, peers: Sequence[Peer]) -> Survey:
    """Return this machine, called `name`, with the workers that were asked.

    Raises:
        UsageError: two of them have one name.
    """
    names = [name, *(peer.name for peer in peers)]
    for called in names:
        if names.count(called) > 1:
            raise UsageError(
                f"two devices are called `{printable(called)}`",
                "start each worker with `hyps-worker --device NAME`, and name this machine with --device",
            )
    opener = Sessions(threads, is_alone=True)
    here = MachineFacts(available_nbytes(), opener.threads, macs_per_s(opener))
    return Survey(name, here, tuple(peers))


def cluster_toml(found: Survey) -> str:
    """Return the cluster file: speeds against this machine, whose profile it goes with."""
    here: dict[str, Any] = {"name": found.name, **_memory(found.machine), "threads": found.machine.threads}
    devices = [here, *(_device(peer, found.machine) for peer in found.peers)]
    links = [_link(found.name, peer) for peer in found.peers]
    head = (
        "# Written by `hypsc cluster` from measurements. `speed` is against the first device, on which\n"
        "# `hypsc profile MODEL` is to be run; a profile measured on a device itself is better: write\n"
        '# `profile = "FILE"` in its place. docs/cluster.md tells what else can be said.\n\n'
    )
    return head + tomli_w.dumps({"entry": found.name, "devices": devices, "links": links})


def survey_json(found: Survey) -> dict[str, Any]:
    """Return devices and links as values."""
    peers = [
        {"name": p.name, "endpoint": p.endpoint, "machine": _machine_json(p.machine), "link": to_builtins(p.link)}
        for p in found.peers
    ]
    return {"name": found.name, "machine": _machine_json(found.machine), "peers": peers}


def _machine_json(machine: MachineFacts) -> dict[str, Any]:
    """Messages are arrays on the wire; machines that read JSON want names."""
    return {name: getattr(machine, name) for name in machine.__struct_fields__}


def show_survey(found: Survey) -> str:
    """Return devices and links for people, 80 columns wide."""
    rows: list[tuple[str, ...]] = [(printable(found.name, 20), _shown(found.machine), "1", "", "", "")]
    for peer in found.peers:
        link = peer.link
        rates = [format_nbytes(rate * 8).replace("B", "bit") + "/s" for rate in _rates(link)]
        latency = f"{link.latency_s * 1e3:.2f} ms"
        speed = f"{_speed(peer.machine, found.machine):.3g}"
        rows.append((printable(peer.name, 20), _shown(peer.machine), speed, *rates, latency))
    return table(rows, ("device", "memory", "speed", "up", "down", "latency"), "lrrrrr", 80)


def _device(peer: Peer, here: MachineFacts) -> dict[str, Any]:
    told = {"name": peer.name, "tier": "edge", "endpoint": peer.endpoint, "threads": peer.machine.threads}
    return {**told, "speed": round(_speed(peer.machine, here), 4), **_memory(peer.machine)}


def _speed(machine: MachineFacts, here: MachineFacts) -> float:
    return max(machine.macs_per_s / here.macs_per_s, _LEAST_SPEED)


def _memory(machine: MachineFacts) -> dict[str, Any]:
    return {} if machine.memory_bytes is None else {"memory": f"{machine.memory_bytes // 10**6}MB"}


def _shown(machine: MachineFacts) -> str:
    return "no limit" if machine.memory_bytes is None else format_nbytes(machine.memory_bytes)


def _link(name: str, peer: Peer) -> dict[str, Any]:
    up, down = (f"{rate / 1e6:.6g}MB/s" for rate in _rates(peer.link))
    latency, message = (f"{seconds * 1e3:.4f}ms" for seconds in (peer.link.latency_s, peer.link.message_s))
    return {"between": [name, peer.name], "up": up, "down": down, "latency": latency, "message": message}


def _rates(link: LinkProfile) -> tuple[float, float]:
    return link.up_bytes_per_s, link.down_bytes_per_s
