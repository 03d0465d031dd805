"""Pooling: pieces of the batch, of channels and of spatial axes are spans of the whole."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import Sliding, check_same, check_spans, node_of, numbers, slidings, values
from hyps_passes.division.rule import IndivisibleError, Part, Span

FLOATS = (np.float32,)


@st.composite
def pools(draw: st.DrawFn, operator: str, opsets: tuple[int, ...]) -> tuple[OneNode, Sliding]:
    """Draw a pooling with every attribute that the operator has from the opset on."""
    opset = draw(st.sampled_from(opsets))
    has_dilations = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[operator] <= opset
    has_ceil_mode = {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[operator] <= opset
    sliding, rng = draw(slidings(pools=True, dilates=has_dilations)), numbers(draw)
    attributes: dict[str, Any] = {"kernel_shape": sliding.kernel, **sliding.attributes}
    if has_ceil_mode:
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if operator == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    if operator == "LpPool":
        attributes["p"] = draw(st.integers(1, 3))
    kinds = (np.float32, np.float64, np.int8, np.uint8) if operator == "MaxPool" and opset >= 12 else FLOATS
    x = values(rng, (draw(st.integers(1, 2)), draw(st.integers(1, 4)), *sliding.sizes), draw(st.sampled_from(kinds)))
    return node_of(operator, {"x": x}, opset=opset, **attributes), sliding


@settings(max_examples=150, deadline=None)
@given(st.data(), pools("MaxPool", (8, 10, 12, 17, 22)))
def test_pieces_of_a_maximum_pooling_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)), exact=True)


@settings(max_examples=200, deadline=None)
@given(st.data(), pools("AveragePool", (7, 10, 17, 19, 22)))
def test_pieces_of_an_average_pooling_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


@settings(max_examples=80, deadline=None)
@given(st.data(), pools("LpPool", (11, 18, 22)))
def test_pieces_of_a_norm_pooling_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, Sliding]) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


def _scales(rng: np.random.Generator, dtype: Any) -> dict[str, Array]:
    scales = [np.asarray(scale, np.float32) for scale in (0.05, 0.07)]
    return {"xs": scales[0], "xz": values(rng, (), dtype), "ys": scales[1], "yz": values(rng, (), dtype)}


@st.composite
def quantized_pools(draw: st.DrawFn) -> tuple[OneNode, Sliding]:
    sliding, rng = draw(slidings(pools=True, dilates=False)), numbers(draw)
    last, dtype = draw(st.booleans()), draw(st.sampled_from([np.uint8, np.int8]))
    channels = draw(st.integers(1, 4))
    shape = (2, *sliding.sizes, channels) if last else (2, channels, *sliding.sizes)
    attributes = {"kernel_shape": sliding.kernel, "channels_last": int(last), **sliding.attributes}
    attributes |= {"ceil_mode": draw(st.integers(0, 1)), "count_include_pad": draw(st.integers(0, 1))}
    x, scales = values(rng, shape, dtype), _scales(rng, dtype)
    return node_of("QLinearAveragePool", {"x": x, **scales}, domain="com.microsoft", **attributes), sliding


@settings(max_examples=80, deadline=None)
@given(st.data(), quantized_pools())
def test_pieces_of_a_quantized_average_pooling_are_spans_of_it(
    data: st.DataObject, case: tuple[OneNode, Sliding]
) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)))


@st.composite
def pools_with_channels_last(draw: st.DrawFn) -> tuple[OneNode, Sliding]:
    sliding, rng = draw(slidings(pools=True)), numbers(draw)
    attributes = {"kernel_shape": sliding.kernel, "ceil_mode": draw(st.integers(0, 1)), **sliding.attributes}
    x = values(rng, (2, *sliding.sizes, draw(st.integers(1, 4))), draw(st.sampled_from([np.uint8, np.int8])))
    return node_of("NhwcMaxPool", {"x": x}, domain="com.microsoft", **attributes), sliding


@settings(max_examples=80, deadline=None)
@given(st.data(), pools_with_channels_last())
def test_pieces_of_a_maximum_pooling_with_channels_last_are_spans_of_it(
    data: st.DataObject, case: tuple[OneNode, Sliding]
) -> None:
    one, sliding = case
    check_spans(data, one, data.draw(st.integers(0, sliding.rank + 1)), exact=True)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]), st.integers(1, 3))
def test_pieces_of_a_global_pooling_are_spans_of_it(data: st.DataObject, operator: str, rank: int) -> None:
    x = values(np.random.default_rng(rank), (3, 5, *range(3, 3 + rank)))
    check_spans(data, node_of(operator, {"x": x}), data.draw(st.integers(0, 1)))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans())
def test_pieces_of_a_quantized_global_pooling_are_spans_of_it(data: st.DataObject, last: bool) -> None:
    rng = np.random.default_rng(int(last))
    x = values(rng, (3, 4, 5, 6) if last else (3, 6, 4, 5), np.uint8)
    constants = _scales(rng, np.uint8)
    one = node_of("QLinearGlobalAveragePool", {"x": x, **constants}, domain="com.microsoft", channels_last=int(last))
    check_spans(data, one, data.draw(st.sampled_from([0, 3 if last else 1])))


@pytest.mark.parametrize(("operator", "axis"), [("GlobalAveragePool", 2), ("GlobalMaxPool", 3)])
def test_a_global_pooling_needs_all_of_a_spatial_axis(operator: str, axis: int) -> None:
    one = node_of(operator, {"x": np.ones((1, 2, 3, 4), np.float32)})
    with pytest.raises(IndivisibleError, match=f"{operator} needs all of axis {axis}"):
        one.piece(axis, 0, 1)


def test_positions_of_maxima_in_the_whole_are_refused_where_they_are_used() -> None:
    x = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    node = onnx.helper.make_node("MaxPool", ["x"], ["y", "where"], name="pool", kernel_shape=[2, 2])
    with pytest.raises(IndivisibleError, match="its second output has positions in the whole input"):
        OneNode(node, {"x": x}).piece(2, 0, 2)
    made = OneNode(node, {"x": x}, outputs=["y"])
    np.testing.assert_array_equal(made.made(2, 1, 3)[0], made.expected(2, 1, 3)[0])


def test_a_window_that_stands_out_over_the_padding_stays_so_in_the_last_piece() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 6)
    one = node_of("AveragePool", {"x": x}, kernel_shape=[3], strides=[2], ceil_mode=1, count_include_pad=1, pads=[0, 0])
    last = one.piece(2, 2, 3)
    assert last.parts == {0: Part(2, Span(4, 6))}
    assert last.attributes["pads"] == ir.AttrInt64s("pads", [0, 0])
    check_same(one.made(2, 2, 3)[0], one.expected(2, 2, 3)[0], one.whole["y"])
