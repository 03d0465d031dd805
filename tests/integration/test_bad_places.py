"""Outputs appear whole or not at all: full disks, closed doors, signals, and processes that are shot."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from command_fixtures import SCRIPTS, Finished, Running, run_command, snapshot, started
from model_fixtures import floats, model_of
from plan_fixtures import mlp

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def run_on_mount(folder: Path, options: str, argv: str) -> Finished:
    """Run a command beside a small file system at `mnt`, in a mount namespace that ends with the command."""
    (folder / "mnt").mkdir()
    script = f"mount -t tmpfs -o {options} tmpfs mnt && exec {argv}"
    finished = run_command(["unshare", "--mount", "sh", "-c", script], folder, PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    if finished.status == 32 or "unshare failed" in finished.stderr:
        pytest.skip(f"this machine does not let us mount: {finished.stderr.strip()}")
    return finished


def small_model(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(mlp(8, 16, 4, batch=1).whole())
    return path


def large_model(path: Path, layers: int, width: int) -> None:
    """Write dense layers of `width` squared weights each."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((width, width), np.float32) / width for i in range(layers)}
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(layers)]
    model = model_of(nodes, [floats("t0", 1, width)], [floats(f"t{layers}", 1, width)], weights)
    path.write_bytes(model.SerializeToString())


@needs_root
def test_a_read_only_place_is_refused_before_work(tmp_path: Path) -> None:
    here = tmp_path / "here"
    small_model(here)
    finished = run_on_mount(here, "ro", "hypsc compile model.onnx -o mnt/plan")
    assert finished.status == 1
    assert "the folder of `mnt/plan` is not writable [E_PERMISSION]" in finished.error
    assert "-o" in finished.hint


@needs_root
@pytest.mark.parametrize(
    ("room", "optimize"),
    [
        ("64k", "portable"),
        ("6m", "none"),
        pytest.param("3m", "none", marks=pytest.mark.slow),
        pytest.param("3m", "portable", marks=pytest.mark.slow),
        pytest.param("64k", "none", marks=pytest.mark.slow),
        pytest.param("6m", "portable", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_said(tmp_path: Path, room: str, optimize: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    large_model(here / "model.onnx", layers=4, width=512)
    compiling = f"hypsc compile model.onnx -o mnt/plan --optimize {optimize} --cut all"
    finished = run_on_mount(here, f"size={room}", f"sh -c '{compiling}; echo $? > status; ls -A mnt > left'")
    assert (here / "status").read_text() == "1\n", finished.stderr
    assert "there is no room left to write `mnt/plan` [E_DISKFULL]" in finished.error
    assert "another disk" in finished.hint
    assert (here / "left").read_text() == ""


def test_force_replaces_a_plan_whole(tmp_path: Path) -> None:
    here = tmp_path / "here"
    small_model(here)
    compiling = ["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all"]
    assert run_command(compiling, here).status == 0
    (here / "plan" / "notes.txt").write_text("of the old plan")
    before = snapshot(here)
    refused = run_command(compiling, here)
    assert (refused.status, "--force" in refused.hint) == (1, True)
    assert snapshot(here) == before
    assert run_command([*compiling, "--force"], here).status == 0
    assert not (here / "plan" / "notes.txt").exists()
    assert sorted(os.listdir(here)) == ["model.onnx", "plan"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    here = tmp_path / "here"
    small_model(here)
    (here / "plan").mkdir()
    assert run_command(["hypsc", "compile", "model.onnx", "-o", "plan/"], here).status == 0
    assert (here / "plan" / "plan.json").exists()


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted [E_INTERRUPTED]"), (signal.SIGTERM, 143, "terminated [E_TERMINATED]")],
)
@pytest.mark.parametrize("moment_s", [0.3, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_signal_midway_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int, word: str, moment_s: float
) -> None:
    check_signal(tmp_path, number, status, word, moment_s, layers=10)


@pytest.mark.slow
@pytest.mark.parametrize("moment_s", [0.1, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_midway_in_a_large_compile(tmp_path: Path, number: signal.Signals, moment_s: float) -> None:
    word = "interrupted [E_INTERRUPTED]" if number == signal.SIGINT else "terminated [E_TERMINATED]"
    check_signal(tmp_path, number, 128 + number, word, moment_s, layers=132)


def check_signal(tmp_path: Path, number: signal.Signals, status: int, word: str, moment_s: float, layers: int) -> None:
    here, temporary = tmp_path / "here", tmp_path / "tmp"
    here.mkdir()
    temporary.mkdir()
    large_model(here / "model.onnx", layers=layers, width=1024)
    before = snapshot(tmp_path)
    argv = ["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all", "--memory", "900MB"]
    with started(argv, here, TMPDIR=str(temporary)) as running:
        wait_until_working(here, running)
        time.sleep(moment_s)
        os.killpg(running.process.pid, number)  # as a terminal does: to the child that measures memory too
        finished = running.finish()
    assert finished.status == status, finished.stderr
    assert finished.stderr == f"error: {word}\n"
    assert snapshot(tmp_path) == before
    assert not finished.has_orphans


def test_what_a_killed_compile_left_is_removed_by_the_next(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    large_model(here / "model.onnx", layers=10, width=1024)
    argv = ["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all"]
    with started(argv, here) as running:
        wait_until_working(here, running)
        running.process.send_signal(signal.SIGKILL)
        assert running.finish().status == -signal.SIGKILL
    assert len(os.listdir(here)) == 2
    assert run_command(argv, here).status == 0
    assert sorted(os.listdir(here)) == ["model.onnx", "plan"]


def wait_until_working(here: Path, running: Running, inside: str = "") -> None:
    """Wait until the command has made its folder of work, or one in it."""
    for _ in range(2000):
        if any((path / inside).exists() for path in here.glob(".plan.tmp-*")):
            return
        time.sleep(0.005)
    raise AssertionError(f"no folder of work: {running.stderr_so_far()}")


def test_the_smallest_memory_that_is_told_is_enough(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    large_model(here / "model.onnx", layers=2, width=1024)
    refused = run_command(["hypsc", "compile", "model.onnx", "-o", "plan", "--memory", "3MB"], here)
    assert refused.status == 3
    assert "[E_INFEASIBLE]" in refused.error
    assert "--memory 3.00 MB" in refused.error
    told = re.search(r"--memory (\d+MB)", refused.hint)
    assert told is not None, refused.hint
    done = run_command(["hypsc", "compile", "model.onnx", "-o", "plan", "--memory", told[1]], here)
    assert done.status == 0, done.stderr
    answered = run_command(["hypsc", "run", "plan"], here)
    assert answered.status == 0, answered.stderr


@pytest.mark.parametrize("changed", ["model.onnx", pytest.param("w.bin", marks=pytest.mark.slow)])
def test_a_model_that_changes_while_it_is_compiled_makes_no_plan(tmp_path: Path, changed: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    large_model(here / "model.onnx", layers=8, width=1024)
    onnx.save(onnx.load(here / "model.onnx"), here / "model.onnx", save_as_external_data=True, location="w.bin")
    with started(["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all"], here) as running:
        wait_until_working(here, running, "stage0")
        with (here / changed).open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(first)  # the same byte: what has been written to may have been read half
        finished = running.finish()
    assert finished.status == 1
    assert f"`{changed}` changed while it was read [E_CHANGED]" in finished.error
    assert sorted(os.listdir(here)) == ["model.onnx", "w.bin"]


def test_files_that_the_plan_does_not_name_are_never_read(tmp_path: Path) -> None:
    here = tmp_path / "here"
    small_model(here)
    compiling = ["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all"]
    assert run_command(compiling, here).status == 0
    answer = ["hypsc", "run", "plan", "-o", "y.npz"]
    assert run_command(answer, here).status == 0
    before = (here / "y.npz").read_bytes()
    parts = here / "plan" / "partitions"
    (parts / "a000.onnx").write_bytes(b"no model")
    (parts / "p000.onnx.data").symlink_to("/etc/passwd")
    os.mkfifo(parts / "zzz.onnx")  # whoever opens it waits for ever
    (here / "plan" / "report.html").write_text("a report that was put beside it")
    assert run_command([*answer, "--force"], here).status == 0
    assert (here / "y.npz").read_bytes() == before
    verified = run_command(["hypsc", "verify", "plan", "--model", "model.onnx"], here)
    assert (verified.status, verified.stderr) == (0, "")
    assert run_command(["hypsc", "inspect", "plan"], here).status == 0


STRANGE_NAMES = ["a\x1b[31mb\nc", "../../etc/passwd", "nul\0", "\u202egnp.exe"]


@pytest.mark.parametrize(
    "names",
    [
        STRANGE_NAMES,
        pytest.param([f"{'p' * 100_000}{i}" for i in range(4)], marks=pytest.mark.slow),
        pytest.param(["n" * 5_000_000, "m"], marks=pytest.mark.slow),
    ],
    ids=["strange", "equal beginnings", "long"],
)
def test_strange_names_compile_and_are_never_printed_raw(tmp_path: Path, names: list[str]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    nodes = [
        helper.make_node("Gemm", [source, "w"], [name], name=name)
        for source, name in zip(["x", *names[:-1]], names, strict=True)
    ]
    weights = {"w": np.eye(4, dtype=np.float32)}
    model = model_of(nodes, [floats("x", 1, 4)], [floats(names[-1], 1, 4)], weights)
    (here / "model.onnx").write_bytes(model.SerializeToString())
    commands = (
        ["hypsc", "compile", "model.onnx", "-o", "plan", "--cut", "all"],
        ["hypsc", "inspect", "model.onnx"],
        ["hypsc", "inspect", "plan"],
        ["hypsc", "run", "plan"],
        ["hypsc", "verify", "plan", "--model", "model.onnx"],
    )
    for argv in commands:
        finished = run_command(argv, here)
        assert (finished.status, finished.stderr) == (0, "")
        assert all(len(line) <= 80 for line in finished.stdout.splitlines())
        assert all(c.isprintable() or c == "\n" for c in finished.stdout)
    files = sorted(str(path.relative_to(here / "plan")) for path in (here / "plan").rglob("*") if path.is_file())
    assert [f for f in files if re.fullmatch(r"partitions/.*\.onnx", f)] == [
        f"partitions/p{i:03d}.onnx" for i in range(len(names))
    ]
    others = [f for f in files if not re.fullmatch(r"partitions/p\d+\.onnx|forms/[0-9a-f]{16}\.onnx", f)]
    assert others == ["partitions/shared.weights", "plan.json"]
