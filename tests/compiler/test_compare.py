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


def test_what_differs_is_counted_over_all_pieces_of_a_large_tensor() -> None:
    large = np.zeros(2**20 + 5, np.float32)
    large[0] = 4.0
    other = large.copy()
    other[1] += 1.0
    other[-1] += 2.0
    found = compare("t", large, other)
    assert (found.different, found.elements, found.largest, found.relative) == (2, 2**20 + 5, 2.0, 0.5)
    assert found.shape == large.shape


def test_large_integers_are_not_rounded() -> None:
    """As float64 the two would be equal."""
    for dtype in ("int64", "uint64"):
        value = np.array([2**53, 1], dtype)
        found = compare("t", value, value + np.array([1, 0], dtype))
        assert (found.is_identical, found.is_within_tolerance, found.largest, found.different) == (False, False, 1.0, 1)
    ends = np.array([-(2**63), 2**63 - 1], np.int64)
    assert compare("t", ends, ends[::-1]).largest == float(2**64 - 1)
    assert compare("t", ends, ends + np.array([1, 0])).relative == pytest.approx(2.0**-63)


def test_nan_payloads_differ_in_bits_and_not_in_value() -> None:
    quiet, other = np.array([0x7FC00000, 0x3F800000], np.uint32), np.array([0x7FC00001, 0x3F800000], np.uint32)
    found = compare("t", quiet.view(np.float32), other.view(np.float32))
    assert (found.is_identical, found.is_within_tolerance, found.different, found.problem) == (False, True, 1, "")


@pytest.mark.parametrize(
    ("expected", "actual", "says"),
    [
        ([1.0, 2.0], [np.nan, np.nan], "has NaN in 2 elements where the model has none"),
        ([1.0, np.nan], [1.0, 2.0], "has no NaN in 1 element where the model has it"),
        ([1.0, np.inf], [1.0, -np.inf], "is infinite in 1 element where the model is not, or the other way round"),
        ([1.0, 2.0], [1.0, np.inf], "is infinite in 1 element where the model is not, or the other way round"),
        ([np.inf, 2.0], [np.nan, np.nan], "has NaN in 2 elements where the model has none"),
        ([1.0, 2.0], [[1.0, 2.0]], "has the shape 1 x 2 instead of 2"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_differences_that_are_no_number_are_described(expected: Any, actual: Any, says: str, dtype: str) -> None:
    with np.errstate(all="ignore"):
        found = compare("t", np.array(expected, dtype), np.array(actual, dtype))
    assert (found.problem, found.relative, found.is_within_tolerance) == (says, math.inf, False)
    assert str(found) == says


def test_another_type_is_described() -> None:
    assert compare("t", ONES, ONES.astype(np.float64)).problem == "is float64 instead of float32"
    assert compare("t", ONES, None).problem == "is missing"
    assert compare("t", ONES, [ONES]).problem == "is a sequence instead of a tensor"
    assert compare("t", None, ONES).problem == "is a tensor instead of no value"


def test_optionals_without_a_value() -> None:
    assert compare("t", None, None).is_identical
    assert not compare("t", None, ONES).is_within_tolerance
    assert compare("t", [None, ONES], [None, ONES]).is_identical
    assert not compare("t", [None, ONES], [ONES, ONES]).is_within_tolerance


def test_bfloat16_and_other_small_floats() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    ones = ONES.astype(ml_dtypes.bfloat16)
    assert compare("t", ones, ones.copy()).is_identical
    near, far = changed(ones, 0.0625), changed(ones, 0.5)
    assert compare("t", ones, near).is_within_tolerance
    assert compare("t", ones, far).relative == pytest.approx(0.5)
    assert not compare("t", ones, far).is_within_tolerance
    assert compare("t", ones, (ones * ml_dtypes.bfloat16(np.nan))).problem.startswith("has NaN in 6 elements")
    small = ONES.astype(ml_dtypes.float8_e4m3fn)
    assert compare("t", small, small.copy()).is_identical
    assert not compare("t", small, changed(small, 0.125)).is_within_tolerance


def test_bfloat16_as_raw_bits_has_no_tolerance() -> None:
    raw = np.array([0x3F80, 0x7FC0], np.uint16)
    assert compare("t", raw, raw.copy()).is_identical
    assert not compare("t", raw, raw + np.array([1, 0], np.uint16)).is_within_tolerance


def test_arrays_that_are_not_contiguous() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert compare("t", wide.T, wide.T.copy()).is_identical
    assert compare("t", wide.T, np.ascontiguousarray(wide.T) + np.float32(1)).different == 12
    assert compare("t", np.array(2.0), np.array(3.0)).relative == 0.5


def test_text_is_text_however_numpy_holds_it() -> None:
    words = np.array(["a", "bcd"], dtype=object)
    assert compare("t", words, np.array(["a", "bcd"])).is_identical
    assert compare("t", words, np.array([b"a", b"bcd"], dtype=object)).is_identical
    found = compare("t", words, np.array(["a", "bc"]))
    assert (found.problem, found.different) == ("has another text in 1 of 2 elements", 1)
    assert compare("t", words, np.zeros(2, np.float32)).problem == "is float32 instead of string"


def test_the_worst_part_is_one_beyond_its_tolerance() -> None:
    """A float that is 1e-7 off is nearer in numbers than an integer that is 1 of a million off, and right."""
    floats = ONES + np.float32(2e-7) * 1
    close = np.array([10**8], np.int64)
    found = compare("t", [ONES, close], [ONES * np.float32(1 + 2e-6), close + 1])
    assert not found.is_within_tolerance
    assert found.dtype == "int64"
    assert compare("t", [ONES], [floats]).is_within_tolerance


def test_maps_hold_floats_as_onnxruntime_gives_them() -> None:
    value = float(np.float32(0.1))
    near = float(np.nextafter(np.float32(0.1), np.float32(1)))
    assert compare("t", {"a": value}, {"a": value}).is_identical
    found = compare("t", {"a": value}, {"a": near})
    assert not found.is_identical
    assert found.is_within_tolerance
    assert compare("t", {"a": float("nan")}, {"a": float("nan")}).is_identical
    assert compare("t", [{"a": value}], [{"b": value}]).problem == "part 0 has other keys"
    assert compare("t", {"a": value}, {"a": 1}).problem.startswith("key 'a' is int64")
    assert compare("t", {}, {}).is_identical


def test_differences_beyond_what_floats_hold_make_no_warning() -> None:
    huge = np.array([1e308, -1e308])
    assert compare("t", huge, -huge).largest == math.inf
    tiny = np.array([5e-324])
    assert compare("t", tiny, np.array([1.0])).relative == math.inf


def test_a_difference_from_zeros_is_told_as_it_is() -> None:
    assert str(compare("t", ONES * 0, changed(ONES * 0, 0.5))) == "differs by 0.5 where the model has only zeros"
    assert str(compare("t", ONES * 2, changed(ONES * 2, 0.5))) == "differs by 0.25 of its largest value"
