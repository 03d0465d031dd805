"""The manager's state machine: which requests are taken, where they are computed, what becomes of them and of nodes."""

import heapq
import math
from collections.abc import Callable

from hyps.core.courses import flow_of
from hyps.core.dispatching import MOST_WAIT_S, Dispatcher
from hyps.core.hub_state import HubState
from hyps.core.leases import Leases
from hyps.core.manager_events import (
    Added,
    AnswerTaken,
    Cancelled,
    Disconnect,
    Dropped,
    Fail,
    Keep,
    Leave,
    LinkLost,
    ManagerEvent,
    ManagerInstruction,
    NodeJoined,
    NodeTold,
    Relayed,
    Replied,
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
from hyps.core.progress import Progress
from hyps.core.relaying import Relays
from hyps.core.request_queue import ENDED, Request, RequestQueue, RequestState, RequestTrigger
from hyps.core.watches import RequestsWatch
from hyps.errors import InternalError, printable
from hyps.formats.node_messages import Beat, Drain, Goodbye
from hyps.formats.plan import Plan

TICK_S = 0.25
"""Between two looks at what time alone brings."""

_CLIENT_SHARE = 0.75
"""Of what the manager takes on, at most for one client."""

_LEAST_WAIT_S = 0.01


_Handler = Callable[..., None]


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
        self._desk = Dispatcher(
            self.flow,
            options,
            hub=self.hub,
            queue=self.queue,
            leases=self.leases,
            network=self.network,
            watch=self.watch,
        )
        self._progress = Progress(self._desk, self.flow, is_relay=options.is_relay)
        self._relays = Relays(self._desk, self.flow)
        self._deadlines: list[tuple[float, int]] = []
        self._is_leaving = False
        self._has_left = False
        self._last_tick_s = -math.inf
        self._unserved_since_s: float | None = None
        """Since when no placement has been possible or prepared."""
        self._handlers: dict[type, _Handler] = {
            Submitted: self._on_submitted,
            Relayed: self._relays.begin,
            Added: self._relays.add,
            Dropped: self._relays.drop,
            Cancelled: self._on_cancelled,
            AnswerTaken: self._on_answer_taken,
            NodeJoined: self._on_node_joined,
            NodeTold: self._on_node_told,
            TensorCame: self._on_tensor_came,
            TensorTaken: self._progress.tensor_taken,
            LinkLost: self._on_link_lost,
            Replied: self._on_replied,
            ToldToLeave: self._on_told_to_leave,
            Ticked: self._on_ticked,
        }

    def handle(self, now_s: float, event: ManagerEvent) -> list[ManagerInstruction]:
        """Take what happened at `now_s`, on a clock that never goes back, and return what to do.

        Raises:
            InternalError: the event cannot happen in this state.
        """
        self._desk.now_s, self._desk.steps = now_s, []
        if not self._has_left:
            self._handlers[type(event)](event)
            if self._is_leaving:
                self._leave_when_done()
        return self._desk.steps

    @property
    def wake_at_s(self) -> float:
        """When to tell the machine the time, if nothing happens before."""
        due_s = self._last_tick_s + TICK_S
        if self._desk.batch_due_s is not None:
            due_s = min(due_s, self._desk.batch_due_s)
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
        return len(self._desk.again)

    @property
    def deadlines(self) -> int:
        """How many are remembered, of ended requests too."""
        return len(self._deadlines)

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        self.hub.check_invariants()
        self.queue.check_invariants()
        self.leases.check_invariants()
        self.network.check_invariants()
        numbers = {work.number for works in (self.leases, self._desk.again.values()) for work in works}
        numbers |= set(self._desk.open_answers)
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
        _require(all(work.live_requests for work in self._desk.again.values()), "work waits for nobody")

    # Clients.

    def _on_submitted(self, event: Submitted) -> None:
        if self.queue.find(event.client, event.name) is not None:
            return  # it is answered when the first of that name is
        refusal = self._refusal(event)
        if refusal is not None:
            self.watch.refuse()
            self._desk.steps.append(refusal)
            return
        tensors = dict(event.tensors)
        deadline_s = None if event.timeout_s is None else self._desk.now_s + event.timeout_s
        request = Request(
            number=self._desk.new_number(),
            client=event.client,
            name=event.name,
            tensors=tensors,
            nbytes=sum(tensors.values()),
            outputs=event.outputs or self.flow.outputs,
            accepted_s=self._desk.now_s,
            deadline_s=deadline_s,
            batch=event.batch if self.options.batch_rows > 1 else None,
            rows=event.rows,
        )
        self.hub.open(request.number, tensors)
        self.queue.add(request)
        self._desk.results_nbytes = max(self._desk.results_nbytes, self._desk.results_of(request.nbytes))
        if deadline_s is not None:
            heapq.heappush(self._deadlines, (deadline_s, request.number))
        self.watch.accept(self._desk.now_s)
        self._desk.steps.append(Keep(request.number))
        self._desk.dispatch()

    def _refusal(self, event: Submitted) -> Fail | None:
        """Return why a request is not taken; None: it is."""
        if self._is_leaving:
            text, hint = "the manager is leaving", "send the request to another one"
            return Fail(event.client, event.name, "E_LEAVING", text, hint)
        nbytes = sum(nbytes for _, nbytes in event.tensors)
        results = max(self._desk.results_nbytes, self._desk.results_of(nbytes))
        count, client_nbytes = self.queue.share_of(event.client)
        limit = self.options.max_requests
        is_full = len(self.queue) >= limit or not self.hub.has_room(nbytes + results)
        is_share = count >= max(1, int(limit * _CLIENT_SHARE)) or (
            count > 0 and client_nbytes + nbytes > self.hub.max_nbytes * _CLIENT_SHARE
        )
        if not is_full and not is_share:
            return None
        wait_s = min(MOST_WAIT_S, max(_LEAST_WAIT_S, self._desk.interval_s * len(self.queue) / 2))
        text = f"the manager has {len(self.queue)} requests and takes no more"
        text = text if is_full else f"the manager has {count} requests of this client and takes no more"
        return Fail(event.client, event.name, "E_BUSY", text, f"send it again in {wait_s:.2g} s", wait_s)

    def _on_cancelled(self, event: Cancelled) -> None:
        request = self.queue.find(event.client, event.name)
        if request is not None and not request.is_said:
            self.watch.cancel()
            self._desk.end(request, RequestTrigger.NOT_WANTED)
            self._desk.dispatch()

    def _on_answer_taken(self, event: AnswerTaken) -> None:
        request = self.queue.get(event.request)
        if request is None or not request.is_said:
            return
        self._desk.forget(request)
        self._desk.dispatch()

    # Nodes.

    def _hear(self, link: int) -> Node | None:
        node = self.network.members.by_link(link)
        if node is not None:
            node.heard_s = self._desk.now_s
        return node

    def _on_node_joined(self, event: NodeJoined) -> None:
        self._desk.steps += self.network.join(self._desk.now_s, event.link, event.join)
        self._desk.dispatch()

    def _on_node_told(self, event: NodeTold) -> None:
        node = self._hear(event.link)
        if node is None:
            return
        match event.message:
            case Beat():
                self._on_beat(node, event.message)
            case Drain():
                self._on_drain(node)
            case Goodbye():
                self._lose_node(node, "it left")
            case _:
                self._progress.told(node, event.message)

    def _on_tensor_came(self, event: TensorCame) -> None:
        node = self._hear(event.link)
        if node is not None:
            self._progress.tensor_came(node, event)

    def _on_beat(self, node: Node, message: Beat) -> None:
        if self.network.beat(self._desk.now_s, node, message):
            self._desk.begin_anew_what_broke()
            self._desk.schedule()
            self._desk.dispatch()

    def _on_drain(self, node: Node) -> None:
        self.network.drain(node)
        self._desk.schedule()
        self._desk.dispatch()

    def _on_link_lost(self, event: LinkLost) -> None:
        node = self.network.members.by_link(event.link)
        if node is not None:
            self._lose_node(node, event.reason)
            return
        for request in self.queue.of_client(event.link):
            self._cancel_for_good(request)
        self._desk.dispatch()

    def _cancel_for_good(self, request: Request) -> None:
        if request.state not in ENDED:
            self.watch.cancel()
        request.move(RequestTrigger.NOT_WANTED)
        self._desk.forget(request)

    def _lose_node(self, node: Node, reason: str) -> None:
        name = printable(node.device, 60)
        self.network.lose(node, f"device `{name}` was lost: {printable(reason, 200)}")
        self._desk.begin_anew_what_broke()
        self._desk.schedule()
        self._desk.dispatch()

    def _on_replied(self, event: Replied) -> None:
        self.network.reply(self._desk.now_s, event.reply)
        self._desk.schedule()
        self._desk.dispatch()

    # Time.

    def _on_ticked(self, _event: Ticked) -> None:
        self._fail_what_is_late()
        if self._desk.now_s - self._last_tick_s >= TICK_S:
            self._forgive(self._desk.now_s - self._last_tick_s - 2 * TICK_S)
            self._last_tick_s = self._desk.now_s
            self._look_at_nodes()
            self._desk.steps += self.network.look(self._desk.now_s)
            self._desk.schedule()
            self._look_at_clients()
            for node in self.network.members:
                node.watch.tick(self._desk.now_s)
                self._desk.retire_on(node)
        self._desk.dispatch()

    def _forgive(self, held_up_s: float) -> None:
        """Take nodes for as silent as they are known to be: while we were held up ourselves, we heard nobody."""
        if 0 < held_up_s < math.inf:
            for node in self.network.members:
                node.heard_s = min(self._desk.now_s, node.heard_s + held_up_s)

    def _fail_what_is_late(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._desk.now_s:
            request = self.queue.get(heapq.heappop(self._deadlines)[1])
            if request is not None and request.state is not RequestState.FINISHED:
                took_s = self._desk.now_s - request.accepted_s
                text = f"the request has no answer after {took_s:.3g} s, more than it was given"
                self._desk.fail(
                    request, "E_DEADLINE", text, "give it more time, or look for what is slow with `hypsc status`"
                )
        if len(self._deadlines) > 2 * len(self.queue) + 64:
            self._deadlines = [entry for entry in self._deadlines if self.queue.get(entry[1]) is not None]
            heapq.heapify(self._deadlines)

    def _look_at_nodes(self) -> None:
        options = self.options
        silence_s = options.silent_beats * options.beat_s
        for node in self.network.members.silent(self._desk.now_s, silence_s, options.loading_silence_s):
            reason = f"nothing was heard of it for {self._desk.now_s - node.heard_s:.2g} s"
            self._cut_off(node, reason)
        for node, part in self.network.overdue():
            self._cut_off(node, f"it has computed partition `{printable(part, 60)}` for too long")
        for work in self.leases.stalled(self._desk.now_s, options.stall_s):
            if self._relays.is_waiting(work):
                continue
            self._desk.lose(work, f"nothing was heard of it for {self._desk.now_s - work.progress_s:.2g} s")

    def _cut_off(self, node: Node, reason: str) -> None:
        self._desk.steps.append(Disconnect(node.link, reason))
        self._lose_node(node, reason)

    def _look_at_clients(self) -> None:
        """Give up what cannot be computed in time, and clients that read nothing."""
        if self.network.is_hopeful:
            self._unserved_since_s = None
        elif self._unserved_since_s is None:
            self._unserved_since_s = self._desk.now_s
        if self._unserved_since_s is not None:
            self._fail_what_waits_in_vain(self._unserved_since_s)
        for client in self.queue.silent_clients(self._desk.now_s - self.options.answer_wait_s):
            self._desk.steps.append(Disconnect(client, "it does not read its answers"))
            for request in self.queue.of_client(client):
                self._cancel_for_good(request)

    def _fail_what_waits_in_vain(self, since_s: float) -> None:
        patience_s = self.options.patience_s
        if self._desk.now_s - since_s < patience_s:
            return
        why = self.network.placer.note or "no placement of the plan is possible on the devices that have joined"
        for request in [r for r in self.queue if r.state is RequestState.QUEUED]:
            if self._desk.now_s - request.accepted_s >= patience_s:
                text = f"no device has computed the request: {why}"
                self._desk.fail(
                    request, "E_UNAVAILABLE", text, "start the devices that the plan names, or look at `hypsc status`"
                )

    # Leaving.

    def _on_told_to_leave(self, _event: ToldToLeave) -> None:
        self._is_leaving = True

    def _leave_when_done(self) -> None:
        if len(self.queue):
            return
        self._has_left = True
        self._desk.steps += [Tell(node.link, Goodbye()) for node in self.network.members]
        self._desk.steps.append(Leave())


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
