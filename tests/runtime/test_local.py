"""A plan in this process: the whole model's answers, within the budget."""

import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from onnx import helper

from hyps.adapters.sessions import Mode
from hyps.errors import ExecutionError, InfeasibleError, PlanError, TensorError, UsageError
from hyps.formats.plan import TensorInfo
from hyps.local import LocalRunner
from plan_fixtures import Dataflow, Piece, cnn, dense_piece, mlp, sharded, write_plan_file

FLOWS = {"mlp": mlp(8, 16, 12, 4), "cnn": cnn(), "sharded": sharded()}


def whole(flow: Dataflow, feeds: Any) -> list[Any]:
    """Return the whole model's outputs, as plain onnxruntime computes them without optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(flow.whole(), options).run(None, feeds))


def tight(folder: Path, flow: Dataflow, **more: Any) -> LocalRunner:
    """Return a runner whose budget holds only the largest partition: every test of swapping needs it."""
    with LocalRunner(folder) as runner:
        base = runner.base_nbytes
    plan = runner.plan
    weights = [partition.weight_bytes for partition in plan.partitions]
    grown = [msgspec.structs.replace(part, weight_bytes=part.weight_bytes + 2**30) for part in plan.partitions]
    swollen = msgspec.structs.replace(plan, partitions=tuple(grown))
    return LocalRunner(folder, plan=swollen, memory_bytes=base + max(weights) + 2**30 + 2**29, **more)


@pytest.fixture(params=sorted(FLOWS))
def flow(request: pytest.FixtureRequest) -> Dataflow:
    return FLOWS[request.param]


@pytest.fixture
def folder(flow: Dataflow, tmp_path: Path) -> Path:
    flow.write(tmp_path / "plan")
    return tmp_path / "plan"


def test_exact_answers_are_the_whole_models_bit_for_bit(folder: Path, flow: Dataflow) -> None:
    feeds = flow.feeds(seed=1)
    with LocalRunner(folder, exact=True) as runner:
        made = runner.run(feeds)
    assert list(made) == list(flow.outputs)
    for got, expected in zip(made.values(), whole(flow, feeds), strict=True):
        if "fc0" in runner.timings:
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        else:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("is_tight", [False, True])
def test_answers_are_the_same_however_much_is_kept(folder: Path, flow: Dataflow, is_tight: bool) -> None:
    feeds = flow.feeds(seed=2)
    with tight(folder, flow) if is_tight else LocalRunner(folder) as runner:
        made = runner.run(feeds)
        assert bool(runner.swapped) == is_tight
    for got, expected in zip(made.values(), whole(flow, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("is_tight", [False, True])
def test_a_batch_is_answered_in_its_order(folder: Path, flow: Dataflow, is_tight: bool) -> None:
    batch = [flow.feeds(seed=seed) for seed in range(5)]
    with tight(folder, flow) if is_tight else LocalRunner(folder) as runner:
        made = runner.run_batch(batch)
    for feeds, outputs in zip(batch, made, strict=True):
        (expected,) = whole(flow, feeds)
        np.testing.assert_allclose(outputs[flow.outputs[0]], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_batch_loads_each_swapped_partition_once(folder: Path, flow: Dataflow) -> None:
    with tight(folder, flow) as runner:
        runner.run(flow.feeds())
        runner.run_batch([flow.feeds(seed=seed) for seed in range(6)])
        for partition in runner.swapped:
            assert len(runner.timings[partition].load_s) == 2
            assert len(runner.timings[partition].run_s) == 7


@pytest.mark.parametrize("is_tight", [False, True])
def test_every_activation_is_shown(folder: Path, flow: Dataflow, is_tight: bool) -> None:
    seen: dict[str, Any] = {}
    with tight(folder, flow) if is_tight else LocalRunner(folder) as runner:
        runner.run(flow.feeds(), on_activation=seen.__setitem__)
    assert sorted(seen) == sorted(set(flow.tensors) - set(flow.inputs))


@pytest.mark.parametrize("is_tight", [False, True])
def test_an_activation_is_gone_once_nobody_needs_it(is_tight: bool, tmp_path: Path) -> None:
    flow, made = mlp(8, 16, 12, 4), list[weakref.ReferenceType[Any]]()
    flow.write(tmp_path / "plan")
    with tight(tmp_path / "plan", flow) if is_tight else LocalRunner(tmp_path / "plan") as runner:
        left = []

        def on_activation(name: str, value: Any) -> None:
            left.append([reference() is not None for reference in made])
            made.append(weakref.ref(value))

        runner.run(flow.feeds(), on_activation=on_activation)
    assert left == [[], [True], [False, True]]


@pytest.mark.parametrize("is_tight", [False, True])
def test_what_a_partition_makes_goes_by_its_name(is_tight: bool, tmp_path: Path) -> None:
    """Whatever the order: of its outputs in the plan, of its nodes, of the alphabet."""
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    join = helper.make_node("Concat", ["a", "c", "b"], ["y"], axis=0)
    first = [*nodes, helper.make_node("Sqrt", ["b"], ["c"])]
    pieces = [Piece("p0", first, {}, ("x",), ("c", "a", "b")), Piece("p1", [join], {}, ("a", "b", "c"), ("y",))]
    tensors = {name: TensorInfo(dtype="float32", shape=(2,), nbytes=8) for name in "xabc"}
    tensors["y"] = TensorInfo(dtype="float32", shape=(6,), nbytes=24)
    flow = Dataflow(pieces, tensors, ("x",), ("y",))
    flow.write(tmp_path / "plan")
    with tight(tmp_path / "plan", flow) if is_tight else LocalRunner(tmp_path / "plan") as runner:
        for _ in range(4):  # the last ones on a lane
            answer = runner.run({"x": np.array([4, -9], np.float32)})["y"]
            assert answer.tolist() == [-4, 9, 2, 3, 4, 9]


def test_nothing_of_a_batch_is_left(folder: Path, flow: Dataflow) -> None:
    with tight(folder, flow) as runner:
        runner.run_batch([flow.feeds(seed=seed) for seed in range(3)])
        engine = runner._engine
        assert not engine._store
        assert engine._core.is_idle
        assert engine._loader.loaded == set(runner.kept)


def test_a_batch_that_is_broken_off_leaves_nothing_and_the_next_works(folder: Path, flow: Dataflow) -> None:
    def interrupt(_name: str, _value: Any) -> None:
        raise KeyboardInterrupt

    with tight(folder, flow) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(flow.feeds(), on_activation=interrupt)
        assert not runner._engine._store
        assert list(runner.run(flow.feeds())) == list(flow.outputs)


def forked(tmp_path: Path) -> Path:
    """Write a plan with two outputs, one made early, one of which is also the model's input."""
    shape = ("batch", 4)
    pieces = [
        dense_piece("a", "x", "s", 4, 4, 1),
        dense_piece("b", "s", "y", 4, 4, 2),
        dense_piece("c", "s", "z", 4, 4, 3),
    ]
    tensors = {name: TensorInfo(dtype="float32", shape=shape, nbytes=16) for name in "xsyz"}
    Dataflow(pieces, tensors, ("x",), ("z", "x", "s", "y"), {"batch": 1}).write(tmp_path / "plan")
    return tmp_path / "plan"


def test_outputs_may_be_inputs_and_made_early(tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 4), np.float32)}
    with LocalRunner(forked(tmp_path)) as runner:
        made = runner.run(feeds)
    assert list(made) == ["z", "x", "s", "y"]
    np.testing.assert_array_equal(made["x"], feeds["x"])


@pytest.mark.parametrize("is_tight", [False, True])
def test_only_what_wanted_outputs_need_is_run(tmp_path: Path, is_tight: bool) -> None:
    folder = forked(tmp_path)
    feeds = {"x": np.ones((2, 4), np.float32)}
    with tight(folder, FLOWS["mlp"]) if is_tight else LocalRunner(folder) as runner:
        assert list(runner.run(feeds, ["y"])) == ["y"]
        assert not runner.timings["c"].run_s
        assert list(runner.run(feeds, [])) == ["z", "x", "s", "y"]
        with pytest.raises(TensorError, match="no output `nonsense`"):
            runner.run(feeds, ["nonsense"])


def test_a_plan_without_partitions_and_one_without_inputs(tmp_path: Path) -> None:
    info = {"x": TensorInfo(dtype="float32", shape=(2,), nbytes=8)}
    Dataflow([], info, ("x",), ("x",)).write(tmp_path / "empty")
    with LocalRunner(tmp_path / "empty") as runner:
        assert runner.run({"x": np.ones(2, np.float32)})["x"].tolist() == [1, 1]
    constant = helper.make_node("Constant", [], ["x"], value_floats=[1.0, 2.0])
    Dataflow([Piece("c", [constant], {}, (), ("x",))], info, (), ("x",)).write(tmp_path / "constant")
    with LocalRunner(tmp_path / "constant") as runner:
        assert runner.run({})["x"].tolist() == [1, 2]


def test_wrong_feeds_are_refused(tmp_path: Path) -> None:
    flow = FLOWS["mlp"]
    flow.write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan") as runner:
        for feeds in ({}, {"t0": np.zeros((1, 8))}, {"t0": np.zeros((1, 9), np.float32)}, {"nonsense": 1}):
            with pytest.raises(TensorError):
                runner.run(feeds)
        with pytest.raises(TensorError):
            runner.run_batch([flow.feeds(), {}])


def test_what_onnxruntime_refuses_names_the_partition(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reshape = Piece(
        "bad", [helper.make_node("Reshape", ["x", "to"], ["y"])], {"to": np.array([3], np.int64)}, ("x",), ("y",)
    )
    tensors = {name: TensorInfo(dtype="float32", shape=("n",), nbytes=4) for name in "xy"}
    Dataflow([reshape], tensors, ("x",), ("y",), {"n": 1}).write(tmp_path / "plan")
    feeds = {"x": np.zeros(4, np.float32)}
    for runner in (LocalRunner(tmp_path / "plan"), tight(tmp_path / "plan", FLOWS["mlp"])):
        with runner, pytest.raises(ExecutionError, match="`bad`") as caught:
            runner.run(feeds)
        assert "\n" not in caught.value.message
        assert runner.run({"x": np.zeros(3, np.float32)})["y"].tolist() == [0, 0, 0] if not runner.kept else True
    assert capfd.readouterr().err == ""


def test_a_budget_below_the_largest_partition_names_the_smallest_that_would_do(tmp_path: Path) -> None:
    flow = mlp(1024, 4096, 2048)  # large beside what this process may give back meanwhile
    flow.write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan") as runner:
        base = runner.base_nbytes
    with pytest.raises(InfeasibleError, match="`v1`") as caught:
        LocalRunner(tmp_path / "plan", memory_bytes=base + 2**20)
    smallest = int(caught.value.hint.split("--memory ")[1].split("MB`")[0]) * 10**6
    with LocalRunner(tmp_path / "plan", memory_bytes=smallest + 2**20) as runner:
        assert runner.swapped


def test_a_request_that_is_in_memory_already_does_not_count_twice(tmp_path: Path) -> None:
    flow = mlp(1 << 22, 4, batch=1)
    flow.write(tmp_path / "plan")
    feeds = flow.feeds()
    with LocalRunner(tmp_path / "plan") as runner:
        budget = runner.base_nbytes + runner.plan.partitions[0].weight_bytes + 8_000_000
    with pytest.raises(InfeasibleError):
        LocalRunner(tmp_path / "plan", memory_bytes=budget)
    present = feeds["t0"].nbytes
    with LocalRunner(tmp_path / "plan", memory_bytes=budget, present_nbytes=present) as runner:
        assert runner.run(feeds)["t1"].shape == (1, 4)


def test_the_plans_budget_holds_unless_another_is_given(tmp_path: Path) -> None:
    mlp(8, 8).write(tmp_path / "plan", memory_bytes=1000)
    with pytest.raises(InfeasibleError):
        LocalRunner(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan", memory_bytes=2**32) as runner:
        assert runner.memory_bytes == 2**32


@pytest.mark.parametrize(
    ("budget", "exact", "mode"),
    [(None, False, Mode.FAST), (2**40, False, Mode.FAST), (None, True, Mode.EXACT), (2**40, True, Mode.EXACT)],
)
def test_weights_are_laid_out_for_speed_where_there_is_room(
    tmp_path: Path, budget: int | None, exact: bool, mode: Mode
) -> None:
    mlp(8, 8).write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan", memory_bytes=budget, exact=exact) as runner:
        assert set(runner.modes.values()) == {mode}


def test_altered_files_are_refused_unless_unchecked(tmp_path: Path) -> None:
    FLOWS["mlp"].write(tmp_path / "plan")
    weights = tmp_path / "plan/partitions/v0.onnx.data"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(PlanError, match="v0"):
        LocalRunner(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan", check=False) as runner:
        assert not runner.run(FLOWS["mlp"].feeds())["t3"].any()


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    FLOWS["mlp"].write(tmp_path / "plan")
    LocalRunner(tmp_path / "plan", variant="local").close()
    with pytest.raises(PlanError, match="no variant `fast`") as caught:
        LocalRunner(tmp_path / "plan", variant="fast")
    assert caught.value.hint == "it has `local`"


def test_a_missing_partition_file_is_refused_when_its_turn_comes(folder: Path, flow: Dataflow) -> None:
    with tight(folder, flow) as runner:
        partition = next(p for p in runner.plan.partitions if p.id == runner.swapped[-1])
        (folder / partition.file).unlink()
        with pytest.raises(PlanError, match=r"\.onnx"):
            runner.run(flow.feeds())
        assert runner._engine._core.is_idle


def test_a_closed_plan_is_not_run(tmp_path: Path) -> None:
    FLOWS["mlp"].write(tmp_path / "plan")
    runner = LocalRunner(tmp_path / "plan")
    runner.close()
    with pytest.raises(UsageError, match="was closed"):
        runner.run(FLOWS["mlp"].feeds())


def test_several_threads_may_run_at_once(folder: Path, flow: Dataflow) -> None:
    feeds = flow.feeds(seed=3)
    results: list[Any] = []
    with tight(folder, flow) as runner:
        expected = runner.run(feeds)[flow.outputs[0]]
        work = lambda: results.extend(runner.run(feeds)[flow.outputs[0]] for _ in range(5))  # noqa: E731  # said once
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
    assert len(results) == 15
    assert all(np.array_equal(result, expected) for result in results)


def test_a_plan_with_unknown_sizes_runs(tmp_path: Path) -> None:
    flow = FLOWS["mlp"]
    plan = flow.write(tmp_path / "plan")
    unknown = {name: msgspec.structs.replace(info, nbytes=None) for name, info in plan.tensors.items()}
    partitions = tuple(msgspec.structs.replace(part, peak_memory_bytes=None) for part in plan.partitions)
    write_plan_file(tmp_path / "plan", msgspec.structs.replace(plan, tensors=unknown, partitions=partitions))
    with tight(tmp_path / "plan", flow) as runner:
        assert len(runner.run_batch([flow.feeds(batch=size) for size in (1, 4, 2)])) == 3


CHILD = """
import sys
import numpy as np
from hyps.adapters.machine import peak_rss_nbytes
from hyps.local import LocalRunner

with LocalRunner(sys.argv[1], memory_bytes=int(sys.argv[2]), threads=1) as runner:
    x = np.load(sys.argv[3])
    for _ in range(3):
        made = runner.run({"t0": x})
    batch = runner.run_batch([{"t0": x}] * 4)
    np.save(sys.argv[4], made["t8"])
    print(peak_rss_nbytes(), len(runner.swapped))
"""


@pytest.mark.slow
def test_the_peak_of_the_process_stays_within_the_budget(tmp_path: Path) -> None:
    flow = mlp(*[3072] * 9)
    flow.write(tmp_path / "plan")
    feeds = flow.feeds()
    np.save(tmp_path / "x.npy", feeds["t0"])
    for budget in (150_000_000, 120_000_000):
        command = [sys.executable, "-c", CHILD, "plan", str(budget), "x.npy", "y.npy"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        peak, swapped = map(int, done.stdout.split())
        assert peak <= budget
        assert swapped > 0
        (expected,) = whole(flow, feeds)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
