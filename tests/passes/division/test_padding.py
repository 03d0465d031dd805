"""Padding: pieces of any axis are spans of the whole, whatever its borders are filled with."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import check_spans, node_of, numbers, values
from hyps_passes.division.rule import IndivisibleError, Part, Span


@st.composite
def paddings(draw: st.DrawFn) -> tuple[OneNode, int]:
    """Draw a Pad of any mode and opset, and its axes."""
    rank, rng = draw(st.integers(1, 4)), numbers(draw)
    opset = draw(st.sampled_from([2, 11, 13, 18, 19, 21]))
    modes = ["constant", "constant", "edge", "reflect", *(["wrap"] if opset >= 19 else [])]
    mode = draw(st.sampled_from(modes))
    shape = draw(st.tuples(*[st.integers(1, 6)] * rank))
    axes = draw(st.permutations(range(rank))) if opset >= 18 and draw(st.booleans()) else list(range(rank))
    axes = axes[: draw(st.integers(1, rank))] if opset >= 18 else axes
    pads = [draw(st.integers(0, _most(mode, shape[axis]))) for _ in range(2) for axis in axes]
    for at, axis in enumerate(axes):
        if draw(st.integers(0, 3)) == 0:
            end = at + draw(st.sampled_from([0, len(axes)]))
            other = at + len(axes) if end == at else at
            pads[end] = -draw(st.integers(0, shape[axis] - 1))
            pads[other] = min(pads[other], _most(mode, shape[axis] + pads[end]))
    dtype = draw(st.sampled_from([np.float32, np.float64] if opset < 11 else [np.float32, np.float64, np.uint8]))
    x = values(rng, shape, dtype)
    if opset < 11:
        return node_of("Pad", {"x": x}, opset=opset if opset > 6 else 7, pads=pads, mode=mode, value=1.5), rank
    inputs: dict[str, Array] = {"x": x, "pads": np.array(pads), "v": np.asarray(2, dtype)}
    if opset >= 18:
        inputs["axes"] = np.array(axes) - draw(st.sampled_from([0, rank]))
    return node_of("Pad", inputs, opset=opset, mode=mode), rank


def _most(mode: str, size: int) -> int:
    return {"constant": 4, "edge": 4, "reflect": size - 1, "wrap": size}[mode]


@settings(max_examples=200, deadline=None)
@given(st.data(), paddings())
def test_pieces_of_a_padded_map_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, int]) -> None:
    one, rank = case
    check_spans(data, one, data.draw(st.integers(0, rank - 1)), exact=True)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["constant", "edge", "reflect"]))
def test_pieces_of_a_map_padded_by_onnxruntime_itself_are_spans_of_it(data: st.DataObject, mode: str) -> None:
    inputs = {"x": values(np.random.default_rng(0), (4, 5)), "pads": np.array([1, 3, 2, 0])}
    one = node_of("Pad", inputs, domain="com.microsoft", mode=mode)
    check_spans(data, one, data.draw(st.integers(0, 1)), exact=True)


def _padded(pads: list[int], mode: str = "constant", shape: tuple[int, ...] = (6, 4)) -> OneNode:
    inputs = {"x": values(np.random.default_rng(0), shape), "pads": np.array(pads)}
    return node_of("Pad", inputs, opset=19, mode=mode)


def test_a_piece_away_from_the_borders_is_not_padded() -> None:
    piece = _padded([2, 0, 2, 0]).piece(0, 3, 5)
    assert piece.parts == {0: Part(0, Span(1, 3))}
    np.testing.assert_array_equal(piece.constants[1].numpy(), [0, 0, 0, 0])
    assert piece.surplus == (0, 0)


def test_a_mirrored_border_reads_the_rows_it_mirrors_and_cuts_them_away() -> None:
    piece = _padded([2, 0, 0, 0], "reflect").piece(0, 0, 1)
    assert piece.parts == {0: Part(0, Span(0, 3))}
    assert piece.surplus == (0, 4)


def test_a_padding_that_is_computed_is_refused() -> None:
    node = onnx.helper.make_node("Pad", ["x", "pads"], ["y"], name="pad")
    feeds: dict[str, Any] = {"x": np.ones((3, 3), np.float32), "pads": np.array([1, 0, 0, 0])}
    with pytest.raises(IndivisibleError, match="input 1 of Pad is computed"):
        OneNode(node, feeds).piece(0, 0, 2)


def test_an_axis_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(IndivisibleError, match="of which nothing is left"):
        _padded([-6, 0, 2, 0]).piece(0, 0, 1)
