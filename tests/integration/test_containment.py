"""Models that crash, hang or exhaust onnxruntime, and processes that are shot: one sentence, and nothing is left."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from command_fixtures import SCRIPTS, Finished, Running, run_command, snapshot, started
from hyps.containment import remove_folder
from hyps_compiler.arrays import write_npz
from loop_fixtures import integers, looping
from model_fixtures import floats, model_of
from plan_fixtures import mlp

COMPILE = ("hypsc", "compile", "model.onnx", "-o", "out")
INSPECT = ("hypsc", "inspect", "model.onnx")
WORDS_S = 20.0


def crashing() -> onnx.ModelProto:
    """A remainder that an x86 processor refuses to compute, and nobody checks for: it dies of SIGFPE."""
    least = np.full(4, np.iinfo(np.int64).min)
    nodes = [helper.make_node("Mod", ["least", "minus_one"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    return model_of(
        nodes, [integers("x", 4)], [integers("y", 4)], {"least": least, "minus_one": np.full(4, -1, np.int64)}
    )


def expanding() -> onnx.ModelProto:
    """A tensor as large as the request asks for."""
    initializers = {"one": np.ones(1, np.float32)}
    nodes = [
        helper.make_node("Expand", ["one", "size"], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["y"], keepdims=0),
    ]
    return model_of(nodes, [integers("size", 1)], [floats("y")], initializers)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def refused(argv: tuple[str, ...], folder: Path, *, changed: bool = False) -> Finished:
    """Run a command that must end in one sentence with status 1, and leave nothing but what was there."""
    before = snapshot(folder)
    finished = run_command(argv, folder, TMPDIR=str(folder))
    assert finished.status == 1
    assert "[E_" in finished.error
    assert (snapshot(folder) == before, finished.has_orphans) == (not changed, False)
    return finished


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors compute the remainder")
@pytest.mark.parametrize("argv", [COMPILE, INSPECT])
def test_a_model_that_crashes_onnxruntime_is_one_sentence(here: Path, argv: tuple[str, ...]) -> None:
    onnx.save(crashing(), here / "model.onnx")
    finished = refused(argv, here)
    assert "onnxruntime crashed (SIGFPE) while " in finished.error
    assert finished.error.endswith("[E_CRASHED]")
    assert finished.hint


@pytest.mark.parametrize(
    ("argv", "empty_body"), [(COMPILE, False), (INSPECT, True), ((*COMPILE, "--memory", "1GB", "--json"), False)]
)
def test_a_loop_without_end_is_one_sentence(here: Path, argv: tuple[str, ...], empty_body: bool) -> None:
    onnx.save(looping(empty_body=empty_body), here / "model.onnx")
    finished = refused((*argv, "--timeout", "500ms"), here)
    assert "took longer than --timeout 500 ms while " in finished.error
    assert finished.error.endswith("[E_DEADLINE]")
    assert "--timeout" in finished.hint
    if "--json" in argv:
        assert '"code": "E_DEADLINE"' in finished.stdout


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that loops as often as it is asked to, its model, and a request without end."""
    folder = tmp_path_factory.mktemp("asked")
    onnx.save(looping(empty_body=True, trips=None), folder / "model.onnx")
    write_npz(folder / "endless.npz", {"x": np.ones((1, 4), np.float32), "trips": np.array(2**62)})
    assert run_command(COMPILE, folder).status == 0
    return folder


@pytest.mark.parametrize(
    "argv",
    [
        ("hypsc", "run", "out", "-i", "endless.npz"),
        ("hypsc", "verify", "out", "--model", "model.onnx", "--inputs", "endless.npz"),
        ("hypsc", "compile", "model.onnx", "-o", "other", "--inputs", "endless.npz"),
    ],
)
def test_a_request_without_end_is_one_sentence(asked: Path, argv: tuple[str, ...]) -> None:
    assert refused((*argv, "--timeout", "500ms"), asked).error.endswith("[E_DEADLINE]")


@pytest.mark.parametrize(("seconds", "closes", "status"), [("0", True, -signal.SIGIO), ("0.3", False, -signal.SIGALRM)])
def test_the_process_that_measures_memory_ends_in_time_and_with_its_parent(
    asked: Path, seconds: str, closes: bool, status: int
) -> None:
    command = [sys.executable, "-m", "hyps_compiler.peak", "out", "endless.npz", "answer.npz", seconds]
    with subprocess.Popen(command, cwd=asked, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            if closes:
                time.sleep(1.0)
                assert process.poll() is None
                process.stdin.close()
            assert process.wait(WORDS_S) == status
        finally:
            process.kill()


@pytest.fixture(scope="module")
def expander(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expander")
    onnx.save(expanding(), folder / "model.onnx")
    assert run_command(COMPILE, folder).status == 0
    return folder


@pytest.mark.parametrize("of_available", [1.2, 100.0])
def test_a_request_for_more_memory_than_there_is_is_one_sentence(expander: Path, of_available: float) -> None:
    count = int(psutil.virtual_memory().available * of_available / 4)
    write_npz(expander / "large.npz", {"size": np.array([count])})
    finished = refused(("hypsc", "run", "out", "-i", "large.npz"), expander)
    assert finished.error.endswith("ran out of memory [E_MEMORY]")
    assert finished.peak_bytes < 5 * 10**8


# Signals


@contextmanager
def busy(folder: Path) -> Iterator[tuple[Running, psutil.Process]]:
    """Yield a compile inside an endless loop of onnxruntime, and the process in which it works."""
    onnx.save(looping(), folder / "model.onnx")
    with started((*COMPILE, "-v"), folder) as running:
        wait_until(lambda: "measuring tensors" in running.stderr_so_far())
        (child,) = psutil.Process(running.process.pid).children()
        time.sleep(0.3)
        yield running, child


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WORDS_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def last_lines(finished: Finished) -> list[str]:
    return [line for line in finished.stderr.splitlines() if line.startswith(("error: ", "hint: "))]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSEGV, "onnxruntime crashed (SIGSEGV) while measuring tensors [E_CRASHED]"),
        (signal.SIGKILL, "killed (SIGKILL) while measuring tensors, perhaps because memory ran out [E_KILLED]"),
    ],
)
def test_whatever_kills_the_work_is_one_sentence(here: Path, number: signal.Signals, said: str) -> None:
    with busy(here) as (running, child):
        child.send_signal(number)
        finished = running.finish()
    error, hint = last_lines(finished)
    assert (finished.status, finished.has_orphans) == (1, False)
    assert error.endswith(said)
    assert hint.startswith("hint: ")
    assert list(snapshot(here)) == ["model.onnx"]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_even_what_does_not_listen(here: Path, number: signal.Signals, status: int, word: str) -> None:
    with busy(here) as (running, _):
        running.process.send_signal(number)
        time.sleep(0.1)
        running.process.send_signal(number)  # the second one does not wait for the cleaning up
        finished = running.finish()
    assert (finished.status, finished.has_orphans) == (status, False)
    assert last_lines(finished) == [f"error: {word} [E_{word.upper()}]"]
    assert list(snapshot(here)) == ["model.onnx"]


def test_ctrl_c_ends_the_whole_group_with_one_line(here: Path) -> None:
    with busy(here) as (running, _):
        os.killpg(running.process.pid, signal.SIGINT)
        finished = running.finish()  # the child cannot listen: it is ended after a moment of grace
    assert (finished.status, finished.has_orphans) == (130, False)
    assert last_lines(finished) == ["error: interrupted [E_INTERRUPTED]"]
    assert list(snapshot(here)) == ["model.onnx"]


def test_the_work_does_not_outlive_a_watcher_that_is_shot(here: Path) -> None:
    with busy(here) as (running, _):
        running.process.kill()
        finished = running.finish()
    assert (finished.status, finished.has_orphans) == (-signal.SIGKILL, False)
    assert any(name.startswith(".out.tmp-") for name in snapshot(here))
    (here / "model.onnx").write_bytes(mlp(8, 4, batch=1).whole())
    assert run_command(COMPILE, here).status == 0
    assert not any(name.startswith(".out.tmp-") for name in snapshot(here))


# Limits and versions


@pytest.mark.parametrize("argv", [INSPECT, ("hyps-worker", "out")])
def test_too_little_address_space_is_one_sentence(here: Path, argv: tuple[str, ...]) -> None:
    finished = run_command(["sh", "-c", f"ulimit -v 200000; exec {' '.join(argv)}"], here, PATH=path_with_commands())
    assert finished.status == 1
    assert "of address space" in finished.error
    assert finished.error.endswith("[E_MEMORY]")


@pytest.mark.parametrize(
    ("package", "version", "argv"),
    [
        ("onnx", "1.20.1", INSPECT),
        ("onnxruntime", "1.26.0", COMPILE),
        ("onnxruntime", "1.26.0", ("hypsc", "run", "out")),
        ("onnxruntime", "1.9.9", ("hyps-worker", "out")),
    ],
)
def test_no_command_starts_with_an_unsafe_package(
    here: Path, package: str, version: str, argv: tuple[str, ...]
) -> None:
    (here / package).mkdir()
    (here / package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    finished = run_command(argv, here, PYTHONPATH=str(here))
    assert finished.status == 1
    assert f"{package} {version} is installed, and any before 1.2" in finished.error
    assert finished.error.endswith("[E_DEPENDENCY]")
    assert finished.hint.startswith(f'pip install --upgrade "{package}>=1.2')


def path_with_commands() -> str:
    return f"{SCRIPTS}:{os.environ['PATH']}"


def test_what_libraries_print_stays_away(here: Path) -> None:
    """onnxruntime says on stderr what it refuses, by file number, whoever catches the exception."""
    bad = model_of([helper.make_node("Reshape", ["x", "shape"], ["y"])], [floats("x", 1, 4)], [floats("y", 1, 3)])
    bad.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
    onnx.save(bad, here / "model.onnx")
    assert refused(COMPILE, here).error


def _make_files(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for number in range(3000):
            (folder / f"{os.getpid()}-{number}").touch()


def test_a_folder_in_which_others_still_write_is_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        writers = [context.Process(target=_make_files, args=(folder,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        while not any(folder.iterdir()):
            time.sleep(0.001)
        remove_folder(folder)
        for writer in writers:
            writer.join(20)
    assert list(tmp_path.iterdir()) == []
