"""Convolutions: pieces of any axis are spans of the whole, and parts of the sum over input channels add up."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import Sliding, check_same, check_spans, edges, node_of, numbers, slidings, values
from hyps_passes.division.rule import GrainError, IndivisibleError, Part, Span, key_of
from hyps_passes.division.rules import CONTRACTIONS, RULES


@st.composite
def convolutions(draw: st.DrawFn, *, most_groups: int = 4) -> tuple[OneNode, Sliding]:
    sliding, rng = draw(slidings()), numbers(draw)
    groups = draw(st.integers(1, most_groups))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    inputs = {
        "x": values(rng, (draw(st.integers(1, 3)), channels, *sliding.sizes), dtype),
        "w": values(rng, (outputs, channels // groups, *sliding.kernel), dtype),
    }
    if draw(st.booleans()):
        inputs["b"] = values(rng, (outputs,), dtype)
    opset = draw(st.sampled_from([11, 17, 22]))
    return node_of("Conv", inputs, opset=opset, group=groups, **sliding.attributes), sliding


@settings(max_examples=150, deadline=None)
@given(st.data(), convolutions())
def test_pieces_of_a_convolution_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


ACTIVATIONS: dict[str, list[float]] = {
    "Relu": [],
    "Tanh": [],
    "Sigmoid": [],
    "LeakyRelu": [0.125],
    "HardSigmoid": [0.25, 0.5],
    "Clip": [0.0, 6.0],
}


@st.composite
def fused_convolutions(draw: st.DrawFn, *, most_groups: int = 3) -> tuple[OneNode, Sliding]:
    """Draw a fused convolution; a residual input comes with a bias, and with any activation or none."""
    sliding, rng = draw(slidings(most_rank=2)), numbers(draw)
    groups = draw(st.integers(1, most_groups))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    attributes: dict[str, Any] = {"group": groups, **sliding.attributes}
    x = values(rng, (2, channels, *sliding.sizes))
    w, b = values(rng, (outputs, channels // groups, *sliding.kernel)), values(rng, (outputs,))
    shape = node_of("Conv", {"x": x, "w": w}, **attributes).whole["y"].shape
    activation = draw(st.sampled_from([*ACTIVATIONS, None]))
    if activation is not None:
        attributes |= {"activation": activation, "activation_params": ACTIVATIONS[activation]}
        if not ACTIVATIONS[activation]:
            del attributes["activation_params"]
    extra = {"z": values(rng, shape)} if draw(st.booleans()) else {}
    fed = {"x": x, **extra}
    names = ["x", "w", "b", *extra]
    node = onnx.helper.make_node("FusedConv", names, ["y"], name="conv", domain="com.microsoft", **attributes)
    return OneNode(node, fed, {"w": w, "b": b}), sliding


@settings(max_examples=80, deadline=None)
@given(st.data(), fused_convolutions())
def test_pieces_of_a_fused_convolution_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


@st.composite
def quantized_convolutions(draw: st.DrawFn, *, most_groups: int = 3) -> tuple[OneNode, int, int]:
    """Draw a QLinearConv of either domain, and return the axes of its output and that of its channels."""
    domain = draw(st.sampled_from(["", "com.microsoft"]))
    last = domain != "" and draw(st.booleans())
    sliding, rng = draw(slidings(most_rank=2)), numbers(draw)
    groups = draw(st.integers(1, most_groups))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    signed = draw(st.booleans())
    dtype, weight_dtype = (np.int8, np.int8) if signed else (np.uint8, draw(st.sampled_from([np.int8, np.uint8])))
    shape = (2, *sliding.sizes, channels) if last else (2, channels, *sliding.sizes)
    per_channel = draw(st.booleans())
    inputs: dict[str, Any] = {
        "x": values(rng, shape, dtype),
        "xs": np.float32(0.03),
        "xz": values(rng, (), dtype),
        "w": values(rng, (outputs, channels // groups, *sliding.kernel), weight_dtype),
        "ws": rng.uniform(0.01, 0.02, outputs if per_channel else ()).astype(np.float32),
        "wz": np.full((outputs,) if per_channel else (), draw(st.integers(0, 3)), weight_dtype),
        "ys": np.float32(0.4),
        "yz": values(rng, (), dtype),
    }
    if draw(st.booleans()):
        inputs["b"] = values(rng, (outputs,)).astype(np.int32) * 100
    attributes = {"group": groups, **sliding.attributes} | ({"channels_last": 1} if last else {})
    one = node_of("QLinearConv", {k: np.asarray(v) for k, v in inputs.items()}, domain=domain, **attributes)
    return one, sliding.rank + 2, groups


@settings(max_examples=120, deadline=None)
@given(st.data(), quantized_convolutions())
def test_pieces_of_a_quantized_convolution_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, int, int]) -> None:
    one, rank, _ = case
    check_spans(data, one, data.draw(st.integers(0, rank - 1)))


@st.composite
def integer_convolutions(draw: st.DrawFn, *, most_groups: int = 3) -> tuple[OneNode, Sliding]:
    sliding, rng = draw(slidings(most_rank=2)), numbers(draw)
    groups = draw(st.integers(1, most_groups))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    inputs: dict[str, Array] = {
        "x": values(rng, (2, channels, *sliding.sizes), np.uint8),
        "w": values(rng, (outputs, channels // groups, *sliding.kernel), np.uint8),
    }
    if draw(st.booleans()):
        inputs["xz"] = values(rng, (), np.uint8)
        inputs["wz"] = values(rng, (), np.uint8)
    return node_of("ConvInteger", inputs, group=groups, **sliding.attributes), sliding


@settings(max_examples=80, deadline=None)
@given(st.data(), integer_convolutions())
def test_pieces_of_an_integer_convolution_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


def _check_sum(data: st.DataObject, one: OneNode) -> None:
    """Hold the added pieces, and the operators that follow the sum, against the whole."""
    contraction = CONTRACTIONS[key_of(one.ir_node)]
    total = one.summed(edges(data, contraction.size(one.ir_node, one.facts)))
    whole = one.whole["y"]
    for (domain, operator), attributes in contraction.tail(one.ir_node):
        given_attributes = {name: attribute.value for name, attribute in attributes.items()}
        node = onnx.helper.make_node(operator, ["sum"], ["y"], name="tail", domain=domain, **given_attributes)
        total = OneNode(node, {"sum": total.astype(whole.dtype)}).whole["y"]
    check_same(total.astype(whole.dtype), whole, whole)


@settings(max_examples=60, deadline=None)
@given(st.data(), convolutions(most_groups=1))
def test_parts_of_the_sum_of_a_convolution_add_up(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    _check_sum(data, case[0])


@settings(max_examples=60, deadline=None)
@given(st.data(), integer_convolutions(most_groups=1))
def test_parts_of_the_sum_of_an_integer_convolution_add_up(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    _check_sum(data, case[0])


@settings(max_examples=60, deadline=None)
@given(st.data(), fused_convolutions(most_groups=1))
def test_parts_of_the_sum_of_a_fused_convolution_add_up_before_its_activation(
    data: st.DataObject, case: tuple[OneNode, Sliding]
) -> None:
    one = case[0]
    activation = one.ir_node.attributes.get("activation")
    if activation is not None and activation.as_string() == "Clip":
        with pytest.raises(IndivisibleError, match="its fused Clip takes more than the sum"):
            CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts)
    else:
        _check_sum(data, one)


def test_the_sum_of_a_quantized_convolution_is_not_divided() -> None:
    one = _quantized()
    with pytest.raises(IndivisibleError, match="QLinearConv rounds its sum to 8 bits"):
        CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts)


def test_the_sum_of_a_grouped_convolution_is_not_divided() -> None:
    one = _plain(channels=4, outputs=6, groups=2)
    with pytest.raises(IndivisibleError, match="each of its 2 groups apart"):
        CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts)


def test_a_span_of_one_group_reads_its_input_channels_only() -> None:
    one = _plain(channels=4, outputs=6, groups=2)
    piece = one.piece(1, 4, 6)
    assert piece.parts == {0: Part(1, Span(2, 4)), 1: Part(0, Span(4, 6))}
    assert piece.attributes["group"] == ir.AttrInt64("group", 1)


def test_a_span_of_parts_of_several_groups_has_the_grain_of_a_group() -> None:
    with pytest.raises(GrainError, match="multiples of 3"):
        _plain(channels=4, outputs=6, groups=2).piece(1, 2, 4)


def test_a_depthwise_convolution_reads_the_channels_that_it_makes() -> None:
    piece = _plain(channels=6, outputs=6, groups=6).piece(1, 1, 4)
    assert piece.parts[0] == Part(1, Span(1, 4))


def test_a_tile_reads_the_rows_it_needs_and_is_padded_at_the_border_only() -> None:
    one = _plain(pads=[1, 1, 1, 1])
    first, middle = one.piece(2, 0, 2), one.piece(2, 2, 4)
    assert first.parts[0] == Part(2, Span(0, 3))
    assert first.attributes["pads"] == ir.AttrInt64s("pads", [1, 1, 0, 1])
    assert middle.parts[0] == Part(2, Span(1, 5))
    assert middle.attributes["pads"] == ir.AttrInt64s("pads", [0, 1, 0, 1])


def test_automatic_padding_that_passes_over_rows_is_refused() -> None:
    one = _plain(kernel=1, auto_pad="SAME_UPPER", strides=[4, 4])
    with pytest.raises(IndivisibleError, match="its automatic padding is negative"):
        one.piece(2, 0, 1)


def test_automatic_padding_of_an_axis_of_open_size_is_refused_where_it_depends_on_it() -> None:
    one = _plain(auto_pad="SAME_UPPER", strides=[1, 2])
    data = one.ir_node.inputs[0]
    assert data is not None
    data.shape = ir.Shape(["n", 2, 8, "width"])
    with pytest.raises(IndivisibleError, match="its padding depends on axis 3"):
        one.piece(2, 0, 1)


def test_automatic_padding_of_an_axis_of_open_size_is_the_same_for_every_size_at_stride_1() -> None:
    one = _plain(auto_pad="SAME_UPPER", strides=[2, 1])
    data = one.ir_node.inputs[0]
    assert data is not None
    data.shape = ir.Shape(["n", 2, 8, "width"])
    assert one.piece(2, 0, 1).attributes["pads"] == ir.AttrInt64s("pads", [0, 1, 0, 1])


def test_a_layout_of_blocks_of_channels_has_no_rule() -> None:
    assert not [key for key in (*RULES, *CONTRACTIONS) if key[0] == "com.microsoft.nchwc"]


def _plain(channels: int = 2, outputs: int = 3, groups: int = 1, kernel: int = 3, **attributes: Any) -> OneNode:
    rng = np.random.default_rng(0)
    inputs = {
        "x": values(rng, (1, channels, 8, 8)),
        "w": values(rng, (outputs, channels // groups, kernel, kernel)),
    }
    return node_of("Conv", inputs, group=groups, **attributes)


def _quantized() -> OneNode:
    rng = np.random.default_rng(0)
    scale, zero = np.asarray(np.float32(0.1)), np.asarray(np.uint8(3))
    inputs = {"x": values(rng, (1, 4, 8, 8), np.uint8), "xs": scale, "xz": zero}
    inputs |= {"w": values(rng, (2, 4, 3, 3), np.uint8), "ws": scale, "wz": zero, "ys": scale, "yz": zero}
    return node_of("QLinearConv", inputs)
