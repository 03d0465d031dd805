"""Requests of a group's manager: the manager above lets them in, their inputs come one by one, their outputs go up."""

from hyps.core.courses import Flow, can_go_on
from hyps.core.dispatching import Dispatcher
from hyps.core.leases import Work
from hyps.core.manager_events import Added, Dropped, Keep, Relayed, Store
from hyps.core.request_queue import Request, RequestTrigger

ABOVE = 0
"""The client whose requests they are; links have higher numbers."""


class Relays:
    """Begins, feeds and drops relayed requests; all else happens to them as to those of clients."""

    def __init__(self, desk: Dispatcher, flow: Flow) -> None:
        self._desk, self._flow = desk, flow

    def begin(self, event: Relayed) -> None:
        """Begin a request with what there is of it."""
        desk = self._desk
        request = Request(
            number=event.number,
            client=ABOVE,
            name=str(event.number),
            tensors=dict(event.tensors),
            nbytes=0,  # bounded above, and more may come
            outputs=event.outputs,
            accepted_s=desk.now_s,
            deadline_s=None,
            batch=None,
            rows=1,
            partitions=event.partitions,
        )
        desk.hub.open(request.number, request.tensors)
        desk.queue.add(request)
        desk.watch.accept(desk.now_s)
        desk.steps.append(Keep(request.number))
        desk.dispatch()

    def add(self, event: Added) -> None:
        """Take one more tensor of a request, and send it to those that read it and have not run."""
        desk = self._desk
        if desk.queue.get(event.number) is None or not desk.hub.add(event.number, event.tensor, event.nbytes):
            return
        desk.steps.append(Store(event.number, event.tensor))
        work = desk.leases.find(event.number)
        if work is None or work.course is None:
            return  # it is sent when the work begins
        work.progress_s = desk.now_s
        course = work.course
        readers = [part for part in self._flow.readers.get(event.tensor, ()) if part in work.unfinished]
        devices = [course.whole.placement[part] for part in readers]
        if event.tensor in self._flow.inputs[:1]:
            devices += course.whole.wakes
        for device in dict.fromkeys(devices):
            desk.send(work, course, event.tensor, device)
        work.awaited.discard(event.tensor)  # who brings it has it
        if not work.awaited:
            desk.finish(work)

    def drop(self, event: Dropped) -> None:
        """End a request without a word."""
        desk = self._desk
        request = desk.queue.get(event.number)
        if request is not None:
            desk.watch.cancel()
            desk.end(request, RequestTrigger.NOT_WANTED)
            desk.dispatch()

    def is_waiting(self, work: Work) -> bool:
        """Return whether nothing of a piece of work can run before more of it comes from above."""
        if work.within is None:
            return False
        return not can_go_on(self._flow, self._desk.hub.held(work.number), work.within, work.unfinished)
