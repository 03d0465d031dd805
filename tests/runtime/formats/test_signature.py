"""Names, element types and shapes against what a plan declares."""

import pytest

from hyps.errors import TensorError
from hyps.formats.plan import NamedTensor
from hyps.formats.signature import assumed_shapes, check_names, check_outputs, check_tensor, growth, shape_text

IMAGE = NamedTensor(name="image", dtype="float32", shape=("batch", 3, None, 8))


def refusal(dtype: str, shape: tuple[int, ...], dims: dict[str, int] | None = None) -> str:
    with pytest.raises(TensorError) as caught:
        check_tensor(IMAGE, dtype, shape, {} if dims is None else dims)
    return caught.value.message


def test_a_tensor_as_declared_is_taken_and_fixes_its_dimensions() -> None:
    dims: dict[str, int] = {}
    check_tensor(IMAGE, "float32", (2, 3, 99, 8), dims)
    assert dims == {"batch": 2}


def test_expected_and_given_are_both_said() -> None:
    assert refusal("float64", (2, 3, 9, 8)) == "`image` must be float32 and is float64"
    expected = "`image` must have the shape batch x 3 x ? x 8 and has "
    assert refusal("float32", (2, 4, 9, 8)) == expected + "2 x 4 x 9 x 8"
    assert refusal("float32", (3, 9, 8)) == expected + "3 x 9 x 8"
    assert refusal("float32", ()) == expected + "scalar"


def test_a_symbolic_dimension_has_one_size_in_a_request() -> None:
    assert refusal("float32", (2, 3, 9, 8), {"batch": 5}) == "`image` has 2 for dimension `batch`, which is 5 elsewhere"


def test_an_unknown_rank_takes_any_shape() -> None:
    check_tensor(NamedTensor(name="x", dtype="int64", shape=None), "int64", (1, 2, 3), {})


def test_unknown_and_missing_names_are_listed() -> None:
    other = NamedTensor(name="mask", dtype="bool", shape=())
    with pytest.raises(TensorError, match="no input `imgae`") as caught:
        check_names([IMAGE, other], ["imgae", "mask"])
    assert caught.value.hint == "the inputs are `image`, `mask`"
    with pytest.raises(TensorError, match="input `mask` is missing"):
        check_names([IMAGE, other], ["image"])
    with pytest.raises(TensorError, match="no input `x`") as caught:
        check_names([], ["x"])
    assert caught.value.hint == "there are no inputs"


def test_unknown_outputs_are_refused() -> None:
    check_outputs([IMAGE], ["image", "image"])
    with pytest.raises(TensorError, match="no output `y`"):
        check_outputs([IMAGE], ["image", "y"])


def test_names_from_strangers_are_made_printable() -> None:
    with pytest.raises(TensorError) as caught:
        check_names([IMAGE], ["\x1b[31m" + "x" * 10_000])
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


def test_shapes_are_written_for_people() -> None:
    assert shape_text(()) == "scalar"
    assert shape_text((1, "n", None)) == "1 x n x ?"


@pytest.mark.parametrize(
    ("shape", "assumed", "times"),
    [
        ((2, 8), (2, 8), 1.0),
        ((1, 4), (2, 8), 1.0),
        ((6, 8), (2, 8), 3.0),
        ((6, 16), (2, 8), 6.0),
        ((1, 32), (2, 8), 4.0),  # half as many rows make up for nothing
        ((3,), (0,), 3.0),
    ],
)
def test_a_tensor_grows_along_each_axis_by_itself(
    shape: tuple[int, ...], assumed: tuple[int, ...], times: float
) -> None:
    assert growth(shape, assumed) == times


def test_assumed_shapes_are_those_that_are_known_in_full() -> None:
    inputs = [
        NamedTensor(name="a", dtype="float32", shape=("n", 3, None)),
        NamedTensor(name="b", dtype="float32", shape=("unknown", 3)),
        NamedTensor(name="c", dtype="float32", shape=None),
    ]
    assert assumed_shapes(inputs, {"n": 4, "a:2": 5}) == {"a": (4, 3, 5)}
