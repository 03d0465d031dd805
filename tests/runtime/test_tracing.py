"""What a manager traces: every request once, whatever becomes of it, and nothing of it is kept after that."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyps.formats.node_messages import Beat, Span, Spans
from hyps.tracing import Tracing
from plan_fixtures import mlp


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def tracing(tmp_path: Path, path: Path) -> Iterator[Tracing]:
    made = Tracing(path, mlp(4, 4, 4).write(tmp_path / "plan"))
    yield made
    made.close()


def ended(tracing: Tracing, path: Path) -> list[dict[str, Any]]:
    """Close the trace and return its events."""
    tracing.close()
    told: list[dict[str, Any]] = json.loads(path.read_text())
    return told


def outcomes(events: list[dict[str, Any]]) -> dict[str, str]:
    begins = [event for event in events if event["ph"] == "b" and "outcome" in event["args"]]
    return {event["name"]: event["args"]["outcome"] for event in begins}


def test_every_end_of_a_request_is_told(tracing: Tracing, path: Path) -> None:
    for number, name in enumerate(("answered", "failed", "cancelled", "left", "under way")):
        tracing.accept(1 if name != "left" else 2, name, number)
    tracing.end(1, "answered", "done", begun_s=None, work=9)
    tracing.end(1, "failed", "E_DEADLINE")
    tracing.end(1, "cancelled", "cancelled")
    tracing.lose(2)
    told = ended(tracing, path)
    assert outcomes(told) == {
        "request 0": "done",
        "request 1": "E_DEADLINE",
        "request 2": "cancelled",
        "request 3": "cancelled",
    }
    assert Counter(event["ph"] for event in told if event.get("cat") == "request")["b"] == 8


def test_what_is_told_twice_or_was_never_accepted_is_ignored(tracing: Tracing, path: Path) -> None:
    tracing.accept(1, "a", 0)
    for _ in range(2):
        tracing.end(1, "a", "done")
    tracing.end(1, "refused", "E_BUSY")
    tracing.taken(1, "nothing")
    tracing.lose(7)
    assert outcomes(ended(tracing, path)) == {"request 0": "done"}


def test_sendings_of_the_hub_last_until_they_are_taken_and_lost_ones_are_left_out(tracing: Tracing, path: Path) -> None:
    for token in ("a", "b"):
        tracing.send(1, token, "pi", 5, token, 1000)
    tracing.send(2, "a", "other", 5, "c", 1000)
    tracing.taken(1, "a")
    tracing.lose(1)
    tracing.taken(1, "b")
    sent = [event for event in ended(tracing, path) if event["ph"] == "X"]
    assert [(event["name"], event["args"]) for event in sent] == [("a", {"work": 5, "bytes": 1000})]
    assert len(tracing._sendings) == 1


def test_what_devices_tell_is_written_at_once_when_it_is_much(tracing: Tracing, path: Path) -> None:
    tracing.join("pi")
    tracing.tell("pi", Beat(1, (), clock_s=5.0))
    tracing.tell("pi", Spans(tuple(Span(n, "compute", "v0", 5.0 + n, 5.5 + n) for n in range(300))))
    text = path.read_text()
    assert sum(event["ph"] == "X" for event in json.loads(text + "]")) == 300


@pytest.mark.parametrize(("way_s", "shift_us"), [(0.003, 0), (0.4, -400_000)])
def test_long_ways_are_taken_off_a_clock_and_short_ones_are_not_told_from_none(
    tracing: Tracing, path: Path, way_s: float, shift_us: int
) -> None:
    tracing.join("pi")
    tracing.tell("pi", Beat(1, (), clock_s=5.0))
    for way in (0.0, way_s):
        tracing.tell("pi", Spans((Span(1, "compute", "v0", 5.0, 6.0),)), way)
    first, second = [event["ts"] for event in ended(tracing, path) if event["ph"] == "X"]
    assert abs(second - first - shift_us) <= 1


def test_little_is_written_after_a_while(tracing: Tracing, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing.accept(1, "a", 0)
    tracing.end(1, "a", "done")
    tracing.flush()
    before = path.stat().st_size
    monkeypatch.setattr("hyps.tracing._FLUSH_S", 0.0)
    tracing.flush()
    assert path.stat().st_size > before


def test_requests_without_end_do_not_fill_the_memory(tracing: Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyps.tracing._MOST_OPEN", 10)
    for number in range(100):
        tracing.accept(1, str(number), number)
        tracing.send(1, number, "pi", number, "x", 10)
    assert len(tracing._requests) == len(tracing._sendings) == 10
