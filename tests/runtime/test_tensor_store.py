"""Tensors are where the forecast wants them, and what a request gets is what was put."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyps.core.residency import Task, live_activations
from hyps.core.spilling import Forecast, forecast_spills
from hyps.tensor_store import TensorStore

TASKS = [
    Task("a", ("x",), ("skip",)),
    Task("b", ("skip",), ("wide",)),
    Task("c", ("wide",), ("wider",)),
    Task("d", ("wider",), ("narrow",)),
    Task("e", ("narrow", "skip"), ("y",)),
]
SIZES = {"x": 800, "skip": 800, "wide": 1600, "wider": 1600, "narrow": 800, "y": 800}


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def value(name: str, request: str = "r") -> np.ndarray[Any, Any]:
    return np.random.default_rng([len(request), *name.encode()]).random(SIZES[name] // 8)


def spills(available: int) -> Forecast | None:
    live = live_activations(TASKS, ["x"], ["y"], SIZES)
    return forecast_spills(TASKS, ["x"], ["y"], SIZES, live, available)


def run(store: TensorStore, request: str) -> dict[str, Any]:
    """Let a request pass, comparing all that comes back with what was put."""
    store.add(request, {"x": value("x", request)})
    for place, task in enumerate(TASKS):
        store.make_room(task.id)
        for name, got in store.feeds(request, task.id).items():
            np.testing.assert_array_equal(got, value(name, request))
        store.put(request, {name: value(name, request) for name in task.outputs})
        for name in task.inputs:
            if not any(name in later.inputs for later in TASKS[place + 1 :]):
                store.drop(request, name)
    answer = store.answer(request, ["y"])
    store.forget(request)
    return answer


def test_what_is_not_needed_is_away_while_others_run() -> None:
    store = TensorStore(TASKS, ["y"], SIZES, spills(3300))

    answer = run(store, "r")

    np.testing.assert_array_equal(answer["y"], value("y"))
    assert (store.counts.written_nbytes, store.counts.read_nbytes) == (800, 800)
    store.close()


def test_nothing_is_away_where_all_fits() -> None:
    store = TensorStore(TASKS, ["y"], SIZES, spills(4000))

    run(store, "r")

    assert store.counts.written_nbytes == 0


def test_requests_together_leave_room_for_the_one_that_runs() -> None:
    store = TensorStore(TASKS, ["y"], SIZES, spills(3300))
    for request in ("r", "rr"):
        store.add(request, {"x": value("x", request)})
    for task in TASKS:
        for request in ("r", "rr"):
            for name, got in store.feeds(request, task.id).items():
                np.testing.assert_array_equal(got, value(name, request))
            store.put(request, {name: value(name, request) for name in task.outputs})
    for request in ("r", "rr"):
        np.testing.assert_array_equal(store.answer(request, ["y"])["y"], value("y", request))
    store.close()


def test_an_output_that_left_comes_back_for_the_answer() -> None:
    outputs = ["skip", "y"]
    live = live_activations(TASKS, ["x"], outputs, SIZES)
    store = TensorStore(TASKS, outputs, SIZES, forecast_spills(TASKS, ["x"], outputs, SIZES, live, 3300))
    store.add("r", {"x": value("x")})
    store.put("r", {"skip": value("skip"), "wide": value("wide")})
    store.make_room("c")
    assert store.counts.written_nbytes == 800

    answer = store.answer("r", ["skip"])

    np.testing.assert_array_equal(answer["skip"], value("skip"))
    store.close()


def test_what_is_dropped_or_forgotten_gives_its_room_back() -> None:
    store = TensorStore(TASKS, ["y"], SIZES, spills(3300))
    for _ in range(50):
        run(store, "r")

    assert _nbytes_on_disk() <= 4096
    store.add("broken", {"x": value("x")})
    store.put("broken", {"skip": value("skip"), "wide": value("wide")})
    store.make_room("c")
    assert _nbytes_on_disk() > 0
    store.drop("broken", "skip")
    store.drop("broken", "skip")
    store.clear()
    assert _nbytes_on_disk() == 0
    store.close()


def _nbytes_on_disk() -> int:
    """Return the size of this process's files that have no name."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    nameless = [link for link in links if os.path.islink(link) and os.readlink(link).endswith("(deleted)")]
    here = os.environ["TMPDIR"]
    return sum(os.stat(link).st_size for link in nameless if os.readlink(link).startswith(here))
