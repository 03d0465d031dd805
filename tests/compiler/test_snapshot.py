"""Files that change while they are read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyps.errors import ExecutionError, ModelError
from hyps_compiler.snapshot import Stamp, chunks, stamp, unchanged


def stamped(path: Path) -> Stamp:
    with path.open("rb") as file:
        return stamp(path, file.fileno())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w"
    path.write_bytes(b"0123")
    os.utime(path, ns=(10**18, 10**18))
    return path


def rewrite(path: Path) -> None:
    path.write_bytes(b"3210")


def lengthen(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"4")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"0123")
    os.utime(other, ns=(10**18, 10**18))
    other.rename(path)


def rewrite_in_secret(path: Path) -> None:
    rewrite(path)
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("change", [rewrite, lengthen, replace, rewrite_in_secret, Path.unlink])
def test_a_change_is_noticed(file: Path, change: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match="changed while it was read") as caught, unchanged([stamped(file)]):
        change(file)
    assert caught.value.code == "E_CHANGED"


def test_reading_is_no_change(file: Path) -> None:
    with unchanged([stamped(file)]):
        assert file.read_bytes() == b"0123"


def fail_after(change: Callable[[Path], object], path: Path) -> None:
    change(path)
    raise ExecutionError("the answers differ")


def test_what_went_wrong_because_of_a_change_is_called_so(file: Path) -> None:
    with pytest.raises(ModelError, match="changed"), unchanged([stamped(file)]):
        fail_after(rewrite, file)


def test_what_went_wrong_without_a_change_stays_what_it_is(file: Path) -> None:
    with pytest.raises(ExecutionError, match="differ"), unchanged([stamped(file)]):
        raise ExecutionError("the answers differ")


def test_a_file_that_grows_is_not_followed(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        taken = stamp(file, descriptor)
        lengthen(file)
        read = chunks(descriptor, taken)
        assert next(read) == b"0123"
        with pytest.raises(ModelError, match="changed"):
            next(read)
    finally:
        os.close(descriptor)
