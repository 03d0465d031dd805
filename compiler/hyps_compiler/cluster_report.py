"""Asks workers and managers for a cluster file; a manager tells of the devices that joined it and of their links."""

import itertools
from dataclasses import dataclass

from hyps.errors import PeerError, printable
from hyps.formats.messages import MachineFacts
from hyps.formats.profiles import LinkProfile
from hyps.formats.replanning import HUB, Assumption
from hyps.formats.status import LinkStatus, NodeStatus, Report
from hyps.observer import observe
from hyps_compiler.cluster_file import Peer, PeerLink, ask_worker

_ASK_S = 2.0
_HERE = ("joining", "loading", "serving")


@dataclass(frozen=True, slots=True)
class Managed:
    """What was asked: a worker alone, or a manager's devices."""

    peers: tuple[Peer, ...]
    links: tuple[PeerLink, ...]
    assumed: tuple[str, ...]
    """Devices the way to which was not measured, and is assumed."""


def ask(endpoint: str) -> Managed:
    """Return the worker at `endpoint`, which takes some seconds, or the devices of the manager there.

    Raises:
        UsageError: no address.
        PeerError: nobody answers there, or it is a manager that no device has joined.
    """
    report = _report(endpoint)
    if report is not None and report.role == "manager":
        return managed(report, endpoint)
    return Managed((ask_worker(endpoint),), (), ())


def managed(report: Report, endpoint: str) -> Managed:
    """Return the devices of the manager at `endpoint`; its place is taken for that of this machine.

    The link of two devices that nothing was sent over, but could be, is taken to be as slow as the slower of theirs to
    the manager. Devices that do not reach each other have none.

    Raises:
        PeerError: no device has joined it.
    """
    nodes = sorted((node for node in report.nodes if node.state in _HERE), key=lambda node: node.device)
    if not nodes:
        raise PeerError(
            f"no device has joined the manager at `{printable(endpoint)}`",
            "start `hyps-worker --manager ENDPOINT --device NAME` on each",
        )
    links = {(link.source, link.target): link for link in report.links}
    ways = {node.device: _Way.of(node, links) for node in nodes}
    return Managed(
        peers=tuple(_peer(node, ways[node.device], endpoint) for node in nodes),
        links=tuple(
            _between(one, other, ways, links) for one, other in itertools.combinations(nodes, 2) if _meet(one, other)
        ),
        assumed=tuple(name for name, way in ways.items() if way.is_assumed),
    )


def _report(endpoint: str) -> Report | None:
    """Return what somebody tells of itself; None: an older worker, or nobody, as whoever asks next finds."""
    with observe(endpoint) as observer:
        try:
            return observer.ask(_ASK_S)
        except PeerError:
            return None


@dataclass(frozen=True, slots=True)
class _Way:
    """The way from the manager to a device, and back."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    is_assumed: bool

    @classmethod
    def of(cls, node: NodeStatus, links: dict[tuple[str, str], LinkStatus]) -> "_Way":
        there, back = links.get((HUB, node.device)), links.get((node.device, HUB))
        rates = [link.bytes_per_s for link in (there, back) if link is not None and link.bytes_per_s is not None]
        seconds = [link.seconds for link in (there, back) if link is not None and link.seconds is not None]
        base = Assumption()
        if not rates:
            return cls(base.bytes_per_s, base.bytes_per_s, min(seconds, default=base.latency_s), is_assumed=True)
        return cls(rates[0], rates[-1], min(seconds, default=base.latency_s), is_assumed=False)


def _peer(node: NodeStatus, way: _Way, endpoint: str) -> Peer:
    facts = MachineFacts(node.memory_nbytes, node.threads or 1, node.macs_per_s or 0.0)
    link = LinkProfile(
        peer=endpoint,
        device=node.device,
        up_bytes_per_s=way.up_bytes_per_s,
        down_bytes_per_s=way.down_bytes_per_s,
        latency_s=way.latency_s,
        message_s=0.0,
        n=0 if way.is_assumed else 1,
    )
    return Peer(node.device, "", facts, link)


def _meet(one: NodeStatus, other: NodeStatus) -> bool:
    return other.device not in one.unreachable and one.device not in other.unreachable


def _between(
    one: NodeStatus, other: NodeStatus, ways: dict[str, _Way], links: dict[tuple[str, str], LinkStatus]
) -> PeerLink:
    names = (one.device, other.device)
    there, back = links.get(names), links.get((other.device, one.device))
    seconds = [link.seconds for link in (there, back) if link is not None and link.seconds is not None]
    latency_s = min(seconds, default=max(ways[name].latency_s for name in names))
    known = [link.bytes_per_s for link in (there, back) if link is not None and link.bytes_per_s is not None]
    if known:
        return PeerLink(names, known[0], known[-1], latency_s)
    first, second = (ways[name] for name in names)
    up = min(first.down_bytes_per_s, second.up_bytes_per_s)
    return PeerLink(names, up, min(second.down_bytes_per_s, first.up_bytes_per_s), latency_s)
