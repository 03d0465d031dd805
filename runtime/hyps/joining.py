"""Runs a node as a process: where others reach it, where its files are, and the signals that end it."""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyps.adapters.addresses import look_up
from hyps.adapters.file_cache import FileCache
from hyps.adapters.host import address_towards, cache_folder, host_id, is_loopback, private_folder, tcp_address
from hyps.adapters.links import Links
from hyps.adapters.plan_files import read_plan
from hyps.adapters.sessions import Sessions
from hyps.adapters.signals import leaving_on_signals
from hyps.adapters.tokens import read_token
from hyps.adapters.zmq_links import ZmqLinks
from hyps.errors import UsageError, printable
from hyps.formats.plan import Plan
from hyps.node import Node, NodeOptions

_ANY = ("tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:")

STRANGER_NBYTES = 256 * 1024
"""Of a message of somebody who has not shown that it may send to us: it only has to say who it is."""


@dataclass(frozen=True, slots=True)
class Joining:
    """How a process becomes a node."""

    plan: str | None = None
    """A plan folder whose files need not be fetched."""
    token_file: str | None = None
    data_bind: str | None = None
    """Where other nodes come to; None: a port of the system's choice, where that is safe."""
    is_listening: bool = True
    """Whether other nodes may come at all."""
    allow_remote: bool = False
    """Whether other machines may come, without encryption."""
    cache: str | None = None
    """The folder of the cache; None: the user's."""
    cache_nbytes: int | None = None
    threads: int | None = None


def join(joining: Joining, options: NodeOptions, on_notice: Callable[[str], None]) -> bool:
    """Be a node until the manager lets it go, or SIGTERM and nothing left to do; return whether it left in order.

    Raises:
        UsageError: an address or the token file is none.
        PlanError: the plan folder is none.
        PeerError: the manager refuses the node, or is not there in time.
        NodeStuckError: a work item cannot be ended; only a new process can go on.
    """
    look_up(options.manager).connectable(options.manager)  # refused before anything slow is done
    plan = None if joining.plan is None else read_plan(joining.plan)
    token = "" if joining.token_file is None else read_token(joining.token_file)
    cache = FileCache(
        cache_folder() if joining.cache is None else Path(joining.cache),
        joining.cache_nbytes,
        None if joining.plan is None else Path(joining.plan),
    )
    budget = _budget(options.memory_bytes, plan)
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(_links(budget))
        stack.enter_context(cache)
        folder = stack.enter_context(private_folder())
        endpoints = listen_for_nodes(links, joining, options.manager, folder)
        full = dataclasses.replace(
            options,
            token=token,
            endpoints=endpoints,
            host=host_id(),
            memory_bytes=budget,
        )
        node = Node(links, full, Sessions(joining.threads, share_pool=True), cache, on_notice)
        with leaving_on_signals(node.leave):
            return node.run()


def _links(budget_nbytes: int | None) -> ZmqLinks:
    """Return links; under a budget they keep no memory but what messages need, in which no tensor lies twice."""
    if budget_nbytes is None:
        return ZmqLinks(stranger_nbytes=STRANGER_NBYTES)
    return ZmqLinks(stranger_nbytes=STRANGER_NBYTES, arena_nbytes=0, pooled_nbytes=0)


def _budget(memory_bytes: int | None, plan: Plan | None) -> int | None:
    return plan.memory_bytes if memory_bytes is None and plan is not None else memory_bytes


def listen_for_nodes(links: Links, joining: Joining, manager: str, folder: Path) -> tuple[str, ...]:
    """Let other nodes come; return what they are told, the best first."""
    if not joining.is_listening:
        return ()
    near = [links.listen(f"ipc://{folder}/data")] if host_id() else []
    bind = joining.data_bind or _safe_bind(manager, joining.allow_remote)
    if bind is None:
        return tuple(near)
    bound = links.listen(bind, allow_remote=joining.allow_remote)
    if bind.startswith(_ANY):
        own = address_towards(manager)
        if not own:
            text = f"`{printable(bind)}` does not tell other nodes where to come"
            raise UsageError(text, "give the address of a network with `--data-bind`", "E_ADDRESS")
        bound = tcp_address(own, bound.rpartition(":")[2])
    return (*near, bound)


def _safe_bind(manager: str, allow_remote: bool) -> str | None:
    """Return where other nodes may come to: the address from which the manager is reached, or None for not by tcp."""
    own = address_towards(manager)
    if not own or not (allow_remote or is_loopback(own)):
        return None
    return tcp_address(own, 0)
