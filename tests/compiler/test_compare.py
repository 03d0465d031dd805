import math
from typing import Any

import numpy as np
import pytest

from hyps_compiler.compare import compare

ONES = np.ones((2, 3), np.float32)


def changed(array: Any, by: float) -> Any:
    result = array.copy()
    result[0, 0] += by
    return result


def test_equal_arrays_are_identical() -> None:
    found = compare("t", ONES, ONES.copy())
    assert found.is_identical
    assert found.is_within_tolerance
    assert (found.largest, found.relative, found.dtype) == (0.0, 0.0, "float32")


def test_a_difference_is_told_relative_to_the_largest_value() -> None:
    found = compare("t", ONES * 100, changed(ONES * 100, 0.5))
    assert not found.is_identical
    assert found.largest == pytest.approx(0.5)
    assert found.relative == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("dtype", "within", "beyond"), [("float32", 9e-6, 2e-5), ("float64", 9e-10, 2e-9), ("float16", 8e-3, 2e-2)]
)
def test_tolerance_depends_on_the_type(dtype: str, within: float, beyond: float) -> None:
    ones = np.ones((2, 3), dtype)
    assert compare("t", ones, changed(ones, within)).is_within_tolerance
    assert not compare("t", ones, changed(ones, beyond)).is_within_tolerance


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_whole_numbers_have_no_tolerance(dtype: str) -> None:
    zeros = np.zeros(3, dtype)
    other = zeros.copy()
    other[0] = 1
    assert compare("t", zeros, zeros.copy()).is_within_tolerance
    assert not compare("t", zeros, other).is_within_tolerance
    assert not compare("t", other, zeros).is_within_tolerance


def test_zero_expected_and_something_else_got() -> None:
    assert compare("t", ONES * 0, ONES * 1e-30).relative == math.inf


@pytest.mark.parametrize("actual", [ONES[:1], ONES.astype(np.float64), None, 1.0, [ONES]])
def test_another_shape_type_or_kind_is_infinitely_far(actual: Any) -> None:
    found = compare("t", ONES, actual)
    assert not found.is_identical
    assert found.relative == math.inf


def test_the_same_nan_is_equal_and_another_is_not() -> None:
    holes, other = ONES.copy(), ONES.copy()
    holes[0, 0] = other[1, 1] = np.nan
    assert compare("t", holes, holes.copy()).is_identical
    assert compare("t", holes, other).relative == math.inf
    assert compare("t", holes, ONES).relative == math.inf
    assert compare("t", ONES, holes).relative == math.inf


def test_infinities_match_by_sign_and_leave_the_scale_alone() -> None:
    large = ONES.copy()
    large[0, 0] = np.inf
    near = large.copy()
    near[1, 1] += np.float32(1e-3)
    assert compare("t", large, near).relative == pytest.approx(1e-3, rel=1e-3)
    negative = large.copy()
    negative[0, 0] = -np.inf
    assert compare("t", large, negative).relative == math.inf


def test_minus_zero_is_within_and_not_identical() -> None:
    found = compare("t", ONES * 0, ONES * -0.0)
    assert not found.is_identical
    assert found.is_within_tolerance


def test_empty_arrays() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert compare("t", empty, empty.copy()).is_identical
    assert not compare("t", empty, np.zeros((0, 4), np.float32)).is_within_tolerance


def test_strings() -> None:
    words = np.array(["a", "b"], dtype=object)
    assert compare("t", words, words.copy()).is_identical
    assert not compare("t", words, words[::-1]).is_within_tolerance


def test_sequences_take_their_worst_part() -> None:
    found = compare("t", [ONES, ONES], [ONES, changed(ONES, 0.25)])
    assert not found.is_identical
    assert found.relative == pytest.approx(0.25)
    assert compare("t", [], []).is_identical
    assert compare("t", [ONES], [ONES, ONES]).relative == math.inf


def test_maps() -> None:
    assert compare("t", {1: 0.5}, {1: 0.5}).is_identical
    assert not compare("t", {1: 0.5}, {1: 0.25}).is_within_tolerance
