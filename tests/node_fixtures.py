"""Nodes in threads and a manager that follows a script, on any kind of links."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyps.adapters.file_cache import FileCache
from hyps.adapters.frames import from_frames, to_frames
from hyps.adapters.links import Heard, Links, Lost, Opened
from hyps.adapters.sessions import Sessions
from hyps.errors import HypsError
from hyps.formats.messages import Failed
from hyps.formats.node_messages import (
    HUB,
    NODE_PROTOCOL_VERSION,
    Beat,
    Course,
    Drain,
    Fetch,
    Finished,
    FromManager,
    Goodbye,
    ItemFailed,
    Join,
    Joined,
    Neighbour,
    Piece,
    Retire,
    Route,
    Setup,
    Spans,
    Tensor,
    decode_from_node,
    encode_node_message,
)
from hyps.formats.plan import Plan
from hyps.formats.sub_plan import sub_plan
from hyps.node import Node, NodeOptions

WAIT_S = 20.0


@dataclass
class Member:
    """A node as the manager knows it."""

    link: int
    join: Join
    beat: Beat | None = None
    is_leaving: bool = False


@dataclass
class ScriptedManager:
    """Does what a test says; `until` goes on with what comes until something holds."""

    links: Links
    plan: Plan
    folder: Path | None = None
    """Where files that are fetched come from."""
    token: str = ""
    beat_s: float = 0.1
    wants_spans: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    heard: list[tuple[str, Any]] = field(default_factory=list)
    """What nodes said, beside beats and tensors."""
    tensors: dict[tuple[int, int, str], Any] = field(default_factory=dict)
    fetched_nbytes: int = 0
    lost: list[str] = field(default_factory=list)
    setups: int = 0

    def until(self, holds: Callable[[], bool], limit_s: float = WAIT_S) -> None:
        """Take what comes until something holds."""
        end_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end_s, f"it took longer than {limit_s} s; heard {self.heard[-5:]}"
            event = self.links.receive(0.05)
            match event:
                case Heard():
                    self._on_heard(event)
                case Lost():
                    self._on_lost(event.link)
                case Opened() | None:
                    pass
                case _:
                    pass
        self.links.flush()

    def say(self, device: str, message: FromManager, *frames: Any) -> None:
        """Send a message to a node."""
        self.links.send(self.members[device].link, [encode_node_message(message), *frames])
        self.links.flush()

    def set_up(self, placement: Mapping[str, str], *, via_hub: bool = False, course: int = 1) -> None:
        """Place each partition on a device, and wait until all have it loaded."""
        self.setups += 1
        for device in self.members:
            self.say(device, self._setup(device, placement, via_hub, course))
        self.until(lambda: all(self._is_ready(device, placement) for device in self.members))

    def feed(self, request: int, feeds: Mapping[str, Any], placement: Mapping[str, str], epoch: int = 1) -> None:
        """Send a request's inputs to those that read them."""
        for name, value in feeds.items():
            readers = {placement[part.id] for part in self.plan.partitions if name in part.inputs}
            headers, frames = to_frames({name: value})
            for device in sorted(readers):
                self.say(device, Tensor(request, epoch, 1, headers[0]), *frames)

    def answer(self, request: int, epoch: int = 1) -> dict[str, Any]:
        """Wait for a request's outputs, and retire it."""
        names = [tensor.name for tensor in self.plan.model.outputs]
        self.until(lambda: all((request, epoch, name) in self.tensors for name in names))
        for device in self.members:
            self.say(device, Retire(((request, epoch),)))
        return {name: self.tensors[request, epoch, name] for name in names}

    def said(self, kind: type, device: str | None = None) -> list[Any]:
        """Return what was heard of one kind."""
        return [message for name, message in self.heard if isinstance(message, kind) and device in (None, name)]

    def _is_ready(self, device: str, placement: Mapping[str, str]) -> bool:
        beat = self.members[device].beat
        own = {name for name, where in placement.items() if where == device}
        return beat is not None and beat.setup == self.setups and own <= {*beat.loaded, *dict(beat.refused)}

    def _setup(self, device: str, placement: Mapping[str, str], via_hub: bool, course: int) -> Setup:
        own = tuple(part.id for part in self.plan.partitions if placement[part.id] == device)
        routes, targets = [], set()
        outputs = {tensor.name for tensor in self.plan.model.outputs}
        for part in self.plan.partitions:
            if part.id not in own:
                continue
            for name in part.outputs:
                readers = {placement[p.id] for p in self.plan.partitions if name in p.inputs} - {device}
                wanted = ({HUB} if readers and via_hub else readers) | ({HUB} if name in outputs else set())
                if wanted:
                    routes.append(Route(name, tuple(sorted(wanted))))
                    targets |= wanted - {HUB}
        others = [name for name in self.members if name != device]
        return Setup(
            number=self.setups,
            plan=sub_plan(self.plan, device, own) if own else None,
            courses=(Course(course, own, tuple(routes)),) if own else (),
            targets=tuple(
                Neighbour(name, f"{device}>{name}", self.members[name].join.endpoints) for name in sorted(targets)
            ),
            sources=tuple(Neighbour(name, f"{name}>{device}") for name in others),
        )

    def _on_heard(self, event: Heard) -> None:
        message = decode_from_node(memoryview(event.frames[0]))
        if isinstance(message, Join):
            self._on_join(event.link, message)
            return
        device = next((name for name, member in self.members.items() if member.link == event.link), None)
        if device is None:
            return
        match message:
            case Beat():
                self.members[device].beat = message
            case Tensor():
                self._on_tensor(message, event.frames[1:])
            case Fetch():
                self._on_fetch(device, message)
            case _:
                self.heard.append((device, message))

    def _on_join(self, link: int, join: Join) -> None:
        if join.token != self.token:
            refusal = Failed("", "E_AUTH", "the token is not that of this manager", "ask its operator")
            self.links.send(link, [encode_node_message(refusal)])
            return
        if join.device in self.members and join.device not in self.lost:
            refusal = Failed("", "E_DUPLICATE", f"there is a device `{join.device}` already", "choose another name")
            self.links.send(link, [encode_node_message(refusal)])
            return
        self.members[join.device] = Member(link, join)
        joined = Joined(NODE_PROTOCOL_VERSION, self.plan.model.name, self.beat_s, self.wants_spans)
        self.links.send(link, [encode_node_message(joined)])

    def _on_lost(self, link: int) -> None:
        self.lost += [name for name, member in self.members.items() if member.link == link]

    def _on_tensor(self, message: Tensor, frames: Any) -> None:
        value = from_frames([message.header], frames)[message.header.name]
        key = (message.request, message.epoch, message.header.name)
        assert key not in self.tensors, "a tensor came twice"
        self.tensors[key] = value

    def _on_fetch(self, device: str, fetch: Fetch) -> None:
        assert self.folder is not None, "nothing was to be fetched"
        files = {part.sha256: part.file for part in self.plan.partitions}
        files |= {ref.sha256: ref.path for part in self.plan.partitions for ref in part.weights}
        data = (self.folder / files[fetch.sha256]).read_bytes()
        piece = data[fetch.offset : fetch.offset + fetch.nbytes]
        self.fetched_nbytes += len(piece)
        self.say(device, Piece(fetch.sha256, fetch.offset, len(data)), piece)


class RunningNode:
    """A node in a thread of its own."""

    def __init__(self, links: Links, options: NodeOptions, cache: FileCache, threads: int = 1) -> None:
        self.notices: list[str] = []
        self.error: HypsError | None = None
        self.is_whole: bool | None = None
        self._links, self._cache = links, cache
        self.node = Node(links, options, Sessions(threads), cache, self.notices.append)
        self._thread = threading.Thread(target=self._run, name=options.device, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.node.leave()
        self.node.leave()
        self.join()

    def join(self) -> None:
        """Wait until the node is over."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the node does not end"

    def _run(self) -> None:
        try:
            self.is_whole = self.node.run()
        except HypsError as error:
            self.error = error
        finally:
            self._links.close()
            self._cache.close()


__all__ = ["Drain", "Finished", "Goodbye", "ItemFailed", "Member", "RunningNode", "ScriptedManager", "Spans"]
