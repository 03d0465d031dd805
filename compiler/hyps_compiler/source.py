"""The model file: what it is, whether it may be read, and where its weights lie."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from hyps.errors import ModelError, printable

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (a PyTorch or Keras file?)"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89HDF", "an HDF5 file (an old Keras model?)"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)
_CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """A model file that has passed the checks that need no runtime."""

    path: Path
    name: str
    sha256: str
    nbytes: int
    """Of the file and its external data."""
    ir_version: int
    opset: dict[str, int]
    outputs: tuple[str, ...]
    initializer_inputs: tuple[str, ...]
    """Inputs with a default value, which onnxruntime may not fold: an IR version of 4 or newer."""


def open_source(path: Path) -> Source:
    """Read and check a model file.

    Raises:
        ModelError: missing, empty, truncated, another format, without outputs, or with external data that is missing or
            lies outside the model's folder.
    """
    _check_file(path)
    proto = read_proto(path)
    if not proto.graph.output:
        raise ModelError(f"{_shown(path)} has no outputs, so there is nothing to compute", code="E_EMPTY_GRAPH")
    data = sorted({_external_file(path, tensor) for tensor in tensors(proto) if is_external(tensor)})
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    defaults = tuple(value.name for value in proto.graph.input if value.name in given)
    return Source(
        path=path,
        name=path.stem,
        sha256=_digest([path, *data]),
        nbytes=sum(file.stat().st_size for file in (path, *data)),
        ir_version=proto.ir_version,
        opset={opset.domain or "ai.onnx": opset.version for opset in proto.opset_import},
        outputs=tuple(value.name for value in proto.graph.output),
        initializer_inputs=defaults if proto.ir_version >= 4 else (),
    )


def read_proto(path: Path) -> ModelProto:
    """Return the model without its external data.

    Raises:
        ModelError: the file is no ONNX model.
    """
    try:
        proto = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            f"{_shown(path)} is truncated or no ONNX model",
            "export it again, or convert it with `hypsc convert`",
            code="E_NOT_ONNX",
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{_shown(path)} holds no graph, so it is no ONNX model", code="E_NOT_ONNX")
    return proto


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that the model holds, in nested graphs, functions and sparse tensors too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def is_external(tensor: TensorProto) -> bool:
    """Return whether the tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ModelError(f"{_shown(path)} does not exist", code="E_NOT_FOUND") from error
    except OSError as error:
        raise ModelError(f"{_shown(path)} cannot be read: {error.strerror}", code="E_PERMISSION") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{_shown(path)} is no file", "give the path of an .onnx file", code="E_NOT_A_FILE")
    if status.st_size == 0:
        raise ModelError(f"{_shown(path)} is empty, not an ONNX model", code="E_NOT_ONNX")
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ModelError(f"{_shown(path)} cannot be read: {error.strerror}", code="E_PERMISSION") from error
    if head[4:8] in (b"TFL3", b"ORTM"):
        found = "a TensorFlow Lite model" if head[4:8] == b"TFL3" else "a model in onnxruntime's own format"
        raise ModelError(f"{_shown(path)} is {found}, not an ONNX model", code="E_NOT_ONNX")
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            raise ModelError(f"{_shown(path)} is {what}, not an ONNX model", code="E_NOT_ONNX")


def _external_file(path: Path, tensor: TensorProto) -> Path:
    """Return the file that holds the tensor's data, after checking that it may be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, name = entries.get("location", ""), printable(tensor.name)
    parts = PurePosixPath(location).parts
    if not location or location.startswith("/") or "\\" in location or ".." in parts:
        raise ModelError(
            f"tensor `{name}` has its data in `{printable(location)}`, outside the model's folder", code="E_EXTERNAL"
        )
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise ModelError(f"external data `{printable(location)}` of `{name}` is a link", code="E_EXTERNAL")
    try:
        status = file.stat()
    except OSError as error:
        raise ModelError(
            f"external data file `{printable(location)}` of tensor `{name}` is missing",
            f"put it beside {_shown(path)}",
            code="E_EXTERNAL_MISSING",
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise ModelError(f"external data `{printable(location)}` of `{name}` is no plain file", code="E_EXTERNAL")
    _check_extent(entries, tensor, status.st_size)
    return file


def _check_extent(entries: dict[str, str], tensor: TensorProto, available: int) -> None:
    name = printable(tensor.name)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(available - offset)))
    except ValueError as error:
        raise ModelError(f"external data of `{name}` has an offset or length that is no number") from error
    if offset < 0 or length < 0 or offset + length > available:
        raise ModelError(
            f"external data of `{name}` reaches to byte {offset + length} of a file of {available}",
            "the data file is truncated or belongs to another model",
            code="E_EXTERNAL",
        )


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type == AttributeProto.TENSORS:
            yield from attribute.tensors
        elif attribute.type == AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        elif attribute.type == AttributeProto.GRAPH:
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _shown(path: Path) -> str:
    return f"`{printable(os.fspath(path), 200)}`"
