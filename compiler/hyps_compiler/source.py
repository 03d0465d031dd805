"""The model file: what it is, whether it may be read, and where its weights lie."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from hyps.errors import ModelError, printable
from hyps.formats.quantities import format_nbytes
from hyps_compiler.convert.conversion import Conversion
from hyps_compiler.external import read_external
from hyps_compiler.limits import MOST_FILE_NBYTES, MOST_GRAPHS_DEEP, MOST_TENSOR_NBYTES, too_deep
from hyps_compiler.sizes import check_sizes
from hyps_compiler.snapshot import CHUNK_NBYTES, Stamp, stamp
from hyps_compiler.tensors import check_sparse, check_tensor, is_external
from hyps_compiler.walk import sparse_tensors, tensors
from hyps_compiler.wellformed import check_model
from hyps_compiler.wire import nests_deeper

_GIVE_ONNX = "give the path of an .onnx file"
_EXPORT_ONNX = "export the model to ONNX with the tool that made it"
_NAME_IT = "a file that can be converted is told by its name: .keras, .pt2, .pt, .skops, .pkl"
_OTHER_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file with `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive, perhaps of Keras, PyTorch or skops", _NAME_IT),
    (0, b"\x80\x02", "a Python pickle, perhaps of PyTorch", _NAME_IT),
    (0, b"\x80\x04", "a Python pickle, perhaps of scikit-learn", _NAME_IT),
    (0, b"\x80\x05", "a Python pickle, perhaps of scikit-learn", _NAME_IT),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x89PNG", "a PNG picture", _GIVE_ONNX),
    (0, b"\xff\xd8\xff", "a JPEG picture", _GIVE_ONNX),
    (0, b"\x89HDF", "an HDF5 file, perhaps of Keras", "name a Keras model in it .h5"),
    (0, b"<!doctype html", "a web page", "download the file itself, not the page about it"),
    (0, b"<html", "a web page", "download the file itself, not the page about it"),
    (4, b"TFL3", "a TensorFlow Lite model", "name it .tflite"),
    (4, b"ORTM", "a model in onnxruntime's own format", _EXPORT_ONNX),
)
"""Offset, first bytes, what such a file is, and what to do then."""

_HEAD_NBYTES = 512


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
    is_packed: bool = False
    """Whether nodes that widen its weights are to stay, which onnxruntime would otherwise fold into wider weights."""
    stamps: tuple[Stamp, ...] = ()
    """The state of the file and its external data when they were checked."""
    conversion: Conversion | None = None
    """How the file was made of another one; None where it was not."""


def open_source(path: Path, *, max_tensor_nbytes: int = MOST_TENSOR_NBYTES) -> Source:
    """Read and check a model file, and the files in which its weights lie.

    Args:
        path: of the file.
        max_tensor_nbytes: most bytes that a tensor may take that the model computes, where that can be told beforehand.

    Raises:
        ModelError: missing, empty, truncated, another format, larger than protobuf can hold, no model that could be run
            (see `check_model`), one that would take all memory (see `check_sizes`), with external data that is missing,
            too short, or outside the model's folder, or changed by someone meanwhile (`E_CHANGED`).
    """
    _check_name(path)
    digest = hashlib.sha256()
    with _opened(path) as descriptor:
        taken = stamp(path, descriptor)
        _check_file(path, taken.nbytes, os.pread(descriptor, _HEAD_NBYTES, 0))
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(taken.nbytes)
        taken.check(os.fstat(descriptor))
    digest.update(data)
    proto = _parsed(data, path)
    del data
    check_model(proto, _shown(path))
    for tensor in tensors(proto):
        check_tensor(tensor)
    for sparse in sparse_tensors(proto):
        check_sparse(sparse)
    stamps = (taken, *read_external(path, filter(is_external, tensors(proto)), digest))
    check_sizes(proto, max_tensor_nbytes)
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    defaults = tuple(value.name for value in proto.graph.input if value.name in given)
    return Source(
        path=path,
        name=path.stem,
        sha256=digest.hexdigest(),
        nbytes=sum(file.nbytes for file in stamps),
        ir_version=proto.ir_version,
        opset={opset.domain or "ai.onnx": opset.version for opset in proto.opset_import},
        outputs=tuple(value.name for value in proto.graph.output),
        made={name: node.name for node in proto.graph.node for name in node.output if name},
        initializer_inputs=defaults if proto.ir_version >= 4 else (),
        stamps=stamps,
    )


def read_proto(path: Path) -> ModelProto:
    """Return the model without its external data.

    Raises:
        ModelError: the file is no ONNX model.
    """
    return _parsed(path.read_bytes(), path)


def _parsed(data: bytes, path: Path) -> ModelProto:
    try:
        proto = ModelProto.FromString(data)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        if nests_deeper(data, MOST_GRAPHS_DEEP):
            raise too_deep(_shown(path)) from error
        raise ModelError(
            f"{_shown(path)} is truncated or no ONNX model",
            "export it again, or convert it with `hypsc convert`",
            code="E_NOT_ONNX",
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{_shown(path)} holds no graph, so it is no ONNX model", _GIVE_ONNX, code="E_NOT_ONNX")
    return proto


def _check_name(path: Path) -> None:
    text = os.fspath(path)
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise ModelError(f"the name {_shown(path)} is no UTF-8, which onnxruntime needs", "rename it", "E_NAME")


def _check_file(path: Path, nbytes: int, head: bytes) -> None:
    if not head:
        raise ModelError(f"{_shown(path)} is empty, not an ONNX model", "export or copy it again", code="E_NOT_ONNX")
    text = head.lstrip().lower()
    for offset, magic, what, hint in _OTHER_FORMATS:
        found = text.startswith(magic) if magic.startswith(b"<") else head.startswith(magic, offset)
        if found:
            raise ModelError(f"{_shown(path)} is {what}, not an ONNX model", hint, code="E_NOT_ONNX")
    if nbytes > MOST_FILE_NBYTES:
        raise ModelError(
            f"{_shown(path)} has {format_nbytes(nbytes)}, more than the 2 GiB that protobuf can hold",
            "export it with external data: its weights in a file beside it",
            code="E_LIMIT",
        )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a plain file; what is none is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "give the path of an .onnx file, or zoo:NAME"
        raise ModelError(f"{_shown(path)} does not exist", hint, code="E_NOT_FOUND") from error
    except OSError as error:
        code = "E_NOT_A_FILE" if error.errno == errno.ENXIO else "E_PERMISSION"
        raise ModelError(f"{_shown(path)} cannot be read: {error.strerror}", _GIVE_ONNX, code) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            hint = "give an .onnx file, or a folder that `hypsc compile` or TensorFlow's SavedModel wrote"
            raise ModelError(f"{_shown(path)} is a folder, not a model file", hint, code="E_NOT_A_FILE")
        if not stat.S_ISREG(mode):
            raise ModelError(f"{_shown(path)} is no plain file", _GIVE_ONNX, code="E_NOT_A_FILE")
        yield descriptor
    except OSError as error:
        raise ModelError(f"{_shown(path)} cannot be read: {error.strerror}", _GIVE_ONNX, "E_PERMISSION") from error
    finally:
        os.close(descriptor)


def files_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_NBYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _shown(path: Path) -> str:
    return f"`{printable(os.fspath(path), 200)}`"
