"""A peer that says what a test wants, on links in memory or on sockets, for what asks workers and managers."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from hyps.adapters.frames import from_frames, to_frames
from hyps.adapters.links import Buffer, Heard, Links
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.adapters.zmq_links import ZmqLinks
from hyps.core.client_state import Patience
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Done,
    Failed,
    FromClient,
    FromWorker,
    Hello,
    Submit,
    Welcome,
    decode_from_client,
    encode,
)
from hyps.formats.plan import NamedTensor
from hyps.remote import MOST_IN_FLIGHT, RemoteRunner

WAIT_S = 20.0
INPUTS = (NamedTensor(name="x", dtype="float32", shape=(1, 4)),)
OUTPUTS = (NamedTensor(name="y", dtype="float32", shape=(1, 4)), NamedTensor(name="z", dtype="float32", shape=(1,)))
_T = TypeVar("_T")


class World:
    """Where a peer is, and links to reach it: in memory, or through a socket in a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.address = "memory://peer" if folder is None else f"ipc://{folder}/peer"
        self._network = MemoryNetwork() if folder is None else None

    def links(self) -> Links:
        """Return links of one more process."""
        return ZmqLinks() if self._network is None else MemoryLinks(self._network)


@dataclass(frozen=True)
class Said:
    """What a client said, and over which link."""

    link: int
    message: FromClient
    frames: Sequence[Buffer]


def feeds(value: float) -> dict[str, Any]:
    """Return a request whose answer is `y`, twice its value, and `z`, its value."""
    return {"x": np.full((1, 4), value, np.float32)}


class Peer:
    """A worker without a plan: it greets, and answers requests where it is told to."""

    def __init__(self, world: World, *, answers: bool = True, sha256: str = "00", greets: bool = True) -> None:
        """Listen in `world`; with `answers`, requests are answered at once, otherwise by the test."""
        self.answers, self.greets, self.sha256, self.version = answers, greets, sha256, PROTOCOL_VERSION
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self.submitted = 0
        self._to_say: queue.SimpleQueue[tuple[int, Sequence[Buffer]]] = queue.SimpleQueue()
        self._links = world.links()
        self._links.listen(world.address)
        self._is_dead = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def next(self, kind: type[_T]) -> tuple[Said, _T]:
        """Return the next message of a kind that was not answered at once, skipping others."""
        while True:
            said = self.said.get(timeout=WAIT_S)
            if isinstance(said.message, kind):
                return said, said.message

    def submits(self, count: int) -> list[Said]:
        """Return the next requests."""
        return [self.next(Submit)[0] for _ in range(count)]

    def say(self, link: int, message: FromWorker, frames: Sequence[Buffer] = ()) -> None:
        """Say it to who is at the other end."""
        self.say_bytes(link, encode(message), *frames)

    def say_bytes(self, link: int, *frames: Buffer) -> None:
        """Say what may be no message."""
        self._to_say.put((link, frames))
        self._links.wake()

    def answer(self, said: Said) -> None:
        """Answer a request as it should be."""
        assert isinstance(said.message, Submit)
        x = from_frames(said.message.tensors, said.frames)["x"]
        made = {"y": 2 * x, "z": x[:, 0].copy()}
        headers, frames = to_frames({name: made[name] for name in said.message.outputs or made})
        self.say(said.link, Done(said.message.request, headers), frames)

    def refuse(self, said: Said, code: str = "E_BUSY", retry_after_s: float | None = None) -> None:
        """Refuse a request."""
        assert isinstance(said.message, Submit)
        self.say(said.link, Failed(said.message.request, code, "no \x1b", "do this", retry_after_s))

    def die(self) -> None:
        """Leave all links."""
        if not self._is_dead:
            self._is_dead = True
            self._links.wake()
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()

    def _serve(self) -> None:
        with self._links as links:
            while not self._is_dead:
                event = links.receive(WAIT_S)
                if isinstance(event, Heard):
                    message = decode_from_client(memoryview(event.frames[0]))
                    self._on_heard(Said(event.link, message, event.frames[1:]))
                while not self._to_say.empty():
                    links.send(*self._to_say.get())

    def _on_heard(self, said: Said) -> None:
        if isinstance(said.message, Hello):
            if self.greets:
                self.say(said.link, Welcome(self.version, "pi", "m", self.sha256, INPUTS, OUTPUTS, 1000, "hyps"))
            return
        self.submitted += isinstance(said.message, Submit)
        if self.answers and isinstance(said.message, Submit):
            self.answer(said)
        else:
            self.said.put(said)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.die()


def reach(
    world: World,
    *,
    timeout_s: float | None = None,
    most_in_flight: int = MOST_IN_FLIGHT,
    patience: Patience | None = None,
) -> RemoteRunner:
    """Return a runner for the peer in `world`."""
    return RemoteRunner(
        world.links(), world.address, timeout_s=timeout_s, most_in_flight=most_in_flight, patience=patience
    )


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
