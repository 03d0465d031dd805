"""What can be seen of a source without its framework: by its name and its first bytes, and as far as zip files go."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from hyps.errors import ModelError, printable
from hyps.formats.quantities import format_nbytes

COPY_HINT = "copy it again from where it was made"
_SAVE_HINT = "save it again with `model.save(FILE)` of Keras 3"
_SAVED_MODEL = "saved_model.pb"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_UNPACKED_NBYTES = 100_000_000
_MOST_EXPANSION = 100
"""A member of an archive may be larger than the first where it is not so many times its compressed bytes."""

_GRAPH_FIELDS = (b"\x0a", b"\x12", b"\x18", b"\x22")
"""How a GraphDef may begin: nodes, functions, version, versions."""


def has_suffix(*suffixes: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a path is a file with one of these suffixes, in any case."""

    def accepts(source: Path) -> bool:
        return source.suffix.lower() in suffixes and source.is_file()

    return accepts


def may_be_graph_def(source: Path) -> bool:
    """Return whether a path is a `.pb` file that does not begin like an ONNX model, which some name so."""
    if source.suffix.lower() != ".pb" or not source.is_file():
        return False
    with source.open("rb") as file:
        return source.name == _SAVED_MODEL or file.read(1) != b"\x08"


def is_onnx(source: Path) -> bool:
    """Return whether a path is a file that is named as ONNX models are, or begins as they do under the name `.pb`."""
    if source.suffix.lower() == ".pb" and source.is_file():
        return not may_be_graph_def(source)
    return has_suffix(".onnx")(source)


def is_saved_model(source: Path) -> bool:
    """Return whether a path is a folder with a `saved_model.pb`."""
    return (source / _SAVED_MODEL).is_file()


def head(source: Path, nbytes: int = 16) -> bytes:
    """Return the first bytes of a file.

    Raises:
        ModelError: it cannot be read, or is empty.
    """
    try:
        with source.open("rb") as file:
            start = file.read(nbytes)
    except OSError as error:
        raise ModelError(f"{shown(source)} cannot be read: {error.strerror}") from error
    if not start:
        raise ModelError(f"{shown(source)} is empty", COPY_HINT)
    return start


def shown(source: Path) -> str:
    """Return a path as messages name it."""
    return f"`{printable(str(source))}`"


def check_not_empty(source: Path) -> None:
    """Refuse a file that cannot be read or is empty."""
    head(source)


def check_saved_model(source: Path) -> None:
    """Refuse a SavedModel whose graph is empty or whose variables are gone."""
    head(source / _SAVED_MODEL)
    variables = source / "variables"
    if variables.is_dir() and any(variables.glob("variables.data-*")) and not (variables / "variables.index").is_file():
        raise ModelError(f"the SavedModel {shown(source)} lacks `variables/variables.index`", COPY_HINT)


def check_graph_def(source: Path) -> None:
    """Refuse a `.pb` file that is no frozen graph: the graph of a SavedModel, text, an ONNX model."""
    start = head(source)
    if source.name == _SAVED_MODEL:
        raise ModelError(f"{shown(source)} is a part of a SavedModel", "name the folder that it lies in")
    if start[:1] not in _GRAPH_FIELDS:
        raise ModelError(
            f"{shown(source)} is no frozen TensorFlow graph: it does not begin like one",
            "if it is the graph of a SavedModel, name the folder that it lies in",
        )


def check_tflite(source: Path) -> None:
    """Refuse a file without the mark of a TensorFlow Lite model."""
    if head(source)[4:8] != b"TFL3":
        raise ModelError(f"{shown(source)} is no TensorFlow Lite model: it lacks the mark `TFL3`", COPY_HINT)


def check_hdf5(source: Path) -> None:
    """Refuse a file that is no HDF5 file."""
    start = head(source)
    if start.startswith(b"PK\x03\x04"):
        raise ModelError(f"{shown(source)} is a zip archive, not an HDF5 file", "name it .keras")
    if not start.startswith(_HDF5):
        raise ModelError(f"{shown(source)} is no Keras file: it is not an HDF5 file", COPY_HINT)


def check_keras(source: Path) -> None:
    """Refuse a file that is not the zip archive Keras 3 writes."""
    start = head(source)
    if start.startswith(_HDF5):
        raise ModelError(f"{shown(source)} is not a zip archive but an HDF5 file", "name it .h5")
    if not start.startswith(b"PK\x03\x04"):
        raise ModelError(f"{shown(source)} is no Keras file: it is not a zip archive", _SAVE_HINT)
    try:
        with zipfile.ZipFile(source) as archive:
            _refuse_bomb(archive, source)
            names = archive.namelist()
            damaged = archive.testzip()  # Keras itself may read past a wrong checksum
            config = archive.read("config.json") if damaged is None and "config.json" in names else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise ModelError(f"{shown(source)} is cut short or damaged: {error}", COPY_HINT) from error
    except OSError as error:
        raise ModelError(f"{shown(source)} cannot be read: {error.strerror}") from error
    if damaged is not None:
        raise ModelError(f"{shown(source)} is damaged: `{printable(damaged)}` in it has a wrong checksum", COPY_HINT)
    if "config.json" not in names:
        raise ModelError(f"{shown(source)} is no Keras file: the archive holds no `config.json`", _SAVE_HINT)
    if not _is_model_config(config):
        raise ModelError(f"{shown(source)} is no Keras file: its `config.json` describes no model", _SAVE_HINT)
    if not any(name.startswith("model.weights.") for name in names):
        raise ModelError(f"{shown(source)} holds no weights: there is no `model.weights.h5` in the archive", _SAVE_HINT)


def _refuse_bomb(archive: zipfile.ZipFile, source: Path) -> None:
    """Refuse an archive whose members would fill a disk: Keras stores them as they are."""
    for member in archive.infolist():
        if member.file_size > max(_UNPACKED_NBYTES, _MOST_EXPANSION * member.compress_size):
            raise ModelError(
                f"{shown(source)} is refused: `{printable(member.filename)}` in it would become"
                f" {format_nbytes(member.file_size)} from {format_nbytes(member.compress_size)}"
            )


def _is_model_config(content: bytes) -> bool:
    """Return whether the content of a `config.json` is a serialized Keras object."""
    try:
        config = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(config, dict) and {"module", "class_name"} <= config.keys()
