"""Requests from files: `.npy`, `.npz` and pictures."""

import contextlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from hyps.errors import DependencyError, TensorError, printable
from hyps.formats.plan import NamedTensor
from hyps.formats.quantities import format_nbytes

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet, which most image classifiers were trained with."""

_NPY = b"\x93NUMPY"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy, zipfile and Pillow raise for a file that is not what it should be."""

Array = np.ndarray[Any, Any]


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file by name; nothing in it is unpickled.

    Raises:
        TensorError: the file is missing, no .npz file, or holds Python objects.
    """
    with _reading(path), path.open("rb") as file:
        if file.read(len(_NPY)) == _NPY:
            raise TensorError(
                f"{_shown(path)} holds one array without a name", f"give it as NAME={printable(path.name)}"
            )
        file.seek(0)
        if file.read(len(_ZIP[0])) not in _ZIP:
            raise TensorError(f"{_shown(path)} is no .npz file", "write it with `numpy.savez`")
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            return {info.filename.removesuffix(".npy"): _read_member(archive, info) for info in members}


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name to an .npz file that `read_npz` gives back; text as numpy's own, never as objects."""
    plain = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in plain.items():  # np.savez would take a tensor named `file` for its own argument
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_npy(path: Path) -> Array:
    """Return the array of an .npy file; nothing in it is unpickled.

    Raises:
        TensorError: the file is missing, no .npy file, or holds Python objects.
    """
    with _reading(path), path.open("rb") as file:
        if file.read(len(_ZIP[0])) in _ZIP:
            raise TensorError(
                f"{_shown(path)} is an .npz file, in which arrays have names", f"give it as `-i {printable(path.name)}`"
            )
        file.seek(0)
        return _read_array(file, path.stat().st_size, _shown(path))


def read_image(path: Path, tensor: NamedTensor) -> Array:
    """Return a picture as the model's input wants it: its size, layout and dtype.

    Float inputs get values scaled by ImageNet's mean and deviation (three channels) or to 0..1 (one); integer inputs
    get 0..255.

    Raises:
        DependencyError: Pillow is not installed.
        TensorError: the input takes no picture, or the file is none.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError("pictures need Pillow, which is not installed", 'pip install "hyps[image]"') from error
    channels, height, width, channels_first = _picture_layout(tensor)
    with _reading(path):
        try:
            with Image.open(path) as picture:
                fitted = picture.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise TensorError(f"{_shown(path)} is no picture that Pillow can read") from error
    pixels: Array = np.asarray(fitted, dtype=np.float32).reshape(height, width, channels)
    if np.dtype(tensor.dtype).kind == "f":
        pixels = pixels / np.float32(255)
        if channels == 3:
            pixels = (pixels - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    laid_out = pixels.transpose(2, 0, 1) if channels_first else pixels
    return np.ascontiguousarray(laid_out[np.newaxis]).astype(tensor.dtype)


def _picture_layout(tensor: NamedTensor) -> tuple[int, int, int, bool]:
    shape = tensor.shape or ()
    if len(shape) == 4 and tensor.dtype != "string":
        for first in (True, False):
            channels, height, width = (shape[1], shape[2], shape[3]) if first else (shape[3], shape[1], shape[2])
            if channels in (1, 3):
                sizes = [size if isinstance(size, int) else 224 for size in (height, width)]
                return channels, sizes[0], sizes[1], first
    raise TensorError(f"input `{printable(tensor.name)}` takes no picture", "give it as NAME=file.npy")


def _text(array: Array) -> Array:
    """Return text as the objects that onnxruntime takes."""
    return array.astype(object) if array.dtype.kind == "U" else array


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        return _read_array(member, info.file_size, f"`{printable(info.filename)}`")


def _read_array(file: IO[bytes], nbytes: int, shown: str) -> Array:
    """Return the array in an open .npy file of `nbytes`, after checking that it can be there."""
    start = file.read(len(_NPY) + 2)
    if not start.startswith(_NPY):
        raise TensorError(f"{shown} is no .npy file", "write it with `numpy.save`")
    read_header = np.lib.format.read_array_header_1_0 if start[-2] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise TensorError(f"{shown} holds Python objects, which are not unpickled", "save numbers or `numpy.str_`")
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize > nbytes:  # before numpy allocates what a header of 128 bytes asks for
        raise TensorError(
            f"{shown} says it holds {format_nbytes(count * dtype.itemsize)} and has {format_nbytes(nbytes)}"
        )
    file.seek(0)
    return _text(np.lib.format.read_array(file, allow_pickle=False))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes its readers raise into one sentence."""
    try:
        if path.exists() and not path.is_file():
            raise TensorError(f"{_shown(path)} is no file")  # a fifo would make us wait
        yield
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> TensorError:
    if isinstance(error, FileNotFoundError):
        return TensorError(f"{_shown(path)} does not exist", code="E_NOT_FOUND")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
    return TensorError(f"{_shown(path)} cannot be read: {printable(reason or type(error).__name__)}")


def _shown(path: Path) -> str:
    return f"`{printable(str(path), 200)}`"
