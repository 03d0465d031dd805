"""Partitions with tables of which rows are read: the same answers, whichever way they run and whatever is looked up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from form_fixtures import write_formed
from hyps.adapters.sessions import ORT_ERRORS, Sessions
from hyps.adapters.streams import Streamed, Streams
from hyps.errors import PlanError
from hyps.formats.plan import Plan, TensorInfo
from plan_fixtures import Dataflow, Piece

ROWS, WIDTH, TOKENS = 700, 500, 6
RNG = np.random.default_rng(3)
TABLES = {name: RNG.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in ("words", "kinds")}


def embeddings() -> Dataflow:
    """Return two tables, looked up by one input each, and what comes of their sum."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["word"]),
        helper.make_node("Gather", ["kinds", "kind_ids"], ["kind"]),
        helper.make_node("Add", ["word", "kind"], ["rows"]),
    ]
    project = RNG.standard_normal((WIDTH, 40)).astype(np.float32)
    pieces = [
        Piece("embed", nodes, dict(TABLES), ("ids", "kind_ids"), ("rows",)),
        Piece("project", [helper.make_node("MatMul", ["rows", "p"], ["y"])], {"p": project}, ("rows",), ("y",)),
    ]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "rows": ("float32", (TOKENS, WIDTH)),
        "y": ("float32", (TOKENS, 40)),
    }
    shapes.update((name, ("int64", (TOKENS,))) for name in ("ids", "kind_ids"))
    tensors = {
        name: TensorInfo(dtype=dtype, shape=shape, nbytes=int(np.prod(shape)) * np.dtype(dtype).itemsize)
        for name, (dtype, shape) in shapes.items()
    }
    return Dataflow(pieces, tensors, ("ids", "kind_ids"), ("y",))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_formed(embeddings(), tmp_path / "plan")


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams(Sessions(1))
    yield made
    made.close()


def request(*ids: int) -> dict[str, Any]:
    indices = np.array(ids, np.int64)
    return {"ids": indices, "kind_ids": indices[::-1].copy()}


def rows_of(feeds: dict[str, Any]) -> Any:
    return TABLES["words"][feeds["ids"]] + TABLES["kinds"][feeds["kind_ids"]]


REQUESTS = [request(0, 1, 2, 3, 4, 5), request(699, 699, -700, -1, 350, 0), request(7, 7, 7, 7, 7, 7)]


def embed(streams: Streams, folder: Path, plan: Plan) -> Streamed:
    streamed = streams.begin(folder, plan.partitions[0], plan.optimization, None)
    streams.finish(streamed)
    return streamed


def test_tables_are_no_blocks_and_their_rows_are_there(streams: Streams, plan: Plan, tmp_path: Path) -> None:
    streamed = embed(streams, tmp_path / "plan", plan)

    assert streamed.buffers == []
    for feeds in REQUESTS:
        assert np.array_equal(streamed.run(["rows"], feeds)[0], rows_of(feeds))
    streams.shut(streamed)
    assert streamed.tables == {}


def test_nothing_stays_of_the_rows(streams: Streams, plan: Plan, tmp_path: Path) -> None:
    streamed = embed(streams, tmp_path / "plan", plan)
    streamed.run(["rows"], REQUESTS[0])
    assert not any(streamed.weights[name].any() for name in streamed.tables)
    streams.shut(streamed)


def test_what_is_bound_to_memory_is_looked_up_anew_each_time(streams: Streams, plan: Plan, tmp_path: Path) -> None:
    streamed = embed(streams, tmp_path / "plan", plan)
    given, made = request(*range(TOKENS)), np.empty((TOKENS, WIDTH), np.float32)
    binding = streamed.io_binding()
    for name, value in given.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_ortvalue_output("rows", onnxruntime.OrtValue.ortvalue_from_numpy(made))

    for feeds in REQUESTS:
        for name, value in feeds.items():
            given[name][:] = value
        streamed.run_with_iobinding(binding)
        assert np.array_equal(made, rows_of(feeds))
    streams.shut(streamed)


def test_an_index_outside_of_the_table_is_refused_and_the_next_request_runs(
    streams: Streams, plan: Plan, tmp_path: Path
) -> None:
    streamed = embed(streams, tmp_path / "plan", plan)
    with pytest.raises(ORT_ERRORS, match="must be within the inclusive range"):
        streamed.run(["rows"], request(0, 0, 0, 0, 0, 700))
    assert np.array_equal(streamed.run(["rows"], REQUESTS[1])[0], rows_of(REQUESTS[1]))
    streams.shut(streamed)


def test_a_table_that_is_gone_is_refused_and_what_was_taken_is_given_back(
    streams: Streams, plan: Plan, tmp_path: Path
) -> None:
    (tmp_path / "plan" / plan.partitions[0].weights[0].path).unlink()
    with pytest.raises(PlanError) as caught:
        embed(streams, tmp_path / "plan", plan)
    assert caught.value.code == "E_MISSING"
