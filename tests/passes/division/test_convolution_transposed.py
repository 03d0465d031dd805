"""Transposed convolutions: pieces of any axis are spans of the whole, and parts of the sum add up."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import OneNode
from division_windows import check_same, check_spans, edges, numbers, values
from hyps_passes.division.rule import GrainError, IndivisibleError, Part, Span, key_of
from hyps_passes.division.rules import CONTRACTIONS
from hyps_passes.division.transposed import Stamp


def _one(groups: int = 1, batch: int = 1, **attributes: Any) -> OneNode:
    return _random(np.random.default_rng(0), batch, 4, 6, (5, 5), (3, 3), groups=groups, **attributes)


def _random(
    rng: np.random.Generator,
    batch: int,
    channels: int,
    outputs: int,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    groups: int = 1,
    **attributes: Any,
) -> OneNode:
    inputs = {"x": values(rng, (batch, channels, *sizes))}
    constants = {"w": values(rng, (channels, outputs // groups, *kernel)), "b": values(rng, (outputs,))}
    node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up", group=groups, **attributes)
    return OneNode(node, inputs, constants)


@st.composite
def transposed(draw: st.DrawFn, *, most_groups: int = 3) -> tuple[OneNode, int]:
    """Draw a transposed convolution with any way to say how large its output is; return its spatial axes too."""
    rank, rng = draw(st.integers(1, 3)), numbers(draw)

    def per_axis(most: int, least: int = 1) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    kernel, strides, sizes = per_axis(4 if rank < 3 else 2), per_axis(3), per_axis(6 if rank < 3 else 3)
    dilations = per_axis(2)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations}
    stamped = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, stride, k, dilation in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    how = draw(st.sampled_from(["pads", "pads", "output_shape", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "output_shape":
        attributes["output_shape"] = [draw(st.integers(1, most)) for most in stamped]
        attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    elif how == "pads":
        before = [draw(st.integers(0, most - 1)) for most in stamped]
        after = [draw(st.integers(0, most - 1 - cut)) for most, cut in zip(stamped, before, strict=True)]
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
        attributes["pads"] = [*before, *after]
    else:
        attributes["auto_pad"] = how
    groups = draw(st.integers(1, most_groups))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    return _random(rng, 2, channels, outputs, sizes, kernel, groups, **attributes), rank


@settings(max_examples=200, deadline=None)
@given(st.data(), transposed())
def test_pieces_of_a_transposed_convolution_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, int]) -> None:
    one, rank = case
    check_spans(data, one, data.draw(st.integers(0, rank + 1)))


@settings(max_examples=50, deadline=None)
@given(st.data(), transposed(most_groups=1))
def test_parts_of_the_sum_of_a_transposed_convolution_add_up(data: st.DataObject, case: tuple[OneNode, int]) -> None:
    one = case[0]
    contraction = CONTRACTIONS[key_of(one.ir_node)]
    total = one.summed(edges(data, contraction.size(one.ir_node, one.facts)))
    assert contraction.tail(one.ir_node) == ()
    check_same(total.astype(np.float32), one.whole["y"], one.whole["y"])


def test_a_span_of_whole_groups_reads_their_input_channels_only() -> None:
    piece = _one(groups=2).piece(1, 3, 6)
    assert piece.parts == {0: Part(1, Span(2, 4)), 1: Part(0, Span(2, 4)), 2: Part(0, Span(3, 6))}
    assert piece.attributes["group"] == ir.AttrInt64("group", 1)


def test_a_part_of_a_group_would_cut_the_weight_along_two_axes() -> None:
    with pytest.raises(GrainError, match="multiples of 3"):
        _one(groups=2).piece(1, 0, 2)


def test_a_tile_reads_only_rows_whose_stamps_touch_it() -> None:
    piece = _one(strides=[2, 2], pads=[1, 1, 1, 1]).piece(2, 4, 6)
    assert piece.parts == {0: Part(2, Span(2, 4))}


def test_an_output_shape_of_an_open_axis_is_refused() -> None:
    one = _one(output_shape=[7, 7])
    data = one.ir_node.inputs[0]
    assert data is not None
    data.shape = ir.Shape([1, 4, 5, "width"])
    with pytest.raises(IndivisibleError, match="depends on axis 3"):
        one.piece(2, 0, 3)


def test_rows_beyond_all_stamps_are_refused() -> None:
    stamp = Stamp(size=2, count=9, kernel=3, stride=2, dilation=1, before=0, after=0, added=4)
    with pytest.raises(IndivisibleError, match="its output is larger than what it stamps"):
        stamp.over(Span(8, 9))
