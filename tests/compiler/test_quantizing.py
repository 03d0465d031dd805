"""Quantizing before the cut: what it does to a trained model, that it is proved and told, and when it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from msgspec import structs
from onnx import ModelProto, TensorProto, helper, numpy_helper

import hyps_models
from cut_fixtures import Array
from hyps.adapters.plan_files import read_plan
from hyps.errors import ModelError, TensorError, UsageError
from hyps.formats.plan import Optimization, Plan, Quantization, decode_plan, encode_plan
from hyps.local import LocalRunner
from hyps_compiler import quantizing
from hyps_compiler.arrays import write_npz
from hyps_compiler.calibration import read_calibration
from hyps_compiler.cli import main
from hyps_compiler.driver import Compiled, Options, compile_model
from hyps_compiler.half_weights import halve_weights
from hyps_compiler.inspection import show_plan
from hyps_compiler.loss import compare_answers
from hyps_compiler.ort import open_session
from hyps_compiler.partition import Request
from hyps_compiler.quantizing import made_up
from hyps_compiler.quantizing_child import quantize_file
from hyps_compiler.quantizing_job import QUANTIZED, Job, Kind, Outcome
from hyps_compiler.quantizing_options import QuantizeOptions
from hyps_compiler.quantizing_report import show_quantization
from hyps_compiler.source import open_source
from model_fixtures import floats, model_of, save

RNG = np.random.default_rng(7)
CALIBRATED = 60
"""As many digits of the test set tell ranges or are held out; the others are only asked about."""
FLOAT_ACCURACY = 0.9861


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def dense(inputs: int = 64, outputs: int = 32) -> ModelProto:
    weights = {"w": normal(inputs, outputs), "b": normal(outputs)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    return model_of(nodes, [floats("x", "N", inputs)], [floats("y", "N", outputs)], weights)


def convolution() -> ModelProto:
    nodes = [helper.make_node("Conv", ["x", "k"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"])]
    return model_of(nodes, [floats("x", 1, 3, 8, 8)], [floats("y", 1, 8, 6, 6)], {"k": normal(8, 3, 3, 3)})


def compiled(folder: Path, model: ModelProto, kind: Kind, calibration: Path | None = None, **options: Any) -> Compiled:
    path = save(model, folder / "model.onnx")
    return compile_model(path, folder / "plan", Options(quantization=QuantizeOptions(kind, calibration), **options))


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in args], prog_name="hypsc")


def record_of(plan: Plan) -> Quantization:
    assert plan.quantization is not None
    return plan.quantization


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the trained model, requests to calibrate with, and the plan in 8 bits, cut everywhere."""
    folder = tmp_path_factory.mktemp("digits")
    hyps_models.save("digits", folder / "digits.onnx")
    images, _ = hyps_models.digits_test()
    write_npz(folder / "calibration.npz", {"image": images[:CALIBRATED, np.newaxis]})
    write_npz(folder / "asked.npz", {"image": images[CALIBRATED:]})
    wanted = QuantizeOptions("int8", folder / "calibration.npz")
    request = Request(cuts=("all",))
    compile_model(folder / "digits.onnx", folder / "plan", Options(request=request, quantization=wanted))
    return folder


def accuracy(plan: Path, start: int) -> float:
    images, labels = hyps_models.digits_test()
    with LocalRunner(plan) as runner:
        (logits,) = runner.run({"image": images[start:]}).values()
    return float(np.mean(logits.argmax(1) == labels[start:]))


def test_eight_bits_cost_a_trained_model_less_than_half_a_percent(digits: Path) -> None:
    float_plan = compile_model(digits / "digits.onnx", digits / "float", Options()).folder
    assert accuracy(float_plan, 0) == pytest.approx(FLOAT_ACCURACY, abs=1e-4)
    assert accuracy(digits / "plan", CALIBRATED) >= accuracy(float_plan, CALIBRATED) - 0.005


def test_a_plan_in_eight_bits_says_so_and_what_it_loses(digits: Path) -> None:
    plan = read_plan(digits / "plan")
    record = record_of(plan)
    assert plan.lossy == ("quantize int8",)
    assert record.methods == ("static",)
    assert record.weight_bytes[1] < 0.3 * record.weight_bytes[0]
    assert (record.calibration_requests, record.measured_requests, record.measured_on) == (48, 12, "held-out")
    (loss,) = record.losses
    assert loss.output == "logits"
    assert 0 < (loss.mean or 0) < (loss.relative or 0) < 0.05
    assert loss.same_top1 == 1.0
    told = show_plan(plan)
    assert "quantized: int8 (static)" in told
    assert "the same largest entry in 100 %" in told
    assert "measured on 12 of 60 requests; the others told the ranges" in told
    assert max(map(len, told.splitlines())) <= 80


def test_what_crosses_borders_in_eight_bits_is_a_quarter(digits: Path) -> None:
    plan = read_plan(digits / "plan")
    inner = [info.dtype for name, info in plan.tensors.items() if name not in ("image", "logits")]
    assert len(inner) >= 4
    assert set(inner) == {"uint8"}


def test_the_plan_of_another_time_has_no_quantization(digits: Path) -> None:
    raw = json.loads(encode_plan(read_plan(digits / "plan")))
    del raw["quantization"]
    assert decode_plan(json.dumps(raw).encode()).quantization is None


def test_verify_measures_the_loss_again(digits: Path) -> None:
    result = call(
        "verify", digits / "plan", "--model", digits / "digits.onnx", "--inputs", digits / "asked.npz", "--json"
    )
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["error"] is None
    (loss,) = told["losses"]
    assert 0 < loss["mean"] <= told["allowed"]["logits"]


def test_verify_refuses_random_requests_for_a_calibrated_plan(digits: Path) -> None:
    result = call("verify", digits / "plan", "--model", digits / "digits.onnx")
    assert result.exit_code == 1
    assert "random ones are not like them" in result.stderr


def test_verify_proves_nothing_of_a_plan_whose_loss_is_not_known(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "plan", tmp_path / "plan")
    plan = read_plan(tmp_path / "plan")
    unknown = structs.replace(record_of(plan), losses=(), unmeasured="no request was found")
    (tmp_path / "plan" / "plan.json").write_bytes(encode_plan(structs.replace(plan, quantization=unknown)))
    result = call("verify", tmp_path / "plan", "--model", digits / "digits.onnx", "--inputs", digits / "asked.npz")
    assert result.exit_code == 1
    assert "which was not measured: no request was found" in result.stderr


def test_verify_tells_a_model_of_other_weights(digits: Path, tmp_path: Path) -> None:
    model = onnx.load(digits / "digits.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("fc2") and len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    other = save(model, tmp_path / "other.onnx")
    result = call("verify", digits / "plan", "--model", other, "--inputs", digits / "asked.npz")
    assert result.exit_code == 4
    assert "loses more than it was measured to lose: output `logits`" in result.stderr
    assert "the model file has changed" in result.stderr


def test_verify_does_not_reduce_what_is_no_fault(digits: Path, tmp_path: Path) -> None:
    result = call("verify", digits / "plan", "--model", digits / "digits.onnx", "--reduce", tmp_path / "small")
    assert result.exit_code == 2


@pytest.mark.parametrize("level", ["none", pytest.param("native", marks=pytest.mark.slow)])
def test_parts_compute_what_the_quantized_whole_computes(digits: Path, tmp_path: Path, level: Optimization) -> None:
    wanted = QuantizeOptions("int8", digits / "calibration.npz")
    options = Options(request=Request(cuts=("all",)), optimization=level, quantization=wanted)
    found = compile_model(digits / "digits.onnx", tmp_path / "plan", options)
    assert found.report is not None
    assert len(found.report.borders) > 3
    assert all(border.is_identical for border in found.report.borders)


@pytest.mark.parametrize("kind", ["int8", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_quantized_layer_can_be_divided(digits: Path, tmp_path: Path, kind: Kind) -> None:
    wanted = QuantizeOptions(kind, digits / "calibration.npz")
    options = Options(request=Request(max_params=8000), quantization=wanted)
    plan = compile_model(digits / "digits.onnx", tmp_path / "plan", options).plan
    assert sum(part.kind == "horizontal" for part in plan.partitions) >= 4


def test_halved_weights_take_half_the_files_and_lose_next_to_nothing(digits: Path, tmp_path: Path) -> None:
    options = Options(request=Request(cuts=("all",)), quantization=QuantizeOptions("fp16"))
    plan = compile_model(digits / "digits.onnx", tmp_path / "plan", options).plan
    record = record_of(plan)
    assert record.methods == ("weights",)
    assert plan.model.weight_bytes < 0.52 * record.weight_bytes[0]
    assert (record.losses[0].relative or 1) < 1e-3
    assert (record.calibration_requests, record.measured_requests, record.measured_on) == (0, 8, "made-up")
    assert {info.dtype for info in plan.tensors.values()} == {"float32"}, "what crosses borders stays as it is"
    assert call("verify", tmp_path / "plan", "--model", digits / "digits.onnx", "--samples", 3).exit_code == 0


def test_halved_weights_gain_nothing_in_layouts_of_one_processor(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would save nothing"):
        compiled(tmp_path, dense(), "fp16", optimization="native")


def test_dense_layers_and_recurrent_ones_need_no_calibration(tmp_path: Path) -> None:
    hyps_models.save("lstm", tmp_path / "lstm.onnx")
    options = Options(request=Request(cuts=("all",)), quantization=QuantizeOptions("int8"))
    found = compile_model(tmp_path / "lstm.onnx", tmp_path / "plan", options)
    record = record_of(found.plan)
    assert record.methods == ("dynamic",)
    assert found.plan.model.weight_bytes < 0.3 * record.weight_bytes[0]
    assert found.report is not None
    assert all(border.is_identical for border in found.report.borders)


def test_dense_layers_as_torch_exports_them_are_quantized(tmp_path: Path) -> None:
    weights = {"w": normal(128, 64), "b": normal(128), "v": normal(10, 128)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    model = model_of(nodes, [floats("x", "N", 64)], [floats("y", "N", 10)], weights)
    model.graph.value_info.extend(floats(name, *value.shape) for name, value in weights.items())
    record = record_of(compiled(tmp_path, model, "int8").plan)
    assert record.methods == ("dynamic",)
    assert record.weight_bytes[1] < 0.3 * record.weight_bytes[0]
    assert (record.losses[0].relative or 1) < 0.05


def mixed(seed: int) -> ModelProto:
    """Return a random model of convolutions, joins and dense layers, which are quantized in two ways."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    inputs, outputs = [floats("x", 1, 3, 8, 8)], []

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return name

    def add(kind: str, *names: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(names), [f"t{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def constant(*values: int) -> str:
        name = f"c{len(weights)}"
        weights[name] = np.array(values, np.int64)
        return name

    def conv(value: str, channels: int, count: int) -> str:
        return add("Conv", value, weight(count, channels, 3, 3), pads=[1, 1, 1, 1])

    value, channels = conv("x", 3, 4), 4
    for _ in range(rng.integers(1, 4)):
        match rng.integers(5):
            case 0:
                value = add("Relu", conv(value, channels, channels))
            case 1:
                value = add("Add", value, conv(value, channels, channels))
            case 2:
                value, channels = add("Concat", value, conv(value, channels, 4), axis=1), channels + 4
            case 3:
                value, channels = add("Concat", value, "x", axis=1), channels + 3
            case _:
                value = add("MaxPool", value, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if rng.integers(3) == 0:
        outputs.append(floats(value, 1, channels, 8, 8))  # handed out, and used by what is quantized the other way
    head, width = rng.integers(4), channels * 64
    match head:
        case 0:
            value = add("Flatten", value)
        case 1:
            value = add("Reshape", value, constant(1, -1))
        case 2:
            value, width = add("Flatten", add("GlobalAveragePool", value)), channels
        case _:  # a product of the convolution's very output
            value, width = add("Flatten", add("MatMul", value, weight(8, 2))), channels * 16
    if rng.integers(2):
        inputs.append(floats("z", 1, 5))
        value, width = add("Concat", value, "z", axis=1), width + 5
    elif head != 2 and rng.integers(2):
        value, width = add("Concat", value, add("Flatten", "x"), axis=1), width + 192
    if rng.integers(2):
        value, width = add("Relu", add("Gemm", value, weight(width, 6), weight(6))), 6
    nodes.append(helper.make_node("MatMul", [value, weight(width, 10)], ["y"], "last"))
    return model_of(nodes, inputs, [*outputs, floats("y", 1, 10)], weights)


@pytest.mark.filterwarnings("ignore")  # as the child does, in which the quantizer runs
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.slow)])
def test_what_is_quantized_in_two_ways_computes_the_same(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = save(mixed(seed), folder / "model.onnx")
        session = open_session(path, "none")
        feeds = [{info.name: normal(*info.shape) for info in session.get_inputs()} for _ in range(5)]
        for number, request in enumerate(feeds):
            write_npz(folder / f"{number}.npz", request)
        told = tuple(str(folder / f"{number}.npz") for number in range(5))
        done = quantize_file(Job(kind="int8", source=str(path), folder=str(folder), requests=told))
        assert done.methods == ("dynamic", "static")
        quantized = onnx.load(folder / QUANTIZED)
        onnx.checker.check_model(quantized, full_check=False)
        assert not {"Conv", "Gemm", "MatMul"} & float_weighted(quantized)
        other = open_session(folder / QUANTIZED, "none")
        for name in [info.name for info in session.get_outputs()]:
            expected, actual = (
                np.stack([one.run([name], request)[0] for request in feeds]) for one in (session, other)
            )
            off = float(np.abs(actual - expected).mean() / np.abs(expected).max())
            assert 0 < off < 0.03, f"model {seed}: `{name}`"


def float_weighted(model: ModelProto) -> set[str]:
    """Return the operators that have float32 weights of two or more dimensions."""
    large = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1}
    return {node.op_type for node in model.graph.node if large & set(node.input)}


def test_convolutions_need_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mostly convolutions") as caught:
        compiled(tmp_path, convolution(), "int8")
    assert "--calibration" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"], "files were left behind"


@pytest.mark.slow
def test_few_requests_tell_ranges_and_the_loss(tmp_path: Path) -> None:
    write_npz(tmp_path / "two.npz", {"x": normal(2, 3, 8, 8)})
    record = record_of(compiled(tmp_path, convolution(), "int8", tmp_path / "two.npz").plan)
    assert (record.calibration_requests, record.measured_requests, record.measured_on) == (2, 2, "calibration")


def test_a_quantized_model_is_left_alone(digits: Path, tmp_path: Path) -> None:
    first = next((digits / "plan" / "partitions").glob("*.onnx"))
    with pytest.raises(ModelError, match=r"is quantized already, as its `\w+` shows") as caught:
        compile_model(first, tmp_path / "plan", Options(quantization=QuantizeOptions("fp16")))
    assert caught.value.code == "E_QUANTIZED"


@pytest.mark.parametrize("kind", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_model_without_weights_has_nothing_to_quantize(tmp_path: Path, kind: Kind) -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 4)], [floats("y", 4)])
    with pytest.raises(ModelError, match="nothing that --quantize") as caught:
        compiled(tmp_path, model, kind)
    assert caught.value.code == "E_NOTHING_TO_QUANTIZE"


@pytest.mark.slow
def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    model = dense()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 9))
    plan = compiled(tmp_path, model, "int8").plan
    assert plan.model.opset["ai.onnx"] >= 13
    assert (record_of(plan).losses[0].relative or 1) < 0.05


@pytest.mark.slow
def test_inputs_with_a_default_keep_it(tmp_path: Path) -> None:
    model = dense()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 32]))
    found = compiled(tmp_path, model, "int8")
    assert found.fixed_inputs == ("w",)
    assert found.plan.model.weight_bytes < 64 * 32 * 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.full((1, 3, 8, 8), np.nan, np.float32)}, "NaN or an infinity"),
        ({"x": np.zeros((1, 3, 9, 8), np.float32)}, "calibration file"),
        ({"y": np.zeros((1, 3, 8, 8), np.float32)}, "calibration file"),
        ({"x": np.zeros((1, 3, 8, 8), np.float64)}, "calibration file"),
        ({"x": np.zeros((0, 1, 3, 8, 8), np.float32)}, "holds no request"),
        ({}, "calibration file"),
    ],
)
def test_bad_calibration_is_refused(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    write_npz(tmp_path / "bad.npz", arrays)
    with pytest.raises(TensorError, match=message):
        compiled(tmp_path, convolution(), "int8", tmp_path / "bad.npz")
    assert not (tmp_path / "plan").exists()


def test_calibration_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (("none.npz", "does not exist"), ("empty", "holds no request"), ("text.npz", "no .npz file")):
        with pytest.raises(TensorError, match=message):
            compiled(tmp_path, convolution(), "int8", tmp_path / name)


def test_every_fifth_request_of_a_folder_is_held_out(tmp_path: Path) -> None:
    session = open_session(save(convolution(), tmp_path / "model.onnx"), "none")
    (tmp_path / "requests").mkdir()
    for number in range(11):
        write_npz(tmp_path / "requests" / f"{number:02}.npz", {"x": np.full((1, 3, 8, 8), number, np.float32)})
    found = read_calibration(tmp_path / "requests", session)
    assert [int(request["x"].flat[0]) for request in found.held_out] == [4, 9]
    assert [int(request["x"].flat[0]) for request in found.told] == [0, 1, 2, 3, 5, 6, 7, 8, 10]


def images_by_row(folder: Path, batch: int | str) -> Path:
    """Save a model of images that takes batches, and 30 images as one array."""
    weights = {"k": normal(4, 3, 3, 3), "w": normal(4, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    write_npz(folder / "images.npz", {"x": normal(30, 3, 16, 16)})
    return save(model_of(nodes, [floats("x", batch, 3, 16, 16)], [floats("y", batch, 10)], weights), folder / "m.onnx")


@pytest.mark.parametrize("batch", ["N", 1])
def test_an_array_of_images_is_as_many_requests(tmp_path: Path, batch: int | str) -> None:
    session = open_session(images_by_row(tmp_path, batch), "none")
    found = read_calibration(tmp_path / "images.npz", session)
    assert (len(found.told), len(found.held_out)) == (24, 6)
    assert {request["x"].shape for request in found.all} == {(1, 3, 16, 16)}


@pytest.mark.parametrize("operator", ["CumSum", "ReduceSum", "Softmax"])
def test_a_sequence_is_one_request(tmp_path: Path, operator: str) -> None:
    extra = ["axis"] if operator == "CumSum" else ["axes"] if operator == "ReduceSum" else []
    weights = {"axis": np.array(0), "axes": np.array([0])}
    node = helper.make_node(operator, ["x", *extra], ["y"])
    if operator == "Softmax":
        node.attribute.append(helper.make_attribute("axis", 0))
    kept = {name: weights[name] for name in extra}
    session = open_session(
        save(model_of([node], [floats("x", "T", 4)], [floats("y", None, 4)], kept), tmp_path / "m.onnx"), "none"
    )
    write_npz(tmp_path / "words.npz", {"x": normal(30, 4)})
    found = read_calibration(tmp_path / "words.npz", session)
    assert [request["x"].shape for request in found.all] == [(30, 4)]


def test_a_model_that_takes_one_row_whatever_it_declares_is_asked_row_by_row(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    model = model_of([node], [floats("x", "N", 4)], [floats("y", "N", 4)], {"shape": np.array([1, 4])})
    write_npz(tmp_path / "rows.npz", {"x": normal(30, 4)})
    assert len(read_calibration(tmp_path / "rows.npz", open_session(save(model, tmp_path / "m"), "none")).all) == 30


def test_inputs_of_different_lengths_are_one_request(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "z"], ["y"])]
    model = model_of(nodes, [floats("x", "N", 4), floats("z", "M", 3)], [floats("y", "N", 3)])
    write_npz(tmp_path / "rows.npz", {"x": normal(7, 4), "z": normal(4, 3)})
    assert len(read_calibration(tmp_path / "rows.npz", open_session(save(model, tmp_path / "m"), "none")).all) == 1


def test_verify_takes_what_calibration_takes(digits: Path, tmp_path: Path) -> None:
    images, _ = hyps_models.digits_test()
    write_npz(tmp_path / "rows.npz", {"image": images[:20]})
    write_npz(tmp_path / "none.npz", {"image": images[:0, np.newaxis]})
    write_npz(tmp_path / "other.npz", {"image": images[:20, :, :4]})
    verify = ("verify", digits / "plan", "--model", digits / "digits.onnx", "--inputs")
    for file, requests in ((digits / "calibration.npz", CALIBRATED), (tmp_path / "rows.npz", 20)):
        result = call(*verify, file, "--json")
        assert (result.exit_code, json.loads(result.stdout)["requests"]) == (0, requests)
    none, other = call(*verify, tmp_path / "none.npz"), call(*verify, tmp_path / "other.npz")
    assert (none.exit_code, other.exit_code) == (1, 1)
    assert "there is no request to compare on" in none.stderr
    assert "several along an axis before those of the input" in other.stderr


def test_what_the_quantizer_fails_on_is_not_sent_to_a_newer_opset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = msgspec.json.encode(Outcome(refusal="AssertionError: no"))
    monkeypatch.setattr(quantizing, "run_child", lambda *_: answer)
    with pytest.raises(ModelError, match="quantizer fails on `model`: AssertionError: no") as caught:
        compiled(tmp_path, dense(), "int8")
    assert caught.value.hint == "compile it without --quantize, or try fp16"


def test_what_the_loss_was_measured_on_is_told_in_plain_words() -> None:
    known = Quantization(kind="int8", methods=("static",), weight_bytes=(4, 1), losses=())
    cases = [
        (structs.replace(known, measured_requests=1), "1 request with random values"),
        (structs.replace(known, measured_requests=1, measured_on="given"), "the 1 request given"),
        (structs.replace(known, measured_requests=30, measured_on="held-out"), "the 30 requests given"),
        (
            structs.replace(known, measured_requests=6, calibration_requests=24, measured_on="held-out"),
            "6 of 30 requests; the others told the ranges",
        ),
        (
            structs.replace(known, measured_requests=2, calibration_requests=2, measured_on="calibration"),
            "the 2 requests that told the ranges too: give five or more",
        ),
    ]
    for record, words in cases:
        assert show_quantization(record)[-1] == f"          measured on {words}"


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = save(dense(), tmp_path / "model.onnx")
    alone = call("compile", path, "-o", tmp_path / "plan", "--calibration", "x.npz")
    cluster = call("compile", path, "-o", tmp_path / "plan", "--quantize", "int8", "--cluster", "c.toml")
    assert (alone.exit_code, cluster.exit_code) == (2, 2)
    assert "--calibration is for --quantize" in alone.stderr
    assert "partitions/" in cluster.stderr


def test_loss_is_counted_over_all_requests() -> None:
    expected = [{"y": np.array([[1.0, 2.0]], np.float32)}, {"y": np.array([[4.0, 1.0]], np.float32)}]
    actual = [{"y": np.array([[1.0, 1.5]], np.float32)}, {"y": np.array([[1.0, 3.0]], np.float32)}]
    (loss,) = compare_answers(["y"], expected, actual)
    assert (loss.largest, loss.relative, loss.same_top1) == (3.0, 0.75, 0.5)
    assert loss.mean == pytest.approx((0.125 + 0.625) / 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_any_more_has_no_finite_loss(wrong: float) -> None:
    expected, actual = np.zeros(2, np.float32), np.array([0, wrong], np.float32)
    (loss,) = compare_answers(["y"], [{"y": expected}], [{"y": actual}])
    assert (loss.largest, loss.relative, loss.mean) == (None, None, None)


def test_made_up_requests_on_which_the_model_fails_are_left_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    model = model_of(nodes, [floats("x", 1, 4), shape], [floats("y", None, None)])
    source = open_source(save(model, tmp_path / "model.onnx"))
    fits = {"x": normal(1, 4), "shape": np.array([2, 2])}
    kept = [request["shape"].tolist() for request in made_up(source, fits, 9)]
    assert kept[0] == [2, 2]
    assert len(kept) < 9
    assert all(shape == [1, 0] for shape in kept[1:]), "what else is made of 0 and 1 does not hold four values"


def test_outputs_of_other_shapes_have_no_loss() -> None:
    (loss,) = compare_answers(["y"], [{"y": np.zeros(2, np.float32)}], [{"y": np.zeros(3, np.float32)}])
    assert loss.relative is None


def test_a_table_is_widened_by_the_rows_that_are_looked_up() -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])
    model = model_of(nodes, [ids], [floats("y", "N", 16)], {"table": normal(32, 16)})
    expected = open_session(model.SerializeToString(), "none").run(None, {"ids": np.array([3, 1])})[0]
    assert halve_weights(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Gather", "Cast"]
    actual = open_session(model.SerializeToString(), "none").run(None, {"ids": np.array([3, 1])})[0]
    assert np.abs(expected - actual).max() < 2e-3
    assert actual.dtype == np.float32


def test_weights_that_a_nested_graph_reads_are_widened_for_it() -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["x", "w"], [f"{op}_y"])], op, [], [floats(f"{op}_y", 1, 16)])
        for op in ("MatMul", "Add")
    ]
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    model = model_of(nodes, [flag, floats("x", 1, 16)], [floats("y", None, None)], {"w": normal(16, 16)})
    feeds = {"c": np.array(True), "x": normal(1, 16)}
    expected = open_session(model.SerializeToString(), "none").run(None, feeds)[0]
    assert halve_weights(model) == 1
    actual = open_session(model.SerializeToString(), "none").run(None, feeds)[0]
    assert np.abs(expected - actual).max() < 1e-2 * np.abs(expected).max()


def test_halved_weights_take_no_name_that_is_there() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w_float16"], ["rows_float16"]),
        helper.make_node("Add", ["rows", "rows_float16"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])
    weights = {"w": normal(16, 16), "w_float16": normal(16, 16)}
    model = model_of(nodes, [ids], [floats("y", "N", 16)], weights)
    feeds = {"ids": np.array([3, 1])}
    expected = open_session(model.SerializeToString(), "none").run(None, feeds)[0]
    assert halve_weights(model) == 2
    actual = open_session(model.SerializeToString(), "none").run(None, feeds)[0]
    assert np.abs(expected - actual).max() < 1e-2 * np.abs(expected).max()


def test_weights_beyond_half_floats_stay() -> None:
    model = dense(32, 32)
    large = numpy_helper.to_array(model.graph.initializer[0]).copy()
    large[0, 0] = 1e6
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w"))
    assert halve_weights(model) == 0
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_quantized_plan_streams_its_weights(tmp_path: Path, kind: Kind) -> None:
    hyps_models.save("encoder-small", tmp_path / "model.onnx")
    options = Options(request=Request(memory_bytes=75_000_000), quantization=QuantizeOptions(kind))
    found = compile_model(tmp_path / "model.onnx", tmp_path / "plan", options)
    assert found.peak_bytes is not None
    assert found.peak_bytes <= 75_000_000
    assert found.plan.model.weight_bytes < 0.52 * record_of(found.plan).weight_bytes[0]
