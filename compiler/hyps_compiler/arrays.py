"""Requests from files: `.npy`, `.npz` and pictures."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyps.errors import DependencyError, TensorError, printable
from hyps.formats.plan import NamedTensor

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet, which most image classifiers were trained with."""

Array = np.ndarray[Any, Any]


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file by name; nothing in it is unpickled.

    Raises:
        TensorError: the file is missing, no .npz file, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if isinstance(stored, np.ndarray):
                raise TensorError(f"`{printable(str(path))}` is an .npy file; give it as NAME={printable(path.name)}")
            return {name: _text(stored[name]) for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise _unreadable(path, error) from error


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
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(loaded, np.ndarray):
        raise TensorError(f"`{printable(str(path))}` is an .npz file; give it without a name")
    return _text(loaded)


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
    try:
        with Image.open(path) as picture:
            fitted = picture.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise _unreadable(path, error) from error
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


def _unreadable(path: Path, error: Exception) -> TensorError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return TensorError(f"`{printable(str(path))}` cannot be read: {printable(reason)}")
