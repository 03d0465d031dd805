"""Plan folders: what is refused before anything is loaded."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hyps.adapters.machine import cpu_family
from hyps.adapters.plan_files import check_cpu, check_files, read_plan
from hyps.errors import PlanError
from hyps.formats.plan import Plan
from plan_fixtures import mlp, write_plan_file

MODEL = "partitions/v0.onnx"
WEIGHTS = "partitions/v0.onnx.data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mlp(4, 4, 4).write(tmp_path / "plan")
    return tmp_path / "plan"


def refusal(call: Callable[[], object]) -> PlanError:
    with pytest.raises(PlanError) as caught:
        call()
    return caught.value


def checked(folder: Path) -> None:
    check_files(folder, read_plan(folder))


def test_a_plan_is_read_and_its_files_are_whole(folder: Path) -> None:
    plan = read_plan(folder)
    assert [partition.id for partition in plan.partitions] == ["v0", "v1"]
    check_files(folder, plan)
    check_files(str(folder), plan, ["v1"], drop_cache=True)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_plan_folder_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "plan"
    if kind == "file":
        path.write_text("x")
    if kind == "empty":
        path.mkdir()
    assert refusal(lambda: read_plan(path)).code == "E_NO_PLAN"


def test_a_plan_file_that_is_a_link_or_a_folder_is_refused(folder: Path) -> None:
    (folder / "plan.json").rename(folder / "real.json")
    (folder / "plan.json").symlink_to("real.json")
    assert refusal(lambda: read_plan(folder)).code == "E_PATH"
    (folder / "plan.json").unlink()
    (folder / "plan.json").mkdir()
    assert refusal(lambda: read_plan(folder)).code == "E_PATH"


@pytest.mark.parametrize("path", [MODEL, WEIGHTS])
def test_every_altered_byte_is_found(folder: Path, path: str) -> None:
    data = bytearray((folder / path).read_bytes())
    for position in range(0, len(data), max(1, len(data) // 50)):
        data[position] ^= 1
        (folder / path).write_bytes(data)
        error = refusal(lambda: checked(folder))
        assert error.code == "E_TAMPERED"
        assert f"`{path}`" in error.message
        data[position] ^= 1


@pytest.mark.parametrize("nbytes", [2**18 - 1, 2**18, 3 * 2**18 + 1])
def test_the_last_byte_of_a_large_file_counts(nbytes: int, tmp_path: Path) -> None:
    """Files are hashed piece by piece."""
    mlp(4, 4, 4).write(tmp_path)
    plan, data = read_plan(tmp_path), bytes(nbytes)
    (tmp_path / MODEL).write_bytes(data)
    part = msgspec.structs.replace(plan.partitions[0], sha256=hashlib.sha256(data).hexdigest())
    grown = msgspec.structs.replace(plan, partitions=(part, *plan.partitions[1:]))
    check_files(tmp_path, grown)
    (tmp_path / MODEL).write_bytes(data[:-1] + b"\1")
    assert refusal(lambda: check_files(tmp_path, grown)).code == "E_TAMPERED"


def test_a_wrong_length_is_said(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    assert "65 bytes instead of 64" in refusal(lambda: checked(folder)).message


def test_swapped_partitions_are_found(folder: Path) -> None:
    one, other = folder / MODEL, folder / "partitions/v1.onnx"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert refusal(lambda: checked(folder)).code == "E_TAMPERED"


def _symlink(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real").name)


def _hardlink(path: Path) -> None:
    os.link(path, path.with_suffix(".other"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_symlink, _hardlink, _fifo, _folder])
@pytest.mark.parametrize("path", [MODEL, WEIGHTS])
def test_only_plain_files_of_the_folder_are_taken(folder: Path, path: str, spoil: Callable[[Path], None]) -> None:
    spoil(folder / path)
    error = refusal(lambda: checked(folder))
    assert error.code in ("E_PATH", "E_TAMPERED")
    assert f"`{path}`" in error.message


def test_a_linked_folder_on_the_way_is_refused(folder: Path) -> None:
    (folder / "partitions").rename(folder / "elsewhere")
    (folder / "partitions").symlink_to("elsewhere")
    assert refusal(lambda: checked(folder)).code == "E_PATH"


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    error = refusal(lambda: checked(folder))
    assert error.code == "E_MISSING"
    assert f"`{WEIGHTS}`" in error.message


def test_only_the_files_of_the_given_partitions_are_looked_at(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    check_files(folder, read_plan(folder), ["v1"])
    assert refusal(lambda: check_files(folder, read_plan(folder), ["v0"])).code == "E_MISSING"


def test_a_path_that_leaves_the_folder_is_refused(folder: Path) -> None:
    plan = read_plan(folder)
    outside = msgspec.structs.replace(plan.partitions[0], file="../v0.onnx")
    write_plan_file(folder, msgspec.structs.replace(plan, partitions=(outside, plan.partitions[1])))
    assert "leaves the plan folder" in refusal(lambda: read_plan(folder)).message


def test_a_native_plan_needs_its_cpu(folder: Path) -> None:
    plan = read_plan(folder)
    check_cpu(plan)
    check_cpu(native(plan, cpu_family()))
    error = refusal(lambda: check_cpu(native(plan, "m68k+fpu")))
    assert "m68k+fpu" in error.message
    assert "--optimize portable" in error.hint
    refusal(lambda: check_cpu(native(plan, None)))


def native(plan: Plan, family: str | None) -> Plan:
    return msgspec.structs.replace(plan, optimization="native", cpu_family=family)
