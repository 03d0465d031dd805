"""A client of the rehearsed manager, and what it is promised: every accepted request is answered once, in order."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from hyps.adapters.links import Lost, Opened
from hyps.errors import printable
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Hello,
    Submit,
    TensorHeader,
    Welcome,
)
from hyps.formats.plan import Plan, TensorInfo
from hyps_compiler.rehearsal.agenda import Agenda, Process
from hyps_compiler.rehearsal.network import Arrived, Network, NetworkEvent, VirtualLinks
from hyps_compiler.rehearsal.story import Story, require
from hyps_compiler.rehearsal.values import Value, input_value, reference

_LITTLE = 3
_BACK_S = 0.3
"""After which a client that lost the manager comes again."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request that a client made, and what became of it."""

    name: str
    given: dict[str, Value]
    outputs: tuple[str, ...]
    asked_s: float
    timeout_s: float | None = None
    is_accepted: bool = False
    is_cancelled: bool = False
    is_repeated: bool = False
    """Whether it was sent twice: what is told of the second one after the first has ended is let pass."""
    ended: str = ""
    """`done`, the code of a failure, or `lost` with the link; empty: it waits."""
    is_left: bool = False
    """Whether the client did not wait for the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a client behaves."""

    requests: int
    think_s: float
    most_waiting: int
    """Requests that it has out at once."""
    cancels: float
    """How likely it cancels a request."""
    leaves: float
    """How likely it leaves after a request, to come back as another link."""
    deadline: float
    """How likely it sets a deadline."""
    most_rows: int
    """Of its tensors' first dimension."""
    some_outputs: float
    """How likely it wants some outputs only."""
    repeats: float
    """How likely it sends a request twice."""
    late_s: float
    """How much later than its deadline a request may end."""


class VirtualClient(Process):
    """Asks, and checks what it hears."""

    def __init__(
        self, agenda: Agenda, name: str, plan: Plan, network: Network, manners: Manners, rng: random.Random,
        story: Story, on_step: Callable[[Process], None],
    ) -> None:  # fmt: skip
        super().__init__(agenda, name, on_step)
        self._plan, self._network, self._manners, self._rng, self._story = plan, network, manners, rng, story
        self.asked: list[Asked] = []
        self._waiting: dict[str, Asked] = {}
        """By name; those that were accepted in the order in which they were."""
        self._accepted: list[str] = []
        self._left = manners.requests
        self._links: VirtualLinks
        self._link = 0
        self._is_welcome = False
        self._is_asking = False
        self._number = 1000 * (1 + int(name.removeprefix("client")))

    @property
    def outstanding(self) -> int:
        """Requests that it has still to make, or waits for."""
        return self._left + len(self._waiting)

    def start(self) -> None:
        """Connect."""
        self.begin()
        self._links = VirtualLinks(self._network, self, self._on_event)
        self._come()

    def ask_little(self) -> None:
        """Ask a few times more at most."""
        self._left = min(self._left, _LITTLE)

    def ask_once_more(self) -> Asked | None:
        """Make one plain request, as the last; None where it is not connected."""
        return self._ask(is_plain=True) if self._is_welcome else None

    def _come(self) -> None:
        self._is_welcome = False
        self._link = self._links.connect("manager")

    def _on_event(self, event: NetworkEvent) -> None:
        if isinstance(event, Opened):
            self._say(Hello(PROTOCOL_VERSION))
        elif isinstance(event, Lost):
            self._story.tell(self.agenda.now_s, self.name, "client lost the manager", event.reason)
            self._give_up("lost")
            self.later(_BACK_S, self._come)
        elif isinstance(event, Arrived):
            self._on_message(event.parcel.message, event.parcel.values)

    def _on_message(self, message: FromWorker, values: tuple[Value, ...]) -> None:
        self._story.tell(self.agenda.now_s, self.name, "client hears", message)
        match message:
            case Welcome():
                self._is_welcome = True
                self._ask_soon()
            case Accepted():
                self._on_accepted(message.request)
            case Done():
                self._on_done(message, values)
            case Failed():
                self._on_failed(message)
            case _:
                require(False, f"a client hears {printable(str(message))}")

    # Asking.

    def _ask_soon(self) -> None:
        if not self._is_asking:
            self._is_asking = True
            self.later(self._manners.think_s * 2 * self._rng.random(), self._ask_on)

    def _ask_on(self) -> None:
        self._is_asking = False
        if not self._left or not self._is_welcome:
            return
        if len(self._waiting) < self._manners.most_waiting:
            self._left -= 1
            self._ask(is_plain=False)
            if self._rng.random() < self._manners.leaves:
                self._leave()
                return
            self._ask_soon()

    def _ask(self, *, is_plain: bool) -> Asked:
        rng, manners, plan = self._rng, self._manners, self._plan
        self._number += 1
        rows = rng.randint(1, manners.most_rows)
        names = [tensor.name for tensor in plan.model.inputs]
        given = {name: input_value(self._number, index, rows) for index, name in enumerate(names)}
        outputs = tuple(tensor.name for tensor in plan.model.outputs)
        if not is_plain and rng.random() < manners.some_outputs:
            outputs = tuple(rng.sample(outputs, rng.randint(1, len(outputs))))
        asked = Asked(f"r{self._number}", given, outputs, self.agenda.now_s)
        if not is_plain and rng.random() < manners.deadline:
            asked.timeout_s = rng.choice((0.01, 0.1, 1.0, 5.0))
        self.asked.append(asked)
        self._waiting[asked.name] = asked
        headers = tuple(header_of(name, value, plan.tensors[name]) for name, value in given.items())
        wanted = () if len(outputs) == len(plan.model.outputs) else outputs
        submit = Submit(asked.name, headers, wanted, asked.timeout_s)
        nbytes = sum(header.nbytes for header in headers)
        self._say(submit, tuple(given.values()), nbytes)
        if not is_plain and rng.random() < manners.repeats:
            asked.is_repeated = True
            self._say(submit, tuple(given.values()), nbytes)
        if not is_plain and rng.random() < manners.cancels:
            self.later(rng.random() * 0.3, lambda: self._cancel(asked))
        return asked

    def _cancel(self, asked: Asked) -> None:
        if not asked.ended:
            asked.is_cancelled = True
            self._say(Cancel(asked.name))
            self.later(2.0, lambda: self._forget(asked))

    def _forget(self, asked: Asked) -> None:
        """Stop to wait for what was cancelled: it need not be answered."""
        if not asked.ended:
            self._end(asked, "cancelled")

    def _leave(self) -> None:
        self._links.close_link(self._link)
        self._give_up("left")
        self.later(_BACK_S, self._come)

    def _give_up(self, why: str) -> None:
        self._is_welcome = False
        for asked in list(self._waiting.values()):
            self._end(asked, why)
        self._accepted.clear()

    def _say(self, message: Hello | Submit | Cancel, values: tuple[Value, ...] = (), nbytes: int = 0) -> None:
        self._story.tell(self.agenda.now_s, self.name, "client says", message)
        self._links.send(self._link, message, values, nbytes, None)

    # Hearing.

    def _on_accepted(self, name: str) -> None:
        asked = self._waiting.get(name)
        if asked is None:
            require(self._was_cancelled(name), f"`{name}` is accepted and nobody asked")
            return
        if asked.is_accepted:  # of two the second may be, once the first is answered, and be heard of before that
            require(asked.is_repeated, f"`{name}` is accepted twice")
            return
        asked.is_accepted = True
        self._accepted.append(name)

    def _on_done(self, message: Done, values: tuple[Value, ...]) -> None:
        asked = self._waiting.get(message.request)
        if asked is None:
            require(self._was_cancelled(message.request), f"`{message.request}` is answered and nobody waits")
            return
        require(asked.is_accepted, f"`{asked.name}` is answered before it is accepted")
        self._check_turn(asked)
        got = {header.name: value for header, value in zip(message.tensors, values, strict=True)}
        right = reference(self._plan, asked.given)
        wanted = {name: right[name] for name in asked.outputs}
        require(got == wanted, lambda: f"`{asked.name}` is answered with {got} and is {wanted}")
        for header, value in zip(message.tensors, values, strict=True):
            told = header_of(header.name, value, self._plan.tensors[header.name])
            require(header == told, f"`{asked.name}` is answered with {header} and is {told}")
        self._end(asked, "done")

    def _on_failed(self, message: Failed) -> None:
        asked = self._waiting.get(message.request)
        require(bool(message.code.startswith("E_") and message.message), f"a failure has no name: {message}")
        require(message.code not in ("E_INTERNAL", "E_PROTOCOL", "E_TENSOR"), f"a request fails with {message}")
        if asked is None:
            require(self._was_cancelled(message.request), f"`{message.request}` fails and nobody waits: {message}")
            return
        if message.code == "E_BUSY":
            require(message.retry_after_s is not None, "busy, and not for how long")
        self._end(asked, message.code)

    def _check_turn(self, asked: Asked) -> None:
        """Require that answers come in the order in which requests were accepted; failures need not wait for it."""
        before = self._accepted[: self._accepted.index(asked.name)]
        waiting = [name for name in before if not self._was_cancelled(name)]
        require(not waiting, lambda: f"`{asked.name}` is answered before {waiting}")

    def _was_cancelled(self, name: str) -> bool:
        asked = next((asked for asked in reversed(self.asked) if asked.name == name), None)
        return asked is not None and (asked.is_cancelled or asked.is_repeated)

    def _end(self, asked: Asked, how: str) -> None:
        asked.ended = how
        took_s = self.agenda.now_s - asked.asked_s
        limit_s = math.inf if asked.timeout_s is None else asked.timeout_s + self._manners.late_s
        # With several requests out one may wait for its turn to be answered; one that was cancelled is given up late.
        is_late = took_s > limit_s and self._manners.most_waiting == 1 and how != "cancelled"
        require(not is_late, f"`{asked.name}` ended {took_s} s after it was asked, {how}")
        del self._waiting[asked.name]
        if asked.name in self._accepted:
            self._accepted.remove(asked.name)
        self._story.tell(self.agenda.now_s, self.name, f"request {how}", asked.name)
        if self._left:
            self._ask_soon()


def header_of(name: str, value: Value, info: TensorInfo) -> TensorHeader:
    """Return what stands for a tensor's bytes on the wire."""
    shape = tuple(len(value) if index == 0 else dim for index, dim in enumerate(info.shape or ()))
    rows = len(value)
    return TensorHeader(
        name, info.dtype, tuple(dim for dim in shape if isinstance(dim, int)), rows * (info.nbytes or 0)
    )
