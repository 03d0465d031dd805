"""Requests from files, as they come from strangers."""

import contextlib
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.errors import DependencyError, TensorError
from hyps.formats.plan import NamedTensor
from hyps_compiler.arrays import read_image, read_npy, read_npz, write_npz


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(3.5),
        np.zeros((0, 4), np.int64),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.arange(3, dtype=">f4"),
    ],
)
def test_an_array_comes_back(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "x.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), array)
    np.savez_compressed(tmp_path / "x.npz", x=array)
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["x"], array)


def test_what_is_written_comes_back_under_any_name(tmp_path: Path) -> None:
    arrays = {"file": np.ones(2), "a/b": np.zeros((1, 0)), "text": np.array(["é", "b"], dtype=object)}
    write_npz(tmp_path / "x.npz", arrays)
    read = read_npz(tmp_path / "x.npz")
    assert list(read) == list(arrays)
    assert read["text"].dtype == object
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    with np.load(tmp_path / "x.npz") as stored:
        assert stored.files == list(arrays)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BAD = {
    "empty": (b"", "no .npy file"),
    "text": (b"hello", "no .npy file"),
    "objects": (npy(np.array([{}], dtype=object), allow_pickle=True), "Python objects"),
    "cut": (npy(np.zeros(100))[:200], "and has 200 B"),
    "4 TiB": (header("(1099511627776,)"), "says it holds 4.40 TB and has 128 B"),
    "overflow": (header("(4294967296, 4294967296, 4294967296)"), "says it holds"),
    "negative": (header("(-1,)"), "cannot be read"),
    "no dtype": (header("(1,)", "zz"), "cannot be read"),
    "no header": (b"\x93NUMPY\x01\x00\x04\x00{{{{", "cannot be read"),
}


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_sentence(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(TensorError, match=says):
        read_npy(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(TensorError, match=r"`x\.npy` |cannot be read"):
        read_npz(tmp_path / "x.npz")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damage_anywhere_is_an_array_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, position: int, damage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for name, read in (("x.npy", read_npy), ("x.npz", read_npz)):
        if name == "x.npy":
            data = npy(np.arange(20, dtype=np.float32))
        else:
            write_npz(folder / "whole.npz", {"x": np.arange(20, dtype=np.float32)})
            data = (folder / "whole.npz").read_bytes()
        (folder / name).write_bytes(data[:position] + damage + data[position + len(damage) :])
        with contextlib.suppress(TensorError):
            read(folder / name)


def test_the_two_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(npy(np.zeros(2)))
    with pytest.raises(TensorError, match="one array without a name"):
        read_npz(tmp_path / "x")
    write_npz(tmp_path / "x", {"x": np.zeros(2)})
    with pytest.raises(TensorError, match="in which arrays have names"):
        read_npy(tmp_path / "x")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, says in ((tmp_path, "is no file"), (tmp_path / "fifo", "is no file"), (tmp_path / "x", "not exist")):
        for read in (read_npy, read_npz):
            with pytest.raises(TensorError, match=says):
                read(path)


def test_a_picture_without_pillow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DependencyError, match="Pillow") as caught:
        read_image(tmp_path / "x.png", NamedTensor(name="image", dtype="float32", shape=(1, 3, 8, 8)))
    assert "hyps[image]" in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "dtype", "low", "high"),
    [
        ((1, 3, 4, 6), "float32", -2.2, 2.7),
        (("n", 4, 6, 3), "float32", -2.2, 2.7),
        ((1, 1, 4, 6), "float32", 0, 1),
        ((1, 4, 6, 3), "uint8", 0, 255),
    ],
)
def test_a_picture_becomes_what_the_input_wants(
    tmp_path: Path, shape: tuple[int | str, ...], dtype: str, low: float, high: float
) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    image.new("RGB", (20, 10), (255, 0, 128)).save(tmp_path / "x.png")
    array = read_image(tmp_path / "x.png", NamedTensor(name="image", dtype=dtype, shape=shape))
    assert (array.shape, str(array.dtype)) == ((1, *shape[1:]), dtype)
    assert low <= array.min() <= array.max() <= high


def test_an_input_that_is_no_picture_says_so(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    with pytest.raises(TensorError, match="takes no picture"):
        read_image(tmp_path / "x.png", NamedTensor(name="tokens", dtype="int64", shape=(1, 16)))
