"""What was simulated as Chrome trace events, the JSON that Perfetto (ui.perfetto.dev) and chrome://tracing open.

A process per device and per direction of a link, in which every run and every message is a complete event (`X`); one
more process with a track per request under way (`b`, `e`); arrows from the run that made a tensor over its messages to
the run that took it (`s`, `t`, `f`); and how many wait for each device and link as counters (`C`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from hyps.formats.chrome_trace import (
    Event,
    Track,
    arrow,
    complete,
    counter,
    encode_event,
    microseconds,
    named_process,
    spell,
)
from hyps_compiler.simulation_result import Simulated, Span

_REQUESTS = 1
"""The process that holds the requests; those of devices and links follow."""


def trace_json(simulated: Simulated) -> bytes:
    """Return the trace file; equal simulations give equal bytes."""
    lines = [encode_event(event) for event in sorted(trace_events(simulated), key=_order)]
    return ('{"displayTimeUnit":"ms","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n").encode()


def trace_events(simulated: Simulated) -> Iterator[Event]:
    """Yield every event, in no special order."""
    names = [use.name for use in (*simulated.devices, *simulated.links)]
    process_of = {name: number for number, name in enumerate(names, start=_REQUESTS + 1)}
    yield from _processes(["requests", *names])
    for life in simulated.lives:
        start, end = microseconds(life.arrived_s), microseconds(life.ended_s)
        args = {"variant": life.variant}
        yield from spell(_REQUESTS, "request", life.request, f"request {life.request}", start, end, args)
    for span in simulated.spans:
        yield _complete(span, process_of[span.resource])
    yield from _arrows(simulated.spans, process_of)
    yield from _counters(simulated.spans, process_of)


def _processes(names: Sequence[str]) -> Iterator[Event]:
    for process, name in enumerate(names, start=_REQUESTS):
        yield from named_process(process, name, order=process)


def _complete(span: Span, process: int) -> Event:
    start, end = microseconds(span.start_s), microseconds(span.end_s)
    args: dict[str, Any] = {"request": span.request, "waited_us": max(0, start - microseconds(span.queued_s))}
    if span.is_lost:
        args["lost"] = True
    name = f"{span.name} (loading)" if span.kind == "load" else span.name
    return complete(Track(process), span.kind, name, start, end, args)


def _arrows(spans: Sequence[Span], process_of: dict[str, int]) -> Iterator[Event]:
    """Yield a flow per message; each of its events stands at the beginning of the slice that it belongs to."""
    runs = {(s.request, s.name): s for s in spans if s.kind == "compute" and not s.is_lost}
    messages: dict[int, list[Span]] = {}
    for span in spans:
        if span.kind == "transfer":
            messages.setdefault(span.message, []).append(span)
    for identity, legs in messages.items():
        makers = [runs[key] for key in [(legs[0].request, legs[0].producer)] if key in runs]
        takers = [runs[key] for name in legs[0].consumers[:1] if (key := (legs[0].request, name)) in runs]
        stops = [*makers, *legs, *takers]
        if len(stops) < 2:
            continue
        for place, span in enumerate(stops):
            track, start = Track(process_of[span.resource]), microseconds(span.start_s)
            phase: Literal["s", "t", "f"] = "s" if place == 0 else "f" if place == len(stops) - 1 else "t"
            yield arrow(phase, track, "tensor", legs[0].name, identity, start)


def _counters(spans: Sequence[Span], process_of: dict[str, int]) -> Iterator[Event]:
    """Yield how many of the traced requests wait, at every moment at which that changes."""
    changes: dict[str, dict[int, int]] = {name: {} for name in process_of}
    for span in spans:
        if span.start_s > span.queued_s:
            mine = changes[span.resource]
            for time_us, change in ((microseconds(span.queued_s), 1), (microseconds(span.start_s), -1)):
                mine[time_us] = mine.get(time_us, 0) + change
    for name, process in process_of.items():
        for time_us, waiting in _sums(sorted(changes[name].items())):
            yield counter(process, "waiting", time_us, waiting)


def _sums(changes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    waiting = 0
    for time_us, change in changes:
        waiting += change
        if change:
            yield time_us, waiting


def _order(event: Event) -> tuple[int, int, int, int]:
    """What names comes first; then by time, longer slices before what points at them."""
    ranks = {"M": 0, "b": 1, "X": 2, "s": 3, "t": 4, "f": 5, "C": 6, "e": 7}
    return (event["ph"] != "M", event["ts"], ranks[event["ph"]], event["pid"])
