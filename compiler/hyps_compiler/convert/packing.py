"""A converted model as one file, or two where one would be too large, written without holding the weights in memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto

from hyps.errors import ModelError, printable
from hyps_compiler.convert.weights import PAGE_NBYTES
from hyps_compiler.tensors import is_external
from hyps_compiler.walk import tensors

_FILE_NBYTES = 2_000_000_000
"""The largest ONNX file without weights beside it; protobuf's own limit is 2 GiB."""

_CHUNK_NBYTES = 2**24


def pack(model: Path, target: Path, data_name: str, file_nbytes: int = _FILE_NBYTES) -> None:
    """Write a model and the weights beside it to `target`: as one file where that is small enough.

    Args:
        model: the model; its external data lies in its folder.
        target: the file to write, in the folder of `data_name`.
        data_name: the name of the file beside it, where one is needed; it then lies beside `target`.
        file_nbytes: the largest file without weights beside it.

    Raises:
        ModelError: a weight is not where the model says.
    """
    proto = ModelProto.FromString(model.read_bytes())
    pieces = [_locate(tensor, model.parent) for tensor in tensors(proto) if is_external(tensor)]
    if proto.ByteSize() + sum(piece.nbytes for piece in pieces) > file_nbytes:
        _write_beside(pieces, target.with_name(data_name))
        target.write_bytes(proto.SerializeToString())
        return
    at_top = {id(tensor) for tensor in proto.graph.initializer}
    for piece in pieces:
        _make_inline(piece.tensor)
        if id(piece.tensor) not in at_top:  # inside a node: such are small
            piece.tensor.raw_data = b"".join(piece.read())
    streamed = [piece for piece in pieces if id(piece.tensor) in at_top]
    with target.open("wb") as file:
        _write_inline(proto, streamed, file)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor whose bytes lie in a file."""

    tensor: TensorProto
    path: Path
    offset: int
    nbytes: int

    def read(self) -> Iterator[bytes]:
        """Yield the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                chunk = file.read(min(left, _CHUNK_NBYTES))
                if not chunk:
                    raise ModelError(f"the weight `{printable(self.tensor.name)}` ends too early")
                left -= len(chunk)
                yield chunk


def _locate(tensor: TensorProto, folder: Path) -> _Piece:
    place = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / os.path.basename(place["location"])  # the child writes nowhere else
    offset = int(place.get("offset", 0))
    if not path.is_file():
        raise ModelError(f"the weight `{printable(tensor.name)}` is not where the converter says")
    return _Piece(tensor, path, offset, int(place.get("length", path.stat().st_size - offset)))


def _make_inline(tensor: TensorProto) -> None:
    """Take out of a tensor where its bytes lie."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _write_beside(pieces: list[_Piece], data: Path) -> None:
    """Write all weights into one file, and into the tensors where they are in it."""
    with data.open("wb") as file:
        for piece in pieces:
            file.seek(-file.tell() % PAGE_NBYTES, 1)
            del piece.tensor.external_data[:]
            place = {"location": data.name, "offset": str(file.tell()), "length": str(piece.nbytes)}
            for key, entry in place.items():
                piece.tensor.external_data.add(key=key, value=entry)
            file.writelines(piece.read())


def _write_inline(proto: ModelProto, pieces: list[_Piece], file: IO[bytes]) -> None:
    """Write the model with the pieces' bytes in their tensors, one piece in memory at a time.

    A message in protobuf's encoding is the sequence of its fields, in any order: key, length, content.
    """
    streamed = {id(piece.tensor) for piece in pieces}
    heads = [piece.tensor.SerializeToString() for piece in pieces]
    starts = [_start(TensorProto, "raw_data", piece.nbytes) for piece in pieces]
    lengths = [len(head) + len(start) + piece.nbytes for head, start, piece in zip(heads, starts, pieces, strict=True)]
    wraps = [_start(GraphProto, "initializer", length) for length in lengths]
    kept = [tensor for tensor in proto.graph.initializer if id(tensor) not in streamed]
    graph = GraphProto()
    graph.CopyFrom(proto.graph)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rest = graph.SerializeToString()
    proto.ClearField("graph")
    file.write(proto.SerializeToString())
    file.write(_start(ModelProto, "graph", len(rest) + sum(map(len, wraps)) + sum(lengths)))
    file.write(rest)
    for wrap, head, start, piece in zip(wraps, heads, starts, pieces, strict=True):
        file.write(wrap + head + start)
        file.writelines(piece.read())


def _start(message: type[Message], field: str, nbytes: int) -> bytes:
    """Return what stands before a field of so many bytes: its key, and the length."""
    wire_type = 2  # a length, then so many bytes
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type) + _varint(nbytes)


def _varint(number: int) -> bytes:
    """Return a number in protobuf's encoding: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
