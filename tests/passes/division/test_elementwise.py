"""Rules of element-wise operators: any span of any axis, broadcasting, scales per channel and per block."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from division_fixtures import Array, OneNode
from hyps_passes.division.elementwise import RULES
from hyps_passes.division.rule import GrainError, IndivisibleError
from rule_checks import Data, assert_span, assert_spans, numbers, some_shape, some_span

MICROSOFT = "com.microsoft"

UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish IsInf IsNaN
    LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh
    ThresholdedRelu
    """.split()
NARY = "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Pow Sub Sum".split()
LOGICAL = "And Or Xor".split()
BITWISE = "BitwiseAnd BitwiseOr BitwiseXor".split()
TESTED_APART = """
    BatchNormalization BiasGelu BitShift BitwiseNot Cast CastLike Clip DequantizeLinear FastGelu Gelu Mod Not PRelu
    QLinearAdd QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearWhere QuantizeLinear QuickGelu Swish Where
    """.split()
OPSETS = {"": 18, MICROSOFT: 1}


def broadcast_shapes(data: Data, count: int) -> list[tuple[int, ...]]:
    """Shapes that broadcast to one: axes of size 1, leading axes left out; one of them is the whole."""
    whole = some_shape(data)
    shapes = [whole]
    for _ in range(count - 1):
        kept = [size if data.draw(st.booleans()) else 1 for size in whole]
        shapes.append(tuple(kept[data.draw(st.integers(0, len(kept))) :]))
    return data.draw(st.permutations(shapes))


def node_of(op_type: str, count: int, *, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
    names = [f"x{index}" for index in range(count)]
    return helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.asarray(value).astype(dtype)


def test_every_rule_is_tested() -> None:
    assert {op_type for _, op_type in RULES} == {*UNARY, *NARY, *LOGICAL, *BITWISE, *TESTED_APART}


@pytest.mark.parametrize("op_type", UNARY)
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_one_input(op_type: str, data: Data) -> None:
    one = OneNode(node_of(op_type, 1), {"x0": numbers(data, some_shape(data))}, opsets=OPSETS)
    assert_spans(data, one, tolerance=1e-6)


@pytest.mark.parametrize("op_type", [*NARY, *LOGICAL, *BITWISE])
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_inputs_that_broadcast(op_type: str, data: Data) -> None:
    count = 3 if op_type in ("Max", "Mean", "Min", "Sum") else 2
    dtype = {"And": np.bool_, "Or": np.bool_, "Xor": np.bool_}.get(op_type, np.int32 if op_type in BITWISE else None)
    feeds = {f"x{index}": numbers(data, shape) for index, shape in enumerate(broadcast_shapes(data, count))}
    if dtype is not None:
        feeds = {name: np.asarray(value * 9).astype(dtype) for name, value in feeds.items()}
    assert_spans(data, OneNode(node_of(op_type, count), feeds, opsets=OPSETS), tolerance=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_choice_between_two(data: Data) -> None:
    shapes = broadcast_shapes(data, 3)
    feeds = {f"x{index}": numbers(data, shape) for index, shape in enumerate(shapes)}
    feeds["x0"] = np.asarray(feeds["x0"] > 0)
    assert_spans(data, OneNode(node_of("Where", 3), feeds), tolerance=0)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(["Mod", "BitShift"]))
def test_integers(data: Data, op_type: str) -> None:
    first, second = broadcast_shapes(data, 2)
    feeds = {"x0": numbers(data, first, np.uint8), "x1": np.asarray(numbers(data, second, np.uint8) % 5 + 1)}
    attributes: dict[str, Any] = {"direction": "RIGHT"} if op_type == "BitShift" else {}
    assert_spans(data, OneNode(node_of(op_type, 2, **attributes), feeds), tolerance=0)


@pytest.mark.parametrize("op_type", ["Not", "BitwiseNot"])
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_negation(op_type: str, data: Data) -> None:
    values = numbers(data, some_shape(data), np.int32)
    feeds = {"x0": values > 0 if op_type == "Not" else values}
    assert_spans(data, OneNode(node_of(op_type, 1), feeds, opsets=OPSETS), tolerance=0)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_slope_per_channel(data: Data) -> None:
    shape = some_shape(data, 2)
    slope = data.draw(st.sampled_from([(1,), (shape[1], *[1] * (len(shape) - 2)), shape[1:]]))
    one = OneNode(node_of("PRelu", 2), {"x0": numbers(data, shape)}, {"x1": numbers(data, slope)})
    assert_spans(data, one, tolerance=0)


@settings(max_examples=10, deadline=None)
@given(st.data(), st.booleans())
def test_bounds_and_conversions(data: Data, has_low: bool) -> None:
    values = {"x0": numbers(data, some_shape(data))}
    bounds = {"low": scalar(-0.5), "high": scalar(0.4)}
    clip = helper.make_node("Clip", ["x0", "low" if has_low else "", "high"], ["y0"])
    assert_spans(data, OneNode(clip, values, bounds), tolerance=0)
    assert_spans(data, OneNode(node_of("Cast", 1, to=TensorProto.INT32), values), tolerance=0)
    like = helper.make_node("CastLike", ["x0", "like"], ["y0"])
    assert_spans(data, OneNode(like, values, {"like": np.zeros((2, 3), np.float64)}), tolerance=0)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(["BiasGelu", "FastGelu", "Gelu", "QuickGelu"]), st.booleans())
def test_contributed_activations(data: Data, op_type: str, has_bias: bool) -> None:
    shape = some_shape(data)
    feeds, constants = {"x0": numbers(data, shape)}, {"x1": numbers(data, shape[-1:])}
    takes = op_type == "BiasGelu" or (op_type == "FastGelu" and has_bias)
    node = node_of(op_type, 1 + takes, domain=MICROSOFT)
    assert_spans(data, OneNode(node, feeds, constants if takes else {}), tolerance=1e-6)


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_activations_of_late_opsets(data: Data) -> None:
    feeds = {"x0": numbers(data, some_shape(data))}
    for op_type, opset in (("Gelu", 20), ("Swish", 24)):
        assert_spans(data, OneNode(node_of(op_type, 1), feeds, opsets={"": opset}), tolerance=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["QLinearAdd", "QLinearMul"]))
def test_quantized_operands(data: Data, op_type: str) -> None:
    first, second = broadcast_shapes(data, 2)
    feeds = {"a": numbers(data, first, np.uint8), "b": numbers(data, second, np.uint8)}
    held = {"s": scalar(0.05), "z": scalar(100, np.uint8), "t": scalar(0.2)}
    node = helper.make_node(op_type, ["a", "s", "z", "b", "s", "z", "t", "z"], ["y"], domain=MICROSOFT)
    assert_spans(data, OneNode(node, feeds, held), tolerance=0)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_quantized_choice(data: Data) -> None:
    shapes = broadcast_shapes(data, 3)
    feeds = {"c": np.asarray(numbers(data, shapes[0]) > 0), "a": numbers(data, shapes[1], np.uint8)}
    feeds["b"] = numbers(data, shapes[2], np.uint8)
    held = {"s": scalar(0.05), "z": scalar(100, np.uint8), "t": scalar(0.2)}
    node = helper.make_node("QLinearWhere", ["c", "a", "s", "z", "b", "t", "z", "s", "z"], ["y"], domain=MICROSOFT)
    assert_spans(data, OneNode(node, feeds, held), tolerance=0)


@settings(max_examples=10, deadline=None)
@given(st.data(), st.sampled_from(["QLinearLeakyRelu", "QLinearSigmoid"]))
def test_quantized_activations(data: Data, op_type: str) -> None:
    held = {"s": scalar(0.05), "z": scalar(100, np.uint8), "t": scalar(0.01)}
    attributes: dict[str, Any] = {"alpha": 0.1} if op_type == "QLinearLeakyRelu" else {}
    node = helper.make_node(op_type, ["x", "s", "z", "t", "z"], ["y"], domain=MICROSOFT, **attributes)
    assert_spans(data, OneNode(node, {"x": numbers(data, some_shape(data), np.uint8)}, held), tolerance=0)


def quantization(data: Data, shape: tuple[int, ...], axis: int, *, per_axis: bool, domain: str, back: bool) -> OneNode:
    """A quantization or its inverse, with a scale for all or one for each position of the axis."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = (shape[axis],) if per_axis else ()
    held: dict[str, Array] = {"s": np.asarray(rng.uniform(0.01, 0.1, size)).astype(np.float32)}
    held["z"] = np.asarray(rng.integers(0, 255, size)).astype(np.uint8)
    values = numbers(data, shape, np.uint8 if back else np.float32)
    op_type = "DequantizeLinear" if back else "QuantizeLinear"
    node = helper.make_node(op_type, ["x", "s", "z"], ["y"], axis=axis - len(shape), domain=domain)
    return OneNode(node, {"x": values}, held)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from(["", MICROSOFT]), st.booleans())
def test_scales_for_all_or_per_axis(data: Data, per_axis: bool, domain: str, back: bool) -> None:
    shape = some_shape(data)
    axis = data.draw(st.integers(0, len(shape) - 1), "scale axis")
    assert_spans(data, quantization(data, shape, axis, per_axis=per_axis, domain=domain, back=back), tolerance=0)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(2, 3), st.integers(0, 1))
def test_scales_per_block(data: Data, block: int, along: int) -> None:
    """Along the blocks only at their borders; along other axes anywhere."""
    blocks, others = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = (blocks * block, others) if along == 0 else (others, blocks * block)
    sizes = (blocks, others) if along == 0 else (others, blocks)
    rng = np.random.default_rng(5)
    held: dict[str, Array] = {"s": rng.uniform(0.01, 0.1, sizes).astype(np.float32)}
    held["z"] = rng.integers(0, 9, sizes).astype(np.uint8)
    node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=along, block_size=block)
    one = OneNode(node, {"x": numbers(data, shape, np.uint8)}, held, opsets={"": 21})
    axis = data.draw(st.integers(0, 1), "axis")
    assert_span(one, axis, *some_span(data, shape[axis], block if axis == along else 1), tolerance=0)
    if blocks > 1:
        with pytest.raises(GrainError) as caught:
            one.piece(along, 0, block + 1)
        assert caught.value.grain == block


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_normalization_by_stored_numbers(data: Data) -> None:
    shape = some_shape(data, 2)
    held: dict[str, Array] = {name: numbers(data, (shape[1],)) for name in "sbmv"}
    held["v"] = np.asarray(np.abs(held["v"]) + np.float32(0.5))
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"])
    assert_spans(data, OneNode(node, {"x": numbers(data, shape)}, held), tolerance=0)


def test_normalization_that_trains_is_refused() -> None:
    held = {name: np.ones(3, np.float32) for name in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "rm", "rv"], training_mode=1)
    one = OneNode(node, {"x": np.ones((2, 3, 4), np.float32)}, held, outputs=["y"])
    with pytest.raises(IndivisibleError, match="statistics"):
        one.piece(2, 0, 2)
