"""The model file: what it is, whether it may be read, and where its weights lie."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from hyps.errors import ModelError, printable
from hyps_compiler.wellformed import check_model, check_tensor, tensor_nbytes

_GIVE_ONNX = "give the path of an .onnx file"
_EXPORT_ONNX = "export the model to ONNX with the tool that made it"
_OTHER_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file with `git lfs pull`"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive, perhaps of PyTorch or Keras",
        "export the model to ONNX; name a Keras file .keras",
    ),
    (0, b"\x80\x02", "a Python pickle, perhaps of PyTorch", "export the model with `torch.onnx.export`"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x89PNG", "a PNG picture", _GIVE_ONNX),
    (0, b"\xff\xd8\xff", "a JPEG picture", _GIVE_ONNX),
    (0, b"\x89HDF", "an HDF5 file, perhaps of an old Keras", "load it with Keras and save it with the suffix .keras"),
    (0, b"<!doctype html", "a web page", "download the file itself, not the page about it"),
    (0, b"<html", "a web page", "download the file itself, not the page about it"),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT_ONNX),
    (4, b"ORTM", "a model in onnxruntime's own format", _EXPORT_ONNX),
)
"""Offset, first bytes, what such a file is, and what to do then."""

_EXPORT_AGAIN = "export the model again"
_TRUNCATED = "the data file is truncated or belongs to another model: copy it again"
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
    made: dict[str, str]
    """Name of each value that a node of the graph makes to that node's name, in the order of the file."""
    initializer_inputs: tuple[str, ...]
    """Inputs with a default value, which onnxruntime may not fold: an IR version of 4 or newer."""


def open_source(path: Path) -> Source:
    """Read and check a model file.

    Raises:
        ModelError: missing, empty, truncated, another format, no model that could be run (see `check_model`), or with
            external data that is missing, too short, or outside the model's folder.
    """
    _check_name(path)
    _check_file(path)
    proto = read_proto(path)
    check_model(proto, _shown(path))
    for tensor in tensors(proto):
        check_tensor(tensor)
    data = sorted({_external_file(path, tensor) for tensor in tensors(proto) if is_external(tensor)})
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    defaults = tuple(value.name for value in proto.graph.input if value.name in given)
    return Source(
        path=path,
        name=path.stem,
        sha256=files_digest([path, *data]),
        nbytes=sum(file.stat().st_size for file in (path, *data)),
        ir_version=proto.ir_version,
        opset={opset.domain or "ai.onnx": opset.version for opset in proto.opset_import},
        outputs=tuple(value.name for value in proto.graph.output),
        made={name: node.name for node in proto.graph.node for name in node.output if name},
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
        raise ModelError(f"{_shown(path)} holds no graph, so it is no ONNX model", _GIVE_ONNX, code="E_NOT_ONNX")
    return proto


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that the model holds, wherever a stranger may have hidden it."""
    graphs = [proto.graph]
    for info in proto.training_info:
        graphs += [info.initialization, info.algorithm]
    for graph in graphs:
        yield from _graph_tensors(graph)
    for function in proto.functions:
        yield from _attribute_tensors(function.attribute_proto)
        for node in function.node:
            yield from _attribute_tensors(node.attribute)


def is_external(tensor: TensorProto) -> bool:
    """Return whether the tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def _check_name(path: Path) -> None:
    text = os.fspath(path)
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise ModelError(f"the name {_shown(path)} is no UTF-8, which onnxruntime needs", "rename it", "E_NAME")


def _check_file(path: Path) -> None:
    head = _read_head(path)
    if not head:
        raise ModelError(f"{_shown(path)} is empty, not an ONNX model", "export or copy it again", code="E_NOT_ONNX")
    text = head.lstrip().lower()
    for offset, magic, what, hint in _OTHER_FORMATS:
        found = text.startswith(magic) if magic.startswith(b"<") else head.startswith(magic, offset)
        if found:
            raise ModelError(f"{_shown(path)} is {what}, not an ONNX model", hint, code="E_NOT_ONNX")


def _read_head(path: Path) -> bytes:
    """Return the first bytes of a file; what is no plain file is not opened: a fifo would make us wait."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            hint = "give an .onnx file, or a folder that `hypsc compile` or TensorFlow's SavedModel wrote"
            raise ModelError(f"{_shown(path)} is a folder, not a model file", hint, code="E_NOT_A_FILE")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{_shown(path)} is no plain file", _GIVE_ONNX, code="E_NOT_A_FILE")
        with path.open("rb") as file:
            return file.read(512)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "give the path of an .onnx file, or zoo:NAME"
        raise ModelError(f"{_shown(path)} does not exist", hint, code="E_NOT_FOUND") from error
    except OSError as error:
        raise ModelError(f"{_shown(path)} cannot be read: {error.strerror}", _GIVE_ONNX, "E_PERMISSION") from error


def _external_file(path: Path, tensor: TensorProto) -> Path:
    """Return the file that holds the tensor's data, after checking that it may be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, name = entries.get("location", ""), printable(tensor.name)
    parts = PurePosixPath(location).parts
    if not parts:
        raise _external_error(f"tensor `{name}` has its data in a file that it does not name")
    shown = f"the external data `{printable(location)}` of tensor `{name}`"
    if location.startswith("/") or "\\" in location or "\0" in location or ".." in parts:
        raise _external_error(f"{shown} lies outside the model's folder")
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise _external_error(f"{shown} is reached through a link")
    try:
        status = file.stat()
    except OSError as error:
        raise ModelError(f"{shown} is missing", f"put it beside {_shown(path)}", code="E_EXTERNAL_MISSING") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise _external_error(f"{shown} is no plain file of its own")
    _check_extent(entries, tensor, shown, status.st_size)
    return file


def _check_extent(entries: dict[str, str], tensor: TensorProto, shown: str, available: int) -> None:
    offset = _whole_number(entries.get("offset", "0"))
    length = _whole_number(entries["length"]) if "length" in entries else available - (offset or 0)
    if offset is None or length is None:
        raise _external_error(f"{shown} has an offset or length that is no whole number", _EXPORT_AGAIN)
    needed = tensor_nbytes(tensor)
    if needed is not None and (length < needed or (length > needed and "length" in entries)):
        raise _external_error(f"{shown} has {max(length, 0)} bytes, and the tensor's shape needs {needed}", _TRUNCATED)
    if length < 0 or offset + length > available:
        raise _external_error(f"{shown} reaches to byte {offset + length} of a file of {available}", _TRUNCATED)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _external_error(message: str, hint: str = "") -> ModelError:
    """Return a refusal; a file elsewhere is refused because a stranger's model could read any file with it."""
    return ModelError(message, hint or "copy the data beside the model and name it there", code="E_EXTERNAL")


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    """Yield the tensors in attributes, whatever type these claim to be of."""
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in (*sparse, *attribute.sparse_tensors):
            yield from (tensor.values, tensor.indices)
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            yield from _graph_tensors(graph)


def files_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _shown(path: Path) -> str:
    return f"`{printable(os.fspath(path), 200)}`"
