"""Output folders and files: whole or not at all."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hyps.errors import ModelError, OutputError
from hyps_compiler.output import OutputFolder, check_apart, check_output_file, output_file, scratch_folder


def make(
    path: Path, content: str = "new", *, force: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> None:
    with OutputFolder(path, force=force) as target:
        folder = target.scratch("made")
        (folder / "plan.json").write_text(content)
        meanwhile()
        target.publish(folder)


def fail(error: BaseException) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


def test_the_folder_appears_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "plan")
    assert os.listdir(tmp_path) == ["plan"]
    assert (tmp_path / "plan" / "plan.json").read_text() == "new"


def test_an_existing_plan_needs_force(tmp_path: Path) -> None:
    make(tmp_path / "plan", "old")
    with pytest.raises(OutputError, match="not empty") as caught:
        make(tmp_path / "plan")
    assert (caught.value.code, "--force" in caught.value.hint) == ("E_EXISTS", True)
    make(tmp_path / "plan", force=True)
    assert (tmp_path / "plan" / "plan.json").read_text() == "new"


def test_force_never_replaces_what_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="something else than a plan"):
        make(tmp_path / "home", force=True)
    assert os.listdir(tmp_path / "home") == ["thesis.tex"]


def test_a_plan_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def be_faster() -> None:
        (tmp_path / "plan").mkdir()
        (tmp_path / "plan" / "plan.json").write_text("faster")

    with pytest.raises(OutputError, match="not empty"):
        make(tmp_path / "plan", meanwhile=be_faster)
    assert (tmp_path / "plan" / "plan.json").read_text() == "faster"
    assert os.listdir(tmp_path) == ["plan"]


class Stop(BaseException):
    """What a signal raises."""


@pytest.mark.parametrize("error", [Stop(), ValueError("x"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_work_fails(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "plan", "old")
    with pytest.raises(type(error)):
        make(tmp_path / "plan", force=True, meanwhile=fail(error))
    assert os.listdir(tmp_path) == ["plan"]
    assert (tmp_path / "plan" / "plan.json").read_text() == "old"


def test_a_signal_between_the_two_renames_loses_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "plan", "old")
    rename, calls = os.rename, []

    def stop_at_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise Stop
        rename(source, target)

    with pytest.raises(Stop):
        make(tmp_path / "plan", force=True, meanwhile=lambda: monkeypatch.setattr("os.rename", stop_at_second))
    assert (tmp_path / "plan" / "plan.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["plan"]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_goes_and_what_it_set_aside_comes_back(tmp_path: Path) -> None:
    left = tmp_path / f".plan.tmp-{dead_process()}"
    (left / "replaced").mkdir(parents=True)
    (left / "replaced" / "plan.json").write_text("old")
    (left / "made").mkdir()
    with pytest.raises(OutputError, match="not empty"):
        make(tmp_path / "plan")
    assert os.listdir(tmp_path) == ["plan"]
    assert (tmp_path / "plan" / "plan.json").read_text() == "old"


def test_what_belongs_to_others_stays(tmp_path: Path) -> None:
    running = tmp_path / f".plan.tmp-{os.getppid()}"
    other = tmp_path / f".plan2.tmp-{dead_process()}"
    for folder in (running, other):
        folder.mkdir()
    make(tmp_path / "plan")
    assert sorted(os.listdir(tmp_path)) == sorted([running.name, other.name, "plan"])


def test_scratch_of_the_dead_goes_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, dead = tmp_path / f"hyps-{dead_process()}-abcdefg_", dead_process()
    linked, locked = (tmp_path / f"hyps-{dead}-{name}" for name in ("linklink", "lockhold"))
    elsewhere = tmp_path / f"hyps-{dead}-elsewhere"
    kept = [tmp_path / f"hyps-{os.getppid()}-abcdefgh", tmp_path / f"xhyps-{dead}-abcdefgh", elsewhere, locked]
    for folder in (stale, *kept):
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
    linked.symlink_to(elsewhere)
    (tmp_path / f"hyps-{dead}-aaaafile").write_bytes(b"")
    (stale / "out").symlink_to(elsewhere)
    holder = os.open(locked, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)  # as a process does whose number is another one's here
    try:
        with scratch_folder() as scratch:
            assert scratch.name.startswith(f"hyps-{os.getpid()}-")
            assert not stale.exists()
            with scratch_folder():
                assert scratch.exists()
    finally:
        os.close(holder)
    assert linked.is_symlink()
    assert (tmp_path / f"hyps-{dead}-aaaafile").exists()
    assert all((folder / "weights").exists() for folder in kept)
    assert len(os.listdir(tmp_path)) == len(kept) + 2


def test_a_name_with_wildcards_is_a_name(tmp_path: Path) -> None:
    other = tmp_path / f".pa.tmp-{dead_process()}"
    other.mkdir()
    make(tmp_path / "p[a]")
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, "p[a]"])


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "E_DISKFULL"), (errno.EROFS, "E_PERMISSION")])
def test_what_the_system_refuses_is_said(tmp_path: Path, number: int, code: str) -> None:
    with pytest.raises(OutputError) as caught, OutputFolder(tmp_path / "plan", force=False):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code


def test_an_error_about_another_file_is_not_taken_for_one_about_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), OutputFolder(tmp_path / "plan", force=False):
        (tmp_path / "gone").read_bytes()


def test_a_model_that_onnxruntime_refuses_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ModelError), OutputFolder(tmp_path / "plan", force=False):
        raise ModelError("onnxruntime refuses the model")


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    with output_file(path) as beside:
        beside.write_text("answer")
        assert not path.exists()
    assert path.read_text() == "answer"
    assert os.listdir(tmp_path) == ["y.npz"]


@pytest.mark.parametrize("error", [Stop(), OSError(errno.ENOSPC, "full")])
def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "y.npz"
    path.write_text("old")
    with pytest.raises((Stop, OutputError)), output_file(path) as beside:
        write_half(beside, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["y.npz"]


def write_half(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


def test_a_place_for_a_file_is_checked_before_work(tmp_path: Path) -> None:
    (tmp_path / "y.npz").touch()
    check_output_file(tmp_path / "new.npz", force=False)
    check_output_file(tmp_path / "y.npz", force=True)
    for path, force in ((tmp_path / "y.npz", False), (tmp_path, True), (tmp_path / "a" / "y.npz", True)):
        with pytest.raises(OutputError):
            check_output_file(path, force=force)


class TestApart:
    @pytest.mark.parametrize("output", ["m.keras", "soft", "hard", "linked/m.keras", "./x/../m.keras"])
    def test_a_file_is_not_replaced_by_what_is_made_of_it(self, tmp_path: Path, output: str) -> None:
        (tmp_path / "m.keras").write_bytes(b"model")
        (tmp_path / "x").mkdir()
        (tmp_path / "soft").symlink_to("m.keras")
        (tmp_path / "hard").hardlink_to(tmp_path / "m.keras")
        (tmp_path / "linked").symlink_to(tmp_path)
        with pytest.raises(OutputError, match="is read and would be lost"):
            check_apart(tmp_path / output, None, tmp_path / "m.keras")

    def test_nothing_is_made_in_or_around_what_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "plan" / "saved").mkdir(parents=True)
        with pytest.raises(OutputError, match=r"lies in .* stays as it is"):
            check_apart(tmp_path / "plan" / "saved" / "new" / "m.onnx", tmp_path / "plan" / "saved")
        with pytest.raises(OutputError, match=r"holds .* would be lost"):
            check_apart(tmp_path / "plan", tmp_path / "plan" / "saved")

    @pytest.mark.parametrize("source", ["zoo:digits", "gone.onnx", "there.onnx", "a\0b", "x" * 300])
    def test_another_name_is_let_through(self, tmp_path: Path, source: str) -> None:
        (tmp_path / "there.onnx").touch()
        check_apart(tmp_path / "there.onnx2", tmp_path / source)

    def test_the_folder_to_make_is_quoted_for_the_shell(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError) as caught:
            check_output_file(tmp_path / "Ausgabe Ordner" / "x.onnx", force=False)
        assert caught.value.hint.endswith("Ausgabe Ordner'")
