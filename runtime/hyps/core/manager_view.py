"""What a manager's state machine looks like to those who watch it."""

from collections.abc import Mapping

from hyps.core.course_book import CourseState
from hyps.core.manager_state import ManagerState
from hyps.core.membership import Node
from hyps.errors import printable
from hyps.formats.plan import Partition
from hyps.formats.status import (
    CourseStatus,
    HubStatus,
    NodeStatus,
    PartitionStatus,
    Report,
    RunningItem,
)


def report_of(
    state: ManagerState, now_s: float, *, since_s: float, producer: str, groups: Mapping[int, Report]
) -> Report:
    """Return how a manager fares at `now_s`.

    Args:
        state: the manager's.
        now_s: on the clock that its events come with.
        since_s: when it began.
        producer: what runs it.
        groups: what groups told of themselves, by their links.
    """
    plan, network = state.plan, state.network
    target = network.placer.target
    note = network.placer.note
    return Report(
        role="manager",
        state=network.state.value,
        producer=producer,
        model=plan.model.name,
        strategy=plan.strategy,
        variant="" if target is None else target.name,
        uptime_s=max(0.0, now_s - since_s),
        nodes=tuple(_node(state, node, now_s, groups.get(node.link)) for node in _sorted(state)),
        partitions=tuple(_partition(state, partition) for partition in plan.partitions),
        courses=tuple(
            CourseStatus(
                id=course.id,
                state=course.state.value,
                variant=course.variant,
                devices=course.whole.devices,
                requests=course.in_flight,
                done=course.done,
            )
            for course in network.book
        ),
        requests=state.watch.status(
            now_s,
            queued=state.queue.queued + state.waiting_again,
            running=len(state.leases),
            max_queued=state.options.max_requests,
            max_running=sum(course.window for course in network.book if course.state is CourseState.READY),
            prediction=None if target is None else target.prediction,
            clients=state.queue.clients,
        ),
        hub=HubStatus(
            queued_nbytes=state.queue.queued_nbytes,
            held_nbytes=max(0, state.hub.held_nbytes - state.queue.queued_nbytes),
            max_held_nbytes=state.hub.max_nbytes,
            tensors=state.hub.tensors,
            passed_nbytes=state.hub.passed_nbytes,
        ),
        links=network.placer.links.statuses(),
        notes=(note,) if note else (),
    )


def _sorted(state: ManagerState) -> list[Node]:
    return sorted(state.network.members, key=lambda node: node.device)


def _node(state: ManagerState, node: Node, now_s: float, group: Report | None) -> NodeStatus:
    beat, facts = node.beat, node.join.facts
    running_s = max((item.elapsed_s for item in beat.running), default=0.0)
    return NodeStatus(
        device=node.device,
        state=node.state.value,
        joined_s=max(0.0, now_s - node.joined_s),
        silent_s=max(0.0, now_s - node.heard_s),
        memory_nbytes=facts.memory_bytes,
        resident_nbytes=beat.resident_nbytes or None,
        held_nbytes=beat.held_nbytes,
        threads=facts.threads,
        macs_per_s=facts.macs_per_s or None,
        max_requests=node.join.max_requests,
        partitions=tuple(state.network.book.partitions_on(node)),
        loaded=beat.loaded,
        refused=beat.refused,
        running=tuple(
            RunningItem(partition=item.partition, request=str(item.request), elapsed_s=item.elapsed_s)
            for item in beat.running
        ),
        waiting=beat.waiting,
        utilisation=node.watch.utilisation(now_s, running_s),
        items_done=node.watch.items_done,
        items_per_s=node.watch.items_per_s(now_s),
        endpoints=node.join.endpoints,
        unreachable=tuple(printable(name) for name in beat.unreachable),
        is_group=node.join.is_group,
        group=group,
    )


def _partition(state: ManagerState, partition: Partition) -> PartitionStatus:
    network = state.network
    watch, target = network.watches[partition.id], network.placer.target
    devices = dict.fromkeys(course.whole.placement[partition.id] for course in network.book)
    return PartitionStatus(
        partition=partition.id,
        kind=partition.kind,
        state=network.lives[partition.id].state.value,
        devices=tuple(sorted(devices)),
        predicted_s=None if target is None else target.prediction.partition_s.get(partition.id),
        run=watch.run,
        waited=watch.waited,
        failed=watch.failed,
        sent_nbytes=watch.sent_nbytes,
    )
