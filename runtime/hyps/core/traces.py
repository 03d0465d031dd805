"""One trace of what the manager and its nodes did, as Chrome trace events on the manager's clock.

A process of the trace per device, with a track for computing, one for loading and one per device it sends to; more of a
kind where things overlap. One more process has the requests under way. Arrows go from the sending of a tensor to the
run that takes it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from hyps.core.clocks import RemoteClock
from hyps.formats.chrome_trace import (
    Event,
    Track,
    arrow,
    complete,
    microseconds,
    named_process,
    named_thread,
    spell,
)
from hyps.formats.node_messages import HUB, Span

_REQUESTS = 1
_MOST_TRACKS = 64
"""Of one kind at one device."""

_MOST_DEVICES = 10_000
_LONGEST_S = 1e10
"""Beyond it no clock is: three centuries."""


class TraceBook:
    """Turns what is told into events; knows which tracks there are, and nothing of what was on them.

    The clocks of devices are those of their latest incarnation: `join` begins a new one.
    """

    def __init__(self, start_s: float, inputs: Mapping[str, tuple[str, ...]]) -> None:
        """Begin a trace at `start_s`; `inputs` has the tensors that each partition reads."""
        self._start_s = start_s
        self._inputs = inputs
        self._clocks: dict[str, RemoteClock] = {}
        self._processes: dict[str, int] = {}
        self._busy_until_us: dict[str, dict[str, list[int]]] = {}
        """Per device and kind of track, when the last slice on each track ends."""
        self._tracks: dict[tuple[str, str, int], Track] = {}
        self._threads: dict[str, int] = {}

    def join(self, device: str) -> None:
        """A process that calls itself `device` has joined; its clock is another one than before."""
        self._clocks[device] = RemoteClock()

    def beat(self, device: str, clock_s: float, heard_s: float) -> None:
        """A device's clock showed `clock_s` when it sent what was heard at `heard_s`."""
        self._clocks.setdefault(device, RemoteClock()).add(clock_s, heard_s)

    def headers(self) -> list[Event]:
        """Return the names of all that there is so far: what each file of the trace begins with."""
        events = named_process(_REQUESTS, "requests", order=_REQUESTS)
        for device, process in self._processes.items():
            events += named_process(process, device or "hub", order=process)
        for (_device, kind, number), track in self._tracks.items():
            events.append(named_thread(track, kind if number == 0 else f"{kind} ({number + 1})"))
        return events

    def spans(self, device: str, spans: Iterable[Span], way_s: float = 0.0) -> list[Event]:
        """Return the events of what a device told; `way_s` is what a message takes from there, where that is known.

        Spans of the manager itself, `HUB`, are on its own clock.
        """
        clock = self._clocks.get(device)
        events: list[Event] = []
        for span in spans:
            begin_s, end_s = span.start_s, max(span.start_s, span.end_s)
            if not max(abs(begin_s), abs(end_s)) < _LONGEST_S:
                continue
            if clock is not None and device != HUB:
                begin_s, end_s = clock.ours(begin_s, way_s), clock.ours(end_s, way_s)
            events += self._span(device, span, self._us(begin_s), self._us(end_s))
        return events

    def request(
        self, request: int, accepted_s: float, begun_s: float | None, ended_s: float, args: Mapping[str, int | str]
    ) -> list[Event]:
        """Return the events of a request that has ended.

        Args:
            request: its number.
            accepted_s: when it was taken.
            begun_s: when its work began; None: it never did.
            ended_s: when it was answered or given up.
            args: what else is shown of it.
        """
        accepted_us, ended_us = self._us(accepted_s), self._us(ended_s)
        begun_us = ended_us if begun_s is None else min(max(self._us(begun_s), accepted_us), ended_us)
        begin, end = spell(_REQUESTS, "request", request, f"request {request}", accepted_us, ended_us, args)
        waits = spell(_REQUESTS, "request", request, "queue", accepted_us, begun_us) if begun_us > accepted_us else []
        return [begin, *waits, end]

    def _us(self, time_s: float) -> int:
        return microseconds(time_s - self._start_s)

    def _span(self, device: str, span: Span, start_us: int, end_us: int) -> Iterator[Event]:
        if device not in self._processes and len(self._processes) >= _MOST_DEVICES:
            return
        yield from self._process(device)
        process = self._processes[device]
        args = {"work": span.request}
        if span.kind == "queue":
            identity = f"{span.request}/{span.name}"
            yield from spell(process, "queue", identity, f"{span.name} waits", start_us, end_us, args)
            return
        kind = f"send to {span.peer or 'hub'}" if span.kind == "send" else span.kind
        track, fresh = self._track(device, kind, start_us, end_us)
        yield from fresh
        about = {**args, "bytes": span.nbytes} if span.nbytes else args
        yield complete(track, span.kind, span.name, start_us, end_us, about)
        if span.kind == "send" and span.peer != HUB:
            yield arrow("s", track, "tensor", span.name, _identity(span.request, span.name, span.peer), start_us)
        elif span.kind == "compute":
            for tensor in self._inputs.get(span.name, ()):
                yield arrow("f", track, "tensor", tensor, _identity(span.request, tensor, device), start_us)

    def _process(self, device: str) -> list[Event]:
        if device in self._processes:
            return []
        process = self._processes[device] = _REQUESTS + 1 + len(self._processes)
        return named_process(process, device or "hub", order=process)

    def _track(self, device: str, kind: str, start_us: int, end_us: int) -> tuple[Track, list[Event]]:
        """Return a track that is free from `start_us`, and its name where it is new."""
        kinds = self._busy_until_us.setdefault(device, {})
        if kind not in kinds and len(kinds) >= _MOST_TRACKS:
            kind = "more"
        until = kinds.setdefault(kind, [])
        free = next((number for number, busy_us in enumerate(until) if busy_us <= start_us), len(until))
        if free == len(until) and free < _MOST_TRACKS:
            until.append(end_us)
            track = self._tracks[device, kind, free] = Track(self._processes[device], self._thread(device))
            return track, [named_thread(track, kind if free == 0 else f"{kind} ({free + 1})")]
        number = min(free, _MOST_TRACKS - 1)
        until[number] = max(end_us, until[number])
        return self._tracks[device, kind, number], []

    def _thread(self, device: str) -> int:
        self._threads[device] = self._threads.get(device, 0) + 1
        return self._threads[device]


def _identity(request: int, tensor: str, device: str) -> int:
    """Return the number of the arrow along which a request's tensor goes to a device."""
    digest = hashlib.blake2s(f"{request}\0{tensor}\0{device}".encode("utf-8", "surrogatepass"), digest_size=6)
    return int.from_bytes(digest.digest(), "big")
