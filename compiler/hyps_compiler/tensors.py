"""Whether the tensors of a model hold what they say: types, dimensions, bytes, positions of sparse values."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import SparseTensorProto, TensorProto

from hyps.errors import ModelError, printable

_EXPORT_AGAIN = "export the model again"
_MOST_ELEMENTS = 2**62
_DTYPES = frozenset(kind.value for kind in ir.DataType)
_INDEX_DTYPES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8})
_LONG_FIELDS: Mapping[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
"""Where a tensor's values lie that has no raw bytes, and how many entries one takes; `int32_data` for all others."""


def check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor of no known type, or whose dimensions are impossible or do not match its data.

    Raises:
        ModelError: as said (`E_TENSOR`).
    """
    name = printable(tensor.name)
    if any(size < 0 for size in tensor.dims):
        raise _error(f"tensor `{name}` has the negative dimension {min(tensor.dims)}")
    if tensor.data_type not in _DTYPES:
        message = f"tensor `{name}` is of element type {tensor.data_type}, which onnx {onnx.__version__} does not know"
        raise ModelError(message, "export it for an older version, or upgrade onnx and onnxruntime", "E_TENSOR")
    if is_external(tensor) or tensor.data_type == TensorProto.UNDEFINED:
        return
    expected = tensor_nbytes(tensor)
    if tensor.HasField("raw_data"):
        if expected is not None and len(tensor.raw_data) != expected:
            raise _error(
                f"tensor `{name}` holds {len(tensor.raw_data)} bytes"
                f" and its shape {shape(tensor.dims)} needs {expected}"
            )
        return
    field, found, needed = _listed(tensor)
    if found != needed:
        raise _error(
            f"tensor `{name}` holds {found} values in `{field}` and its shape {shape(tensor.dims)} needs {needed}"
        )


def check_sparse(sparse: SparseTensorProto) -> None:
    """Refuse a sparse tensor whose values lie outside it, twice at one place or in no order; its halves are sound.

    Raises:
        ModelError: as said (`E_TENSOR`), or its positions lie in another file (`E_EXTERNAL`).
    """
    name, dims = printable(sparse.values.name), sparse.dims
    if any(size < 0 for size in dims):
        raise _error(f"sparse tensor `{name}` has the negative dimension {min(dims)}")
    if is_external(sparse.indices):
        message = f"the positions of sparse tensor `{name}` lie in another file, where they cannot be checked"
        raise ModelError(message, "export the model without external data for them", "E_EXTERNAL")
    if sparse.indices.data_type not in _INDEX_DTYPES:
        raise _error(f"the positions of sparse tensor `{name}` are no whole numbers")
    count = count_elements(sparse.values.dims)
    indices = sparse.indices.dims
    if len(sparse.values.dims) != 1 or list(indices) not in ([count], [count, len(dims)]):
        raise _error(
            f"sparse tensor `{name}` has values of shape {shape(sparse.values.dims)} at positions of {shape(indices)}"
        )
    positions = _linear(onnx.numpy_helper.to_array(sparse.indices), dims)
    if positions is None or (len(positions) and int(positions[-1]) >= count_elements(dims)):
        raise _error(f"sparse tensor `{name}` has a value outside its shape {shape(dims)}")
    if len(positions) and (int(positions[0]) < 0 or bool(np.any(positions[1:] <= positions[:-1]))):
        raise _error(f"the positions of sparse tensor `{name}` are not in ascending order")


def is_external(tensor: TensorProto) -> bool:
    """Return whether the tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def tensor_nbytes(tensor: TensorProto) -> int | None:
    """Return the bytes that a tensor's shape and element type take; None for strings."""
    return shape_nbytes(tensor.dims, tensor.data_type)


def shape_nbytes(dims: Sequence[int], data_type: int) -> int | None:
    """Return the bytes of a tensor; None for strings and unknown types."""
    if data_type not in _DTYPES or data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    return -(-count_elements(dims) * _stored_bits(data_type) // 8)


def _stored_bits(data_type: int) -> int:
    """Return the bits of one element in a file: those of 4 and 2 bits share a byte, those of 6 bits do not."""
    bits = ir.DataType(data_type).bitwidth
    return 8 if bits == 6 else bits


def count_elements(dims: Sequence[int]) -> int:
    """Return the number of elements; no more than is impossible anyway, so that a stranger's dims cost no time."""
    if 0 in dims:
        return 0
    count = 1
    for size in dims:
        count *= size
        if count > _MOST_ELEMENTS:
            return _MOST_ELEMENTS
    return count


def shape(dims: Sequence[int]) -> str:
    """Return dimensions for people."""
    return " x ".join(map(str, dims[:8])) or "scalar"


def _listed(tensor: TensorProto) -> tuple[str, int, int]:
    """Return the field in which the tensor lists its values, how many entries that has, and how many it needs."""
    field, each = _LONG_FIELDS.get(tensor.data_type, ("int32_data", 1))
    needed = count_elements(tensor.dims) * each
    if tensor.data_type != TensorProto.STRING and _stored_bits(tensor.data_type) < 8:
        needed = -(-needed * _stored_bits(tensor.data_type) // 8)
    return field, len(getattr(tensor, field)), needed


def _linear(indices: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", dims: Sequence[int]) -> "np.ndarray | None":
    """Return positions as offsets into the dense tensor; None where a coordinate lies outside."""
    if indices.ndim == 1:
        return indices.astype(np.int64)
    if count_elements(dims) >= _MOST_ELEMENTS:
        return None
    offsets = np.zeros(len(indices), np.int64)
    for axis, size in enumerate(dims):
        column = indices[:, axis].astype(np.int64)
        if bool(np.any((column < 0) | (column >= size))):
            return None
        offsets = offsets * size + column
    return offsets


def _error(message: str) -> ModelError:
    return ModelError(message, _EXPORT_AGAIN, "E_TENSOR")
