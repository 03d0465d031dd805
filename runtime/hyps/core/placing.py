"""Which placement to aim for: the plan's own while its devices are there, else one that a search finds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from hyps.core.courses import Flow, Pair, spread
from hyps.core.link_estimates import LinkEstimates
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.core.membership import Members, Node
from hyps.core.timings import Timings
from hyps.errors import printable
from hyps.formats.plan import Plan, Prediction
from hyps.formats.replanning import (
    Answer,
    DeviceFacts,
    Question,
    Refusal,
    Reply,
    aim_of,
    partition_facts,
    tensor_bytes_of,
)

_TOLD_REFUSALS = 3

_BETTER = -1
"""The rank of a placement that was found because it is better than the plan's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A placement to aim for."""

    name: str
    """The plan's variant; empty: found by a search."""
    placement: Mapping[str, str]
    replicas: Mapping[str, Sequence[str]]
    prediction: Prediction
    rank: int
    """The lower the better."""
    kept: frozenset[str]
    """Tensors that the hub shall keep."""
    reason: str = ""

    @property
    def devices(self) -> frozenset[str]:
        """All that it uses."""
        return frozenset((*self.placement.values(), *(name for names in self.replicas.values() for name in names)))


@dataclass(frozen=True, slots=True)
class Search:
    """A question to be asked, because of something."""

    question: Question
    reason: str


class Placer:
    """Decides on the placement; nothing is done here.

    Attributes:
        target: the placement aimed for; None: none yet, or none that is possible.
        variants: the plan's own placements, the best first.
        note: what is in the way, for people; empty: nothing.
        links: what the links between the devices can do.
        missing: what is to be installed before anything can be searched, in a sentence; empty: nothing.
        is_searching: whether a question is out.
    """

    def __init__(self, plan: Plan, flow: Flow, options: ManagerOptions, timings: Timings) -> None:
        self._plan, self._flow, self._options, self._timings = plan, flow, options, timings
        count = 1 if options.is_fixed else len(plan.variants)
        self.variants = tuple(self._variant_target(rank) for rank in range(count))
        self.target: Target | None = None
        self.note = ""
        self.missing = options.no_planner
        self.links = LinkEstimates()
        self.is_searching = False
        self._gather_until_s: float | None = None
        self._number = 0
        self._asked: frozenset[int] = frozenset()
        """Links of the nodes that the latest question was about."""
        self._is_for_gain = False
        self._failed: frozenset[int] | None = None
        """Those for which the search found nothing; None: it did not fail."""
        self._retry_s = float("inf")
        """When to ask for the same nodes again."""
        self._considered: set[int] = set()
        """Links of nodes that were there at the latest search."""
        self._altered: dict[int, float] = {}
        """Links of groups that can do something else than at the latest search, and since when."""
        self._last_gain_s = float("-inf")
        self._slow_since_s: float | None = None
        self._accepted_s: dict[tuple[str, str], float] = {}
        """What partitions took when the placement was last looked at."""
        self._refused: dict[int, dict[str, str]] = {}
        """Partitions that nodes cannot load, and why, by link."""

    def refuse(self, node: Node, parts: Mapping[str, str]) -> bool:
        """Note partitions that a node cannot load, and why; return whether that is new."""
        known = self._refused.setdefault(node.link, {})
        before = len(known)
        known.update(parts)
        if len(known) > before:
            self._failed = None
        return len(known) > before

    def forget(self, node: Node) -> None:
        """A node is gone."""
        self._refused.pop(node.link, None)
        self.links.forget(node.device)
        self._considered.discard(node.link)
        self._altered.pop(node.link, None)

    def reconsider(self, node: Node, now_s: float) -> None:
        """A group can do something else than before."""
        self._refused.pop(node.link, None)
        self._failed = None
        self._altered[node.link] = now_s

    def placements(self, target: Target, members: Members) -> list[dict[str, str]]:
        """Return the target's courses on the devices that are there; empty: it is not possible."""

        def can_run(part: str, device: str) -> bool:
            node = members.by_device(device)
            return node is not None and node.is_staying and part not in self._refused.get(node.link, ())

        replicas = {
            part: _without_groups(target.placement[part], names, members) for part, names in target.replicas.items()
        }
        return spread(target.placement, replicas, can_run)

    def decide(
        self, now_s: float, members: Members, *, is_ready: bool, closed: Iterable[Pair]
    ) -> Target | Search | None:
        """Return what to aim for instead of the target, or what to ask; None: all shall stay as it is.

        Args:
            now_s: the time.
            members: the nodes.
            is_ready: whether any course takes requests.
            closed: devices that do not reach each other.
        """
        self._note_gathering(now_s, members)
        is_possible = self.target is not None and bool(self.placements(self.target, members))
        variant = self._best_variant(members)
        if variant is not None and self._is_due(variant, now_s, members, is_possible=is_possible and is_ready):
            return self._aim_for(variant)
        if is_possible:
            return self._search_for_gain(now_s, members, closed)
        if self.target is not None and not is_ready and not members.staying():
            self.target = None
        return self._search_for_any(now_s, members, closed)

    def reply(self, reply: Reply, members: Members, now_s: float) -> Target | None:
        """Take what the search found; return what to aim for, None: nothing else than before."""
        if reply.number != self._number or not self.is_searching:
            return None
        self.is_searching = False
        if isinstance(reply, Refusal):
            if not self._is_for_gain:
                self.note = "; ".join((printable(reply.message, 1000), *self._refusals(members)))
                self._note_failure(now_s, is_final=reply.code == "E_INFEASIBLE")
            return None
        self._look_at(members)
        if reply.is_kept and self._is_for_gain:
            return None
        target = self._answer_target(reply)
        if not self.placements(target, members):
            self._note_failure(now_s, is_final=False)
            return None
        self._timings.predict(reply.placement, reply.prediction.partition_s, reply.prediction.batch)
        return self._aim_for(target)

    def next_look_s(self, now_s: float, members: Members) -> float | None:
        """Return when to decide again although nothing has happened; None: not before something does."""
        if self.target is None and self._gather_until_s is not None and self._gather_until_s > now_s:
            return self._gather_until_s
        return None

    # The plan's own placements.

    def _best_variant(self, members: Members) -> Target | None:
        for variant in self.variants:
            here = self._renamed(variant, members)
            if self.placements(here, members):
                return here
        return None

    def _renamed(self, variant: Target, members: Members) -> Target:
        """Return a placement on one device, of a plan that knows no cluster, on the best device there is."""
        if self._plan.entry is not None or len(variant.devices) != 1 or not members.staying():
            return variant
        (name,) = variant.devices
        if members.by_device(name) is not None:
            return variant
        used = set() if self.target is None else self.target.devices
        best = max(
            (node for node in members if node.is_staying),
            key=lambda node: (node.device in used, node.join.facts.macs_per_s, node.device),
        )
        placement = dict.fromkeys(variant.placement, best.device)
        return Target(variant.name, placement, {}, variant.prediction, variant.rank, variant.kept, variant.reason)

    def _is_due(self, variant: Target, now_s: float, members: Members, *, is_possible: bool) -> bool:
        if self.target is None:
            return variant.rank == 0 or not self._is_gathering(now_s)
        if not is_possible:
            return variant.rank < self.target.rank or not self.placements(self.target, members)
        settled_s = now_s - self._options.settle_s
        nodes = [members.by_device(name) for name in variant.devices]
        return variant.rank < self.target.rank and all(n is None or n.joined_s <= settled_s for n in nodes)

    def _note_gathering(self, now_s: float, members: Members) -> None:
        if not members.staying():
            self._gather_until_s = None
        elif self._gather_until_s is None:
            self._gather_until_s = now_s + self._options.gather_s

    def _is_gathering(self, now_s: float) -> bool:
        return self._gather_until_s is None or now_s < self._gather_until_s

    def _aim_for(self, target: Target) -> Target:
        self.target, self.note = target, ""
        self.is_searching, self._failed = False, None
        self._accepted_s.clear()
        self._slow_since_s = None
        return target

    # Searching.

    def _search_for_any(self, now_s: float, members: Members, closed: Iterable[Pair]) -> Search | None:
        devices, nodes = frozenset(members.staying()), _links_of(members)
        missing = self._missing(devices)
        if not devices or (self.target is None and self._is_gathering(now_s)):
            self.note = missing
            return None
        if self._options.is_fixed or self.missing:
            self.note = "; ".join(text for text in (missing, self.missing, *self._refusals(members)) if text)
            return None
        is_asked = self.is_searching and not self._is_for_gain
        if (self._asked if is_asked else self._failed) == nodes and (is_asked or now_s < self._retry_s):
            return None
        return self._ask(members, closed, missing or "the placement is not possible", is_for_gain=False)

    def _search_for_gain(self, now_s: float, members: Members, closed: Iterable[Pair]) -> Search | None:
        if self._options.is_fixed or self.missing or self.is_searching or self.target is None:
            return None
        reason = self._reason_for_gain(now_s, members)
        if not reason or now_s - self._last_gain_s < self._options.replan_pause_s:
            return None
        self._last_gain_s = now_s
        return self._ask(members, closed, reason, is_for_gain=True)

    def _reason_for_gain(self, now_s: float, members: Members) -> str:
        settled_s = now_s - self._options.settle_s
        used = self.target.devices if self.target is not None else frozenset()
        for node in members:
            is_new = node.link not in self._considered and node.device not in used
            if is_new and node.is_staying and node.joined_s <= settled_s:
                return f"`{printable(node.device)}` has joined"
            if self._altered.get(node.link, now_s) < settled_s:
                return f"`{printable(node.device)}` has other devices than before"
        slow = self._slow_part()
        if slow is None:
            self._slow_since_s = None
            return ""
        self._slow_since_s = now_s if self._slow_since_s is None else self._slow_since_s
        if self._slow_since_s > settled_s:
            return ""
        return f"`{printable(slow[0])}` takes long on `{printable(slow[1])}`"

    def _slow_part(self) -> tuple[str, str] | None:
        """Return a partition that takes much longer, or much less, than when the placement was made."""
        if self.target is None:
            return None
        factor = self._options.slow_factor
        for part, device in self.target.placement.items():
            measured = self._timings.measured_s(part, device)
            if measured is None:
                continue
            before = self._accepted_s.get((part, device), self._timings.predicted_s(part, device))
            if before is None:
                self._accepted_s[part, device] = measured
            elif measured > factor * before:
                return part, device
        return None

    def _look_at(self, members: Members) -> None:
        """Note what is known now, so that it calls for no further search."""
        self._considered = {node.link for node in members}
        self._altered.clear()
        for part, device in self.target.placement.items() if self.target is not None else ():
            measured = self._timings.measured_s(part, device)
            if measured is not None:
                self._accepted_s[part, device] = measured

    def _ask(self, members: Members, closed: Iterable[Pair], reason: str, *, is_for_gain: bool) -> Search:
        self._number += 1
        self.is_searching, self._is_for_gain = True, is_for_gain
        nodes = [node for node in members if node.is_staying]
        self._asked = _links_of(members)
        current = {} if self.target is None else self.target.placement
        replicas: Mapping[str, Sequence[str]] = {} if self.target is None else self.target.replicas
        question = Question(
            number=self._number,
            partitions=partition_facts(self._plan),
            tensor_bytes=tensor_bytes_of(self._plan),
            model_inputs=self._flow.inputs,
            model_outputs=self._flow.outputs,
            devices=tuple(self._facts(node) for node in sorted(nodes, key=lambda node: node.device)),
            timings=self._timings.timings(),
            links=self.links.facts(closed),
            is_via_hub=self._options.is_via_hub,
            aim=aim_of(self._plan, self._options.aim),
            current={part: (device, *replicas.get(part, ())) for part, device in current.items()},
            keep_within=self._options.gain if is_for_gain else 0.05,
            time_limit_s=self._options.search_s,
        )
        return Search(question, reason)

    def _note_failure(self, now_s: float, *, is_final: bool) -> None:
        """Ask for these nodes again only if another answer may come, and after what waits in vain has been told so."""
        self._failed = self._asked
        pause_s = self._options.replan_pause_s + self._options.patience_s
        self._retry_s = float("inf") if is_final else now_s + pause_s

    def _refusals(self, members: Members) -> list[str]:
        """Return for the first devices that cannot load something one sentence that says why."""
        refused = [(node.device, self._refused[node.link]) for node in members if self._refused.get(node.link)]
        first = [
            (device, *next(iter(parts.items())))
            for device, parts in sorted(refused, key=itemgetter(0))[:_TOLD_REFUSALS]
        ]
        return [
            f"`{printable(device, 60)}` cannot load `{printable(part, 60)}`: {printable(reason, 200)}"
            for device, part, reason in first
        ]

    def _missing(self, devices: frozenset[str]) -> str:
        wanted = self.variants[0]
        if self._options.is_relay:
            return ""  # its plan names the group alone
        absent = sorted({device for device in wanted.placement.values() if device not in devices})
        if not absent:
            return ""
        return "waiting for " + ", ".join(f"`{printable(name, 60)}`" for name in absent[:8])

    # Placements.

    def _variant_target(self, rank: int) -> Target:
        variant = self._plan.variants[rank]
        kept = self._kept(variant.hub_tensors)
        return Target(variant.name, variant.placement, variant.replicas, variant.prediction, rank, kept)

    def _answer_target(self, answer: Answer) -> Target:
        rank = _BETTER if self._is_for_gain else len(self._plan.variants)
        kept = self._kept(self._plan.variants[0].hub_tensors)
        return Target("", answer.placement, answer.replicas, answer.prediction, rank, kept, answer.reason)

    def _kept(self, by_plan: Sequence[str]) -> frozenset[str]:
        chosen = by_plan if self._options.keep is None else self._options.keep
        return frozenset(self._flow.producer) if chosen == ALL_TENSORS else frozenset(chosen)

    def _facts(self, node: Node) -> DeviceFacts:
        facts = node.join.facts
        return DeviceFacts(
            name=node.device,
            memory_bytes=facts.memory_bytes,
            base_bytes=node.base_nbytes,
            macs_per_s=max(0.0, facts.macs_per_s),
            refused=tuple(sorted(self._refused.get(node.link, ()))),
            is_group=node.join.is_group,
        )


def _without_groups(first: str, others: Sequence[str], members: Members) -> tuple[str, ...]:
    """Return which devices share a partition with the `first`: a group has one to itself, or no part of it."""

    def is_group(device: str) -> bool:
        node = members.by_device(device)
        return node is not None and node.join.is_group

    return () if is_group(first) else tuple(name for name in others if not is_group(name))


def _links_of(members: Members) -> frozenset[int]:
    return frozenset(node.link for node in members if node.is_staying)
