"""Spans of operators that mix one axis and leave the others apart, against the whole in onnxruntime."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import IndivisibleError
from rule_checks import Data, assert_span, assert_spans, numbers, some_shape, some_span

_MS: dict[str, Any] = {"domain": "com.microsoft"}


def _assert_divided_beside(data: Data, one: OneNode, mixed: set[int]) -> None:
    """Check that axes in `mixed` are refused, and a random other one is divided."""
    shape = one.whole[one.outputs[0]].shape
    for axis in mixed:
        with pytest.raises(IndivisibleError, match=f"all of axis {axis}"):
            one.piece(axis, 0, 1)
    others = sorted(set(range(len(shape))) - mixed)
    if others:
        axis = data.draw(st.sampled_from(others), "axis")
        assert_span(one, axis, *some_span(data, shape[axis]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_softmax_needs_its_axis_and_before_opset_13_all_behind_it(data: Data) -> None:
    x = numbers(data, some_shape(data))
    op_type = data.draw(st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]), "operator")
    axis = data.draw(st.integers(0, x.ndim - 1), "axis of Softmax")
    opset = data.draw(st.sampled_from([9, 12, 13, 17]), "opset")
    given_axis = axis - x.ndim if opset > 9 and data.draw(st.booleans(), "negative") else axis
    one = OneNode(helper.make_node(op_type, ["x"], ["y"], axis=given_axis), {"x": x}, {}, {"": opset})

    _assert_divided_beside(data, one, {axis} if opset >= 13 else set(range(axis, x.ndim)))


@pytest.mark.parametrize(("opset", "mixed"), [(12, {1, 2}), (17, {2})])
def test_softmax_without_an_axis_takes_the_one_of_its_opset(opset: int, mixed: set[int]) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    one = OneNode(helper.make_node("Softmax", ["x"], ["y"]), {"x": x}, {}, {"": opset})

    for axis in range(3):
        if axis in mixed:
            with pytest.raises(IndivisibleError, match="Softmax needs all of axis"):
                one.piece(axis, 0, 1)
        else:
            assert_span(one, axis, 1, 2)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_quantized_softmax_says_itself_which_axes_it_needs(data: Data) -> None:
    x = numbers(data, some_shape(data), np.uint8)
    axis, opset = data.draw(st.integers(0, x.ndim - 1), "axis"), data.draw(st.sampled_from([12, 13]), "opset")
    constants: dict[str, Array] = {
        "xs": np.asarray(0.05, np.float32),
        "xz": np.asarray(120, np.uint8),
        "ys": np.asarray(1 / 256, np.float32),
        "yz": np.asarray(0, np.uint8),
    }
    node = helper.make_node("QLinearSoftmax", ["x", *constants], ["y"], axis=axis, opset=opset, **_MS)

    _assert_divided_beside(
        data, OneNode(node, {"x": x}, constants), {axis} if opset == 13 else set(range(axis, x.ndim))
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_layer_normalization_needs_its_axis_and_all_behind_it(data: Data) -> None:
    x = numbers(data, some_shape(data))
    op_type = data.draw(st.sampled_from(["LayerNormalization", "SimplifiedLayerNormalization"]), "operator")
    axis = data.draw(st.integers(0, x.ndim - 1), "axis of the normalization")
    constants = {"s": numbers(data, x.shape[axis:])}
    if op_type == "LayerNormalization" and data.draw(st.booleans(), "bias"):
        constants["b"] = numbers(data, x.shape[axis:])
    outputs = ["y", "mean", "deviation"][: data.draw(st.sampled_from([1, 3]), "outputs")]
    if op_type != "LayerNormalization":
        outputs = outputs[:1]
    node = helper.make_node(op_type, ["x", *constants], outputs, axis=axis - x.ndim)
    one = OneNode(node, {"x": x}, constants)

    _assert_divided_beside(data, one, set(range(axis, x.ndim)))


def test_layer_normalization_divides_a_scale_that_broadcasts() -> None:
    x, scale = np.random.default_rng(0).standard_normal((3, 4, 5)), np.random.default_rng(1).standard_normal((3, 1, 5))
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"])
    one = OneNode(node, {"x": x.astype(np.float32)}, {"s": scale.astype(np.float32)})

    assert_span(one, 0, 1, 3)
    assert_span(one, 1, 1, 3)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_root_mean_square_normalization(data: Data) -> None:
    x = numbers(data, some_shape(data, least=2))
    axis = data.draw(st.integers(1, x.ndim - 1), "axis")
    node = helper.make_node("RMSNormalization", ["x", "s"], ["y"], axis=axis)
    one = OneNode(node, {"x": x}, {"s": numbers(data, x.shape[axis:])}, {"": 23})

    _assert_divided_beside(data, one, set(range(axis, x.ndim)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_normalizations_of_sums_divide_what_they_add(data: Data) -> None:
    shape = some_shape(data, least=3, most=3)
    is_simple = data.draw(st.booleans(), "simplified")
    skip = shape if is_simple else data.draw(st.sampled_from([shape, (1, *shape[1:]), shape[1:]]), "skip")
    width = (shape[-1],)
    constants = {"gamma": numbers(data, width)}
    if not is_simple:
        constants["beta"] = numbers(data, width)
    if data.draw(st.booleans(), "bias"):
        constants["bias"] = numbers(data, width)
    op_type = "SkipSimplifiedLayerNormalization" if is_simple else "SkipLayerNormalization"
    outputs = ["y", "", "", "sum"] if data.draw(st.booleans(), "sum") else ["y"]
    node = helper.make_node(op_type, ["x", "skip", *constants], outputs, **_MS)
    one = OneNode(node, {"x": numbers(data, shape), "skip": numbers(data, skip)}, constants)

    _assert_divided_beside(data, one, {2})


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_other_normalizations_need_their_axes(data: Data) -> None:
    x = numbers(data, some_shape(data, least=4, most=4))
    axes = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1), "axes"))
    one = OneNode(helper.make_node("MeanVarianceNormalization", ["x"], ["y"], axes=axes), {"x": x})
    _assert_divided_beside(data, one, set(axes))

    axis = data.draw(st.integers(-4, 3), "axis")
    one = OneNode(helper.make_node("LpNormalization", ["x"], ["y"], axis=axis, p=2), {"x": x})
    _assert_divided_beside(data, one, {axis % 4})


_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_reductions_are_divided_along_the_axes_they_keep(data: Data) -> None:
    x = np.abs(numbers(data, some_shape(data))) + np.float32(0.1)
    axes = sorted(data.draw(st.sets(st.integers(0, x.ndim - 1)), "axes"))
    keep = data.draw(st.booleans(), "keep")
    op_type = "Reduce" + data.draw(st.sampled_from(_REDUCTIONS), "operator")
    is_input = data.draw(st.booleans(), "axes as input")
    negative = [axis - x.ndim for axis in axes]
    attributes: dict[str, Any] = {"axes": negative} if axes and not is_input else {}
    constants = {"axes": np.asarray(negative, np.int64)} if axes and is_input else {}
    node = helper.make_node(op_type, ["x", *constants], ["y"], keepdims=int(keep), **attributes)
    one = OneNode(node, {"x": x}, constants, {"": 18 if is_input else 12})

    reduced = set(axes or range(x.ndim))
    if keep:
        _assert_divided_beside(data, one, reduced)
    elif len(reduced) < x.ndim:
        assert_spans(data, one)


def test_a_reduction_over_no_axes_is_divided_along_all() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    node = helper.make_node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)
    one = OneNode(node, {"x": x}, {}, {"": 18})

    assert_span(one, 1, 1, 3, tolerance=0)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_choices_are_made_along_one_axis(data: Data) -> None:
    x = numbers(data, some_shape(data))
    axis = data.draw(st.integers(0, x.ndim - 1), "axis of the choice")
    keep = data.draw(st.booleans(), "keep")
    op_type = data.draw(st.sampled_from(["ArgMax", "ArgMin"]), "operator")
    one = OneNode(helper.make_node(op_type, ["x"], ["y"], axis=axis - x.ndim, keepdims=int(keep)), {"x": x})

    if keep:
        _assert_divided_beside(data, one, {axis})
    elif x.ndim > 1:
        assert_spans(data, one)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_top_and_running_sums_need_their_axis(data: Data) -> None:
    x = numbers(data, some_shape(data))
    axis = data.draw(st.integers(0, x.ndim - 1), "axis of the operator")
    count = data.draw(st.integers(1, x.shape[axis]), "count")
    top = helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=axis - x.ndim)
    _assert_divided_beside(data, OneNode(top, {"x": x}, {"k": np.asarray([count], np.int64)}), {axis})

    running = helper.make_node("CumSum", ["x", "a"], ["y"], exclusive=1)
    constant: Array = np.asarray(axis - x.ndim, np.int64)
    _assert_divided_beside(data, OneNode(running, {"x": x}, {"a": constant}), {axis})
