"""Events of a running cluster keep to the trace format: whole, on our clock, and no slice cuts into another."""

import itertools
import json
import math
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hyps.core.traces import TraceBook
from hyps.formats.chrome_trace import Event, encode_event
from hyps.formats.node_messages import HUB, Span

INPUTS = {"head": ("x",), "tail": ("h",)}
REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "args"},
    **{phase: {"name", "cat", "id", "ts", "pid", "tid"} for phase in "besf"},
}


def book() -> TraceBook:
    made = TraceBook(1000.0, INPUTS)
    for device, offset_s in (("pi-1", 500.0), ("pi-2", -300.0)):
        made.join(device)
        for beat in range(5):
            made.beat(device, 1000.0 + beat - offset_s, 1000.0 + beat + 0.001 * (beat + 1))
    return made


def by_phase(events: list[Event]) -> dict[str, list[Event]]:
    found = defaultdict(list)
    for event in events:
        json.loads(encode_event(event))
        assert set(event) >= REQUIRED[event["ph"]]
        found[event["ph"]].append(event)
    return found


def one_request(traced: TraceBook) -> list[Event]:
    events = traced.spans(HUB, [Span(7, "send", "x", 1000.0, 1000.1, "pi-1", 4000)])
    first = [
        Span(7, "queue", "head", 500.1, 500.2),
        Span(7, "compute", "head", 500.2, 500.5),
        Span(7, "send", "h", 500.5, 500.6, "pi-2", 800),
    ]
    events += traced.spans("pi-1", first, way_s=0.001)
    events += traced.spans("pi-2", [Span(7, "compute", "tail", 1300.6, 1300.9)], way_s=0.001)
    return events + traced.request(7, 999.9, 1000.0, 1001.0, {"outcome": "done", "work": 7})


def test_a_request_through_two_devices_stands_on_one_clock() -> None:
    found = by_phase(one_request(book()))
    slices = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in found["X"]]
    assert slices == [
        ("x", 0, 100_000),
        ("head", 200_000, 500_000),
        ("h", 500_000, 600_000),
        ("tail", 600_000, 900_000),
    ]
    names = {e["pid"]: e["args"]["name"] for e in found["M"] if e["name"] == "process_name"}
    assert sorted(names.values()) == ["hub", "pi-1", "pi-2"]
    assert [names[event["pid"]] for event in found["X"]] == ["hub", "pi-1", "pi-1", "pi-2"]


def test_arrows_lead_from_the_sending_of_a_tensor_to_the_run_that_takes_it() -> None:
    found = by_phase(one_request(book()))
    starts = {event["id"]: event for event in found["s"]}
    ends = {event["id"]: event for event in found["f"]}
    assert set(starts) == set(ends)
    assert {(event["name"], ends[key]["name"]) for key, event in starts.items()} == {("x", "x"), ("h", "h")}
    places = {(event["pid"], event["tid"], event["ts"]) for event in found["X"]}
    assert all((e["pid"], e["tid"], e["ts"]) in places for e in (*found["s"], *found["f"]))


def test_what_waits_and_the_requests_themselves_have_two_ends() -> None:
    found = by_phase(one_request(book()))
    begins = {(e["pid"], e["cat"], e["id"], e["name"]): e for e in found["b"]}
    ends = {(e["pid"], e["cat"], e["id"], e["name"]): e for e in found["e"]}
    assert set(begins) == set(ends)
    told = {key[3]: (begins[key]["ts"], ends[key]["ts"]) for key in begins}
    assert told == {"request 7": (-100_000, 1_000_000), "queue": (-100_000, 0), "head waits": (100_000, 200_000)}


def test_a_request_that_never_began_waited_to_its_end() -> None:
    found = by_phase(book().request(8, 1000.0, None, 1002.0, {"outcome": "E_DEADLINE"}))
    assert found["b"][0]["args"] == {"outcome": "E_DEADLINE"}
    assert [(event["name"], event["ts"]) for event in found["e"]] == [("queue", 2_000_000), ("request 8", 2_000_000)]


def test_a_device_that_comes_back_has_a_new_clock() -> None:
    traced = book()
    traced.join("pi-1")
    traced.beat("pi-1", 3.0, 1010.0)
    (event,) = by_phase(traced.spans("pi-1", [Span(1, "load", "head", 3.0, 4.0)]))["X"]
    assert event["ts"] == 10_000_000


spans = st.lists(
    st.builds(
        Span,
        st.integers(0, 5),
        st.sampled_from(["queue", "compute", "send", "load", "dream"]),
        st.sampled_from(["head", "tail", "h"]),
        st.floats(0, 10),
        st.floats(0, 10),
        st.sampled_from(["", "pi-1", "pi-2"]),
        st.integers(0, 100),
    ),
    max_size=60,
)


@given(st.lists(st.tuples(st.sampled_from(["pi-1", "pi-2", "new", ""]), spans), max_size=4))
def test_slices_of_a_track_never_overlap_and_every_track_has_a_name(told: list[tuple[str, list[Span]]]) -> None:
    traced = book()
    events: list[Event] = traced.headers()
    for device, some in told:
        events += traced.spans(device, some)
    found = by_phase(events)
    tracks: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for event in found["X"]:
        assert event["dur"] >= 0
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(slices)))
    named = {(e["pid"], e["tid"]) for e in found["M"] if e["name"] == "thread_name"}
    assert set(tracks) == named
    assert {process for process, _ in tracks} <= {e["pid"] for e in found["M"] if e["name"] == "process_name"}


def test_a_new_file_begins_with_all_names() -> None:
    traced = book()
    known = [event for event in one_request(traced) if event["ph"] == "M"]
    later = traced.headers()
    assert all(event in later for event in known)


def test_nonsense_times_are_left_out() -> None:
    some = [Span(1, "compute", "head", begin, end) for begin, end in ((math.nan, 1.0), (1.0, math.inf), (-1e300, 2.0))]
    assert by_phase(book().spans("pi-1", some))["X"] == []


def test_many_at_once_and_many_peers_do_not_make_endless_tracks() -> None:
    traced = book()
    peers = [Span(1, "send", "h", 1.0, 2.0, f"peer {number}") for number in range(500)]
    events = traced.spans("pi-1", [*peers, *[Span(1, "compute", "head", 1.0, 2.0)] * 500])
    assert len({(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}) <= 64 * 3
