"""Chrome trace events, the JSON that Perfetto (ui.perfetto.dev) and chrome://tracing open: one function per kind.

Times are whole microseconds. A track is a process and a thread of it; whoever traces says what these stand for.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Event = dict[str, Any]


class Track(NamedTuple):
    """A row of the picture."""

    process: int
    thread: int = 0


def named_process(process: int, name: str, *, order: int) -> list[Event]:
    """Return what calls a process `name` and shows it as number `order` from the top."""
    about = {"ph": "M", "pid": process, "tid": 0, "ts": 0}
    return [
        {**about, "name": "process_name", "args": {"name": name}},
        {**about, "name": "process_sort_index", "args": {"sort_index": order}},
    ]


def named_thread(track: Track, name: str) -> Event:
    """Return what calls a track `name`."""
    about = {"ph": "M", "pid": track.process, "tid": track.thread, "ts": 0}
    return {**about, "name": "thread_name", "args": {"name": name}}


def complete(
    track: Track, kind: str, name: str, start_us: int, end_us: int, args: Mapping[str, Any] | None = None
) -> Event:
    """Return a slice: something that took time on a track; slices of a track are apart or within each other."""
    return {
        "ph": "X",
        "cat": kind,
        "name": name,
        "pid": track.process,
        "tid": track.thread,
        "ts": start_us,
        "dur": end_us - start_us,
        "args": dict(args or {}),
    }


def spell(
    process: int,
    kind: str,
    identity: int | str,
    name: str,
    start_us: int,
    end_us: int,
    args: Mapping[str, Any] | None = None,
) -> list[Event]:
    """Return the two ends of what may overlap others of its process; those of one kind and identity share a track."""
    about = {"cat": kind, "pid": process, "tid": 0, "id": identity, "name": name}
    return [
        {**about, "ph": "b", "ts": start_us, "args": dict(args or {})},
        {**about, "ph": "e", "ts": end_us},
    ]


def arrow(phase: Literal["s", "t", "f"], track: Track, kind: str, name: str, identity: int, time_us: int) -> Event:
    """Return a stop of an arrow (its start, a step or its end), at the beginning of a slice of its track."""
    about: Event = {"cat": kind, "name": name, "id": identity, "tid": track.thread}
    end = {"bp": "e"} if phase == "f" else {}
    return {**about, **end, "ph": phase, "pid": track.process, "ts": time_us}


def counter(process: int, name: str, time_us: int, value: float) -> Event:
    """Return how much there is of something from a moment on."""
    return {"ph": "C", "name": name, "pid": process, "tid": 0, "ts": time_us, "args": {name: value}}


def microseconds(seconds: float) -> int:
    """Whole microseconds: rounded alike everywhere, what touches in truth touches in the trace and does not overlap."""
    return round(seconds * 1e6)


def encode_event(event: Event) -> str:
    """Return an event as one line."""
    return json.dumps(event, separators=(",", ":"), allow_nan=False)
