"""Tables of which only rows are read: what a run may look up is there, nothing else is, and nothing stays."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.adapters.resident import resident
from hyps.adapters.tables import Table
from hyps.errors import PlanError
from hyps.formats.plan import FileRef, StreamedWeight

Array = np.ndarray[Any, Any]


def table_of(folder: Path, rows: Array, *, before: int = 0, after: int = 0) -> Table:
    """Return a table of a file in which something lies before and after it."""
    data = b"\xff" * before + rows.tobytes() + b"\xff" * after
    (folder / "w").write_bytes(data)
    weight = StreamedWeight(
        path="w", offset=before, nbytes=rows.nbytes, dtype=str(rows.dtype), shape=rows.shape, looked_up_by=("i", "j")
    )
    return Table(folder, FileRef(path="w", sha256="0" * 64, nbytes=len(data)), weight)


def numbered(count: int, width: int) -> Array:
    return np.arange(1, count * width + 1, dtype=np.int64).reshape(count, width)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300),
    width=st.sampled_from([1, 3, 100, 511, 512, 513, 2000]),
    before=st.sampled_from([0, 8, 4096, 4104, 12_280]),
    after=st.sampled_from([0, 1, 5000]),
    data=st.data(),
)
def test_rows_that_are_named_are_there(
    count: int, width: int, before: int, after: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = numbered(count, width)
    indices = np.array(data.draw(st.lists(st.integers(-count, count - 1), max_size=20)), np.int64)
    table = table_of(tmp_path_factory.mktemp("table"), rows, before=before, after=after)

    table.read({"i": indices[::2], "j": indices[1::2]})

    assert np.array_equal(table.array[indices], rows[indices])
    table.close()


def test_only_their_pages_are_read_and_each_once(tmp_path: Path) -> None:
    rows = numbered(4096, 512)  # a page each
    table = table_of(tmp_path, rows)

    count = table.read({"i": np.array([[7, 9], [7, -1]], np.int32), "j": np.array(8)})

    assert count == 4 * 4096
    assert np.flatnonzero(table.array.any(axis=1)).tolist() == [7, 8, 9, 4095]
    table.close()


_LIMITED = """
import resource, sys
from pathlib import Path
from hyps.adapters.tables import Table
from hyps.formats.plan import FileRef, StreamedWeight
path, nbytes = Path(sys.argv[1]), 400_000_000
with path.open("wb") as file:
    file.truncate(nbytes)
resource.setrlimit(resource.RLIMIT_DATA, (200_000_000, -1))
weight = StreamedWeight(path=path.name, offset=0, nbytes=nbytes, dtype="uint8", shape=(4, nbytes // 4))
print(Table(path.parent, FileRef(path=path.name, sha256="", nbytes=nbytes), weight).array.shape)
"""


def test_a_table_may_be_larger_than_a_limit_on_private_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "w")]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    assert told.stdout == "(4, 100000000)\n"


def test_indices_beyond_the_table_read_nothing(tmp_path: Path) -> None:
    table = table_of(tmp_path, numbered(10, 512))
    assert table.read({"i": np.array([10, -11, 2**31 - 1, -(2**31)]), "j": np.array([], np.int64)}) == 0
    table.close()


def test_indices_that_are_cut_off_to_32_bits_find_their_rows(tmp_path: Path) -> None:
    rows = numbered(10, 512)
    indices = np.array([2**32 + 3, -(2**32) - 2])
    table = table_of(tmp_path, rows)

    table.read({"i": indices, "j": indices})

    narrow = indices.astype(np.int32)
    assert np.array_equal(table.array[narrow], rows[narrow])
    table.close()


def test_memory_of_rows_is_given_back(tmp_path: Path) -> None:
    table = table_of(tmp_path, numbered(8192, 512))
    before, everywhere = _resident_nbytes(), np.arange(8192)

    table.read({"i": everywhere, "j": everywhere})
    held = _resident_nbytes() - before
    table.drop()

    assert held > 30 * 2**20
    assert _resident_nbytes() - before < 2 * 2**20
    table.close()


def test_a_single_row_does_not_bring_a_huge_page(tmp_path: Path) -> None:
    table = table_of(tmp_path, numbered(8192, 512))
    before = _resident_nbytes()

    table.read({"i": np.arange(0, 8192, 512), "j": np.array([], np.int64)})

    assert _resident_nbytes() - before < 2**20
    table.close()


def _resident_nbytes() -> int:
    now = resident()
    assert now is not None
    return now.total_nbytes


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    table_of(tmp_path, numbered(10, 512)).close()
    weight = StreamedWeight(path="w", offset=0, nbytes=8, dtype="int64", shape=(1,), looked_up_by=("i",))
    with pytest.raises(PlanError, match="40960 bytes instead of 40961") as caught:
        Table(tmp_path, FileRef(path="w", sha256="0" * 64, nbytes=40961), weight)
    assert caught.value.code == "E_TAMPERED"


def test_a_file_that_is_cut_off_meanwhile_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, numbered(100, 512))
    with (tmp_path / "w").open("r+b") as file:
        file.truncate(4096 * 50)

    table.read({"i": np.array([49]), "j": np.array([0])})
    with pytest.raises(PlanError) as caught:
        table.read({"i": np.array([50]), "j": np.array([0])})

    assert caught.value.code == "E_TAMPERED"
    table.close()
