"""Writes the trace of a manager: told what happens, by the manager's thread, it keeps nothing but what is under way."""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from hyps.adapters.traces import TraceFile
from hyps.core.traces import TraceBook
from hyps.formats.chrome_trace import Event
from hyps.formats.node_messages import HUB, Beat, FromNode, Span, Spans
from hyps.formats.plan import Plan

_MOST_KEPT = 256
"""Events that wait to be written together."""

_FLUSH_S = 1.0
_LEAST_WAY_S = 0.005
"""A way that seems to take less may take nothing: that is what busy processes take to answer, and the quickest of many
messages, by which clocks are told, came sooner."""

_MOST_OPEN = 100_000
"""Requests and sendings under way; beyond these, none is traced until some have ended."""


@dataclass(frozen=True, slots=True)
class _Request:
    number: int
    accepted_s: float


class Tracing:
    """A trace file of what the manager of a plan does."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """Begin the file.

        Raises:
            OutputError: it cannot be written there.
        """
        self._book = TraceBook(time.monotonic(), {part.id: part.inputs for part in plan.partitions})
        self._file = TraceFile(path, self._book.headers)
        self._events: list[Event] = []
        self._written_s = time.monotonic()
        self._requests: dict[tuple[int, str], _Request] = {}
        """By client and the client's own name of it."""
        self._sendings: dict[tuple[int, Hashable], Span] = {}
        """By link and token: what the hub sends and nobody has confirmed."""

    def accept(self, client: int, name: str, number: int) -> None:
        """A client's request was accepted as request `number`."""
        if len(self._requests) < _MOST_OPEN:
            self._requests[client, name] = _Request(number, time.monotonic())

    def end(
        self, client: int, name: str, outcome: str, *, begun_s: float | None = None, work: int | None = None
    ) -> None:
        """A client's request has ended: `done`, `cancelled`, or with an error code; unknown ones are none of ours."""
        request = self._requests.pop((client, name), None)
        if request is None:
            return
        args: dict[str, int | str] = {"outcome": outcome}
        if work is not None:
            args["work"] = work
        now_s = time.monotonic()
        self._write(self._book.request(request.number, request.accepted_s, begun_s, now_s, args))

    def lose(self, link: int) -> None:
        """A client or node is gone."""
        for client, name in [key for key in self._requests if key[0] == link]:
            self.end(client, name, "cancelled")
        for key in [key for key in self._sendings if key[0] == link]:
            del self._sendings[key]

    def join(self, device: str) -> None:
        """A device has joined."""
        self._book.join(device)

    def tell(self, device: str, message: FromNode, way_s: float = 0.0) -> None:
        """A device told something; `way_s` is what a small message takes from there, where that is known."""
        if isinstance(message, Beat):
            self._book.beat(device, message.clock_s, time.monotonic())
        elif isinstance(message, Spans):
            way_s = way_s if way_s >= _LEAST_WAY_S else 0.0
            self._write(self._book.spans(device, message.spans, way_s))

    def send(self, link: int, token: Hashable, device: str, work: int, tensor: str, nbytes: int) -> None:
        """The hub begins to send a tensor of a piece of work to a device."""
        if len(self._sendings) < _MOST_OPEN:
            now_s = time.monotonic()
            self._sendings[link, token] = Span(work, "send", tensor, now_s, now_s, device, nbytes)

    def taken(self, link: int, token: Hashable) -> None:
        """What was sent with that token has arrived."""
        sent = self._sendings.pop((link, token), None)
        if sent is not None:
            span = Span(sent.request, sent.kind, sent.name, sent.start_s, time.monotonic(), sent.peer, sent.nbytes)
            self._write(self._book.spans(HUB, [span]))

    def flush(self) -> None:
        """Write what waits, when it has waited long; to be called about every second."""
        if time.monotonic() - self._written_s >= _FLUSH_S:
            self._write([], now=True)

    def close(self) -> None:
        """Write what waits and end the file; requests that are still under way are left out."""
        self._write([], now=True)
        self._file.close()

    def _write(self, events: list[Event], *, now: bool = False) -> None:
        self._events += events
        if now or len(self._events) >= _MOST_KEPT:
            self._file.write(self._events)
            self._events, self._written_s = [], time.monotonic()
