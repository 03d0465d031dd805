"""The trace file keeps to the Chrome trace-event format, as Perfetto reads it."""

import itertools
import json
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_compiler.partition import BASE_BYTES
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_plan import Conditions, plan_system
from hyps_compiler.simulation_result import Simulated
from hyps_compiler.simulation_system import Closed, Down, Open
from hyps_compiler.trace_events import trace_json
from simulation_fixtures import cluster, plan

REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "args"},
    "C": {"name", "ts", "pid", "args"},
    **{phase: {"name", "cat", "id", "ts", "pid", "tid"} for phase in "bestf"},
}
"""What the format wants of each phase."""


def simulated(seed: int = 0, traced: int = 10) -> Simulated:
    conditions = Conditions(downs={"server": (Down(0.05, 0.2),), "camera to server": (Down(0.3, 0.4),)})
    return simulate(plan_system(plan(), cluster(), conditions), Open(40.0), 12, seed=seed, jitter=0.3, traced=traced)


def events_of(told: Simulated) -> list[dict[str, Any]]:
    document = json.loads(trace_json(told))
    assert document["displayTimeUnit"] == "ms"
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000))
def test_every_event_is_whole_and_slices_of_a_track_do_not_overlap(seed: int) -> None:
    events = events_of(simulated(seed))
    tracks = defaultdict(list)
    for event in events:
        assert set(event) >= REQUIRED[event["ph"]]
        assert isinstance(event["ts"], int)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(slices)))
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)


def test_every_device_and_link_is_a_process_with_a_name() -> None:
    events = events_of(simulated())
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values())[:4] == ["requests", "camera", "server", "spare"]
    assert {"camera to server", "server to camera"} < set(names.values())
    assert {event["pid"] for event in events} <= set(names)


def test_flows_begin_once_end_once_and_stand_on_slices() -> None:
    events = events_of(simulated())
    flows = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
    assert len(flows) >= 20
    slices = {(e["pid"], e["ts"]) for e in events if e["ph"] == "X"}
    for steps in flows.values():
        phases = "".join(step["ph"] for step in steps)
        assert phases[0] == "s"
        assert phases[-1] == "f"
        assert set(phases[1:-1]) <= {"t"}
        assert [step["ts"] for step in steps] == sorted(step["ts"] for step in steps)
        assert steps[-1]["bp"] == "e"
        assert all((step["pid"], step["ts"]) in slices for step in steps)


def test_requests_begin_and_end_and_counters_come_back_to_nothing() -> None:
    events = events_of(simulated())
    assert sorted(e["id"] for e in events if e["ph"] == "b") == list(range(10))
    assert sorted(e["id"] for e in events if e["ph"] == "e") == list(range(10))
    counters = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counters[event["pid"]].append(event["args"]["waiting"])
    assert counters
    for values in counters.values():
        assert min(values) == 0
        assert values[-1] == 0


def test_what_a_fault_broke_off_is_marked() -> None:
    assert any(event["args"].get("lost") for event in events_of(simulated()) if event["ph"] == "X")


def test_loading_is_a_slice_of_its_own() -> None:
    told = simulate(
        plan_system(
            plan({"p0": "camera", "p1": "camera", "p2": "camera"}), cluster(BASE_BYTES + 25_000_000), Conditions()
        ),
        Closed(),
        2,
        traced=2,
    )
    names = [event["name"] for event in events_of(told) if event.get("cat") == "load"]
    assert names
    assert all(name.endswith(" (loading)") for name in names)


@pytest.mark.parametrize("traced", [0, 3])
def test_equal_simulations_give_equal_bytes(traced: int) -> None:
    assert trace_json(simulated(traced=traced)) == trace_json(simulated(traced=traced))


def test_names_of_strangers_do_not_break_the_file() -> None:
    odd = 'a"},{"b\n\x1b'
    told = plan()
    parts = tuple(
        msgspec.structs.replace(part, inputs=_swap(part.inputs, odd), outputs=_swap(part.outputs, odd))
        for part in told.partitions
    )
    strange = msgspec.structs.replace(told, tensors={**told.tensors, odd: told.tensors["a"]}, partitions=parts)
    events = events_of(simulate(plan_system(strange, cluster(), Conditions()), Closed(), 1, traced=1))
    assert odd in {event["name"] for event in events}


def _swap(names: tuple[str, ...], odd: str) -> tuple[str, ...]:
    return tuple(odd if name == "a" else name for name in names)
