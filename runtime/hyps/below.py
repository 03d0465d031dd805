"""A group's own manager: made anew for each set of partitions, for nodes that stay; and how these fare together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyps.adapters.links import Links
from hyps.adapters.planner import Planner
from hyps.carrying import Above
from hyps.core.group_events import StandsBelow
from hyps.core.group_state import WAKE
from hyps.core.group_view import cpu_family_of, facts_of, plan_below, requests_of
from hyps.core.manager_options import ManagerOptions, NewSecret
from hyps.core.manager_state import ManagerState
from hyps.formats.node_messages import MAX_SETUP_NBYTES
from hyps.formats.plan import ModelInfo, Plan, Prediction, Variant
from hyps.manager import Access, Manager

_SETTLE_S = 0.5
"""How long the nodes are to stay the same before it is told what they can do."""

_HOPELESS_S = 3.0
"""Beyond the time for gathering: after so long without a placement it is told that there is none."""

_NOTHING = Plan(
    model=ModelInfo(name="", sha256="0" * 64, ir_version=10, opset={}, inputs=(), outputs=()),
    tensors={},
    partitions=(),
    variants=(Variant(name="", placement={}, prediction=Prediction()),),
)
"""What nodes have to do while the group has nothing to do."""


@dataclass(frozen=True, slots=True)
class BelowOptions:
    """How a group manages its nodes."""

    device: str
    """What the group is called above."""
    token: str = ""
    """What its nodes have to know."""
    manager: ManagerOptions = field(default_factory=ManagerOptions)


class Below:
    """The manager below, for the group's thread.

    Attributes:
        state: its state machine.
        manager: its shell.
        facts: what its nodes can do together, since they were the same for a while.
        max_requests: that they can have at work at once.
        cpu_family: theirs; empty: several.
    """

    def __init__(
        self, links: Links, options: BelowOptions, planner: Planner, new_secret: NewSecret, above: Above
    ) -> None:
        """Begin with nothing to do; see `Group`."""
        self._links, self._options, self._planner = links, options, planner
        self._new_secret, self._above = new_secret, above
        self._make(_NOTHING, (), {})
        self._members: tuple[int, ...] = ()
        """Links of the nodes when they were looked at last."""
        self._same_since_s = -math.inf
        self.facts = facts_of(self.state.network.members)
        self.max_requests, self.cpu_family = 1, ""
        self._is_known = False
        self._hopeless_since_s: float | None = None

    def rebuild(self, plan: Plan | None, keep: tuple[str, ...], folders: Mapping[str, Path]) -> None:
        """Manage other partitions from now on.

        The nodes lose their links and come back at once, with what they have loaded: nothing that is still on its way
        from before can be taken for something of now.

        Args:
            plan: the group's part of the plan; None: nothing.
            keep: tensors between its partitions that are wanted above.
            folders: per partition where its files lie.
        """
        self.manager.hang_up()
        self._make(_NOTHING if plan is None else plan, keep, folders)

    def stands(self, now_s: float) -> StandsBelow:
        """Return how the nodes fare."""
        network = self.state.network
        members = tuple(node.link for node in network.members)
        if members != self._members:
            self._members, self._same_since_s = members, now_s
        if members and now_s - self._same_since_s >= _SETTLE_S:
            self.facts, self.max_requests = facts_of(network.members), requests_of(network.members)
            self.cpu_family, self._is_known = cpu_family_of(network.members), True
        facts = self.facts if self._is_known else None
        return StandsBelow(bool(network.ready), self._refusal(now_s), facts, self.max_requests)

    def alone_s(self, now_s: float) -> float:
        """Return for how long there has been no node; 0: there is one."""
        return 0.0 if self._members else now_s - self._same_since_s

    def leave(self) -> None:
        """Send the nodes away; nothing is under way any more."""
        self.manager.leave()
        self.manager.look()

    def _refusal(self, now_s: float) -> str:
        network = self.state.network
        if network.is_hopeful or not self._members:
            self._hopeless_since_s = None
        elif self._hopeless_since_s is None:
            self._hopeless_since_s = now_s
        patience_s = self._options.manager.gather_s + _HOPELESS_S
        if self._hopeless_since_s is None or now_s - self._hopeless_since_s < patience_s:
            return ""
        return network.placer.note or "no placement is possible on the group's workers"

    def _make(self, plan: Plan, keep: tuple[str, ...], folders: Mapping[str, Path]) -> None:
        missing, is_idle = self._planner.missing(), plan is _NOTHING
        options = replace(self._options.manager, is_relay=True, is_fixed=is_idle, keep=keep)
        if not is_idle:
            plan = plan_below(plan, self._options.device, WAKE, is_searched=not missing)
        self.state = ManagerState(plan, options, self._new_secret)
        self.state.set_planner(missing)
        access = Access(self._options.token, plan.cpu_family if plan.optimization == "native" else None)
        self.manager = Manager(
            self.state,
            self._links,
            folders,
            access=access,
            planner=self._planner,
            max_nbytes=MAX_SETUP_NBYTES,
            above=self._above,
        )
