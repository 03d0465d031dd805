"""What was stored comes back, room is used again, a full disk is told, and nothing is left behind."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hyps.adapters.spill_file import SpillFile, Stored
from hyps.errors import OutputError

DTYPES = ("float32", "float16", "int64", "uint8", "bool", "<U5", "complex64")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpillFile]:
    file = SpillFile(str(tmp_path))
    yield file
    file.close()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_stored_comes_back_while_others_come_and_go(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = SpillFile(str(tmp_path_factory.getbasetemp()))
    there: list[tuple[Stored, np.ndarray[Any, Any]]] = []
    for _ in range(data.draw(st.integers(1, 20))):
        is_leaving = data.draw(st.booleans())
        if is_leaving and there:
            stored, value = there.pop(data.draw(st.integers(0, len(there) - 1)))
            np.testing.assert_array_equal(file.read(stored), value)
            file.free(stored)
        else:
            shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
            value = np.random.default_rng(len(there)).integers(0, 2, shape).astype(data.draw(st.sampled_from(DTYPES)))
            there.append((file.write(value), value))
    for stored, value in there:
        found = file.read(stored)
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found, value)
    file.close()


def test_room_that_was_given_back_is_used_again(file: SpillFile) -> None:
    value = np.arange(100_000)
    first, second = file.write(value), file.write(value)
    third = file.write(value)

    file.free(first)
    file.free(second)
    large = file.write(np.arange(200_000))

    assert (large.offset, third.offset) == (0, 2 * 802_816)
    np.testing.assert_array_equal(file.read(third), value)


def test_counts_tell_what_went_both_ways(file: SpillFile) -> None:
    stored = file.write(np.zeros(1000, np.uint8))
    file.read(stored)
    file.read(stored)

    assert (file.counts.written_nbytes, file.counts.read_nbytes) == (1000, 2000)
    assert file.counts.write_s > 0
    assert file.counts.read_s > 0


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        (np.zeros((2, 3)), True),
        (np.zeros(()), True),
        (np.zeros((4, 4))[:, ::2], False),
        (np.array(["text"], object), False),
        ([np.zeros(2)], False),
    ],
)
def test_only_plain_arrays_in_one_piece_are_taken(value: Any, is_taken: bool) -> None:
    assert SpillFile.takes(value) is is_taken


def test_full_disk_is_told_and_what_was_stored_stays(file: SpillFile, tmp_path: Path) -> None:
    kept = file.write(np.arange(1000))
    with _no_file_above(100_000), pytest.raises(OutputError, match=r"is full: no room for 800 kB") as refusal:
        file.write(np.arange(100_000))

    assert refusal.value.code == "E_DISKFULL"
    assert str(tmp_path) in refusal.value.message
    np.testing.assert_array_equal(file.read(kept), np.arange(1000))
    file.read(file.write(np.arange(2000)))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no folder in memory")
def test_folder_in_memory_is_refused() -> None:
    file = SpillFile("/dev/shm")

    with pytest.raises(OutputError, match=r"`/dev/shm` lies in memory") as refusal:
        file.write(np.zeros(1))

    assert "TMPDIR" in refusal.value.hint


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"gone` fails: No such file") as refusal:
        SpillFile(str(tmp_path / "gone")).write(np.zeros(1))

    assert refusal.value.code == "E_SCRATCH"


def test_tmpdir_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))

    with pytest.raises(OutputError, match=r"gone` fails"):
        SpillFile().write(np.zeros(1))


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, numpy; from hyps.adapters.spill_file import SpillFile; file = SpillFile(sys.argv[1]);"
        "file.write(numpy.zeros(1_000_000)); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert list(tmp_path.iterdir()) == []
        process.kill()

    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _no_file_above(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
