"""The manager's state machine: which requests are taken, where they are computed, what becomes of them and of nodes."""

import heapq
import math
from collections.abc import Callable, Iterable

from hyps.core.course_book import LiveCourse
from hyps.core.courses import Flow, parts_to_run, sends_to_begin
from hyps.core.hub_state import Arrival, HubState
from hyps.core.leases import Leases, Work
from hyps.core.manager_events import (
    Answer,
    AnswerTaken,
    Cancelled,
    Disconnect,
    Drop,
    Fail,
    Keep,
    Leave,
    LinkLost,
    ManagerEvent,
    ManagerInstruction,
    Merge,
    NodeJoined,
    NodeTold,
    Replied,
    Send,
    Store,
    Submitted,
    Tell,
    TensorCame,
    TensorTaken,
    Ticked,
    ToldToLeave,
)
from hyps.core.manager_options import DEFAULT_BUFFER_NBYTES, ManagerOptions, NewSecret
from hyps.core.membership import Node
from hyps.core.network import Network
from hyps.core.request_queue import ENDED, Request, RequestQueue, RequestState, RequestTrigger
from hyps.core.residency import task_of
from hyps.core.watches import RequestsWatch
from hyps.errors import InternalError, printable
from hyps.formats.node_messages import Beat, Drain, Finished, Goodbye, ItemFailed, Retire, Started
from hyps.formats.plan import Plan

TICK_S = 0.25
"""Between two looks at what time alone brings."""

_RETIRED_AT_ONCE = 32
_CLIENT_SHARE = 0.75
"""Of what the manager takes on, at most for one client."""

_LEAST_WAIT_S, _MOST_WAIT_S = 0.01, 5.0
_SMOOTHING = 0.2
_FIRST_INTERVAL_S = 0.1
_SLOW_BYTES_PER_S = 100_000.0

_OF_THE_DEVICE = frozenset({"E_PLAN", "E_MISSING", "E_TAMPERED", "E_MEMORY", "E_INFEASIBLE", "E_CPU", "E_UNAVAILABLE"})
"""Reasons why a device has no result where another may have one."""


class ManagerState:
    """What a manager does for its clients with its nodes.

    `handle` takes what happened and returns what to do, in order. Every accepted request ends once: with an answer, in
    the order in which its client's were accepted, or with a reason. Repeated events, and those of attempts that are
    over, are harmless.
    """

    def __init__(self, plan: Plan, options: ManagerOptions, new_secret: NewSecret) -> None:
        """Take the plan, whole and checked."""
        self.plan, self.options = plan, options
        self.flow = flow_of(plan)
        work_nbytes = self.flow.total_nbytes((*self.flow.inputs, *self.flow.producer))
        default = max(DEFAULT_BUFFER_NBYTES, 4 * work_nbytes)
        self.hub = HubState(default if options.buffer_nbytes is None else options.buffer_nbytes)
        self.queue = RequestQueue()
        self.leases = Leases()
        self.network = Network(plan, self.flow, options, new_secret)
        self.watch = RequestsWatch()
        self._results_nbytes = 0
        """The most that a request which waits will make the hub hold."""
        self._input_nbytes = self.flow.total_nbytes(self.flow.inputs)
        self._made_outputs = tuple(dict.fromkeys(name for name in self.flow.outputs if name in self.flow.producer))
        self._again: dict[int, Work] = {}
        """Work that was begun and waits for another attempt, the oldest first."""
        self._open_answers: dict[int, Work] = {}
        """Work whose outputs wait for clients to take them."""
        self._deadlines: list[tuple[float, int]] = []
        self._last_number = 0
        self._is_leaving = False
        self._has_left = False
        self._last_tick_s = -math.inf
        self._batch_due_s: float | None = None
        self._unserved_since_s: float | None = None
        """Since when no placement has been possible or prepared."""
        self._interval_s = _FIRST_INTERVAL_S
        self._last_done_s: float | None = None
        self._steps: list[ManagerInstruction] = []
        self._now_s = 0.0
        self._handlers: dict[type, Callable[..., None]] = {
            Submitted: self._on_submitted,
            Cancelled: self._on_cancelled,
            AnswerTaken: self._on_answer_taken,
            NodeJoined: self._on_node_joined,
            NodeTold: self._on_node_told,
            TensorCame: self._on_tensor_came,
            TensorTaken: self._on_tensor_taken,
            LinkLost: self._on_link_lost,
            Replied: self._on_replied,
            ToldToLeave: self._on_told_to_leave,
            Ticked: self._on_ticked,
        }
        self._told: dict[type, Callable[..., None]] = {
            Started: self._on_started,
            Finished: self._on_finished,
            ItemFailed: self._on_item_failed,
            Beat: self._on_beat,
            Drain: self._on_drain,
            Goodbye: self._on_goodbye,
        }

    def handle(self, now_s: float, event: ManagerEvent) -> list[ManagerInstruction]:
        """Take what happened at `now_s`, on a clock that never goes back, and return what to do.

        Raises:
            InternalError: the event cannot happen in this state.
        """
        self._now_s, self._steps = now_s, []
        if not self._has_left:
            self._handlers[type(event)](event)
            if self._is_leaving:
                self._leave_when_done()
        return self._steps

    @property
    def wake_at_s(self) -> float:
        """When to tell the machine the time, if nothing happens before."""
        due_s = self._last_tick_s + TICK_S
        if self._batch_due_s is not None:
            due_s = min(due_s, self._batch_due_s)
        return min(due_s, self._deadlines[0][0]) if self._deadlines else due_s

    def set_planner(self, missing: str) -> None:
        """Note what is missing to search for placements; empty: nothing."""
        self.network.placer.missing = missing

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to leave."""
        return self._is_leaving

    @property
    def waiting_again(self) -> int:
        """Pieces of work that were begun and wait for another attempt."""
        return len(self._again)

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        self.hub.check_invariants()
        self.queue.check_invariants()
        self.leases.check_invariants()
        self.network.check_invariants()
        numbers = {work.number for works in (self.leases, self._again.values()) for work in works}
        numbers |= set(self._open_answers)
        for request in self.queue:
            is_waiting = request.state is RequestState.QUEUED and request.work is None
            _require(
                is_waiting or request.work in numbers, f"request {request.number} is {request.state.value} nowhere"
            )
            _require(
                request.state not in (RequestState.FAILED, RequestState.CANCELLED), "an ended request is remembered"
            )
        known = {request.number for request in self.queue} | numbers
        _require(len(self.hub) <= len(known), "the hub holds what nobody needs")
        _require(all(work.live_requests for work in self._again.values()), "work waits for nobody")

    # Clients.

    def _on_submitted(self, event: Submitted) -> None:
        if self.queue.find(event.client, event.name) is not None:
            return  # it is answered when the first of that name is
        refusal = self._refusal(event)
        if refusal is not None:
            self.watch.refuse()
            self._steps.append(refusal)
            return
        tensors = dict(event.tensors)
        deadline_s = None if event.timeout_s is None else self._now_s + event.timeout_s
        request = Request(
            number=self._new_number(),
            client=event.client,
            name=event.name,
            tensors=tensors,
            nbytes=sum(tensors.values()),
            outputs=event.outputs or self.flow.outputs,
            accepted_s=self._now_s,
            deadline_s=deadline_s,
            batch=event.batch if self.options.batch_rows > 1 else None,
            rows=event.rows,
        )
        self.hub.open(request.number, tensors)
        self.queue.add(request)
        self._results_nbytes = max(self._results_nbytes, self._results_of(request.nbytes))
        if deadline_s is not None:
            heapq.heappush(self._deadlines, (deadline_s, request.number))
        self.watch.accept(self._now_s)
        self._steps.append(Keep(request.number))
        self._dispatch()

    def _refusal(self, event: Submitted) -> Fail | None:
        """Return why a request is not taken; None: it is."""
        if self._is_leaving:
            text, hint = "the manager is leaving", "send the request to another one"
            return Fail(event.client, event.name, "E_LEAVING", text, hint)
        nbytes = sum(nbytes for _, nbytes in event.tensors)
        results = max(self._results_nbytes, self._results_of(nbytes))
        count, client_nbytes = self.queue.share_of(event.client)
        limit = self.options.max_requests
        is_full = len(self.queue) >= limit or not self.hub.has_room(nbytes + results)
        is_share = count >= max(1, int(limit * _CLIENT_SHARE)) or (
            count > 0 and client_nbytes + nbytes > self.hub.max_nbytes * _CLIENT_SHARE
        )
        if not is_full and not is_share:
            return None
        wait_s = min(_MOST_WAIT_S, max(_LEAST_WAIT_S, self._interval_s * len(self.queue) / 2))
        text = f"the manager has {len(self.queue)} requests and takes no more"
        text = text if is_full else f"the manager has {count} requests of this client and takes no more"
        return Fail(event.client, event.name, "E_BUSY", text, f"send it again in {wait_s:.2g} s", wait_s)

    def _results_of(self, nbytes: int) -> int:
        """Return the most bytes that a request which brought so many makes the hub hold beside them."""
        return int(self.network.most_hub_nbytes * self._scale_of(nbytes))

    def _scale_of(self, nbytes: int) -> float:
        """Return how many times the bytes that the plan tells of a request has."""
        return max(1.0, nbytes / self._input_nbytes) if self._input_nbytes else 1.0

    def _on_cancelled(self, event: Cancelled) -> None:
        request = self.queue.find(event.client, event.name)
        if request is not None and not request.is_said:
            self.watch.cancel()
            self._end(request, RequestTrigger.NOT_WANTED)
            self._dispatch()

    def _on_answer_taken(self, event: AnswerTaken) -> None:
        request = self.queue.get(event.request)
        if request is None or not request.is_said:
            return
        self._forget(request)
        self._dispatch()

    def _say(self, client: int) -> None:
        """Answer the requests of a client whose turn it is."""
        for request in self.queue.to_say(client):
            work = self._open_answers[request.work or 0]
            rows = None
            if work.is_merged:
                first = sum(r.rows for r in work.requests[: work.requests.index(request)])
                rows = (first, first + request.rows, work.rows)
            answer = Answer(client, request.name, request.number, work.number, request.outputs, rows)
            self.queue.note_said(request, self._now_s)
            self.watch.finish(self._now_s, self._now_s - request.accepted_s)
            self._steps.append(answer)

    def _fail(self, request: Request, code: str, message: str, hint: str = "") -> None:
        self._steps.append(Fail(request.client, request.name, code, message, hint))
        self.watch.fail(self._now_s, code)
        self._end(request, RequestTrigger.FAILED)

    def _end(self, request: Request, trigger: RequestTrigger) -> None:
        """A request ends without an answer."""
        request.move(trigger)
        self._forget(request)
        self._say(request.client)

    def _forget(self, request: Request) -> None:
        """Nothing more is to be done for a request; with the last one of it a piece of work is given up."""
        number, request.work = request.work, None
        self.queue.forget(request, self._now_s)
        if number != request.number and request.number in self.hub:
            self._drop(request.number, self.hub.close(request.number))
        work = None if number is None else self._find_work(number)
        if work is not None and not work.live_requests:
            self._give_up(work)

    def _find_work(self, number: int) -> Work | None:
        return self.leases.find(number) or self._again.get(number) or self._open_answers.get(number)

    def _give_up(self, work: Work) -> None:
        """Nobody waits for a piece of work, or everybody has its outputs."""
        if work.course is not None:
            self._end_attempt(work, is_urgent=True)
        self._again.pop(work.number, None)
        self._open_answers.pop(work.number, None)
        self._drop(work.number, self.hub.close(work.number))

    def _drop(self, number: int, names: Iterable[str]) -> None:
        self._steps += [Drop(number, name) for name in names]

    # Beginning work.

    def _dispatch(self) -> None:
        """Begin as much work as there is room for."""
        self._batch_due_s = None
        while (self._again or self.queue.queued) and self.network.has_free_course():
            work = self._next_work()
            course = None if work is None else self._course_for(work)
            if work is not None and course is None and work.is_merged and not work.epoch:
                work = self._work_of([work.requests[0]])  # there may be room for one
                course = self._course_for(work)
            if work is None or course is None:
                break
            self._begin(work, course)
        if not self.queue.queued and not self._again:
            self._results_nbytes = 0

    def _next_work(self) -> Work | None:
        """Return the work that is to begin next; None: it is better to wait for more."""
        if self._again:
            return next(iter(self._again.values()))
        head = self.queue.head()
        if head is None:
            return None
        mates = self.queue.mates_of(head, self.options.batch_rows) if head.batch is not None else [head]
        rows = sum(request.rows for request in mates)
        due_s = head.accepted_s + self.options.batch_wait_s
        if head.batch is not None and rows < self.options.batch_rows and self._now_s < due_s:
            self._batch_due_s = due_s
            return None
        return self._work_of(mates)

    def _work_of(self, requests: list[Request]) -> Work:
        nbytes = sum(request.nbytes for request in requests)
        number = requests[0].number if len(requests) == 1 else 0
        rows = sum(request.rows for request in requests)
        return Work(number, tuple(requests), rows, self._scale_of(nbytes))

    def _course_for(self, work: Work) -> LiveCourse | None:
        course = self.network.best_course(work.scale)
        if course is None:
            return None
        nbytes = int(course.whole.hub_nbytes * work.scale)
        if work.is_merged:
            nbytes += sum(request.nbytes for request in work.requests)
        is_alone = not len(self.leases) and not self._open_answers and not work.is_merged
        return course if work.epoch or self.hub.has_room(nbytes) or is_alone else None

    def _begin(self, work: Work, course: LiveCourse) -> None:
        self._again.pop(work.number, None)
        is_new = not work.epoch
        if is_new and work.is_merged:
            self._merge(work)
        for request in work.requests if is_new else work.live_requests:
            self._begin_request(request, work)
        self.hub.reserve(work.number, int(course.whole.hub_nbytes * work.scale))
        if is_new:
            needed, awaited = dict(course.seconds), list(self._made_outputs)
            sends: Iterable[tuple[str, str]] = course.first_sends
        else:
            self.hub.begin_anew(work.number, work.epoch + 1)
            held = self.hub.held(work.number)
            parts = parts_to_run(self.flow, held)
            needed = {part: course.seconds[part] for part in parts}
            sends = sends_to_begin(self.flow, course.whole, held, parts)
            awaited = [name for name in self._made_outputs if name not in held]
        self.leases.begin(work, course, needed, awaited, self._now_s)
        for tensor, device in sends:
            self._send(work, course, tensor, device)
        if not work.awaited:
            self._finish(work)

    def _merge(self, work: Work) -> None:
        work.number = self._new_number()
        merged: dict[str, int] = {}
        for request in work.requests:
            for name, nbytes in request.tensors.items():
                merged[name] = merged.get(name, 0) + nbytes
        self.hub.open(work.number, merged)
        self._steps.append(Merge(work.number, tuple(request.number for request in work.requests)))

    def _begin_request(self, request: Request, work: Work) -> None:
        if request.work is None:
            self.queue.take(request)
        request.work = work.number
        request.move(RequestTrigger.BEGUN)
        if request.begun_s is None:
            request.begun_s = self._now_s
            self.watch.begin(self._now_s - request.accepted_s)

    def _send(self, work: Work, course: LiveCourse, tensor: str, device: str) -> None:
        self.hub.note_sent(work.number, tensor)
        self._steps.append(Send(course.nodes[device].link, work.number, work.epoch, course.id, tensor))

    # Work under way.

    def _on_tensor_came(self, event: TensorCame) -> None:
        node, work = self._hear(event.link), self.leases.get(event.work, event.epoch)
        course = None if work is None else work.course
        if node is None or work is None or course is None or event.tensor not in course.whole.to_hub:
            return
        if course.nodes.get(course.whole.placement[self.flow.producer[event.tensor]]) is not node:
            return
        is_wanted = event.tensor in self.flow.outputs or event.tensor in course.kept
        arrival = self.hub.arrive(work.number, work.epoch, event.tensor, event.nbytes, is_wanted=is_wanted)
        if arrival is not Arrival.KEPT:
            return
        self._steps.append(Store(work.number, event.tensor))
        work.progress_s = self._now_s
        for device in course.whole.from_hub.get(event.tensor, ()):
            self._send(work, course, event.tensor, device)
        work.awaited.discard(event.tensor)
        if not work.awaited:
            self._finish(work)

    def _on_tensor_taken(self, event: TensorTaken) -> None:
        work = self.leases.get(event.work, event.epoch)
        if work is not None:
            work.progress_s = self._now_s
            if self.hub.note_taken(event.work, event.epoch, event.tensor):
                self._drop(event.work, [event.tensor])

    def _finish(self, work: Work) -> None:
        """All outputs are here."""
        course = self._end_attempt(work, is_urgent=False)
        course.done += 1
        self._open_answers[work.number] = work
        requests = work.live_requests
        wanted = {name for request in requests for name in request.outputs}
        self._drop(work.number, self.hub.keep_only(work.number, wanted))
        self._note_pace(len(requests))
        for request in requests:
            request.move(RequestTrigger.OUTPUTS_HERE)
            if request.number != work.number:
                self._drop(request.number, self.hub.close(request.number))
        for client in dict.fromkeys(request.client for request in requests):
            self._say(client)
        self._dispatch()

    def _note_pace(self, count: int) -> None:
        if self._last_done_s is not None:
            interval_s = min(_MOST_WAIT_S, (self._now_s - self._last_done_s) / count)
            self._interval_s += _SMOOTHING * (interval_s - self._interval_s)
        self._last_done_s = self._now_s

    def _end_attempt(self, work: Work, *, is_urgent: bool) -> LiveCourse:
        """The attempt is over; its devices are told to forget it, at once where they may still work on it."""
        for part in work.started:
            self.network.lives[part].end_run()
        course = self.leases.end(work)
        for node in course.nodes.values():
            node.ended.append((work.number, work.epoch))
            if is_urgent or len(node.ended) >= _RETIRED_AT_ONCE:
                self._retire_on(node)
        if self.network.end_work(course):
            self._schedule()
        return course

    def _schedule(self) -> None:
        """Have placement, courses and setups follow what has happened; a node hears first which requests are over."""
        for step in self.network.schedule(self._now_s):
            node = self.network.members.by_link(step.link) if isinstance(step, Tell) else None
            if node is not None:
                self._retire_on(node)
            self._steps.append(step)

    def _retire_on(self, node: Node) -> None:
        if node.ended and node.link in self.network.members:
            self._steps.append(Tell(node.link, Retire(tuple(node.ended))))
        node.ended = []

    def _lose(self, work: Work, cause: str) -> None:
        """An attempt is lost: the work waits for another one, unless there were too many."""
        self._end_attempt(work, is_urgent=True)
        work.lost, work.cause = work.lost + 1, cause
        self._again[work.number] = work
        for request in work.live_requests:
            request.move(RequestTrigger.DEVICE_LOST)
            self.watch.retry()
        if work.lost >= self.options.max_attempts:
            text = f"the request was lost {work.lost} times, at last because {cause}"
            for request in work.live_requests:
                self._fail(request, "E_UNAVAILABLE", text, "look at the devices with `hypsc status`")

    def _part_alone(self, work: Work) -> None:
        """Begin the requests of a piece of work anew, each alone: one of them may be why it failed."""
        self._end_attempt(work, is_urgent=True)
        requests = work.live_requests
        for request in requests:
            request.move(RequestTrigger.DEVICE_LOST)
            request.work = request.number
            self._again[request.number] = self._work_of([request])
        self._drop(work.number, self.hub.close(work.number))

    # Nodes.

    def _hear(self, link: int) -> Node | None:
        node = self.network.members.by_link(link)
        if node is not None:
            node.heard_s = self._now_s
        return node

    def _on_node_joined(self, event: NodeJoined) -> None:
        self._steps += self.network.join(self._now_s, event.link, event.join)
        self._dispatch()

    def _on_node_told(self, event: NodeTold) -> None:
        node = self._hear(event.link)
        if node is not None:
            self._told[type(event.message)](node, event.message)

    def _on_started(self, node: Node, message: Started) -> None:
        work = self._work_on(node, message.request, message.epoch, message.partition)
        if work is not None and message.partition in work.unfinished and message.partition not in work.started:
            work.progress_s = self._now_s
            work.started.add(message.partition)
            self.network.lives[message.partition].begin_run()

    def _on_finished(self, node: Node, message: Finished) -> None:
        part = message.partition
        if part in self.network.watches:
            work = self.leases.find(message.request)
            rows = 1 if work is None else len(work.requests)
            self.network.timings.add(part, node.device, message.run_s / rows)
            self.network.watches[part].finish(self._now_s, message.run_s, message.waited_s, message.nbytes)
            node.watch.finish(message.run_s)
        work = self._work_on(node, message.request, message.epoch, part)
        if work is not None and self.leases.finish_part(work, part, self._now_s) and part in work.started:
            work.started.remove(part)
            self.network.lives[part].end_run()

    def _on_item_failed(self, node: Node, message: ItemFailed) -> None:
        work = self._work_on(node, message.request, message.epoch, message.partition)
        if work is None:
            return
        self.network.watches[message.partition].failed += 1
        text = printable(message.message, 1000)
        if message.code in _OF_THE_DEVICE:
            self._lose(work, f"`{printable(node.device, 60)}` said: {text}")
        elif len(work.live_requests) > 1:
            self._part_alone(work)
        else:
            for request in work.live_requests:
                self._fail(request, printable(message.code, 60), text, printable(message.hint, 1000))
        self._dispatch()

    def _work_on(self, node: Node, number: int, epoch: int, part: str) -> Work | None:
        """Return the work that a node tells of, if it was given that partition of it."""
        work = self.leases.get(number, epoch)
        course = None if work is None else work.course
        if course is None or course.nodes.get(course.whole.placement.get(part, "")) is not node:
            return None
        return work

    def _on_beat(self, node: Node, message: Beat) -> None:
        if self.network.beat(self._now_s, node, message):
            self._begin_anew_what_broke()
            self._schedule()
            self._dispatch()

    def _on_drain(self, node: Node, _message: Drain) -> None:
        self.network.drain(node)
        self._schedule()
        self._dispatch()

    def _on_goodbye(self, node: Node, _message: Goodbye) -> None:
        self._lose_node(node, "it left")

    def _on_link_lost(self, event: LinkLost) -> None:
        node = self.network.members.by_link(event.link)
        if node is not None:
            self._lose_node(node, event.reason)
            return
        for request in self.queue.of_client(event.link):
            self._cancel_for_good(request)
        self._dispatch()

    def _cancel_for_good(self, request: Request) -> None:
        if request.state not in ENDED:
            self.watch.cancel()
        request.move(RequestTrigger.NOT_WANTED)
        self._forget(request)

    def _lose_node(self, node: Node, reason: str) -> None:
        name = printable(node.device, 60)
        self.network.lose(node, f"device `{name}` was lost: {printable(reason, 200)}")
        self._begin_anew_what_broke()
        self._schedule()
        self._dispatch()

    def _begin_anew_what_broke(self) -> None:
        broken, self.network.broken = self.network.broken, []
        for course, cause in broken:
            for work in self.leases.on_course(course):
                self._lose(work, cause)

    def _on_replied(self, event: Replied) -> None:
        self.network.reply(self._now_s, event.reply)
        self._schedule()
        self._dispatch()

    # Time.

    def _on_ticked(self, _event: Ticked) -> None:
        self._fail_what_is_late()
        if self._now_s - self._last_tick_s >= TICK_S:
            self._last_tick_s = self._now_s
            self._look_at_nodes()
            self._steps += self.network.look(self._now_s)
            self._look_at_clients()
            for node in self.network.members:
                node.watch.tick(self._now_s)
                self._retire_on(node)
        self._dispatch()

    def _fail_what_is_late(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._now_s:
            request = self.queue.get(heapq.heappop(self._deadlines)[1])
            if request is not None and request.state is not RequestState.FINISHED:
                took_s = self._now_s - request.accepted_s
                text = f"the request has no answer after {took_s:.3g} s, more than it was given"
                self._fail(
                    request, "E_DEADLINE", text, "give it more time, or look for what is slow with `hypsc status`"
                )
        if len(self._deadlines) > 2 * len(self.queue) + 64:
            self._deadlines = [entry for entry in self._deadlines if self.queue.get(entry[1]) is not None]
            heapq.heapify(self._deadlines)

    def _look_at_nodes(self) -> None:
        options = self.options
        silence_s = options.silent_beats * options.beat_s
        for node in self.network.members.silent(self._now_s, silence_s, options.loading_silence_s):
            reason = f"nothing was heard of it for {self._now_s - node.heard_s:.2g} s"
            self._cut_off(node, reason)
        for node, part in self.network.overdue():
            self._cut_off(node, f"it has computed partition `{printable(part, 60)}` for too long")
        for work in self.leases.stalled(self._now_s, options.stall_s):
            self._lose(work, f"nothing was heard of it for {self._now_s - work.progress_s:.2g} s")

    def _cut_off(self, node: Node, reason: str) -> None:
        self._steps.append(Disconnect(node.link, reason))
        self._lose_node(node, reason)

    def _look_at_clients(self) -> None:
        """Give up what cannot be computed in time, and clients that read nothing."""
        if self.network.is_hopeful:
            self._unserved_since_s = None
        elif self._unserved_since_s is None:
            self._unserved_since_s = self._now_s
        if self._unserved_since_s is not None:
            self._fail_what_waits_in_vain(self._unserved_since_s)
        for client in self.queue.silent_clients(self._now_s - self.options.answer_wait_s):
            self._steps.append(Disconnect(client, "it does not read its answers"))
            for request in self.queue.of_client(client):
                self._cancel_for_good(request)

    def _fail_what_waits_in_vain(self, since_s: float) -> None:
        patience_s = self.options.patience_s
        if self._now_s - since_s < patience_s:
            return
        why = self.network.placer.note or "no placement of the plan is possible on the devices that have joined"
        for request in [r for r in self.queue if r.state is RequestState.QUEUED]:
            if self._now_s - request.accepted_s >= patience_s:
                text = f"no device has computed the request: {why}"
                self._fail(
                    request, "E_UNAVAILABLE", text, "start the devices that the plan names, or look at `hypsc status`"
                )

    # Leaving.

    def _on_told_to_leave(self, _event: ToldToLeave) -> None:
        self._is_leaving = True

    def _leave_when_done(self) -> None:
        if len(self.queue):
            return
        self._has_left = True
        self._steps += [Tell(node.link, Goodbye()) for node in self.network.members]
        self._steps.append(Leave())

    def _new_number(self) -> int:
        self._last_number += 1
        return self._last_number


def flow_of(plan: Plan) -> Flow:
    """Return what the partitions of a plan read and make, and what each takes."""
    sizes = {name: info.nbytes for name, info in plan.tensors.items() if info.nbytes is not None}
    tasks = [task_of(plan, part) for part in plan.partitions]
    inputs = [tensor.name for tensor in plan.model.inputs]
    outputs = [tensor.name for tensor in plan.model.outputs]
    return Flow(tasks, inputs, outputs, sizes)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
