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
    """Empty: it joined a manager and serves nothing by itself."""
    machine: MachineFacts
    link: LinkProfile


@dataclass(frozen=True, slots=True)
class PeerLink:
    """How two workers reach each other."""

    between: tuple[str, str]
    up_bytes_per_s: float
    """From the first to the second."""
    down_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Survey:
    """This machine, from which requests are sent, and the workers it can reach."""

    name: str
    machine: MachineFacts
    peers: tuple[Peer, ...]
    links: tuple[PeerLink, ...] = ()
    """Between peers, as far as they are known."""


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


def survey(name: str, threads: int | None, peers: Sequence[Peer], links: Sequence[PeerLink] = ()) -> Survey:
    """Return this machine, called `name`, with the workers that were asked, and the links between them.

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
    return Survey(name, here, tuple(peers), tuple(links))


def cluster_toml(found: Survey) -> str:
    """Return the cluster file: speeds against this machine, whose profile it goes with."""
    here: dict[str, Any] = {"name": found.name, **_memory(found.machine), "threads": found.machine.threads}
    devices = [here, *(_device(peer, found.machine) for peer in found.peers)]
    links = [_link(found.name, peer) for peer in found.peers] + [_peer_link(link) for link in found.links]
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
    links = [to_builtins(link) for link in found.links]
    return {"name": found.name, "machine": _machine_json(found.machine), "peers": peers, "links": links}


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
    endpoint = {"endpoint": peer.endpoint} if peer.endpoint else {}
    told = {"name": peer.name, "tier": "edge", **endpoint, "threads": peer.machine.threads}
    return {**told, "speed": round(_speed(peer.machine, here), 4), **_memory(peer.machine)}


def _speed(machine: MachineFacts, here: MachineFacts) -> float:
    if not machine.macs_per_s:  # it does not tell
        return 1.0
    return max(machine.macs_per_s / here.macs_per_s, _LEAST_SPEED)


def _memory(machine: MachineFacts) -> dict[str, Any]:
    return {} if machine.memory_bytes is None else {"memory": f"{machine.memory_bytes // 10**6}MB"}


def _shown(machine: MachineFacts) -> str:
    return "no limit" if machine.memory_bytes is None else format_nbytes(machine.memory_bytes)


def _link(name: str, peer: Peer) -> dict[str, Any]:
    told = _peer_link(PeerLink((name, peer.name), *_rates(peer.link), peer.link.latency_s))
    return {**told, "message": _milliseconds(peer.link.message_s)}


def _peer_link(link: PeerLink) -> dict[str, Any]:
    up, down = (f"{rate / 1e6:.6g}MB/s" for rate in (link.up_bytes_per_s, link.down_bytes_per_s))
    return {"between": list(link.between), "up": up, "down": down, "latency": _milliseconds(link.latency_s)}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4f}ms"


def _rates(link: LinkProfile) -> tuple[float, float]:
    return link.up_bytes_per_s, link.down_bytes_per_s
