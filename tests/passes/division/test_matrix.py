"""Spans and sums of matrix products, against the whole product in onnxruntime."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import GrainError, IndivisibleError, key_of
from hyps_passes.division.rules import CONTRACTIONS
from rule_checks import Data, assert_span, assert_spans, assert_sum, largest, numbers

_MS: dict[str, Any] = {"domain": "com.microsoft"}


def _stacks(data: Data) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the stacked axes of two operands that broadcast to each other."""
    whole = data.draw(st.lists(st.integers(1, 3), max_size=2), "stack")
    sides = []
    for _ in range(2):
        kept = data.draw(st.integers(0, len(whole)), "axes kept")
        ones = data.draw(st.lists(st.booleans(), min_size=kept, max_size=kept), "broadcast")
        tail = whole[len(whole) - kept :]
        sides.append(tuple(1 if one else size for one, size in zip(ones, tail, strict=True)))
    return sides[0], sides[1]


def _matrices(data: Data, dtypes: tuple[Any, Any] = (np.float32, np.float32)) -> tuple[Array, Array]:
    rows, inner, columns = (data.draw(st.integers(1, 6), name) for name in ("rows", "inner", "columns"))
    left, right = _stacks(data)
    return (
        numbers(data, (*left, rows, inner), dtypes[0]),
        numbers(data, (*right, inner, columns), dtypes[1]),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matmul_of_any_ranks_is_divided_along_every_axis(data: Data) -> None:
    a, b = _matrices(data)
    if data.draw(st.booleans(), "left vector"):
        a = a.reshape(-1, a.shape[-1])[0]
    elif data.draw(st.booleans(), "right vector"):
        b = np.ascontiguousarray(b.reshape(-1, *b.shape[-2:])[0, :, 0])
    constant = data.draw(st.booleans(), "constant weight")
    feeds, constants = ({"a": a}, {"b": b}) if constant else ({"a": a, "b": b}, {})
    one = OneNode(helper.make_node("MatMul", ["a", "b"], ["y"]), feeds, constants)

    if one.whole["y"].ndim:
        assert_spans(data, one)
    assert_sum(data, one, a.shape[-1])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_fused_matmul_is_divided_where_its_operands_are_transposed(data: Data) -> None:
    a, b = _matrices(data)
    attributes: dict[str, Any] = {"alpha": 0.5}
    inner = a.shape[-1]
    for name in ("A", "B"):
        matrix = a if name == "A" else b
        if data.draw(st.booleans(), f"trans{name}"):
            matrix, attributes[f"trans{name}"] = np.swapaxes(matrix, -1, -2), 1
        if a.ndim == b.ndim > 2 and data.draw(st.booleans(), f"transBatch{name}"):
            matrix, attributes[f"transBatch{name}"] = np.moveaxis(matrix, -2, 0), 1
        a, b = (matrix, b) if name == "A" else (a, matrix)
    one = OneNode(
        helper.make_node("FusedMatMul", ["a", "b"], ["y"], **_MS, **attributes),
        {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)},
    )

    assert_spans(data, one)
    assert_sum(data, one, inner)


_ACTIVATIONS: list[dict[str, Any]] = [
    {"activation": "Relu"},
    {"activation": "Tanh"},
    {"activation": "LeakyRelu", "activation_alpha": 0.2},
    {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4},
]


def _gemm(data: Data, op_type: str, opset: int, **attributes: Any) -> tuple[OneNode, int]:
    rows, inner, columns = (data.draw(st.integers(1, 6), name) for name in ("rows", "inner", "columns"))
    a, b = numbers(data, (rows, inner)), numbers(data, (inner, columns))
    if data.draw(st.booleans(), "transA"):
        a, attributes["transA"] = a.T, 1
    if data.draw(st.booleans(), "transB"):
        b, attributes["transB"] = b.T, 1
    shapes = [(columns,), (1, columns), (rows, 1), (rows, columns), (1,), ()]
    shape = data.draw(st.sampled_from(shapes), "bias")
    has_bias = opset < 11 or data.draw(st.booleans(), "has bias")
    constants = {"b": np.ascontiguousarray(b), **({"c": numbers(data, shape)} if has_bias else {})}
    attributes |= {"alpha": 0.5, "beta": 2.0}
    node = helper.make_node(op_type, ["a", *constants], ["y"], **attributes)
    opsets = {"": opset, "com.microsoft": 1}
    return OneNode(node, {"a": np.ascontiguousarray(a)}, constants, opsets), inner


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gemm_is_divided_with_its_bias(data: Data) -> None:
    one, inner = _gemm(data, "Gemm", data.draw(st.sampled_from([9, 17]), "opset"))

    assert_spans(data, one)
    assert_sum(data, one, inner)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_fused_gemm_is_divided_and_its_sum_is_a_gemm_before_the_activation(data: Data) -> None:
    attributes = data.draw(st.sampled_from(_ACTIVATIONS), "activation")
    one, inner = _gemm(data, "FusedGemm", 17, **_MS, **attributes)
    contraction = CONTRACTIONS[key_of(one.ir_node)]

    assert_spans(data, one)
    total = one.summed([0, inner])
    ((tail, given_attributes),) = contraction.tail(one.ir_node)
    node = helper.make_node(tail[1], ["x"], ["y"])
    node.attribute.extend(_proto(attribute) for attribute in given_attributes.values())
    after = OneNode(node, {"x": total.astype(np.float32)}).whole["y"]
    np.testing.assert_allclose(after, one.whole["y"], rtol=0, atol=1e-5 * largest(one.whole["y"]))


def _proto(attribute: Any) -> Any:
    return helper.make_attribute(attribute.name, attribute.value)


def _scales(data: Data, size: int) -> Array:
    count = data.draw(st.sampled_from([1, size]), "scales")
    return np.asarray(np.abs(numbers(data, (count,))) / 10 + 0.01, np.float32)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_integer_products_are_divided_and_add_up_exactly(data: Data) -> None:
    a, b = _matrices(data, (np.uint8, np.int8))
    per_column = numbers(data, (b.shape[-1],), np.int8) // 16
    zeros = {"az": np.asarray(3, np.uint8), "bz": np.asarray(2, np.int8) if b.ndim > 2 else per_column}
    one = OneNode(helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"]), {"a": a}, {"b": b, **zeros})

    assert_spans(data, one)
    assert_sum(data, one, a.shape[-1])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_integer_products_that_are_scaled_are_divided(data: Data) -> None:
    a, b = _matrices(data, (np.uint8, np.int8))
    b = b[(0,) * (b.ndim - 2)]
    columns = b.shape[-1]
    scale = _scales(data, columns)
    constants = {
        "b": b,
        "as": np.asarray(0.02, np.float32),
        "bs": scale,
        "az": np.asarray(128, np.uint8),
        "bz": numbers(data, scale.shape, np.int8) // 16,
        "bias": numbers(data, (columns,)),
    }
    node = helper.make_node("MatMulIntegerToFloat", ["a", "b", "as", "bs", "az", "bz", "bias"], ["y"], **_MS)
    one = OneNode(node, {"a": a}, constants)

    assert_spans(data, one)
    assert_sum(data, one, a.shape[-1])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_quantized_products_are_divided_by_rows_and_columns_but_not_added(data: Data) -> None:
    a, b = _matrices(data, (np.uint8, np.int8))
    b = b[(0,) * (b.ndim - 2)]
    scale = _scales(data, b.shape[-1])
    constants = {
        "as": np.asarray(0.02, np.float32),
        "az": np.asarray(128, np.uint8),
        "b": b,
        "bs": scale,
        "bz": np.zeros(scale.shape, np.int8),
        "ys": np.asarray(0.1, np.float32),
        "yz": np.asarray(120, np.uint8),
    }
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    one = OneNode(node, {"a": a}, constants)

    assert_spans(data, one)
    with pytest.raises(IndivisibleError, match="rounded"):
        one.summed([0, a.shape[-1]])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_quantized_gemm_is_divided_and_added_where_it_makes_floats(data: Data) -> None:
    rows, inner, columns = (data.draw(st.integers(1, 6), name) for name in ("rows", "inner", "columns"))
    b, scale = numbers(data, (inner, columns), np.int8), _scales(data, columns)
    transposed = data.draw(st.booleans(), "transB")
    constants: dict[str, Array] = {
        "as": np.asarray(np.float32(0.02)),
        "az": np.asarray(np.uint8(128)),
        "b": np.ascontiguousarray(b.T) if transposed else b,
        "bs": scale,
        "bz": np.zeros(scale.shape, np.int8),
        "c": numbers(data, (columns,), np.int32),
    }
    is_float = data.draw(st.booleans(), "float output")
    rounded: dict[str, Array] = {} if is_float else {"ys": np.asarray(np.float32(0.1)), "yz": np.asarray(np.uint8(120))}
    names = ["a", *constants, *rounded]
    node = helper.make_node("QGemm", names, ["y"], **_MS, transB=int(transposed))
    one = OneNode(node, {"a": numbers(data, (rows, inner), np.uint8)}, {**constants, **rounded})

    assert_spans(data, one)
    if is_float:
        assert_sum(data, one, inner)
    else:
        with pytest.raises(IndivisibleError, match="rounded"):
            one.summed([0, inner])


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_products_with_a_scale_of_their_own_are_divided_by_columns_alone(data: Data) -> None:
    inner, columns = data.draw(st.integers(1, 6), "inner"), data.draw(st.integers(1, 6), "columns")
    scale = _scales(data, columns)
    constants = {
        "b": numbers(data, (inner, columns), np.int8),
        "bs": scale,
        "bz": np.zeros(scale.shape, np.int8),
        "bias": numbers(data, (columns,)),
    }
    node = helper.make_node("DynamicQuantizeMatMul", ["a", "b", "bs", "bz", "bias"], ["y"], **_MS)
    one = OneNode(node, {"a": numbers(data, (3, inner))}, constants)
    start = data.draw(st.integers(0, columns - 1), "start")

    assert_span(one, 1, start, columns)
    for refused in (lambda: one.piece(0, 0, 1), lambda: one.summed([0, inner])):
        with pytest.raises(IndivisibleError, match="scale of its input"):
            refused()


def _nbits(data: Data, blocks: int, *, two_axes: bool) -> OneNode:
    columns, block = data.draw(st.integers(1, 5), "columns"), 16
    zeros = numbers(data, (columns, -(-blocks // 2)), np.uint8)
    constants = {
        "b": numbers(data, (columns, blocks, block // 2), np.uint8),
        "s": numbers(data, (columns, blocks)),
        "z": zeros,
        "order": np.zeros(0, np.int32),
        "bias": numbers(data, (columns,)),
    }
    del constants["order"]
    if not two_axes:
        constants |= {name: constants[name].reshape(-1) for name in ("s", "z")}
    has_zeros = data.draw(st.booleans(), "has zero points")
    if not has_zeros:
        del constants["z"]
    names = ["a", "b", "s", "z" if has_zeros else "", "", "bias"]
    node = helper.make_node("MatMulNBits", names, ["y"], **_MS, K=blocks * block, N=columns, bits=4, block_size=block)
    return OneNode(node, {"a": numbers(data, (2, 3, blocks * block))}, constants)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_products_with_packed_blocks_are_divided_by_rows_and_columns(data: Data) -> None:
    one = _nbits(data, data.draw(st.integers(1, 4), "blocks"), two_axes=data.draw(st.booleans(), "two axes"))

    assert_spans(data, one)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_products_with_packed_blocks_add_up_between_blocks(data: Data) -> None:
    one = _nbits(data, 4, two_axes=data.draw(st.booleans(), "two axes"))

    total, whole = one.summed([0, 32, 64]), one.whole["y"]
    np.testing.assert_allclose(total, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    with pytest.raises(GrainError):
        one.summed([0, 10, 64])


def test_a_weight_that_several_requests_may_stack_in_other_numbers_is_refused() -> None:
    a, b = np.ones((1, 2, 3), np.float32), np.ones((4, 3, 2), np.float32)
    one = OneNode(helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": a, "b": b})
    value = one.ir_node.inputs[0]
    assert value is not None
    value.shape = ir.Shape(["batch", 2, 3])

    with pytest.raises(IndivisibleError, match="open"):
        one.piece(0, 0, 2)
