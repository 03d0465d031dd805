"""Blocks of a map that become channels, and channels that become blocks: pieces are spans of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import OneNode
from division_windows import check_spans, node_of, values
from hyps_passes.division.rule import GrainError, IndivisibleError


def _to_space(mode: str, block: int = 2) -> OneNode:
    x = values(np.random.default_rng(block), (2, 3 * block**2, 4, 3))
    return node_of("DepthToSpace", {"x": x}, blocksize=block, mode=mode)


def _to_depth(block: int = 2) -> OneNode:
    return node_of("SpaceToDepth", {"x": values(np.random.default_rng(block), (2, 3, 12, 6))}, blocksize=block)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["DCR", "CRD"]), st.integers(1, 3))
def test_pieces_of_a_map_made_of_channels_are_spans_of_it(data: st.DataObject, mode: str, block: int) -> None:
    axis = data.draw(st.sampled_from([0, 2, 3] if mode == "DCR" else [0, 1, 2, 3]))
    check_spans(data, _to_space(mode, block), axis, exact=True)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([0, 2, 3]), st.integers(1, 3))
def test_pieces_of_channels_made_of_a_map_are_spans_of_them(data: st.DataObject, axis: int, block: int) -> None:
    check_spans(data, _to_depth(block), axis, exact=True)


def test_a_part_of_a_block_is_not_made() -> None:
    with pytest.raises(GrainError, match="multiples of 2"):
        _to_space("DCR").piece(2, 0, 3)


def test_channels_made_of_channels_or_rows_that_lie_apart_are_refused() -> None:
    with pytest.raises(IndivisibleError, match="made of channels that lie apart"):
        _to_space("DCR").piece(1, 0, 1)
    with pytest.raises(IndivisibleError, match="made of rows that lie apart"):
        _to_depth().piece(1, 0, 1)
