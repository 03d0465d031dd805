"""What nodes tell of the work that they were given: tensors, and what has begun, is done, or failed."""

from hyps.core.courses import Flow
from hyps.core.dispatching import Dispatcher
from hyps.core.hub_state import Arrival
from hyps.core.leases import Work
from hyps.core.manager_events import Emit, PassOn, Store, TensorCame, TensorTaken
from hyps.core.membership import Node
from hyps.errors import printable
from hyps.formats.node_messages import Finished, ItemFailed, Started

_OF_THE_DEVICE = frozenset({"E_PLAN", "E_MISSING", "E_TAMPERED", "E_MEMORY", "E_INFEASIBLE", "E_CPU", "E_UNAVAILABLE"})
"""Reasons why a device has no result where another may have one."""


class Progress:
    """Has work go on as nodes tell; what is told of attempts that are over, or by others, changes nothing."""

    def __init__(self, desk: Dispatcher, flow: Flow, *, is_relay: bool = False) -> None:
        self._desk, self._flow, self._is_relay = desk, flow, is_relay

    def told(self, node: Node, message: Started | Finished | ItemFailed) -> None:
        """Take what a node tells of a work item."""
        match message:
            case Started():
                self._on_started(node, message)
            case Finished():
                self._on_finished(node, message)
            case ItemFailed():
                self._on_item_failed(node, message)

    def tensor_came(self, node: Node, event: TensorCame) -> None:
        """Take a tensor that a node sent to the hub."""
        desk = self._desk
        work = desk.leases.get(event.work, event.epoch)
        course = None if work is None else work.course
        if work is None or course is None or event.tensor not in course.whole.to_hub:
            return
        if course.nodes.get(course.whole.placement[self._flow.producer[event.tensor]]) is not node:
            return
        is_wanted = event.tensor in self._flow.outputs or event.tensor in course.kept
        arrival = desk.hub.arrive(work.number, work.epoch, event.tensor, event.nbytes, is_wanted=is_wanted)
        if arrival is not Arrival.KEPT:
            return
        desk.steps.append(Store(work.number, event.tensor))
        work.progress_s = desk.now_s
        if work.within is not None and event.tensor in work.awaited:
            desk.steps.append(Emit(work.number, event.tensor))
        for device in course.whole.from_hub.get(event.tensor, ()):
            desk.send(work, course, event.tensor, device)
        work.awaited.discard(event.tensor)
        if not work.awaited:
            desk.finish(work)

    def tensor_taken(self, event: TensorTaken) -> None:
        """Note that a tensor has come to its device."""
        desk = self._desk
        node = desk.network.members.by_link(event.link)
        if node is not None:
            node.note_taken((event.work, event.epoch, event.tensor))
        work = desk.leases.get(event.work, event.epoch)
        if work is not None:
            work.progress_s = desk.now_s
            if desk.hub.note_taken(event.work, event.epoch, event.tensor):
                desk.drop(event.work, [event.tensor])

    def _on_started(self, node: Node, message: Started) -> None:
        desk = self._desk
        work = self._work_on(node, message.request, message.epoch, message.partition)
        if work is not None and message.partition in work.unfinished and message.partition not in work.started:
            work.progress_s = desk.now_s
            work.started.add(message.partition)
            desk.network.lives[message.partition].begin_run()
            self._pass_on(message)

    def _on_finished(self, node: Node, message: Finished) -> None:
        desk = self._desk
        part = message.partition
        if part in desk.network.watches:
            work = desk.leases.find(message.request)
            requests = 1 if work is None else len(work.requests)
            desk.network.timings.add(part, node.device, message.run_s, requests)
            desk.network.watches[part].finish(desk.now_s, message.run_s, message.waited_s, message.nbytes)
            node.watch.finish(message.run_s)
            self._pass_on(message)  # also what is told after the request's last tensor has come
        work = self._work_on(node, message.request, message.epoch, part)
        if work is not None and desk.leases.finish_part(work, part, desk.now_s) and part in work.started:
            work.started.remove(part)
            desk.network.lives[part].end_run()

    def _on_item_failed(self, node: Node, message: ItemFailed) -> None:
        desk = self._desk
        work = self._work_on(node, message.request, message.epoch, message.partition)
        if work is None:
            return
        desk.network.watches[message.partition].failed += 1
        if message.code not in _OF_THE_DEVICE:
            self._pass_on(message)
        text = printable(message.message, 1000)
        if message.code in _OF_THE_DEVICE:
            desk.lose(work, f"`{printable(node.device, 60)}` said: {text}")
        elif len(work.live_requests) > 1:
            desk.part_alone(work)
        else:
            for request in work.live_requests:
                desk.fail(request, printable(message.code, 60), text, printable(message.hint, 1000))
        desk.dispatch()

    def _pass_on(self, message: Started | Finished | ItemFailed) -> None:
        if self._is_relay:
            self._desk.steps.append(PassOn(message))

    def _work_on(self, node: Node, number: int, epoch: int, part: str) -> Work | None:
        """Return the work that a node tells of, if it was given that partition of it."""
        work = self._desk.leases.get(number, epoch)
        course = None if work is None else work.course
        if course is None or course.nodes.get(course.whole.placement.get(part, "")) is not node:
            return None
        return work
