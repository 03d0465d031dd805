"""Models in which something was changed at random: they pass the checks or are refused in words, nothing else."""

import time
from pathlib import Path

import pytest

from command_fixtures import run_command
from hostile.mutation import DATA, SEEDS, mutated
from hyps.errors import HypsError
from hyps_compiler.source import open_source

EACH = 400
LIMIT_S = 2.0


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("start", [0, *(pytest.param(n * EACH, marks=pytest.mark.slow) for n in range(1, 40))])
def test_a_changed_model_passes_or_is_refused(name: str, start: int, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(DATA))
    path = tmp_path / "m.onnx"
    refused = 0
    for seed in range(start, start + EACH):
        path.write_bytes(mutated(name, seed).SerializeToString())
        start_s = time.process_time()
        message = refusal(path)
        if message is not None:
            refused += 1
            assert 0 < len(message) < 600, seed
            assert message.isprintable(), seed
        assert time.process_time() - start_s < LIMIT_S, seed
    assert 0 < refused < EACH


def refusal(path: Path) -> str | None:
    """Return why the file is refused; None where it is not."""
    try:
        open_source(path)
    except HypsError as error:
        return error.message
    return None


def test_equal_seeds_give_equal_models() -> None:
    assert mutated("nested", 7).SerializeToString() == mutated("nested", 7).SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_compiling_a_changed_model_ends_in_words(name: str, start: int, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "w.bin").write_bytes(bytes(DATA))
    for seed in range(start, start + 20):
        (here / "model.onnx").write_bytes(mutated(name, seed).SerializeToString())
        argv = ["hypsc", "compile", "model.onnx", "-o", "out", "--force", "--timeout", "10s"]
        finished = run_command(argv, here, timeout_s=40)
        assert finished.status in (0, 1, 3), (seed, finished.stderr)
        assert "E_CRASHED" not in finished.stderr, seed
        assert finished.status == 0 or finished.error, seed
