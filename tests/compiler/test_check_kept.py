"""Plans that a check keeps: whether they are still there as it wrote them."""

from pathlib import Path

import pytest

from hyps_compiler.checking.kept import RECORD_FILE, digest_of, is_in_place, write_record
from hyps_compiler.checking.rules import CompileOptions

PART = "partitions/p000.onnx"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "net.onnx"
    (folder / "partitions").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / PART).write_bytes(b"a partition")
    write_record(folder, digest(folder), CompileOptions())
    return folder


def digest(folder: Path) -> str:
    found = digest_of(folder)
    assert found is not None
    return found


def test_a_plan_as_it_was_written_is_in_place(place: Path) -> None:
    (place / "notes.txt").write_text("of somebody")
    assert is_in_place(place, digest(place))
    assert not is_in_place(place, "another")


@pytest.mark.parametrize("name", [PART, "plan.json", RECORD_FILE])
def test_a_plan_that_lost_a_file_is_not(place: Path, name: str) -> None:
    before = digest(place)
    (place / name).unlink()
    assert not is_in_place(place, before)


def test_a_plan_with_a_file_cut_short_is_not(place: Path) -> None:
    (place / PART).write_bytes(b"a part")
    assert not is_in_place(place, digest(place))


def test_a_folder_that_is_not_there_is_no_plan(tmp_path: Path) -> None:
    assert not is_in_place(tmp_path / "absent", "digest")
