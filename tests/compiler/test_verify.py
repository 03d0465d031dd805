"""A plan that does not compute what its model computes is found out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from hyps.errors import DifferenceError
from hyps.formats.plan import Optimization, Plan
from hyps_compiler.compare import Difference
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from hyps_compiler.verify import Fault, Report, verify_plan
from model_fixtures import floats, model_of, save

X = {"x": np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)}


def three_layers() -> ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 30)).astype(np.float32),
        "b1": rng.standard_normal(30).astype(np.float32),
        "w2": rng.standard_normal((30, 20)).astype(np.float32),
        "w3": rng.standard_normal((20, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], name="fc1"),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2"], ["h2"], name="fc2"),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3"], ["y"], name="fc3"),
    ]
    return model_of(nodes, [floats("x", "N", 8)], [floats("y", "N", 5)], weights)


class Case:
    """A compiled plan that can be tampered with and verified again."""

    def __init__(self, folder: Path, request: Request, level: Optimization = "none") -> None:
        self.path = save(three_layers(), folder / "model.onnx")
        self.folder = folder / "plan"
        options = Options(request=request, optimization=level, feeds=X, verify=False)
        self.plan: Plan = compile_model(self.path, self.folder, options).plan
        work = folder / "stage"
        work.mkdir()
        self.source = open_source(self.path)
        self.staged = stage_model(self.source, work, level).path

    def verify(self, **how: Any) -> Report:
        return verify_plan(self.folder, self.plan, self.source, self.staged, [X], **how)

    def change(self, number: int, weight: str, by: float) -> None:
        """Add to all numbers of a weight in a partition's file."""
        file = self.folder / self.plan.partitions[number].file
        proto = onnx.load(file)
        (tensor,) = (tensor for tensor in proto.graph.initializer if weight in tensor.name)
        value = numpy_helper.to_array(tensor) + np.float32(by)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(proto, file)


ALL = Request(cuts=("all",))


@pytest.mark.parametrize("level", ["none", "portable", "native"])
def test_a_right_plan_has_no_problems(level: Optimization, tmp_path: Path) -> None:
    report = Case(tmp_path, ALL, level).verify()
    assert report.problems() == []
    report.check()
    assert {border.tensor for border in report.borders} >= {"y"}
    assert len(report.borders) == 3
    assert [output.tensor for output in report.outputs] == ["y"]
    assert all(border.is_identical for border in report.borders)
    assert report.must_be_identical == {border.tensor for border in report.borders}


def test_a_border_that_differs_by_one_bit_is_found(tmp_path: Path) -> None:
    """Far below any tolerance, and no output shows it."""
    case = Case(tmp_path, ALL)
    case.change(0, "b1", 3e-7)
    report = case.verify()
    assert report.problems()
    with pytest.raises(DifferenceError, match=r"border tensor `r1` differs by .* of its largest value") as caught:
        report.check()
    assert caught.value.exit_status == 4


def test_an_output_that_differs_is_found(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(2, "w3", 0.5)
    found = case.verify().problems()
    assert any(problem.startswith("border tensor `y`") for problem in found)
    assert any(problem.startswith("output `y`") for problem in found)
    with pytest.raises(DifferenceError, match="and 1 more"):
        case.verify().check()


def test_answers_of_another_process_are_compared(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    found = case.verify(answers=[{"y": np.zeros((2, 5), np.float32)}]).problems()
    assert found
    assert all(problem.startswith("output `y`") for problem in found)


def test_behind_slices_the_order_of_addition_may_differ_but_no_more(tmp_path: Path) -> None:
    case = Case(tmp_path, Request(max_params=400))
    assert any(part.kind == "horizontal" for part in case.plan.partitions)
    report = case.verify()
    assert report.problems() == []
    assert report.must_be_identical == {"r1"}
    sliced = next(index for index, part in enumerate(case.plan.partitions) if part.kind == "horizontal")
    case.change(sliced, "w", 0.1)
    assert case.verify().problems()


def off_by(tensor: str, relative: float) -> Difference:
    return Difference(tensor, False, relative, relative, "float32")


@pytest.mark.parametrize(
    ("relative", "tensor", "faults", "right"),
    [
        (5e-5, "behind", (), True),
        (2e-3, "behind", (), False),
        (5e-5, "behind", (Fault("p1", (off_by("slice", 2e-5),)),), False),
        (1e-7, "before", (), False),
    ],
)
def test_the_last_bits_of_a_slice_may_be_spread_by_what_lies_behind(
    relative: float, tensor: str, faults: tuple[Fault, ...], right: bool
) -> None:
    found = off_by(tensor, relative)
    report = Report((found,), (found,), {}, frozenset({"before"}), faults)
    assert report.is_right(found) is right
    assert any(problem.startswith("border") for problem in report.problems()) is not right


def test_a_partition_swapped_for_another_is_found(tmp_path: Path) -> None:
    """Shards of equal shapes: onnxruntime has nothing to complain of."""
    case = Case(tmp_path, Request(max_params=400))
    shards = [part for part in case.plan.partitions if part.shard is not None and part.shard.layer == "fc2"]
    left, right = (onnx.load(case.folder / part.file) for part in shards[:2])
    for one, other in zip(left.graph.initializer, right.graph.initializer, strict=True):
        name = one.name
        one.CopyFrom(other)
        one.name = name
    onnx.save(left, case.folder / shards[0].file)
    assert case.verify().problems()


def test_several_requests_keep_the_worst_of_each_tensor(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(0, "w1", 0.25)
    zeros = {"x": np.zeros((1, 8), np.float32)}  # on which the changed weight does nothing
    for requests in ([X, zeros], [zeros, X]):
        report = verify_plan(case.folder, case.plan, case.source, case.staged, requests)
        assert not any(border.is_identical for border in report.borders)
    assert verify_plan(case.folder, case.plan, case.source, case.staged, [zeros]).problems() == []


def test_an_output_beyond_the_tolerance_is_measured_against_onnxruntimes_own_noise(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(2, "w3", 0.5)
    report = case.verify()
    assert set(report.own_noise) == {"y"}
    assert report.own_noise["y"] < 1e-5
    moved = report.outputs[0].relative
    assert Report((), report.outputs, {"y": 0.51 * moved}, frozenset()).problems() == []
    assert len(Report((), report.outputs, {"y": 0.49 * moved}, frozenset()).problems()) == 1


@pytest.mark.parametrize("request_", [ALL, Request(max_params=400)], ids=["whole layers", "shards"])
def test_every_output_of_every_partition_is_compared_with_the_model(request_: Request, tmp_path: Path) -> None:
    case = Case(tmp_path, request_)
    report = case.verify()
    made = [name for part in case.plan.partitions for name in part.outputs]
    assert [border.tensor for border in report.borders] == made
    assert report.not_compared == ()
    assert report.made_by == {name: part.id for part in case.plan.partitions for name in part.outputs}
    assert report.faults == ()
    assert all(border.elements for border in report.borders)


@pytest.mark.parametrize("request_", [ALL, Request(max_params=400)], ids=["whole layers", "shards"])
def test_whichever_partition_is_wrong_is_named_and_no_other(request_: Request, tmp_path: Path) -> None:
    """A verification that skips a partition, or compares what it made with itself, misses one of them."""
    case = Case(tmp_path, request_)
    tried = 0
    for number, part in enumerate(case.plan.partitions):
        file = case.folder / part.file
        right = file.read_bytes()
        if not onnx.load(file).graph.initializer:
            continue
        case.change(number, "w", 0.125)
        report = case.verify()
        assert [fault.partition for fault in report.faults] == [part.id]
        assert report.faults[0].outputs[0].tensor in part.outputs
        first = report.first()
        assert first is not None
        assert report.made_by[first.tensor] == part.id
        file.write_bytes(right)
        tried += 1
    assert tried >= 3
    assert case.verify().problems() == []


def test_partitions_that_are_wrong_independently_are_all_named(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(0, "w1", 0.25)
    case.change(2, "w3", 0.25)
    report = case.verify()
    assert [fault.partition for fault in report.faults] == ["p000", "p002"]
    assert all(not border.is_identical for border in report.borders)


def test_a_partition_behind_a_wrong_one_is_judged_on_good_inputs(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(0, "w1", 0.25)
    report = case.verify()
    assert len([border for border in report.borders if not border.is_identical]) == 3
    assert [fault.partition for fault in report.faults] == ["p000"]


def test_a_wrong_bit_behind_slices_is_found_though_the_border_is_within_its_tolerance(tmp_path: Path) -> None:
    """A V-partition must have the model's bits on the model's activations, whatever lies before it."""
    case = Case(tmp_path, Request(max_params=400))
    last = len(case.plan.partitions) - 1
    assert case.plan.partitions[last].kind == "vertical"
    case.change(last, "w3", 1e-7)
    report = case.verify()
    assert report.first() is None
    assert [fault.partition for fault in report.faults] == [case.plan.partitions[last].id]
    assert len(report.problems()) == 1
    assert "on the uncut model's own activations: `y` differs by" in report.problems()[0]


def test_a_partition_that_onnxruntime_refuses_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    file = case.folder / case.plan.partitions[1].file
    proto = onnx.load(file)
    proto.graph.node[0].op_type = "Gone"
    onnx.save(proto, file)
    report = case.verify()
    (fault,) = report.faults
    assert fault.partition == "p001"
    assert "Gone" in fault.failure
    assert [border.is_identical for border in report.borders] == [True, False, False]
    assert report.borders[1].problem.startswith("was not made: ")
    assert "lacks a tensor" in report.borders[2].problem
    assert [problem for problem in report.problems() if problem.startswith("partition `p001` fails")]
    assert report.outputs[0].problem == "is missing"


def test_a_partition_that_fails_while_it_runs_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    file = case.folder / case.plan.partitions[1].file
    proto = onnx.load(file)
    for name, sizes in (("sevens", [-1, 7]), ("thirties", [-1, 30])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
    source = proto.graph.node[0].input[0]
    proto.graph.node[0].input[0] = "back"
    proto.graph.node.insert(0, helper.make_node("Reshape", ["bent", "thirties"], ["back"]))
    proto.graph.node.insert(0, helper.make_node("Reshape", [source, "sevens"], ["bent"]))
    onnx.save(proto, file)
    (fault,) = case.verify().faults
    assert fault.partition == "p001"
    assert "reshape" in fault.failure


def test_the_worst_request_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    case.change(0, "w1", 0.25)
    zeros = {"x": np.zeros((1, 8), np.float32)}
    report = verify_plan(case.folder, case.plan, case.source, case.staged, [zeros, X, zeros])
    assert {border.request for border in report.borders} == {1}
    assert {output.request for output in report.outputs} == {1}
    assert report.faults[0].request == 1


def test_a_plan_of_another_model_is_told_apart_where_only_preparation_differs(tmp_path: Path) -> None:
    """The plan is right for the staged model, and that is not the model: all borders agree, and no output does."""
    case = Case(tmp_path, ALL)
    other = three_layers()
    (weight,) = (tensor for tensor in other.graph.initializer if tensor.name == "w3")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, "w3"))
    case.source = open_source(save(other, tmp_path / "other.onnx"))
    report = case.verify()
    assert report.first() is None
    assert report.faults == ()
    assert [problem[:10] for problem in report.problems()] == ["output `y`"]
    reasons = report.reasons["y"]
    assert reasons.preparation == pytest.approx(0.5, rel=1e-3)
    assert reasons.running is not None
    assert reasons.running < 1e-5
    assert reasons.optimization < 1e-5


def test_how_a_worker_runs_the_partitions_is_told_apart(tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    report = case.verify(answers=[{"y": np.ones((2, 5), np.float32)}])
    assert report.first() is None
    reasons = report.reasons["y"]
    assert reasons.running is not None
    assert reasons.running > 0.1
    assert reasons.preparation == 0.0


@pytest.mark.parametrize("answer", [{}, {"y": np.zeros((2, 6), np.float32)}, {"y": np.zeros((2, 5), np.float64)}])
def test_an_answer_of_another_kind_is_no_noise(answer: Any, tmp_path: Path) -> None:
    case = Case(tmp_path, ALL)
    report = case.verify(answers=[answer])
    assert report.outputs[0].is_unlike
    noisy = Report((), report.outputs, {"y": np.inf}, frozenset())
    assert noisy.problems()
