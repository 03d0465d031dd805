"""The whole compile: what stands in the plan, when it refuses, and that it is the same each time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from cut_fixtures import Array, distance, is_same, plain_session, whole_answer
from hyps.adapters.plan_files import check_files, read_plan
from hyps.errors import DifferenceError, InfeasibleError, ModelError, OutputError, TensorError
from hyps.formats.plan import Optimization, Plan
from hyps.local import LocalRunner
from hyps_compiler import emit
from hyps_compiler.driver import LOCAL, Compiled, Options, compile_model
from hyps_compiler.partition import Request
from hyps_compiler.reporting import show_compiled
from model_fixtures import chooser, floats, grow, model_of, save

RNG = np.random.default_rng(0)
LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")
X = {"x": RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)}


def small_cnn(batch: int | str = "N") -> ModelProto:
    """Return Conv, Relu, MaxPool, Flatten and two dense layers, of 4 * 27, 25,700 and 505 parameters."""
    weights: dict[str, Array] = {
        "k": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "w1": RNG.standard_normal((256, 100)).astype(np.float32) / 16,
        "b1": RNG.standard_normal(100).astype(np.float32),
        "w2": RNG.standard_normal((100, 5)).astype(np.float32),
        "b2": RNG.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g1"], name="fc1"),
        helper.make_node("Relu", ["g1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["y"], name="fc2"),
    ]
    return model_of(nodes, [floats("x", batch, 3, 16, 16)], [floats("y", batch, 5)], weights)


def compiled(folder: Path, model: ModelProto | None = None, **options: Any) -> Compiled:
    path = save(model or small_cnn(), folder / "model.onnx")
    return compile_model(path, folder / "plan", Options(**options))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("level", LEVELS)
def test_a_compiled_plan_is_whole_verified_and_answers(level: Optimization, tmp_path: Path) -> None:
    made = compiled(tmp_path, request=Request(max_params=9000, cuts=("pooling",)), optimization=level)
    assert made.folder == tmp_path / "plan"
    assert made.report is not None
    assert made.unverified == ""
    plan = read_plan(made.folder)
    assert plan == made.plan
    check_files(made.folder, plan)
    with LocalRunner(made.folder) as runner:
        answer = runner.run(X)["y"]
    assert distance(whole_answer(tmp_path / "model.onnx", X)["y"], answer) <= 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "plan"]  # nothing is left of the work


@pytest.mark.parametrize("level", LEVELS)
def test_inputs_and_outputs_keep_the_models_order(level: Optimization, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Softmax", ["b"], ["c"]),
        helper.make_node("Neg", ["a"], ["z"]),
        helper.make_node("Add", ["c", "z"], ["d"]),
    ]
    model = model_of(nodes, [floats(name, 2, 3) for name in "ba"], [floats(name, 2, 3) for name in "zdc"])
    made = compiled(tmp_path, model, optimization=level, request=Request(cuts=("all",)))
    assert [tensor.name for tensor in made.plan.model.inputs] == ["b", "a"]
    assert [tensor.name for tensor in made.plan.model.outputs] == ["z", "d", "c"]


def test_the_plan_says_what_was_done(tmp_path: Path) -> None:
    plan = compiled(tmp_path, request=Request(max_params=9000), optimization="none").plan
    assert plan.passes == "normalize,slice-dense{layer=fc1,count=3}"
    assert (plan.optimization, plan.cpu_family, plan.max_params) == ("none", None, 9000)
    assert (plan.model.parameters, plan.model.weight_bytes) == (108 + 25_700 + 505, 4 * (108 + 25_700 + 505))
    assert [tensor.shape for tensor in plan.model.inputs] == [("N", 3, 16, 16)]
    assert plan.assumed_dims == {"N": 1}
    assert [part.kind for part in plan.partitions] == ["vertical", *["horizontal"] * 3, "vertical"]
    assert max(part.parameters for part in plan.partitions) <= 9000
    assert sum(part.parameters for part in plan.partitions) == plan.model.parameters
    assert [point.kind for point in plan.split_points][:2] == ["mandatory"] * 2
    assert plan.variants[0].placement == {part.id: LOCAL for part in plan.partitions}
    macs = [part.macs for part in plan.partitions]
    assert sum(count or 0 for count in macs) == 4 * 256 * 27 + 25_600 + 500


def test_a_native_plan_is_tied_to_its_cpu(tmp_path: Path) -> None:
    assert compiled(tmp_path, optimization="native").plan.cpu_family


@pytest.mark.parametrize("level", LEVELS)
def test_each_partition_loads_in_plain_onnxruntime(level: Optimization, tmp_path: Path) -> None:
    made = compiled(tmp_path, request=Request(max_params=9000, cuts=("all",)), optimization=level)
    for part in made.plan.partitions:
        for optimized in (False, True):
            session = plain_session(made.folder / part.file, optimized=optimized)
            assert [i.name for i in session.get_inputs()] == list(part.inputs)
        if level == "none":
            onnx.checker.check_model(str(made.folder / part.file), full_check=True)


def test_another_batch_size_runs_through_the_same_plan(tmp_path: Path) -> None:
    made = compiled(tmp_path, request=Request(max_params=9000, cuts=("all",)), optimization="none")
    with LocalRunner(made.folder, exact=True) as runner:
        for batch in (1, 5):
            x = {"x": RNG.standard_normal((batch, 3, 16, 16)).astype(np.float32)}
            assert distance(whole_answer(tmp_path / "model.onnx", x)["y"], runner.run(x)["y"]) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
def test_compiling_again_gives_the_same_bytes(level: Optimization, tmp_path: Path) -> None:
    request = Request(max_params=9000, cuts=("all",))
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        save(small_cnn_of(7), folder / "model.onnx")
        compile_model(folder / "model.onnx", folder / "plan", Options(request=request, optimization=level))
        found.append(files_of(folder / "plan"))
    assert found[0] == found[1]


def small_cnn_of(seed: int) -> ModelProto:
    model = small_cnn()
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        value = rng.standard_normal(tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def test_the_order_of_hashing_does_not_matter(tmp_path: Path) -> None:
    """Sets of strings come in another order in each process."""
    path = save(grow(chooser(11), steps=30).model, tmp_path / "model.onnx")
    script = (
        "import sys; from pathlib import Path; from hyps_compiler.driver import *\n"
        "compile_model(sys.argv[1], Path(sys.argv[2]), Options(request=Request(cuts=('all',)), verify=False))"
    )
    found = []
    for seed in ("1", "2"):
        plan = tmp_path / f"plan{seed}"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(path), str(plan)], check=True, env=environment, timeout=60)
        found.append(files_of(plan))
    assert len(found[0]) > 5
    assert found[0] == found[1]


def test_a_plan_that_goes_wrong_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that wrote wrong weights would be caught by its own check."""
    right = emit._chunks
    monkeypatch.setattr(emit, "_chunks", lambda tensor: (bytes(reversed(chunk)) for chunk in right(tensor)))
    with pytest.raises(DifferenceError, match="does not compute what the model computes"):
        compiled(tmp_path)
    assert not (tmp_path / "plan").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_it_is_not_verified_when_told_so(tmp_path: Path) -> None:
    made = compiled(tmp_path, verify=False)
    assert made.report is None
    assert "--no-verify" in made.unverified


def test_a_model_that_draws_random_numbers_is_not_verified(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    made = compiled(tmp_path, model_of(nodes, [floats("x", 2)], [floats("y", 2)]))
    assert made.report is None
    assert "random" in made.unverified


def test_a_model_on_which_no_request_runs_is_cut_and_not_verified(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"]), helper.make_node("Softmax", ["y"], ["z"])]
    model = model_of(nodes, [floats("x", "N")], [floats("z", 7, 11)], {"shape": np.array([7, 11])})
    made = compiled(tmp_path, model, request=Request(cuts=("all",)))
    assert "no request was found" in made.unverified
    with LocalRunner(made.folder) as runner:
        assert runner.run({"x": np.zeros(77, np.float32)})["z"].shape == (7, 11)
    (tmp_path / "again").mkdir()
    with pytest.raises(InfeasibleError, match="--memory needs all sizes") as caught:
        compiled(tmp_path / "again", model, request=Request(memory_bytes=10**9))
    assert "--input" in caught.value.hint


def test_the_users_request_is_what_is_verified(tmp_path: Path) -> None:
    made = compiled(tmp_path, feeds=X)
    assert made.plan.assumed_dims == {"N": 2}
    (tmp_path / "other").mkdir()
    with pytest.raises(TensorError, match="`z` is no input"):
        compiled(tmp_path / "other", feeds={"z": X["x"]})


def test_given_shapes_are_assumed_and_the_plan_stays_open(tmp_path: Path) -> None:
    plan = compiled(tmp_path, shapes={"x": (4, 3, 16, 16)}).plan
    assert plan.assumed_dims == {"N": 4}
    assert plan.model.inputs[0].shape == ("N", 3, 16, 16)
    assert plan.tensors["x"].nbytes == 4 * 3 * 16 * 16 * 4


@pytest.mark.parametrize("level", LEVELS)
def test_a_cut_at_a_tensor_inside_a_fusion(level: Optimization, tmp_path: Path) -> None:
    plan = compiled(tmp_path, request=Request(tensors=("c",)), optimization=level).plan
    assert plan.kept_tensors == ("c",)
    assert len(plan.partitions) == 2
    if level != "native":  # there it travels in the kernels' own layout, under another name
        assert plan.partitions[0].outputs == ("c",)
    assert [tensor.name for tensor in plan.model.outputs] == ["y"]


@pytest.mark.parametrize("level", ["none", "portable"])
def test_inputs_with_a_default_value_are_fixed_and_named(level: Optimization, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.full((2, 2), 3, np.float32), "w")
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [floats("x", 1, 2), floats("w", 2, 2)], [floats("y", 1, 2)]
    )
    model.graph.initializer.append(weight)
    found = compiled(tmp_path, model, optimization=level)
    assert found.fixed_inputs == ("w",)
    assert [tensor.name for tensor in found.plan.model.inputs] == ["x"]
    assert "inputs with a default value keep it (1): w" in show_compiled(found)


def test_a_budget_for_a_request_that_no_file_holds(tmp_path: Path) -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [3]))
    model = model_of(
        [helper.make_node("ConcatFromSequence", ["q"], ["y"], axis=0)],
        [helper.make_value_info("q", sequence)],
        [floats("y", "n")],
    )
    found = compiled(tmp_path, model, request=Request(memory_bytes=10**9))
    assert found.peak_bytes is None
    assert found.report is not None


def test_an_existing_plan_is_kept_unless_forced(tmp_path: Path) -> None:
    first = compiled(tmp_path).plan
    with pytest.raises(OutputError):
        compiled(tmp_path, small_cnn_of(1))
    assert read_plan(tmp_path / "plan") == first
    second: Plan = compiled(tmp_path, small_cnn_of(1), force=True).plan
    assert read_plan(tmp_path / "plan") == second != first


def test_a_failed_compile_leaves_an_existing_plan_alone(tmp_path: Path) -> None:
    first = compiled(tmp_path).plan
    with pytest.raises(InfeasibleError):
        compiled(tmp_path, small_cnn_of(1), request=Request(max_params=10), force=True)
    assert read_plan(tmp_path / "plan") == first


def test_steps_are_told(tmp_path: Path) -> None:
    steps: list[str] = []
    compile_model(save(small_cnn(), tmp_path / "model.onnx"), tmp_path / "plan", Options(), steps.append)
    assert steps[0] == "reading the model"
    assert "verifying" in steps
    assert steps[-1] == "putting the plan in place"


def test_a_memory_limit_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    made = compiled(tmp_path, request=Request(memory_bytes=400_000_000))
    assert made.peak_bytes is not None
    assert 20_000_000 < made.peak_bytes <= 400_000_000
    assert made.plan.memory_bytes == 400_000_000
    predicted = made.plan.variants[0].prediction.memory_bytes[LOCAL]
    assert predicted <= 400_000_000


def test_a_memory_limit_below_the_smallest_says_which_would_do(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="of memory, more than --memory") as caught:
        compiled(tmp_path, request=Request(memory_bytes=1_000_000))
    assert "the smallest that would do is --memory" in caught.value.hint


def test_random_models_compile_and_verify(tmp_path: Path) -> None:
    """The compiler's own check agrees with the tests'."""
    for seed in (3, 5, 8):
        for level in LEVELS:
            grown = grow(chooser(seed), steps=10)
            folder = tmp_path / f"{seed}{level}"
            folder.mkdir()
            made = compiled(folder, grown.model, request=Request(cuts=("all",)), optimization=level)
            assert made.report is not None
            with LocalRunner(made.folder, exact=True, threads=1) as runner:
                answer = runner.run(grown.feeds())
            expected = whole_answer(folder / "model.onnx", grown.feeds())
            if level == "none":
                assert all(is_same(value, answer[name]) for name, value in expected.items())
            assert all(distance(value, answer[name]) < 1e-3 for name, value in expected.items())


def test_a_model_with_a_cycle_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    for level in LEVELS:
        (tmp_path / level).mkdir()
        with pytest.raises(ModelError):
            compiled(tmp_path / level, model_of(nodes, [floats("x", 2)], [floats("b", 2)]), optimization=level)
