"""The manager: takes requests, and has nodes that join it compute them; the hub's tensors lie in its process.

The thread that calls `run` owns the links, the state machine and the store.
"""

import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from hyps.adapters.frames import check_frames
from hyps.adapters.hub_store import HubStore, batch_key, batched_inputs
from hyps.adapters.links import Buffer, Heard, LinkEvent, Links, Lost, Opened, Taken
from hyps.adapters.plan_files import read_piece
from hyps.adapters.planner import Planner
from hyps.carrying import Above, AnswerToken, Carrier, Incoming, Kind, Peer, TensorToken, ToldToken
from hyps.core.manager_events import (
    Added,
    AnswerTaken,
    Cancelled,
    Disconnect,
    Dropped,
    LinkLost,
    ManagerEvent,
    NodeJoined,
    NodeTold,
    Reject,
    Relayed,
    Replied,
    Submitted,
    TensorCame,
    TensorTaken,
    Ticked,
    ToldToLeave,
)
from hyps.core.manager_state import ManagerState
from hyps.core.manager_view import report_of
from hyps.errors import HypsError, InternalError, PeerError, printable
from hyps.formats import messages, node_messages
from hyps.formats.messages import (
    AskStatus,
    Failed,
    FromClient,
    Heartbeat,
    Hello,
    PartitionSeconds,
    Probe,
    Probed,
    Status,
    Submit,
    TensorHeader,
    Welcome,
)
from hyps.formats.node_messages import (
    HUB,
    NODE_PROTOCOL_VERSION,
    Beat,
    Drain,
    Echoed,
    Fetch,
    Finished,
    FromNode,
    Goodbye,
    Greet,
    GroupReport,
    ItemFailed,
    Join,
    Piece,
    Spans,
    Started,
    Tensor,
)
from hyps.formats.plan import NamedTensor, Partition, Plan, file_digests
from hyps.formats.signature import check_outputs
from hyps.formats.status import Report, decode_report, encode_report, to_level

if TYPE_CHECKING:
    from hyps.adapters.metrics import MetricsServer
    from hyps.tracing import Tracing

logger = logging.getLogger(__name__)

_MOST_WAIT_S = 1.0
_MOST_EVENTS = 64
"""Taken from the links before the clock is looked at again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may be a node."""

    token: str = ""
    """What a node has to know; empty: nothing."""
    cpu_family: str | None = None
    """Which a node must have; None: any."""


class Manager:
    """A plan's manager behind links: `run` returns when it was told to leave and all that it had accepted has ended.

    Attributes:
        metrics: where metrics are wanted.
    """

    def __init__(
        self,
        state: ManagerState,
        links: Links,
        folder: Path | Mapping[str, Path],
        *,
        access: Access,
        planner: Planner,
        max_nbytes: int,
        above: Above | None = None,
    ) -> None:
        """Take a state machine and what it works with.

        Args:
            state: of a plan whose files have been checked.
            links: those of this process, which take `max_nbytes` per tensor.
            folder: the plan's; or per partition the folder that has its files as they lie in the plan's.
            access: who may be a node.
            planner: searches for placements.
            max_nbytes: what clients are told that a tensor may have.
            above: for a group, whom to tell of what it relays; clients are sent away then.
        """
        self._state, self._links, self._is_group = state, links, above is not None
        self._access, self._planner, self._max_nbytes = access, planner, max_nbytes
        self._plan = state.plan
        self._carrier = Carrier(state, links, planner, above)
        self._named = {name: _named(self._plan, name) for name in self._plan.tensors}
        self._batched = batched_inputs(self._plan.model.inputs, self._plan.model.outputs)
        self._files = {
            sha256: (folder if isinstance(folder, Path) else folder[part.id], path)
            for part in self._plan.partitions
            for sha256, path in _files_of(part).items()
        }
        self._is_told_to_leave = False
        self._is_stopped = False
        self._producer = f"hyps {version('hyps')}"
        self._since_s = time.monotonic()
        self._echo = b""
        self.metrics: MetricsServer | None = None

    @property
    def store(self) -> HubStore:
        """The hub's tensors."""
        return self._carrier.store

    @property
    def tracing(self) -> "Tracing | None":
        """Where a trace is wanted."""
        return self._carrier.tracing

    @tracing.setter
    def tracing(self, tracing: "Tracing") -> None:
        self._carrier.tracing = tracing

    def leave(self) -> None:
        """Take nothing more, finish what was accepted; told twice, stop at once. For any thread or signal handler."""
        self._is_stopped, self._is_told_to_leave = self._is_told_to_leave, True
        self._links.wake()

    def wake(self) -> None:
        """Have the manager's thread look whether metrics are wanted; for any thread."""
        self._links.wake()

    def run(self) -> bool:
        """Serve until told to leave; return whether everything accepted has ended."""
        while not self._carrier.has_left and not self._is_stopped:
            wait_s = self._state.wake_at_s - time.monotonic()
            event = self._links.receive(min(_MOST_WAIT_S, max(0.0, wait_s)))
            for _ in range(_MOST_EVENTS):
                if event is None or self._is_stopped:
                    break
                self.take(event)
                event = self._links.receive(0.0)
            if event is not None and not self._is_stopped:
                self.take(event)
            self.look()
        return not self._is_stopped

    @property
    def wake_at_s(self) -> float:
        """When to `look`, if nothing happens before; for whoever does not `run` it."""
        return self._state.wake_at_s

    @property
    def has_left(self) -> bool:
        """Whether it was told to leave, and has."""
        return self._carrier.has_left

    def relay(
        self, event: Relayed | Added | Dropped, headers: Sequence[TensorHeader] = (), frames: Sequence[Buffer] = ()
    ) -> None:
        """Take what the manager above wants of a group, with the tensors that it brings."""
        self._carrier.incoming = Incoming(headers, frames)
        self._handle(event)
        self._carrier.incoming = Incoming()

    def hang_up(self) -> None:
        """End the links to all peers, who may look for another manager here."""
        for link in list(self._carrier.peers):
            self._links.close_link(link)
        self._carrier.peers.clear()

    def report(self) -> Report:
        """Return how it fares."""
        groups = {link: peer.report for link, peer in self._carrier.peers.items() if peer.report is not None}
        return report_of(self._state, time.monotonic(), since_s=self._since_s, producer=self._producer, groups=groups)

    def look(self) -> None:
        """Do what no message calls for."""
        if self._is_told_to_leave and not self._state.is_leaving:
            logger.info("leaving after %d accepted requests", len(self._state.queue))
            self._handle(ToldToLeave())
        if self._carrier.deaf:
            self._cut_off_the_deaf()
        if time.monotonic() >= self._state.wake_at_s:
            self._handle(Ticked())
        reply = self._planner.poll()
        if reply is not None:
            self._handle(Replied(reply))
        if self.metrics is not None and self.metrics.is_asked():
            self.metrics.tell(self.report())
        if self.tracing is not None:
            self.tracing.flush()

    def _cut_off_the_deaf(self) -> None:
        links, self._carrier.deaf = dict.fromkeys(self._carrier.deaf), []
        for link in links:
            if link in self._carrier.peers:
                reason = "it asks and asks, and takes no answer"
                self._carrier.do(Disconnect(link, reason))
                self._handle(LinkLost(link, reason))

    # What comes.

    def take(self, event: LinkEvent) -> None:
        """Do what an event of the links calls for."""
        match event:
            case Opened():
                self._carrier.peers[event.link] = Peer()
            case Heard():
                self._on_heard(event.link, event.frames)
            case Taken():
                self._on_taken(event)
            case Lost():
                self._on_lost(event)
            case _:
                assert_never(event)

    def _on_heard(self, link: int, frames: Sequence[Buffer]) -> None:
        """Do what a peer asks; whatever it sends, the others go on."""
        peer = self._carrier.peers.get(link)
        if peer is None:
            return
        try:
            if peer.kind is Kind.NODE:
                self._on_node(link, peer, node_messages.decode_from_node(memoryview(frames[0])), frames[1:])
            else:
                self._on_unknown(link, peer, frames)
        except InternalError:
            raise  # what was to be done is not known any more: no peer may make us go on like that
        except HypsError as error:
            logger.debug("refused a message: %s", error.message)
            self._carrier.say(link, _failed("", error))

    def _on_unknown(self, link: int, peer: Peer, frames: Sequence[Buffer]) -> None:
        """Take a message of a client, or of somebody who may become a node."""
        try:
            message = messages.decode_from_client(memoryview(frames[0]))
        except PeerError as error:
            self._on_join(link, peer, _as_join(frames[0], error))
            return
        if peer.kind is None:
            peer.kind = Kind.CLIENT
        self._on_client(link, message, frames[1:])

    def _on_taken(self, event: Taken) -> None:
        if self.tracing is not None:
            self.tracing.taken(event.link, event.token)
        if isinstance(event.token, TensorToken):
            self._handle(TensorTaken(event.link, event.token.work, event.token.epoch, event.token.tensor))
        elif isinstance(event.token, AnswerToken):
            self._handle(AnswerTaken(event.token.request))
        elif isinstance(event.token, ToldToken):
            self._carrier.note_taken(event.link, event.token)

    def _on_lost(self, event: Lost) -> None:
        self._carrier.forget(event.link)
        peer = self._carrier.peers.pop(event.link, None)
        if peer is not None:
            if peer.device:
                logger.info("device `%s` is gone: %s", peer.device, event.reason, extra={"device": peer.device})
            self._handle(LinkLost(event.link, event.reason))

    # Clients.

    def _on_client(self, link: int, message: FromClient, frames: Sequence[Buffer]) -> None:
        if self._is_group and not isinstance(message, AskStatus | Heartbeat):
            raise PeerError("this manager is a group's and has no clients", "ask the manager above it", "E_DENIED")
        match message:
            case Hello():
                self._on_hello(link, message)
            case Submit():
                self._on_submit(link, message, frames)
            case messages.Cancel():
                if self.tracing is not None:
                    self.tracing.end(link, message.request, "cancelled")
                self._handle(Cancelled(link, message.request))
            case Heartbeat():
                self._carrier.say(link, message)
            case Probe():
                self._on_probe(link, message)
            case AskStatus():
                report = encode_report(to_level(self.report(), message.levels))
                self._carrier.say(link, Status(message.request), [report])
            case _:
                assert_never(message)

    def _on_hello(self, link: int, message: Hello) -> None:
        if message.version != messages.PROTOCOL_VERSION:
            text = (
                f"the manager speaks version {messages.PROTOCOL_VERSION} of the protocol, the client {message.version}"
            )
            raise PeerError(text, "use the same version of hyps on both sides", "E_VERSION")
        model = self._plan.model
        welcome = Welcome(
            version=messages.PROTOCOL_VERSION,
            device="",
            model=model.name,
            sha256=model.sha256,
            inputs=model.inputs,
            outputs=model.outputs,
            max_nbytes=self._max_nbytes,
            producer=self._plan.producer,
        )
        self._carrier.say(link, welcome)

    def _on_submit(self, link: int, message: Submit, frames: Sequence[Buffer]) -> None:
        model = self._plan.model
        try:
            check_frames(message.tensors, frames, model.inputs)
            check_outputs(model.outputs, message.outputs)
        except HypsError as error:
            self._carrier.say(link, _failed(message.request, error))
            return
        batch, rows = batch_key(message.tensors, self._batched)
        event = Submitted(
            link,
            message.request,
            tuple((header.name, header.nbytes) for header in message.tensors),
            message.outputs,
            message.timeout_s,
            batch,
            rows,
        )
        self._carrier.incoming = Incoming(message.tensors, frames, link, message.request)
        self._handle(event)
        self._carrier.incoming = Incoming()

    def _on_probe(self, link: int, message: Probe) -> None:
        """Send back what a client asks for who measures the way here; not while there is work, which comes first."""
        if len(self._state.queue):
            busy = Failed(message.request, "E_BUSY", "the manager has requests", "measure again in 1 s", 1.0)
            self._carrier.say(link, busy)
            return
        if message.nbytes > self._max_nbytes:
            text = f"a probe wants {message.nbytes} bytes back and messages here have at most {self._max_nbytes}"
            raise PeerError(text, "ask for less", "E_PROTOCOL")
        if len(self._echo) < message.nbytes:
            self._echo = bytes(message.nbytes)  # one buffer for all: sending it takes no memory of its own
        seconds = self._partition_seconds() if message.wants_seconds else ()
        self._carrier.say(link, Probed(message.request, seconds), [memoryview(self._echo)[: message.nbytes]])

    def _partition_seconds(self) -> tuple[PartitionSeconds, ...]:
        told = []
        for part, watch in sorted(self._state.network.watches.items()):
            run = watch.run
            if run.p50_s is not None and run.p95_s is not None:
                told.append(PartitionSeconds(part, run.p50_s, run.p95_s, run.n))
        return tuple(told)

    # Nodes.

    def _on_join(self, link: int, peer: Peer, join: Join) -> None:
        if peer.kind is Kind.CLIENT:
            raise PeerError("a client cannot join as a node", "connect anew", "E_PROTOCOL")
        problem = self._problem_of(join)
        if problem is not None:
            name = printable(join.device)
            logger.warning("refused a node called `%s`: %s", name, problem.message, extra={"device": name})
            self._carrier.reject(Reject(link, problem.code, problem.message, problem.hint))
            return
        peer.kind, peer.device = Kind.NODE, printable(join.device)
        self._handle(NodeJoined(link, join))
        about = {"device": peer.device}
        if link not in self._state.network.members:
            logger.info("refused a node called `%s`: it has no name, or one that is taken", peer.device, extra=about)
            peer.device = ""  # it is not that one who leaves
        else:
            logger.info("device `%s` joins", peer.device, extra=about)
            self._links.admit(link)
            self._carrier.echoes.begin(link, join.device, time.monotonic())
        if self.tracing is not None and self._state.network.members.by_link(link) is not None:
            self.tracing.join(join.device)

    def _problem_of(self, join: Join) -> PeerError | None:
        """Return why somebody cannot be a node, as far as the state machine need not know of it."""
        if not hmac.compare_digest(join.token.encode(), self._access.token.encode()):
            return PeerError("the token is not the manager's", "start it with the manager's --token-file", "E_DENIED")
        if join.version != NODE_PROTOCOL_VERSION:
            text = (
                f"the manager speaks version {NODE_PROTOCOL_VERSION} of the nodes' protocol, this node {join.version}"
            )
            return PeerError(text, "use the same version of hyps on both sides", "E_VERSION")
        wanted = self._access.cpu_family
        if wanted is not None and join.cpu_family != wanted:
            text = f"the plan was compiled for `{printable(wanted)}` and the node is `{printable(join.cpu_family)}`"
            return PeerError(text, "compile it with `--optimize portable`", "E_CPU")
        return None

    def _on_node(self, link: int, peer: Peer, message: FromNode, frames: Sequence[Buffer]) -> None:
        if self.tracing is not None:
            device = self._carrier.device_of(link)
            way = self._state.network.placer.links.get(device, HUB) if isinstance(message, Spans) else None
            self.tracing.tell(device, message, 0.0 if way is None else way.latency_s)
        if isinstance(message, ItemFailed):
            _note_failure(peer.device, message)
        match message:
            case Started() | Finished() | ItemFailed() | Beat() | Drain() | Goodbye():
                self._handle(NodeTold(link, message))
            case Tensor():
                self._on_tensor(link, message, frames)
            case Fetch():
                self._on_fetch(link, message)
            case GroupReport():
                peer.report = decode_report(memoryview(frames[0])) if len(frames) == 1 else None
            case Echoed():
                self._carrier.echoes.answered(link, message.number, time.monotonic())
            case Spans():
                pass  # told to the trace already, or nobody has asked for them
            case Join() | Greet():
                raise PeerError("a node that has joined said who it is again", code="E_PROTOCOL")
            case _:
                assert_never(message)

    def _on_tensor(self, link: int, message: Tensor, frames: Sequence[Buffer]) -> None:
        header = message.header
        expected = self._named.get(header.name)
        if expected is None:
            raise PeerError(f"the plan has no tensor `{printable(header.name)}`", code="E_PROTOCOL")
        check_frames((header,), frames, (expected,), "tensor")
        self._carrier.incoming = Incoming((header,), frames)
        self._handle(TensorCame(link, message.request, message.epoch, header.name, header.nbytes))
        self._carrier.incoming = Incoming()

    def _on_fetch(self, link: int, message: Fetch) -> None:
        """Give a node a piece of a file of its own partitions, or tell it which piece it does not get: it waits."""
        try:
            self._require_own(link, message.sha256)
            data, total = read_piece(*self._files[message.sha256], message.offset, message.nbytes)
        except HypsError as error:
            logger.debug("gave no piece of a file: %s", error.message)
            self._carrier.tell_node(link, _failed(message.sha256, error))
            return
        self._carrier.tell_node(link, Piece(message.sha256, message.offset, total), [data])

    def _require_own(self, link: int, sha256: str) -> None:
        node = self._state.network.members.by_link(link)
        plan = None if node is None or node.setup is None else node.setup.plan
        parts = () if plan is None else plan.partitions
        if not any(sha256 in _files_of(part) for part in parts):
            raise PeerError(f"the file {printable(sha256[:12])} is none of the node's", code="E_DENIED")

    # What is to be done.

    def _handle(self, event: ManagerEvent) -> None:
        for step in self._state.handle(time.monotonic(), event):
            self._carrier.do(step)


def _note_failure(device: str, failed: ItemFailed) -> None:
    about = {"request": failed.request, "epoch": failed.epoch, "partition": printable(failed.partition)}
    text = "partition `%s` failed on device `%s`: %s"
    message = printable(failed.message, 300)
    logger.info(text, about["partition"], device, message, extra={**about, "device": device, "code": failed.code})


def _named(plan: Plan, name: str) -> NamedTensor:
    info = plan.tensors[name]
    return NamedTensor(name=name, dtype=info.dtype, shape=info.shape)


def _files_of(part: Partition) -> dict[str, str]:
    """Return the path of each file of a partition by its digest."""
    return {sha256: path for path, sha256 in file_digests(part)}


def _as_join(data: Buffer, error: PeerError) -> Join:
    """Return the first message of a node; what is none is refused as a client's, as which it was read first."""
    try:
        message = node_messages.decode_from_node(bytes(data))
    except PeerError:
        raise error from None
    if not isinstance(message, Join):
        raise PeerError("who has not joined tells nothing as a node", "join first", "E_PROTOCOL")
    return message


def _failed(request: str, error: HypsError) -> Failed:
    return Failed(request, error.code, printable(error.message, 1000), printable(error.hint, 1000))
