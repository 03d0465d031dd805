"""Normalizations over what lies around an element: pieces are spans of the whole."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import OneNode
from division_windows import check_spans, node_of, values
from hyps_passes.division.rule import GrainError, IndivisibleError

SHAPE = (3, 6, 5, 7)


def _instances() -> OneNode:
    rng = np.random.default_rng(1)
    return node_of("InstanceNormalization", {"x": values(rng, SHAPE), "s": values(rng, (6,)), "b": values(rng, (6,))})


def _groups(opset: int) -> OneNode:
    rng = np.random.default_rng(2)
    count = 6 if opset >= 21 else 3
    inputs = {"x": values(rng, SHAPE), "s": values(rng, (count,)), "b": values(rng, (count,))}
    return node_of("GroupNormalization", inputs, opset=opset, num_groups=3)


def _neighbours() -> OneNode:
    return node_of("LRN", {"x": values(np.random.default_rng(3), SHAPE)}, size=3, alpha=0.5, beta=0.75, bias=1.5)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(0, 1))
def test_pieces_of_an_instance_normalization_are_spans_of_it(data: st.DataObject, axis: int) -> None:
    check_spans(data, _instances(), axis)


@pytest.mark.parametrize("opset", [18, 21])
@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(0, 1))
def test_pieces_of_a_group_normalization_are_spans_of_it(opset: int, data: st.DataObject, axis: int) -> None:
    check_spans(data, _groups(opset), axis)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from([0, 2, 3]))
def test_pieces_of_a_response_normalization_are_spans_of_it(data: st.DataObject, axis: int) -> None:
    check_spans(data, _neighbours(), axis)


def test_a_part_of_a_group_is_not_normalized_by_itself() -> None:
    with pytest.raises(GrainError, match="multiples of 2"):
        _groups(21).piece(1, 0, 3)


@pytest.mark.parametrize(
    ("one", "axis", "reason"),
    [
        (_instances, 2, "InstanceNormalization needs all of axis 2"),
        (lambda: _groups(21), 3, "GroupNormalization needs all of axis 3"),
        (_neighbours, 1, "LRN needs channels around those it makes"),
    ],
)
def test_an_axis_that_is_summed_over_is_refused(one: Callable[[], OneNode], axis: int, reason: str) -> None:
    with pytest.raises(IndivisibleError, match=reason):
        one().piece(axis, 0, 2)
