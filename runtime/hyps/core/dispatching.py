"""Which work begins next and where, how it ends, and what clients are told of it."""

from collections.abc import Iterable

from hyps.core.course_book import LiveCourse
from hyps.core.courses import Flow, parts_to_run, sends_to_begin
from hyps.core.hub_state import HubState
from hyps.core.leases import Leases, Work
from hyps.core.manager_events import Answer, Drop, Ended, Fail, ManagerInstruction, Merge, Send, Tell
from hyps.core.manager_options import ManagerOptions
from hyps.core.membership import Node
from hyps.core.network import Network
from hyps.core.request_queue import Request, RequestQueue, RequestTrigger
from hyps.core.watches import RequestsWatch
from hyps.formats.node_messages import Retire

MOST_WAIT_S = 5.0
"""Longest that a client is told to wait before it comes again."""

_RETIRED_AT_ONCE = 32
_SMOOTHING = 0.2
_FIRST_INTERVAL_S = 0.1


class Dispatcher:
    """Brings requests to devices and answers to clients; what is to be done for that is added to `steps`.

    Attributes:
        now_s: when what is handled has happened.
        steps: what is to be done.
        again: work that was begun and waits for another attempt, the oldest first.
        open_answers: work whose outputs wait for clients to take them.
        batch_due_s: when a request has waited long enough for others; None: none does.
        interval_s: between two answers, of late.
        results_nbytes: the most that a request which waits will make the hub hold.
    """

    def __init__(
        self,
        flow: Flow,
        options: ManagerOptions,
        *,
        hub: HubState,
        queue: RequestQueue,
        leases: Leases,
        network: Network,
        watch: RequestsWatch,
    ) -> None:
        self._flow, self._options = flow, options
        self.hub, self.queue, self.leases, self.network, self.watch = hub, queue, leases, network, watch
        self._input_nbytes = flow.total_nbytes(flow.inputs)
        self._made_outputs = tuple(dict.fromkeys(name for name in flow.outputs if name in flow.producer))
        self.now_s = 0.0
        self.steps: list[ManagerInstruction] = []
        self.again: dict[int, Work] = {}
        self.open_answers: dict[int, Work] = {}
        self.batch_due_s: float | None = None
        self.interval_s = _FIRST_INTERVAL_S
        self.results_nbytes = 0
        self._last_done_s: float | None = None
        self._last_number = 0

    def say(self, client: int) -> None:
        """Answer the requests of a client whose turn it is."""
        for request in self.queue.to_say(client):
            work = self.open_answers[request.work or 0]
            rows = None
            if work.is_merged:
                first = sum(r.rows for r in work.requests[: work.requests.index(request)])
                rows = (first, first + request.rows, work.rows)
            answer = Answer(client, request.name, request.number, work.number, request.outputs, rows)
            self.queue.note_said(request, self.now_s)
            self.watch.finish(self.now_s, self.now_s - request.accepted_s)
            self.steps.append(answer)

    def fail(self, request: Request, code: str, message: str, hint: str = "") -> None:
        """A request ends without an answer, and its client is told why."""
        if request.partitions is not None:
            self.steps.append(Ended(request.number, code, message, hint))
        else:
            self.steps.append(Fail(request.client, request.name, code, message, hint))
        self.watch.fail(self.now_s, code)
        self.end(request, RequestTrigger.FAILED)

    def end(self, request: Request, trigger: RequestTrigger) -> None:
        """A request ends without an answer."""
        request.move(trigger)
        self.forget(request)
        self.say(request.client)

    def forget(self, request: Request) -> None:
        """Nothing more is to be done for a request; with the last one of it a piece of work is given up."""
        number, request.work = request.work, None
        self.queue.forget(request, self.now_s)
        if number != request.number and request.number in self.hub:
            self.drop(request.number, self.hub.close(request.number))
        work = None if number is None else self._find_work(number)
        if work is not None and not work.live_requests:
            self._give_up(work)

    def _find_work(self, number: int) -> Work | None:
        return self.leases.find(number) or self.again.get(number) or self.open_answers.get(number)

    def _give_up(self, work: Work) -> None:
        """Nobody waits for a piece of work, or everybody has its outputs."""
        if work.course is not None:
            self._end_attempt(work, is_urgent=True)
        self.again.pop(work.number, None)
        self.open_answers.pop(work.number, None)
        self.drop(work.number, self.hub.close(work.number))

    def drop(self, number: int, names: Iterable[str]) -> None:
        """Have tensors forgotten."""
        self.steps += [Drop(number, name) for name in names]

    # Beginning work.

    def dispatch(self) -> None:
        """Begin as much work as there is room for."""
        self.batch_due_s = None
        while (self.again or self.queue.queued) and self.network.has_free_course():
            work = self._next_work()
            course = None if work is None else self._course_for(work)
            if work is not None and course is None and work.is_merged and not work.epoch:
                work = self._work_of([work.requests[0]])  # there may be room for one
                course = self._course_for(work)
            if work is None or course is None:
                break
            self._begin(work, course)
        if not self.queue.queued and not self.again:
            self.results_nbytes = 0

    def _next_work(self) -> Work | None:
        """Return the work that is to begin next; None: it is better to wait for more."""
        if self.again:
            return next(iter(self.again.values()))
        head = self.queue.head()
        if head is None:
            return None
        mates = self.queue.mates_of(head, self._options.batch_rows) if head.batch is not None else [head]
        rows = sum(request.rows for request in mates)
        due_s = head.accepted_s + self._options.batch_wait_s
        if head.batch is not None and rows < self._options.batch_rows and self.now_s < due_s:
            self.batch_due_s = due_s
            return None
        return self._work_of(mates)

    def _work_of(self, requests: list[Request]) -> Work:
        nbytes = sum(request.nbytes for request in requests)
        number = requests[0].number if len(requests) == 1 else 0
        rows = sum(request.rows for request in requests)
        scale = 0.0 if requests[0].partitions is not None else self._scale_of(nbytes)
        return Work(number, tuple(requests), rows, scale)

    def _course_for(self, work: Work) -> LiveCourse | None:
        course = self.network.best_course(work.scale) or self._course_made_free(work.scale)
        if course is None or work.within is not None:
            return course  # what is relayed was let in above
        nbytes = int(course.whole.hub_nbytes * work.scale)
        if work.is_merged:
            nbytes += sum(request.nbytes for request in work.requests)
        is_alone = not len(self.leases) and not self.open_answers and not work.is_merged
        return course if work.epoch or self.hub.has_room(nbytes) or is_alone else None

    def _course_made_free(self, scale: float) -> LiveCourse | None:
        """Return a course that has room once its nodes hear which requests are over; they hear of it now."""
        waiting = [node for node in self.network.members if node.ended]
        for node in waiting:
            self.retire_on(node)
        return self.network.best_course(scale) if waiting else None

    def _begin(self, work: Work, course: LiveCourse) -> None:
        self.again.pop(work.number, None)
        is_new = not work.epoch
        if is_new and work.is_merged:
            self._merge(work)
        for request in work.requests if is_new else work.live_requests:
            self._begin_request(request, work)
        self.hub.reserve(work.number, int(course.whole.hub_nbytes * work.scale))
        if is_new and work.within is None:
            needed, awaited = dict(course.seconds), list(self._made_outputs)
            sends: Iterable[tuple[str, str]] = course.first_sends
        else:
            if not is_new:
                self.hub.begin_anew(work.number, work.epoch + 1)
            held = self.hub.held(work.number)
            wanted = self._made_outputs if work.within is None else work.requests[0].outputs
            awaited = [name for name in wanted if name not in held]
            parts = parts_to_run(self._flow, held, awaited, work.within)
            needed = {part: course.seconds[part] for part in parts}
            sends = sends_to_begin(self._flow, course.whole, held, parts)
        self.leases.begin(work, course, needed, awaited, self.now_s)
        for tensor, device in sends:
            self.send(work, course, tensor, device)
        if not work.awaited:
            self.finish(work)

    def _merge(self, work: Work) -> None:
        work.number = self.new_number()
        merged: dict[str, int] = {}
        for request in work.requests:
            for name, nbytes in request.tensors.items():
                merged[name] = merged.get(name, 0) + nbytes
        self.hub.open(work.number, merged)
        self.steps.append(Merge(work.number, tuple(request.number for request in work.requests)))

    def _begin_request(self, request: Request, work: Work) -> None:
        if request.work is None:
            self.queue.take(request)
        request.work = work.number
        request.move(RequestTrigger.BEGUN)
        if request.begun_s is None:
            request.begun_s = self.now_s
            self.watch.begin(self.now_s - request.accepted_s)

    def send(self, work: Work, course: LiveCourse, tensor: str, device: str) -> None:
        """Have a stored tensor sent to a device."""
        node, nbytes = course.nodes[device], self.hub.note_sent(work.number, tensor)
        node.note_sent((work.number, work.epoch, tensor), nbytes)
        self.steps.append(Send(node.link, work.number, work.epoch, course.id, tensor))

    def finish(self, work: Work) -> None:
        """All outputs are here."""
        course = self._end_attempt(work, is_urgent=False)
        course.done += 1
        self.open_answers[work.number] = work
        requests = work.live_requests
        if work.within is not None:
            self._end_relayed(requests[0])
            return
        wanted = {name for request in requests for name in request.outputs}
        self.drop(work.number, self.hub.keep_only(work.number, wanted))
        self._note_pace(len(requests))
        for request in requests:
            request.move(RequestTrigger.OUTPUTS_HERE)
            if request.number != work.number:
                self.drop(request.number, self.hub.close(request.number))
        for client in dict.fromkeys(request.client for request in requests):
            self.say(client)
        self.dispatch()

    def _end_relayed(self, request: Request) -> None:
        """All that is wanted of a relayed request was told of."""
        request.move(RequestTrigger.OUTPUTS_HERE)
        self.watch.finish(self.now_s, self.now_s - request.accepted_s)
        self.steps.append(Ended(request.number))
        self.forget(request)
        self.dispatch()

    def _note_pace(self, count: int) -> None:
        if self._last_done_s is not None:
            interval_s = min(MOST_WAIT_S, (self.now_s - self._last_done_s) / count)
            self.interval_s += _SMOOTHING * (interval_s - self.interval_s)
        self._last_done_s = self.now_s

    def _end_attempt(self, work: Work, *, is_urgent: bool) -> LiveCourse:
        """The attempt is over; its devices are told to forget it, at once where they may still work on it."""
        for part in work.started:
            self.network.lives[part].end_run()
        course = self.leases.end(work)
        for device, node in course.nodes.items():
            node.end_work(work.number, work.epoch, course.nbytes_on(device, work.scale))
            if is_urgent or len(node.ended) >= _RETIRED_AT_ONCE:
                self.retire_on(node)
        if self.network.end_work(course):
            self.schedule()
        return course

    def schedule(self) -> None:
        """Have placement, courses and setups follow what has happened; a node hears first which requests are over."""
        for step in self.network.schedule(self.now_s):
            node = self.network.members.by_link(step.link) if isinstance(step, Tell) else None
            if node is not None:
                self.retire_on(node)
            self.steps.append(step)

    def retire_on(self, node: Node) -> None:
        """Tell a node which requests are over, where it does not know yet."""
        ended = node.take_ended()
        if ended and node.link in self.network.members:
            self.steps.append(Tell(node.link, Retire(ended)))

    def lose(self, work: Work, cause: str) -> None:
        """An attempt is lost: the work waits for another one, unless there were too many."""
        self._end_attempt(work, is_urgent=True)
        work.lost, work.cause = work.lost + 1, cause
        self.again[work.number] = work
        for request in work.live_requests:
            request.move(RequestTrigger.DEVICE_LOST)
            self.watch.retry()
        if work.lost >= self._options.max_attempts:
            text = f"the request was lost {work.lost} times, at last because {cause}"
            for request in work.live_requests:
                self.fail(request, "E_UNAVAILABLE", text, "look at the devices with `hypsc status`")

    def part_alone(self, work: Work) -> None:
        """Begin the requests of a piece of work anew, each alone: one of them may be why it failed."""
        self._end_attempt(work, is_urgent=True)
        requests = work.live_requests
        for request in requests:
            request.move(RequestTrigger.DEVICE_LOST)
            request.work = request.number
            self.again[request.number] = self._work_of([request])
        self.drop(work.number, self.hub.close(work.number))

    def begin_anew_what_broke(self) -> None:
        """Have the work on courses that are gone wait for another attempt."""
        broken, self.network.broken = self.network.broken, []
        for course, cause in broken:
            for work in self.leases.on_course(course):
                self.lose(work, cause)

    def results_of(self, nbytes: int) -> int:
        """Return the most bytes that a request which brought so many makes the hub hold beside them."""
        return int(self.network.most_hub_nbytes * self._scale_of(nbytes))

    def _scale_of(self, nbytes: int) -> float:
        """Return how many times the bytes that the plan tells of a request has."""
        return max(1.0, nbytes / self._input_nbytes) if self._input_nbytes else 1.0

    def new_number(self) -> int:
        """Return a number that no request and no work has."""
        self._last_number += 1
        return self._last_number
