"""Carries out what a manager's state machine says: on links, on the hub's tensors, and at the planner."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from hyps.adapters.hub_store import HubStore
from hyps.adapters.links import Buffer, Links
from hyps.adapters.planner import Planner
from hyps.core.manager_events import (
    Answer,
    Ask,
    Disconnect,
    Drop,
    Emit,
    Ended,
    Fail,
    Keep,
    Leave,
    ManagerInstruction,
    Merge,
    PassOn,
    Reject,
    Send,
    Store,
    Tell,
)
from hyps.core.manager_state import ManagerState
from hyps.echoes import Echoes
from hyps.errors import printable
from hyps.formats import messages, node_messages
from hyps.formats.messages import Accepted, Done, Failed, FromWorker, TensorHeader
from hyps.formats.node_messages import Echo, FromManager, Tensor
from hyps.formats.status import Report

if TYPE_CHECKING:
    from hyps.tracing import Tracing

logger = logging.getLogger(__name__)

MOST_UNREAD_NBYTES = 64 * 2**20
"""Of what a peer was told, beside tensors that it is owed, and has not taken: more is kept for nobody."""

_MESSAGE_NBYTES = 512
"""What a message counts for besides its bytes: that is about what it takes while it waits."""

_MARK_NBYTES = 64 * 1024
"""After so many it is looked whether a peer has taken them."""

_Doer = Callable[..., None]


class Kind(Enum):
    """What a peer has shown itself to be."""

    CLIENT = "client"
    NODE = "node"


@dataclass(slots=True)
class Peer:
    """Somebody at the other end of a link."""

    kind: Kind | None = None
    """None: it has said nothing yet."""
    device: str = ""
    """What a node calls itself."""
    report: Report | None = None
    """What a group told of itself last."""
    told_nbytes: list[int] = field(default_factory=lambda: [0, 0])
    """Since it came, but for tensors that it is owed; what is not urgent, and what is."""
    marked_nbytes: list[int] = field(default_factory=lambda: [0, 0])
    """Of that, up to where it will be known when it was taken."""
    taken_nbytes: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(frozen=True, slots=True)
class ToldToken:
    """Comes back when a peer has taken what it was told, up to here."""

    lane: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """Comes back when a client has an answer."""

    request: int


@dataclass(frozen=True, slots=True)
class TensorToken:
    """Comes back when a node has a tensor."""

    work: int
    epoch: int
    tensor: str


@dataclass(slots=True)
class Incoming:
    """The tensors of the message at hand, which the state machine may have kept."""

    headers: Sequence[TensorHeader] = ()
    frames: Sequence[Buffer] = ()
    client: int = 0
    name: str = ""


class Above(Protocol):
    """For a group: whom its manager tells of the requests that the manager above has it relay."""

    def made(self, number: int, header: TensorHeader, frame: Buffer) -> None:
        """A tensor is there that is wanted above; its bytes stay as they are."""

    def told(self, step: PassOn | Ended) -> None:
        """A work item, or a request, has come so far."""


class Carrier:
    """Does what the state machine says; belongs to the manager's thread.

    Attributes:
        store: the hub's tensors.
        incoming: the tensors of the message at hand.
        peers: who is at the other end of each link.
        echoes: measure the ways to nodes.
        deaf: links to peers that ask and ask, and take no answer; whoever cuts them off clears it.
        has_left: whether everything is done and said.
        tracing: where a trace is wanted.
    """

    def __init__(self, state: ManagerState, links: Links, planner: Planner, above: Above | None = None) -> None:
        self._state, self._links, self._planner, self._above = state, links, planner, above
        self.store = HubStore()
        self.incoming = Incoming()
        self.peers: dict[int, Peer] = {}
        self.echoes = Echoes(state.network.placer.links, self._send_echo, links.backlog_nbytes)
        self.deaf: list[int] = []
        self.has_left = False
        self.tracing: Tracing | None = None
        self._doers: dict[type, _Doer] = {
            Keep: self._keep,
            Merge: self._merge,
            Store: self._put,
            Send: self._send,
            Drop: self._drop,
            Tell: self._tell,
            Reject: self.reject,
            Disconnect: self._disconnect,
            Answer: self._answer,
            Fail: self._fail,
            Emit: self._emit,
            PassOn: self._pass_on,
            Ended: self._pass_on,
            Ask: self._ask,
            Leave: self._leave,
        }

    def do(self, step: ManagerInstruction) -> None:
        """Carry out one instruction."""
        self._doers[type(step)](step)

    def device_of(self, link: int) -> str:
        """Return what the node at the other end of a link is called; empty: there is none."""
        node = self._state.network.members.by_link(link)
        return "" if node is None else node.device

    def _send_echo(self, link: int, echo: Echo, frame: bytes) -> None:
        self._links.send(link, [node_messages.encode_node_message(echo), frame])

    def _keep(self, step: Keep) -> None:
        incoming = self.incoming
        for header, frame in zip(incoming.headers, incoming.frames, strict=True):
            self.store.put(step.request, header, frame)
        if self.tracing is not None:
            self.tracing.accept(incoming.client, incoming.name, step.request)
        if self._above is None:
            self.say(incoming.client, Accepted(incoming.name))

    def _merge(self, step: Merge) -> None:
        self.store.merge(step.work, step.requests, [tensor.name for tensor in self._state.plan.model.inputs])

    def _put(self, step: Store) -> None:
        self.store.put(step.work, self.incoming.headers[0], self.incoming.frames[0])

    def _send(self, step: Send) -> None:
        header, frame = self.store.get(step.work, step.tensor)
        message = Tensor(step.work, step.epoch, step.course, header)
        token = TensorToken(step.work, step.epoch, step.tensor)
        if self.tracing is not None:
            device = self.device_of(step.link)
            self.tracing.send(step.link, token, device, step.work, step.tensor, header.nbytes)
        self._links.send(step.link, [node_messages.encode_node_message(message), frame], token)

    def _drop(self, step: Drop) -> None:
        self.store.drop(step.work, step.tensor)

    def _tell(self, step: Tell) -> None:
        self.tell_node(step.link, step.message)

    def reject(self, step: Reject) -> None:
        """Tell a peer that it cannot be a node."""
        self.peers[step.link].kind = None
        self.tell_node(step.link, Failed("", step.code, step.message, step.hint))

    def forget(self, link: int) -> None:
        """A link is gone."""
        self.echoes.forget(link)
        if self.tracing is not None:
            self.tracing.lose(link)

    def _disconnect(self, step: Disconnect) -> None:
        peer = self.peers.pop(step.link, None)
        if peer is not None and peer.device:
            logger.warning("cut off device `%s`: %s", peer.device, step.reason, extra={"device": peer.device})
        else:
            logger.warning("cut off a peer: %s", step.reason)
        self.forget(step.link)
        self._links.close_link(step.link)

    def _answer(self, step: Answer) -> None:
        if self.tracing is not None:
            request = self._state.queue.get(step.request)
            begun_s = None if request is None else request.begun_s
            self.tracing.end(step.client, step.name, "done", begun_s=begun_s, work=step.work)
        stored = []
        for name in step.outputs:
            header, frame = self.store.get(step.work, name)
            if step.rows is not None and (not header.shape or header.shape[0] != step.rows[2]):
                text = f"output `{printable(name)}` of {step.rows[2]} rows came with the shape {header.shape}"
                hint = "the model does not keep rows apart: start the manager without --batch"
                self.say(step.client, Failed(step.name, "E_BATCH", text, hint), token=AnswerToken(step.request))
                return
            if step.rows is not None:
                header, frame = self.store.rows(step.work, name, step.rows[0], step.rows[1])
            stored.append((header, frame))
        done = Done(step.name, tuple(header for header, _ in stored))
        self.say(step.client, done, [frame for _, frame in stored], token=AnswerToken(step.request))

    def _fail(self, step: Fail) -> None:
        if self.tracing is not None:
            self.tracing.end(step.client, step.name, step.code)
        self.say(step.client, Failed(step.name, step.code, step.message, step.hint, step.retry_after_s))

    def _emit(self, step: Emit) -> None:
        assert self._above is not None, "only a group relays"
        self._above.made(step.number, *self.store.get(step.number, step.tensor))

    def _pass_on(self, step: PassOn | Ended) -> None:
        assert self._above is not None, "only a group relays"
        self._above.told(step)

    def _ask(self, step: Ask) -> None:
        logger.info("a placement is searched")
        self._planner.ask(step.question)

    def _leave(self, _step: Leave) -> None:
        self.has_left = True

    def say(
        self,
        link: int,
        message: FromWorker,
        frames: Sequence[Buffer] = (),
        token: AnswerToken | None = None,
    ) -> None:
        """Say something to a client."""
        is_urgent = not frames and token is None
        self._speak(link, [messages.encode(message), *frames], token, is_urgent=is_urgent)

    def tell_node(self, link: int, message: FromManager, frames: Sequence[Buffer] = ()) -> None:
        """Say something to a node."""
        self._speak(link, [node_messages.encode_node_message(message), *frames], None, is_urgent=not frames)

    def note_taken(self, link: int, token: ToldToken) -> None:
        """A peer has taken what it was told."""
        peer = self.peers.get(link)
        if peer is not None:
            peer.taken_nbytes[token.lane] = token.nbytes

    def _speak(self, link: int, frames: Sequence[Buffer], owed: AnswerToken | None, *, is_urgent: bool) -> None:
        """Send what a peer asked for, as long as it takes what it gets: who does not could have us keep anything."""
        peer = self.peers.get(link)
        token: AnswerToken | ToldToken | None = owed
        if owed is None and peer is not None:
            lane = int(is_urgent)
            nbytes = peer.told_nbytes[lane] = peer.told_nbytes[lane] + _MESSAGE_NBYTES + sum(map(len, frames))
            if sum(peer.told_nbytes) - sum(peer.taken_nbytes) > MOST_UNREAD_NBYTES:
                self.deaf.append(link)
                return
            if nbytes - peer.marked_nbytes[lane] > _MARK_NBYTES:
                peer.marked_nbytes[lane], token = nbytes, ToldToken(lane, nbytes)
        self._links.send(link, frames, token, is_urgent=is_urgent)
