"""Pooling: pieces of the batch, of channels and of spatial axes are spans of the whole."""

from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import Sliding, check_spans, numbers, slidings, values

FLOATS = (np.float32,)


def _one(operator: str, x: Array, domain: str = "", opset: int = 17, **attributes: Any) -> OneNode:
    node = onnx.helper.make_node(operator, ["x"], ["y"], name="pool", domain=domain, **attributes)
    return OneNode(node, {"x": x}, None, {"": opset, "com.microsoft": 1})


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
    return _one(operator, x, opset=opset, **attributes), sliding


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
