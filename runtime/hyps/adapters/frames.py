"""Tensors on the wire: a header in the message, and the array's own buffer as a frame; checked before numpy sees it."""

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyps.adapters.feeds import dtype_name
from hyps.errors import PeerError, TensorError, printable
from hyps.formats.dtypes import ITEM_NBYTES
from hyps.formats.messages import TensorHeader
from hyps.formats.plan import NamedTensor
from hyps.formats.signature import check_names, check_tensor

Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")
_MAX_TENSOR_NBYTES = 2**48
"""Empty dimensions counted as one: numpy refuses shapes whose other dimensions are beyond any memory."""


def to_frames(tensors: Mapping[str, Any]) -> tuple[tuple[TensorHeader, ...], list[Buffer]]:
    """Return the headers and the frames of `tensors`; a contiguous array is not copied.

    Raises:
        TensorError: a value that is no array of numbers, truth values or strings.
    """
    headers, frames = [], []
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray):
            raise TensorError(
                f"`{printable(name)}` is a {type(value).__name__}: only arrays can be sent to or from a worker"
            )
        dtype = dtype_name(value)
        frame = _strings_frame(value) if dtype == "string" else _array_frame(name, dtype, value)
        headers.append(TensorHeader(name, dtype, value.shape, len(frame)))
        frames.append(frame)
    return tuple(headers), frames


def check_frames(
    headers: Sequence[TensorHeader], frames: Sequence[Buffer], expected: Sequence[NamedTensor], what: str = "input"
) -> None:
    """Make sure that `headers` tell the `expected` tensors, and that each frame has as many bytes as its header needs.

    All in Python's own integers: nothing is allocated on a stranger's word.

    Raises:
        TensorError: another name, element type or shape than declared.
        PeerError: the frames are not those that the headers tell of (`E_PROTOCOL`).
    """
    if len(frames) != len(headers):
        raise PeerError(f"{len(headers)} tensors are announced and {len(frames)} frames came", code="E_PROTOCOL")
    names = [header.name for header in headers]
    if len(set(names)) < len(names):
        raise PeerError("a tensor is announced twice", code="E_PROTOCOL")
    check_names(expected, names, what)
    declared = {tensor.name: tensor for tensor in expected}
    dims: dict[str, int] = {}
    for header, frame in zip(headers, frames, strict=True):
        check_tensor(declared[header.name], header.dtype, header.shape, dims)
        _check_nbytes(header, len(frame))


def from_frames(headers: Sequence[TensorHeader], frames: Sequence[Buffer]) -> dict[str, Any]:
    """Return the arrays of checked frames, on the frames' own memory.

    Raises:
        PeerError: the bytes of a string tensor are no strings (`E_PROTOCOL`).
    """
    return {header.name: _array(header, frame) for header, frame in zip(headers, frames, strict=True)}


def _check_nbytes(header: TensorHeader, nbytes: int) -> None:
    count = math.prod(header.shape)
    item = _LENGTH.size if header.dtype == "string" else ITEM_NBYTES.get(header.dtype)
    if item is None:
        raise TensorError(f"`{printable(header.name)}` is {printable(header.dtype)}, which cannot be sent")
    if math.prod(max(dim, 1) for dim in header.shape) * item > _MAX_TENSOR_NBYTES:
        raise PeerError(f"`{printable(header.name)}` has an impossible shape", code="E_PROTOCOL")
    fits = nbytes >= count * item if header.dtype == "string" else nbytes == count * item
    if not fits or nbytes != header.nbytes:
        raise PeerError(
            f"`{printable(header.name)}` came with {nbytes} bytes, which its shape contradicts", code="E_PROTOCOL"
        )


def _array_frame(name: str, dtype: str, value: "np.ndarray[Any, Any]") -> Buffer:
    if dtype not in ITEM_NBYTES or sys.byteorder != "little":
        raise TensorError(f"`{printable(name)}` is {printable(dtype)}, which cannot be sent to or from a worker")
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _array(header: TensorHeader, frame: Buffer) -> "np.ndarray[Any, Any]":
    if header.dtype == "string":
        return _strings(header, frame)
    array = np.frombuffer(frame, np.dtype(header.dtype)).reshape(header.shape)
    return array if array.flags.aligned else array.copy()


def _strings_frame(value: "np.ndarray[Any, Any]") -> bytes:
    parts = []
    for text in value.flat:
        data = str(text).encode()
        parts += [_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def _strings(header: TensorHeader, frame: Buffer) -> "np.ndarray[Any, Any]":
    data, offset, texts = bytes(frame), 0, []
    try:
        for _ in range(math.prod(header.shape)):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size + length
            if offset > len(data):
                raise PeerError(f"a string of `{printable(header.name)}` is longer than its frame", code="E_PROTOCOL")
            texts.append(data[offset - length : offset].decode())
    except (struct.error, UnicodeDecodeError) as error:
        raise PeerError(f"`{printable(header.name)}` holds bytes that are no strings", code="E_PROTOCOL") from error
    if offset != len(data):
        raise PeerError(f"`{printable(header.name)}` has bytes behind its last string", code="E_PROTOCOL")
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(header.shape)
