"""The manager of a rehearsal: its state machine as it is, and what its shell does with links and tensors."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

from hyps.adapters.links import Lost, Opened, Taken
from hyps.core.manager_events import (
    Answer,
    AnswerTaken,
    Ask,
    Cancelled,
    Disconnect,
    Drop,
    Emit,
    Ended,
    Fail,
    Keep,
    Leave,
    LinkLost,
    ManagerEvent,
    ManagerInstruction,
    Merge,
    NodeJoined,
    NodeTold,
    PassOn,
    Reject,
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
from hyps.core.manager_options import ManagerOptions
from hyps.core.manager_state import ManagerState
from hyps.errors import InternalError, printable
from hyps.formats.messages import PROTOCOL_VERSION, Accepted, Cancel, Done, Failed, Hello, Submit, Welcome
from hyps.formats.node_messages import (
    Beat,
    Drain,
    Fetch,
    Finished,
    Goodbye,
    ItemFailed,
    Join,
    Piece,
    Started,
    Tensor,
)
from hyps.formats.plan import Plan, Prediction
from hyps.formats.replanning import Answer as Placement
from hyps.formats.replanning import Question, Refusal, Reply
from hyps_compiler.rehearsal.agenda import Agenda, Alarm, Process
from hyps_compiler.rehearsal.client import header_of
from hyps_compiler.rehearsal.network import Arrived, Network, NetworkEvent, VirtualLinks
from hyps_compiler.rehearsal.story import Story, require
from hyps_compiler.rehearsal.values import Value, join

_NO_VALUES: dict[str, Value] = {}


@dataclass(slots=True)
class Search:
    """How the search for placements fares; faults change it."""

    seconds: float = 0.05
    fails: float = 0.0
    """How likely it fails."""


class VirtualManager(Process):
    """Carries out what the manager's state machine says."""

    def __init__(
        self, agenda: Agenda, plan: Plan, options: ManagerOptions, network: Network, rng: random.Random, story: Story,
        on_step: Callable[[Process], None],
    ) -> None:  # fmt: skip
        super().__init__(agenda, "manager", on_step)
        self.plan, self.options, self.search = plan, options, Search()
        self._network, self._rng, self._story = network, rng, story
        self._secrets = itertools.count()
        self.state: ManagerState
        self.store: dict[int, dict[str, Value]] = {}
        """Per request or piece of work."""
        self.most_epochs = 0
        """Of any work so far: how often something was begun anew."""
        self._came: dict[str, Value] = {}
        """What the event at hand is about."""
        self._links: VirtualLinks
        self._clock_s = 0.0
        """Its clock's lead over the agenda's."""

    def start(self) -> None:
        """Come up and know nothing."""
        self.begin()
        self._clock_s = self._rng.choice((0.0, 1e3, 1e6))
        self.store = {}
        self.state = ManagerState(self.plan, self.options, lambda: f"s{next(self._secrets)}")
        self._links = VirtualLinks(self._network, self, self._on_link)
        self._links.listen("manager")
        self._alarm = Alarm(self, lambda: self._handle(Ticked()))
        self._handle(Ticked())

    def end(self) -> None:
        """Crash."""
        super().end()
        self._links.close()

    def leave(self) -> None:
        """Be told to leave by the operator."""
        self._handle(ToldToLeave())

    def held_nbytes(self) -> int:
        """Return the bytes of all tensors here."""
        tensors = self.plan.tensors
        return sum(
            len(value) * (tensors[name].nbytes or 0) for held in self.store.values() for name, value in held.items()
        )

    # What comes in.

    def _on_link(self, event: NetworkEvent) -> None:
        match event:
            case Opened():
                pass
            case Arrived():
                self._on_message(event.link, event.parcel.message, event.parcel.values)
            case Taken():
                self._on_taken(event.link, event.token)
            case Lost():
                self._handle(LinkLost(event.link, event.reason))
            case _:
                assert_never(event)

    def _on_message(self, link: int, message: Any, values: tuple[Value, ...]) -> None:
        match message:
            case Hello():
                self._welcome(link)
            case Submit():
                self._on_submit(link, message, values)
            case Cancel():
                self._handle(Cancelled(link, message.request))
            case Join():
                self._handle(NodeJoined(link, message))
            case Started() | Finished() | ItemFailed() | Beat() | Drain() | Goodbye():
                self._handle(NodeTold(link, message))
            case Tensor():
                self._came = {message.header.name: values[0]}
                header = message.header
                self._handle(TensorCame(link, message.request, message.epoch, header.name, header.nbytes))
            case Fetch():
                self._say(link, Piece(message.sha256, message.offset, message.nbytes), (), message.nbytes)
            case _:
                require(False, f"the manager hears {message}")

    def _welcome(self, link: int) -> None:
        model = self.plan.model
        told = Welcome(PROTOCOL_VERSION, "manager", model.name, model.sha256, model.inputs, model.outputs, 2**30)
        self._say(link, told)

    def _on_submit(self, link: int, message: Submit, values: tuple[Value, ...]) -> None:
        self._came = {header.name: value for header, value in zip(message.tensors, values, strict=True)}
        tensors = tuple((header.name, header.nbytes) for header in message.tensors)
        is_joined = self.options.batch_rows > 1
        rows = len(values[0])
        submitted = Submitted(
            link, message.request, tensors, message.outputs, message.timeout_s, 0 if is_joined else None, rows
        )
        self._handle(submitted)

    def _on_taken(self, link: int, token: Any) -> None:
        if isinstance(token, int):
            self._handle(AnswerTaken(token))
        else:
            self._handle(TensorTaken(link, *token))

    def _handle(self, event: ManagerEvent) -> None:
        now_s = self.agenda.now_s
        self._story.tell(now_s, self.name, "manager event", event)
        steps = self.state.handle(now_s + self._clock_s, event)
        came, self._came = self._came, _NO_VALUES
        for step in steps:
            self._story.tell(now_s, self.name, "manager does", step)
            self._do_step(event, step, came)
        self._alarm.set(self.state.wake_at_s - self._clock_s)

    # What goes out.

    def _do_step(self, event: ManagerEvent, step: ManagerInstruction, came: dict[str, Value]) -> None:
        self.effect()
        match step:
            case Keep():
                assert isinstance(event, Submitted), "only a submitted request is kept"
                require(step.request not in self.store, f"request {step.request} is kept twice")
                self.store[step.request] = dict(came)
                self._say(event.client, Accepted(event.name))
            case Merge():
                self._merge(step)
            case Store():
                self.store.setdefault(step.work, {})[step.tensor] = came[step.tensor]
            case Send():
                self._send(step)
            case Drop():
                held = self.store[step.work]
                del held[step.tensor]
                if not held:
                    del self.store[step.work]
            case Tell():
                self._say(step.link, step.message)
            case Reject():
                self._say(step.link, Failed("", step.code, step.message, step.hint))
            case Disconnect():
                self._links.close_link(step.link)
            case Answer():
                self._answer(step)
            case Fail():
                failed = Failed(step.name, step.code, step.message, step.hint, step.retry_after_s)
                self._say(step.client, failed)
            case Ask():
                self._ask(step.question)
            case Leave():
                self.later(0.5, self.end)
            case Emit() | PassOn() | Ended():
                raise InternalError("a manager with clients does what a group does")
            case _:
                assert_never(step)

    def _merge(self, step: Merge) -> None:
        held = [self.store[request] for request in step.requests]
        names = [tensor.name for tensor in self.plan.model.inputs]
        require(step.work not in self.store, f"work {step.work} is merged twice")
        self.store[step.work] = {name: join([values[name] for values in held]) for name in names}

    def _send(self, step: Send) -> None:
        self.most_epochs = max(self.most_epochs, step.epoch)
        value = self.store[step.work][step.tensor]
        header = header_of(step.tensor, value, self.plan.tensors[step.tensor])
        message = Tensor(step.work, step.epoch, step.course, header)
        self._say(step.link, message, (value,), header.nbytes, (step.work, step.epoch, step.tensor))

    def _answer(self, step: Answer) -> None:
        held = self.store[step.work]
        values = tuple(_rows_of(held[name], step.rows) for name in step.outputs)
        headers = tuple(
            header_of(name, value, self.plan.tensors[name]) for name, value in zip(step.outputs, values, strict=True)
        )
        nbytes = sum(header.nbytes for header in headers)
        self._say(step.client, Done(step.name, headers), values, nbytes, step.request)

    def _say(self, link: int, message: Any, values: tuple[Value, ...] = (), nbytes: int = 0, token: Any = None) -> None:
        self._links.send(link, message, values, nbytes, token, is_urgent=not values and token is None)

    def _ask(self, question: Question) -> None:
        seconds = self.search.seconds * (0.5 + self._rng.random())
        if self._rng.random() < self.search.fails:
            self.later(
                seconds,
                lambda: self._handle(Replied(Refusal(number=question.number, code="E_FAILED", message="it broke"))),
            )
        else:
            reply = place(question, self._rng)
            self.later(seconds, lambda: self._handle(Replied(reply)))


def _rows_of(value: Value, rows: tuple[int, int, int] | None) -> Value:
    if rows is None:
        return value
    first, behind, count = rows
    require(len(value) == count, f"a tensor of {len(value)} rows is parted as one of {count}")
    return value[first:behind]


def place(question: Question, rng: random.Random) -> Reply:
    """Return any placement that the devices allow; stands for the search, which is tested by itself."""
    room = {
        device.name: math.inf if device.memory_bytes is None else device.memory_bytes - device.base_bytes
        for device in question.devices
    }
    refused = {device.name: device.refused for device in question.devices}
    placement, replicas = {}, {}
    for part in question.partitions:
        need = sum(weight.nbytes for weight in part.weights) + part.work_bytes
        fitting = [name for name, left in room.items() if left >= need and part.id not in refused[name]]
        if not fitting:
            text = f"no device holds `{printable(part.id)}`"
            return Refusal(number=question.number, code="E_INFEASIBLE", message=text)
        first, *others = rng.sample(fitting, rng.choice((1, 1, 1, min(2, len(fitting)))))
        placement[part.id] = first
        if others:
            replicas[part.id] = tuple(others)
        for name in (first, *others):
            room[name] -= need
    return Placement(number=question.number, placement=placement, replicas=replicas, prediction=Prediction())
