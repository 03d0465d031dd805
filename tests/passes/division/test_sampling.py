"""Operators that look where another input says: pieces are spans of the whole."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import OneNode
from division_windows import check_same, check_spans, edges, node_of, values
from hyps_passes.division.rule import IndivisibleError, key_of
from hyps_passes.division.rules import CONTRACTIONS


def _grid(rank: int, domain: str = "") -> OneNode:
    rng = np.random.default_rng(rank)
    sizes, made = (5, 6, 4)[:rank], (3, 4, 5)[:rank]
    inputs = {"x": values(rng, (2, 4, *sizes)), "grid": values(rng, (2, *made, rank))}
    opset = 20 if rank == 3 else 17
    return node_of("GridSample", inputs, fed=2, domain=domain, opset=opset, align_corners=1)


def _aligned() -> OneNode:
    rng = np.random.default_rng(0)
    rois = np.sort(rng.uniform(0, 9, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    inputs = {"x": values(rng, (2, 3, 10, 10)), "rois": rois, "of": np.array([0, 1, 0, 1, 1])}
    return node_of("RoiAlign", inputs, fed=3, output_height=2, output_width=3)


def _pooled() -> OneNode:
    rng = np.random.default_rng(0)
    rois = np.sort(rng.uniform(0, 9, (5, 2, 2)), axis=1).reshape(5, 4)
    numbered = np.hstack([[[0], [1], [0], [1], [1]], rois]).astype(np.float32)
    inputs = {"x": values(rng, (2, 3, 10, 10)), "rois": numbered}
    return node_of("MaxRoiPool", inputs, fed=2, pooled_shape=[2, 3])


def _deformed(groups: int = 1, offset_groups: int = 1, **attributes: Any) -> OneNode:
    rng = np.random.default_rng(0)
    inputs = {
        "x": values(rng, (2, 4, 6, 5)),
        "w": values(rng, (6, 4 // groups, 3, 2)),
        "offset": values(rng, (2, offset_groups * 12, 4, 4)),
        "b": values(rng, (6,)),
        "mask": values(rng, (2, offset_groups * 6, 4, 4)),
    }
    return node_of("DeformConv", inputs, fed=5, opset=19, group=groups, offset_group=offset_groups, **attributes)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([2, 3]))
def test_pieces_of_a_sampled_grid_are_spans_of_it(data: st.DataObject, rank: int) -> None:
    check_spans(data, _grid(rank), data.draw(st.integers(0, rank + 1)))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(0, 3))
def test_pieces_of_a_grid_sampled_by_onnxruntime_itself_are_spans_of_it(data: st.DataObject, axis: int) -> None:
    check_spans(data, _grid(2, "com.microsoft"), axis)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([_aligned, _pooled]), st.integers(0, 1))
def test_pieces_of_pooled_regions_are_spans_of_them(data: st.DataObject, regions: Any, axis: int) -> None:
    check_spans(data, regions(), axis)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([1, 2]), st.integers(0, 1))
def test_pieces_of_a_deformed_convolution_are_spans_of_it(data: st.DataObject, groups: int, axis: int) -> None:
    check_spans(data, _deformed(groups), axis)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_parts_of_the_sum_of_a_deformed_convolution_add_up(data: st.DataObject) -> None:
    one = _deformed()
    size = CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts)
    whole = one.whole["y"]
    check_same(one.summed(edges(data, size)).astype(np.float32), whole, whole)


def test_groups_of_channels_with_offsets_of_their_own_are_refused() -> None:
    one = _deformed(offset_groups=2)
    with pytest.raises(IndivisibleError, match="offsets of their own"):
        one.piece(1, 0, 2)
    with pytest.raises(IndivisibleError, match="offsets of their own"):
        CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts)


def test_what_may_look_anywhere_along_an_axis_needs_all_of_it() -> None:
    with pytest.raises(IndivisibleError, match="may look anywhere along axis 2"):
        _deformed().piece(2, 0, 1)
    with pytest.raises(IndivisibleError, match="RoiAlign needs all of axis 3"):
        _aligned().piece(3, 0, 1)
