"""Opens a group: its links to both sides, its files, planner and signals around the shell."""

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hyps.adapters.addresses import look_up
from hyps.adapters.file_cache import FileCache
from hyps.adapters.host import cache_folder, host_id, private_folder
from hyps.adapters.planner import ChildPlanner
from hyps.adapters.signals import leaving_on_signals
from hyps.adapters.tokens import read_token
from hyps.adapters.zmq_links import ZmqLinks
from hyps.below import BelowOptions
from hyps.core.manager_options import ManagerOptions
from hyps.group import Group, GroupOptions
from hyps.joining import STRANGER_NBYTES, Joining, listen_for_nodes


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a process becomes a group."""

    manager: str
    """The address of the manager above."""
    device: str
    """What the group is called there."""
    bind: str
    """Where its own nodes come to."""
    joining: Joining
    """How it joins the manager above, as a worker does."""
    token_file: str | None = None
    """What its own nodes have to know stands in it; None: nothing."""


def serve_group(
    grouping: Grouping,
    below: ManagerOptions,
    on_ready: Callable[[str], None],
    on_notice: Callable[[str], None],
) -> bool:
    """Be a group until the manager above lets it go, or SIGTERM and nothing left to do; return whether it left so.

    `on_ready` is called with the address once its nodes can connect.

    Raises:
        UsageError: an address or a token file is none.
        PeerError: the manager above refuses the group, or the address is taken.
    """
    look_up(grouping.manager).connectable(grouping.manager)  # which is connected to when there is a worker
    joining, upper = grouping.joining, grouping.joining.token_file
    options = GroupOptions(
        manager=grouping.manager,
        device=grouping.device,
        token="" if upper is None else read_token(upper),
        host=host_id(),
        below=BelowOptions(
            device=grouping.device,
            token="" if grouping.token_file is None else read_token(grouping.token_file),
            manager=below,
        ),
    )
    root = cache_folder() if joining.cache is None else Path(joining.cache)
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(ZmqLinks(stranger_nbytes=STRANGER_NBYTES))
        cache = stack.enter_context(FileCache(root, joining.cache_nbytes))
        folder = stack.enter_context(private_folder())
        endpoints = listen_for_nodes(links, joining, grouping.manager, folder)
        address = links.listen(grouping.bind, allow_remote=joining.allow_remote)
        planner = stack.enter_context(contextlib.closing(ChildPlanner(links.wake)))
        group = Group(links, replace(options, endpoints=endpoints), cache, planner, _new_secret, on_notice)
        with leaving_on_signals(group.leave):
            on_ready(address)
            return group.run()


def _new_secret() -> str:
    return secrets.token_hex(16)
