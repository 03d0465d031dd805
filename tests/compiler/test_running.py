"""Requests from files through a plan: names, batches, answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyps.errors import OutputError, TensorError
from hyps.formats.plan import NamedTensor
from hyps_compiler.running import Answers, run_plan, show_answers
from plan_fixtures import Dataflow, mlp, sharded


def run(folder: Path, *inputs: str, output: Path | None = None, force: bool = False) -> Answers:
    return run_plan(folder, None, inputs, output, memory_bytes=None, threads=1, force=force)


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataflow:
    """A plan with an open batch dimension, in the working directory."""
    monkeypatch.chdir(tmp_path)
    flow = mlp(8, 16, 4)
    flow.write(tmp_path / "plan")
    return flow


def rows(count: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 8), np.float32)


def test_a_request_may_have_any_batch(flow: Dataflow) -> None:
    np.save("x.npy", rows(5))
    answers = run(Path("plan"), "t0=x.npy")
    assert (answers.requests, answers.outputs["t2"].shape) == (1, (5, 4))
    assert [name for name, _, _ in answers.partitions] == ["v0", "v1"]


def test_one_dimension_more_is_a_batch_of_requests(flow: Dataflow) -> None:
    np.save("x.npy", rows(6).reshape(3, 2, 8))
    np.save("y.npy", rows(6))
    batch, whole = run(Path("plan"), "x.npy"), run(Path("plan"), "y.npy")
    assert (batch.requests, batch.outputs["t2"].shape) == (3, (3, 2, 4))
    np.testing.assert_allclose(batch.outputs["t2"].reshape(6, 4), whole.outputs["t2"], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "says"), [((0, 2, 8), "the batch is empty"), ((3, 2, 7), "must have the shape"), ((8,), "and has 8")]
)
def test_a_batch_that_does_not_fit_is_refused(flow: Dataflow, shape: tuple[int, ...], says: str) -> None:
    np.save("x.npy", np.zeros(shape, np.float32))
    with pytest.raises(TensorError, match=says):
        run(Path("plan"), "x.npy")


def test_a_made_up_request_is_the_same_every_time(flow: Dataflow) -> None:
    first, second = run(Path("plan")), run(Path("plan"))
    np.testing.assert_array_equal(first.outputs["t2"], second.outputs["t2"])


def test_no_value_can_be_made_up_for_what_is_no_tensor(tmp_path: Path) -> None:
    from hyps_compiler.running import random_request

    for tensor in (
        NamedTensor(name="s", dtype="sequence(tensor(float))", shape=None),
        NamedTensor(name="s", dtype="strange", shape=(1,)),
    ):
        with pytest.raises(TensorError, match="no values can be made up for input `s`"):
            random_request([tensor], {})
    made = random_request([NamedTensor(name="s", dtype="string", shape=(2, None, "n"))], {"s:1": 3, "n": 4})
    assert made["s"].shape == (2, 3, 4)


def test_answers_go_to_a_file_and_a_table(flow: Dataflow) -> None:
    answers = run(Path("plan"), output=Path("y.npz"))
    with np.load("y.npz") as stored:
        np.testing.assert_array_equal(stored["t2"], answers.outputs["t2"])
    text = show_answers(answers)
    assert text.startswith("1 request in ")
    assert "t2      float32  1 x 4  " in text
    assert answers.summary()["outputs"] == {"t2": {"dtype": "float32", "shape": [1, 4]}}


def test_a_place_that_cannot_take_the_answer_is_refused_before_the_run(flow: Dataflow) -> None:
    Path("y.npz").touch()
    with pytest.raises(OutputError, match="exists"):
        run(Path("nowhere"), output=Path("y.npz"))
    with pytest.raises(OutputError, match="does not exist"):
        run(Path("nowhere"), output=Path("a/y.npz"))


@pytest.mark.parametrize(("name", "given"), [("a=b", "a=b=x.npy"), ("x", "x=x=1.npy"), ("x", "x=1.npy")])
def test_equal_signs_may_stand_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str) -> None:
    from hyps_compiler.running import _read_inputs

    monkeypatch.chdir(tmp_path)
    for file in ("x.npy", "x=1.npy", "1.npy"):
        np.save(file, np.ones(1))
    declared = [NamedTensor(name=name, dtype="float64", shape=(1,))]
    assert list(_read_inputs(declared, [given])) == [name]


def test_a_nameless_file_needs_a_single_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyps_compiler.running import _read_inputs

    monkeypatch.chdir(tmp_path)
    declared = [NamedTensor(name=name, dtype="float32", shape=(1,)) for name in "ab"]
    with pytest.raises(TensorError, match=r"which input is `x\.npy` for") as caught:
        _read_inputs(declared, ["x.npy"])
    assert "a, b" in caught.value.hint


def test_answers_of_several_shapes_make_no_batch() -> None:
    from hyps_compiler.running import _stacked

    results = [{"y": np.zeros(2)}, {"y": np.zeros(3)}]
    with pytest.raises(OutputError, match="different shapes in output `y`"):
        _stacked(results, "stack")


def test_h_partitions_are_run_like_others(tmp_path: Path) -> None:
    sharded().write(tmp_path / "plan")
    assert [name for name, _, _ in run(tmp_path / "plan").partitions] == ["first", "fc0", "fc1", "fc2", "last"]
