"""Arrays against what the plan declares."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hyps.adapters.feeds import Feeds, dtype_name, nbytes_of, numpy_dtype
from hyps.errors import TensorError
from hyps.formats.plan import NamedTensor

FEEDS = Feeds(
    [
        NamedTensor(name="x", dtype="float32", shape=("batch", 2)),
        NamedTensor(name="mask", dtype="bool", shape=("batch",)),
        NamedTensor(name="scale", dtype="float32", shape=()),
    ]
)


def good() -> dict[str, Any]:
    return {"x": np.zeros((3, 2), np.float32), "mask": np.ones(3, bool), "scale": np.float32(2)}


def test_arrays_as_declared_pass_and_scalars_become_arrays() -> None:
    checked = FEEDS.checked(good())
    assert list(checked) == ["x", "mask", "scale"]
    assert isinstance(checked["scale"], np.ndarray)
    assert checked["scale"].shape == ()


def test_the_quick_way_passes_the_same_arrays() -> None:
    fixed = Feeds([NamedTensor(name="x", dtype="float32", shape=(3, 2))])
    given = {"x": good()["x"]}
    assert fixed.checked(given)["x"] is given["x"]
    assert fixed.checked(given) is not given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 2))}, "must be float32 and is float64"),
        ({"x": np.zeros((3, 2), ">f4")}, "must be float32 and is >f4"),
        ({"x": np.zeros((2, 2), np.float32)}, "`mask` has 3 for dimension `batch`, which is 2 elsewhere"),
        ({"x": [[1.0, 2.0]]}, "must be a numpy array and is a list"),
        ({"x": None}, "must be a numpy array and is a NoneType"),
        ({"extra": np.zeros(1)}, "no input `extra`"),
    ],
)
def test_what_is_not_as_declared_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TensorError, match=message.replace("?", r"\?")):
        FEEDS.checked({**good(), **change})


def test_the_quick_way_refuses_too() -> None:
    fixed = Feeds([NamedTensor(name="x", dtype="float32", shape=(3, 2))])
    for feeds in ({}, {"x": np.zeros((3, 2))}, {"x": np.zeros((2, 3), np.float32)}, {**good()}):
        with pytest.raises(TensorError):
            fixed.checked(feeds)


def test_strings_are_arrays_of_str_however_numpy_keeps_them() -> None:
    feeds = Feeds([NamedTensor(name="s", dtype="string", shape=(None,))])
    for array in (np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        assert feeds.checked({"s": array})["s"] is array
    for wrong in (np.array([b"a"]), np.array([1, "a"], object), np.array([1])):
        with pytest.raises(TensorError, match="must be string"):
            feeds.checked({"s": wrong})


def test_what_numpy_cannot_express_is_left_to_onnxruntime() -> None:
    sequence = [np.zeros(2), np.zeros(3)]
    declared = NamedTensor(name="q", dtype="seq(tensor(double))", shape=None)
    assert Feeds([declared]).checked({"q": sequence})["q"] is sequence


def test_names_of_element_types() -> None:
    assert dtype_name(np.zeros(1, np.float16)) == "float16"
    assert dtype_name(np.zeros(1, object)) == "object"
    assert numpy_dtype("string") is None
    assert numpy_dtype("nonsense") is None


def test_bytes_of_sequences_and_maps_are_summed() -> None:
    assert nbytes_of([np.zeros(2), {"a": np.zeros(3), "b": 1.0}]) == 40


def test_a_type_that_numpy_lacks_becomes_a_value_of_onnxruntime() -> None:
    feeds = Feeds([NamedTensor(name="b", dtype="bfloat16", shape=("n", 2))])
    values = np.array([[1.5, -2]], np.float32).astype(ml_dtypes.bfloat16)
    given = feeds.checked({"b": values})["b"]
    assert (given.data_type(), given.shape()) == ("tensor(bfloat16)", [1, 2])
    assert feeds.checked({"b": given})["b"] is given
    with pytest.raises(TensorError, match="must be bfloat16 and is float32"):
        feeds.checked({"b": values.astype(np.float32)})
    with pytest.raises(TensorError, match="must have the shape n x 2"):
        feeds.checked({"b": values.T})
