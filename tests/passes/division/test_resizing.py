"""Resizing: pieces are spans of the whole, or refused, for all modes, scales and ways to find positions."""

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import check_same, edges, node_of, numbers, values
from hyps_passes.division.rule import IndivisibleError, Part, Span

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]
SCALES = [0.5, 0.6, 1.2, 1 / 3, 0.25, 2 / 3, 0.75, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0, 4.0]


@st.composite
def resizes(draw: st.DrawFn) -> tuple[OneNode, int]:
    """Draw a Resize of opset 11 or newer, and its axes."""
    mode = draw(st.sampled_from(["nearest", "linear", "linear", "cubic"]))
    opset = draw(st.sampled_from([11, 13, 18, 19]))
    rank = 4 if mode == "cubic" else draw(st.sampled_from([4, 4, 3, 5] if mode == "nearest" else [4, 4, 5]))
    old = ["tf_half_pixel_for_nn"] if opset < 13 else []
    symmetric = [] if opset < 19 else ["half_pixel_symmetric"]
    known = [name for name in COORDINATES if name != "half_pixel_symmetric"]
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from([*known, *old, *symmetric])),
    }
    if mode == "nearest":
        attributes["nearest_mode"] = draw(st.sampled_from(ROUNDINGS))
    if mode == "cubic":
        attributes["exclude_outside"] = draw(st.integers(0, 1))
    spatial = draw(st.tuples(*[st.integers(1, 12 if rank < 5 else 6)] * (rank - 2)))
    shape = (2, 3, *spatial)
    scales = [1.0, 1.0, *[draw(st.sampled_from(SCALES)) for _ in spatial]]
    counts = [max(1, int(np.float32(size) * np.float32(scale))) for size, scale in zip(shape, scales, strict=True)]
    scales = [max(scale, 1 / size) for size, scale in zip(shape, scales, strict=True)]
    kinds = [np.float32, np.float32, np.uint8, np.int8] if mode != "cubic" and rank == 4 else [np.float32]
    x = values(numbers(draw), shape, draw(st.sampled_from(kinds)))
    inputs: dict[str, Array] = {"x": x, "roi": np.zeros(0, np.float32)}
    if draw(st.booleans()):
        inputs |= {"scales": np.zeros(0, np.float32), "sizes": np.array(counts)}
    else:
        inputs |= {"scales": np.array(scales, np.float32)}
    return node_of("Resize", inputs, opset=opset, **attributes), rank


def _check(data: st.DataObject, one: OneNode, axis: int) -> None:
    """Hold pieces that are not refused against the whole."""
    whole = one.whole["y"]
    for start, stop in pairwise(edges(data, whole.shape[axis])):
        try:
            one.piece(axis, start, stop)
        except IndivisibleError:
            continue
        made, expected = one.made(axis, start, stop)[0], one.expected(axis, start, stop)[0]
        check_same(made, expected, whole)


@settings(max_examples=150, deadline=None)
@given(st.data(), resizes())
def test_pieces_of_a_resized_map_are_spans_of_it(data: st.DataObject, case: tuple[OneNode, int]) -> None:
    one, rank = case
    _check(data, one, data.draw(st.integers(0, rank - 1)))


def _resized(scale: float, mode: str, coordinates: str, *, sized: bool = False, size: int = 12, **more: Any) -> OneNode:
    inputs: dict[str, Array] = {"x": values(np.random.default_rng(0), (1, 2, size, size))}
    inputs["roi"] = np.zeros(0, np.float32)
    inputs["scales"] = np.array([] if sized else [1, 1, scale, scale], np.float32)
    if sized:
        inputs["sizes"] = np.array([1, 2, int(size * scale), int(size * scale)])
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, **more}
    return node_of("Resize", inputs, opset=19, **attributes)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.5, 2, 3, 4])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "asymmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_scales_of_small_whole_numbers_are_divided(mode: str, coordinates: str, scale: float, sized: bool) -> None:
    one = _resized(scale, mode, coordinates, sized=sized)
    for axis in (2, 3):
        for start, stop in pairwise([0, 1, 3, int(12 * scale)]):
            made, expected = one.made(axis, start, stop)[0], one.expected(axis, start, stop)[0]
            check_same(made, expected, one.whole["y"], exact=mode == "nearest")


def test_rows_are_doubled_from_those_rows_alone() -> None:
    one = _resized(2, "nearest", "asymmetric", nearest_mode="floor")
    piece = one.piece(2, 4, 10)
    assert piece.parts == {0: Part(2, Span(2, 5))}
    assert piece.surplus == (0, 0)


def test_what_lies_between_rows_is_made_of_those_around_and_cut_out() -> None:
    piece = _resized(2, "linear", "half_pixel", sized=True).piece(2, 4, 10)
    assert piece.parts == {0: Part(2, Span(1, 6))}
    assert piece.surplus == (2, 2)
    np.testing.assert_array_equal(piece.constants[3].numpy(), [1, 2, 10, 24])


@pytest.mark.parametrize(("opset", "mode"), [(7, "nearest"), (9, "nearest"), (9, "linear"), (7, "linear")])
def test_older_operators_are_divided_too(opset: int, mode: str) -> None:
    x, scales = values(np.random.default_rng(0), (1, 2, 5, 6)), [1.0, 1.0, 2.0, 3.0]
    if opset == 7:
        one = node_of("Upsample", {"x": x}, opset=opset, scales=scales, mode=mode)
    else:
        one = node_of("Upsample", {"x": x, "scales": np.array(scales, np.float32)}, opset=opset, mode=mode)
    for axis in range(4):
        size = one.whole["y"].shape[axis]
        for start, stop in pairwise(sorted({0, 1, size // 2, size})):
            check_same(one.made(axis, start, stop)[0], one.expected(axis, start, stop)[0], one.whole["y"])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_resize_of_opset_10_is_divided(scale: float) -> None:
    x, scales = values(np.random.default_rng(0), (1, 2, 6, 6)), np.array([1, 1, scale, 1], np.float32)
    one = node_of("Resize", {"x": x, "scales": scales}, opset=10, mode="nearest")
    for start, stop in pairwise([0, 1, int(6 * scale)]):
        check_same(one.made(2, start, stop)[0], one.expected(2, start, stop)[0], one.whole["y"], exact=True)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (_resized(1.9, "linear", "half_pixel"), "its positions repeat only after 10 of 12 rows"),
        (_resized(2, "linear", "align_corners"), "its positions repeat only after 11 of 12 rows"),
        (_resized(0.5, "linear", "half_pixel", antialias=1), "it smooths over as many rows as its scale says"),
        (_resized(2, "linear", "half_pixel", sized=True, keep_aspect_ratio_policy="not_larger"), "keeps the ratio"),
        (_resized(0.6, "nearest", "half_pixel", nearest_mode="floor"), "rounded to other rows in pieces"),
    ],
)
def test_what_pieces_might_make_otherwise_is_refused(one: OneNode, reason: str) -> None:
    with pytest.raises(IndivisibleError, match=reason):
        one.piece(2, 3, 6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("sized", [False, True])
def test_a_single_row_is_repeated_by_any_scale(mode: str, sized: bool) -> None:
    one = _resized(7.7, mode, "asymmetric", sized=sized, size=1)
    for start, stop in pairwise([0, 1, 4, 7]):
        assert one.piece(2, start, stop).surplus == (0, 0)
        check_same(one.made(2, start, stop)[0], one.expected(2, start, stop)[0], one.whole["y"])


def test_scales_that_are_computed_are_refused() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    node = onnx.helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up")
    one = OneNode(node, {"x": np.ones((1, 1, 2, 2), np.float32), "scales": scales})
    with pytest.raises(IndivisibleError, match="its scales are computed"):
        one.piece(2, 0, 2)
