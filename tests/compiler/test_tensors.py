"""Tensors that hold what they say, and those that do not."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from hyps.errors import ModelError
from hyps_compiler.tensors import check_sparse, check_tensor

LISTED = [kind for kind in TensorProto.DataType.values() if kind != TensorProto.UNDEFINED]


def listed(kind: int, count: int) -> TensorProto:
    values: Any = [b"a"] * count if kind == TensorProto.STRING else [1] * count
    return helper.make_tensor("w", kind, [count], values)


@pytest.mark.parametrize("kind", LISTED, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_what_onnx_itself_makes_passes(kind: int, count: int) -> None:
    check_tensor(listed(kind, count))


@pytest.mark.parametrize("kind", LISTED, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("size", [0, 3, 16, 2**40])
def test_values_that_are_too_few_or_too_many_are_refused(kind: int, size: int) -> None:
    tensor = listed(kind, 8)
    tensor.dims[0] = size
    with pytest.raises(ModelError, match="holds") as caught:
        check_tensor(tensor)
    assert caught.value.code == "E_TENSOR"


def test_values_in_the_field_of_another_type_are_none() -> None:
    with pytest.raises(ModelError, match="holds 0 values in `float_data`"):
        check_tensor(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], int32_data=[1, 2]))


def sparse(positions: NDArray[np.generic], dims: tuple[int, ...], count: int | None = None) -> SparseTensorProto:
    values = np.ones(len(positions) if count is None else count, np.float32)
    return SparseTensorProto(
        values=numpy_helper.from_array(values, "w"), indices=numpy_helper.from_array(positions), dims=dims
    )


@pytest.mark.parametrize(
    "tensor",
    [
        sparse(np.array([0, 3, 5]), (2, 3)),
        sparse(np.array([0, 3, 5], np.int32), (6,)),
        sparse(np.array([[0, 0], [0, 2], [1, 0]]), (2, 3)),
        sparse(np.zeros(0, np.int64), (2, 3)),
        sparse(np.zeros((0, 2), np.int64), (0, 3)),
        sparse(np.array([2**40]), (2**21, 2**21)),
    ],
)
def test_a_sparse_tensor_in_order_passes(tensor: SparseTensorProto) -> None:
    check_sparse(tensor)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (sparse(np.array([6]), (2, 3)), "outside its shape 2 x 3"),
        (sparse(np.array([-1]), (2, 3)), "ascending"),
        (sparse(np.array([[0, 3]]), (2, 3)), "outside"),
        (sparse(np.array([[2, 0]]), (2, 3)), "outside"),
        (sparse(np.array([[0, -1]]), (2, 3)), "outside"),
        (sparse(np.array([[1, 0], [0, 2]]), (2, 3)), "ascending"),
        (sparse(np.array([3, 3]), (2, 3)), "ascending"),
        (sparse(np.array([0, 1]), (2, 3), 3), "values of shape 3 at positions of 2"),
        (sparse(np.array([[0], [1]]), (2, 3)), "at positions of 2 x 1"),
        (sparse(np.array([0.0]), (2, 3)), "no whole numbers"),
        (sparse(np.array([0]), (0, 3)), "outside"),
        (sparse(np.array([0]), (-2, 3)), "negative"),
        (sparse(np.array([[0, 0]]), (2**62, 2**62)), "outside"),
    ],
)
def test_a_sparse_tensor_in_disorder_is_refused(tensor: SparseTensorProto, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        check_sparse(tensor)
    assert caught.value.code == "E_TENSOR"


def test_positions_in_another_file_are_refused() -> None:
    tensor = sparse(np.array([0]), (2, 3))
    tensor.indices.ClearField("raw_data")
    tensor.indices.data_location = TensorProto.EXTERNAL
    tensor.indices.external_data.append(onnx.StringStringEntryProto(key="location", value="i.bin"))
    with pytest.raises(ModelError, match="in another file") as caught:
        check_sparse(tensor)
    assert caught.value.code == "E_EXTERNAL"
