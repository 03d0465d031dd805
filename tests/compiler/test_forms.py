"""Forms: what a partition computes, with its weights as inputs, and one file for all partitions of a shape."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

from cut_fixtures import Array, Cut, cut_model, is_same, plain_session
from hyps.formats.plan import Form, Partition
from hyps_compiler.forms import emit_forms
from model_fixtures import chooser, floats, grow, model_of, save

RNG = np.random.default_rng(0)


def formed(model: ModelProto, folder: Path) -> tuple[Cut, tuple[Partition, ...]]:
    made = cut_model(save(model, folder / "model.onnx"), folder / "cut")
    return made, emit_forms(made.folder, made.partitions, made.outputs, made.measured.feeds)


def run_form(made: Cut, form: Form, known: dict[str, Array]) -> dict[str, Array]:
    """Return what the form makes, its weights read from where it says they lie."""
    feeds = {f"x{i}": known[name] for i, name in enumerate(form.inputs)}
    for i, weight in enumerate(form.weights):
        data = (made.folder / weight.path).read_bytes()[weight.offset : weight.offset + weight.nbytes]
        feeds[f"w{i}"] = np.frombuffer(data, weight.dtype).reshape(weight.shape)
    session = plain_session(made.folder / form.file)
    made_here = session.run([f"y{i}" for i in range(len(form.outputs))], feeds)
    return dict(zip(form.outputs, made_here, strict=True))


def run_mapped(made: Cut, part: Partition, known: dict[str, Array]) -> dict[str, Array]:
    """Return what the partition makes where its weights are not laid out anew, which moves the last bits."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(made.folder / part.file, options, providers=["CPUExecutionProvider"])
    values = session.run(list(part.outputs), {name: known[name] for name in part.inputs})
    return dict(zip(part.outputs, values, strict=True))


def dense(count: int, size: int) -> ModelProto:
    """Return so many Gemm and Softmax, each Gemm with a bias that is smaller than what was always external data."""
    nodes, weights, last = [], {}, "x"
    for index in range(count):
        weights[f"w{index}"] = RNG.standard_normal((size, size)).astype(np.float32)
        weights[f"b{index}"] = RNG.standard_normal(size).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"m{index}"], name=f"fc{index}"))
        nodes.append(helper.make_node("Softmax", [f"m{index}"], [f"s{index}"], name=f"soft{index}"))
        last = f"s{index}"
    return model_of(nodes, [floats("x", 2, size)], [floats(last, 2, size)], weights)


def test_partitions_of_one_shape_share_a_form_without_any_weight(tmp_path: Path) -> None:
    made, parts = formed(dense(3, 200), tmp_path)
    forms = [part.form for part in parts if part.weights]
    assert len(forms) == 3
    assert len({form.file for form in forms if form is not None}) == 1
    assert {form.inputs for form in forms if form is not None} == {("x",), ("s0",), ("s1",)}
    assert all(form is not None and len(form.weights) == 2 for form in forms)
    assert sorted(path.stat().st_size < 600 for path in (made.folder / "forms").iterdir()) == [True, True]


def test_parts_of_a_form_say_what_the_plan_holds_of_it(tmp_path: Path) -> None:
    _, parts = formed(dense(1, 200), tmp_path)
    (form,) = [part.form for part in parts if part.weights]
    assert form is not None
    assert [(w.dtype, w.shape, w.nbytes, w.offset % 64) for w in form.weights] == [
        ("float32", (200,), 800, 0),
        ("float32", (200, 200), 160_000, 0),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_a_form_computes_what_its_partition_does(seed: int, tmp_path: Path) -> None:
    made, parts = formed(grow(chooser(seed), steps=14).model, tmp_path)
    assert made.measured.feeds is not None
    known = made.run(made.measured.feeds)
    formed_parts = [part for part in parts if part.form is not None]
    assert formed_parts
    for part in formed_parts:
        assert part.form is not None
        answers, expected = run_form(made, part.form, known), run_mapped(made, part, known)
        assert set(answers) == set(expected)
        assert all(is_same(value, expected[name]) for name, value in answers.items())


def test_values_inside_branches_are_renamed_with_what_they_read(tmp_path: Path) -> None:
    """Both branches name what they make alike, read a weight from outside, and one hands it on as it is."""
    big = RNG.standard_normal((64, 64)).astype(np.float32)
    branches: dict[str, Any] = {
        "then_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", "big"], ["inner"]), helper.make_node("Relu", ["inner"], ["out"])],
            "then",
            [],
            [floats("out", 64, 64)],
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Neg", ["big"], ["inner"]), helper.make_node("Abs", ["inner"], ["out"])],
            "else",
            [],
            [floats("out", 64, 64)],
        ),
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["y"], **branches),
    ]
    weights = {"big": big, "zero": np.zeros((), np.float32), "more": np.zeros((200, 200), np.float32)}
    nodes += [helper.make_node("Identity", ["more"], ["kept"])]
    model = model_of(nodes, [floats("x", 64, 64)], [floats("y", 64, 64), floats("kept", 200, 200)], weights)
    made, parts = formed(model, tmp_path)
    for sign in (1.0, -1.0):
        known = made.run({"x": np.full((64, 64), sign, np.float32)})
        for part in parts:
            assert part.form is not None
            expected = run_mapped(made, part, known)
            for name, value in run_form(made, part.form, known).items():
                assert is_same(value, expected[name])


def test_without_a_request_to_try_there_are_no_forms(tmp_path: Path) -> None:
    made = cut_model(save(dense(1, 200), tmp_path / "model.onnx"), tmp_path / "cut")
    assert emit_forms(made.folder, made.partitions, made.outputs, None) == made.partitions


def test_tables_that_are_looked_up_say_by_what(tmp_path: Path) -> None:
    """One table is read by the row only; the other one is multiplied with in the same partition as well."""
    nodes = [
        helper.make_node("Gather", ["tied", "ids"], ["rows"], name="rows"),
        helper.make_node("Gather", ["alone", "ids"], ["more"], name="more"),
        helper.make_node("Add", ["rows", "more"], ["sum"], name="sum"),
        helper.make_node("MatMul", ["tied", "column"], ["scores"], name="scores"),
    ]
    tables = {name: RNG.standard_normal((600, 512)).astype(np.float32) for name in ("tied", "alone")}
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [3])
    weights = {**tables, "column": np.ones((512, 1), np.float32)}
    model = model_of(nodes, [ids], [floats("sum", 3, 512), floats("scores", 600, 1)], weights)
    path = save(model, tmp_path / "model.onnx")

    apart = cut_model(path, tmp_path / "apart")
    parts = emit_forms(apart.folder, apart.partitions, apart.outputs, {"ids": np.array([599, -600, 0])})
    told = {layer: part.form.weights for part in parts if part.form is not None for layer in part.layers}
    assert [weight.looked_up_by for weight in told["rows"]] == [("ids",)]
    assert [weight.looked_up_by for weight in told["scores"]] == [()]

    whole = cut_model(path, tmp_path / "whole", borders=lambda _: ())
    (part,) = emit_forms(whole.folder, whole.partitions, whole.outputs, {"ids": np.array([599, -600, 0])})
    assert part.form is not None
    assert sorted((w.shape, w.looked_up_by) for w in part.form.weights if w.nbytes > 10_000) == [
        ((600, 512), ()),
        ((600, 512), ("ids",)),
    ]
    full = whole.partitions[0].peak_memory_bytes
    assert full is not None
    assert part.peak_memory_bytes == full - (600 * 2048 - 3 * 4096)
