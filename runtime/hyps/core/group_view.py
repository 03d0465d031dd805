"""What a group tells above of the nodes below it: what they can do together, and what they are at."""

from collections.abc import Callable

from msgspec.structs import replace

from hyps.core.manager_state import ManagerState
from hyps.core.membership import Members
from hyps.formats.messages import MachineFacts
from hyps.formats.node_messages import Beat, Running
from hyps.formats.plan import NamedTensor, Plan, TensorInfo

MAX_REQUESTS = 4096
"""That a group says it can have at work."""

_IN_FLIGHT_PER_NODE = 2


def facts_of(members: Members) -> MachineFacts:
    """Return what the nodes can do together; their processes' own memory counts once, as that of one node does."""
    nodes = [node for node in members if node.is_staying]
    budgets = [node.join.facts.memory_bytes for node in nodes]
    memory = sum(budget for budget in budgets if budget is not None)
    spare = memory - sum(node.base_nbytes for node in nodes[1:])
    return MachineFacts(
        memory_bytes=None if None in budgets else max(0, spare),
        threads=sum(node.join.facts.threads for node in nodes),
        macs_per_s=sum(node.join.facts.macs_per_s for node in nodes),
    )


def requests_of(members: Members) -> int:
    """Return how many requests the nodes can have at work at once: of each, one computes while the next one comes."""
    wanted = sum(max(_IN_FLIGHT_PER_NODE, node.join.max_requests) for node in members if node.is_staying)
    return min(MAX_REQUESTS, max(_IN_FLIGHT_PER_NODE, wanted))


def cpu_family_of(members: Members) -> str:
    """Return the nodes' family of CPUs; empty: they have several."""
    families = {node.join.cpu_family for node in members}
    return families.pop() if len(families) == 1 else ""


def filled(beat: Beat, state: ManagerState, above: Callable[[int], tuple[int, int] | None]) -> Beat:
    """Return a group's beat with what its nodes are at, their requests named as `above` names them."""
    beats = [node.beat for node in state.network.members]
    running = [
        Running(*known, item.partition, item.elapsed_s)
        for told in beats
        for item in told.running
        if (known := above(item.request)) is not None
    ]
    return replace(
        beat,
        running=tuple(running),
        waiting=sum(told.waiting for told in beats) + state.queue.queued + state.waiting_again,
        held_nbytes=beat.held_nbytes + sum(told.held_nbytes for told in beats),
        resident_nbytes=sum(told.resident_nbytes for told in beats),
    )


def plan_below(plan: Plan, device: str, wake: str, *, is_searched: bool) -> Plan:
    """Return a group's part of a plan as its own manager needs it.

    Args:
        plan: as the manager above gave it.
        device: what the group is called there.
        wake: the input that is to stand first where a partition reads nothing.
        is_searched: whether a search places the partitions on the nodes; else one node gets all of them.
    """
    everywhere = dict.fromkeys((part.id for part in plan.partitions), f"group {device}")
    variants = tuple(replace(variant, placement=everywhere, replicas={}) for variant in plan.variants[:1])
    below = replace(plan, variants=variants, entry=device if is_searched else None)
    if all(part.inputs for part in plan.partitions):
        return below
    first = NamedTensor(name=wake, dtype="uint8", shape=(0,))
    return replace(
        below,
        model=replace(plan.model, inputs=(first, *plan.model.inputs)),
        tensors={**plan.tensors, wake: TensorInfo(dtype="uint8", shape=(0,), nbytes=0)},
    )
