"""The commands as users give them, one after another, on small models."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import hyps_models
from command_fixtures import SCRIPTS, Finished, run_command, snapshot, started
from hyps.formats.plan import Plan, decode_plan

COMMANDS = ("compile", "convert", "doctor", "inspect", "run", "verify")


def done(argv: Sequence[str | bytes], folder: Path) -> Finished:
    """Run a command that must succeed and say nothing on stderr."""
    finished = run_command(argv, folder)
    assert (finished.status, finished.stderr) == (0, "")
    return finished


def told(argv: Sequence[str | bytes], folder: Path) -> Any:
    """Return what a command that must succeed prints as JSON."""
    return json.loads(done([*argv, "--json"], folder).stdout)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plans of small models, which no test changes."""
    folder = tmp_path_factory.mktemp("place") / "here"
    folder.mkdir()
    hyps_models.save("digits", folder / "digits.onnx")
    done(["hypsc", "compile", "digits.onnx", "-o", "digits", "--cut", "pooling", "--max-params", "10k"], folder)
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with the plan and the model in it."""
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    return folder


def read_plan(folder: Path) -> Plan:
    return decode_plan((folder / "plan.json").read_bytes())


# compile


@pytest.mark.parametrize(
    ("model", "options", "kinds"),
    [
        ("lstm", ("--cut", "all"), {"vertical"}),
        ("encoder-small", ("--partitions", "3"), {"vertical"}),
        pytest.param("mobilenetv2", ("--max-params", "500k"), {"vertical", "horizontal"}, marks=pytest.mark.slow),
    ],
)
def test_a_model_is_compiled_inspected_verified_and_run(
    tmp_path: Path, model: str, options: tuple[str, ...], kinds: set[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    compiled = done(["hypsc", "compile", f"zoo:{model}", "-o", "plan", *options], here).stdout
    assert re.search(r"^borders:  (\d+) of \1 tensors bit-identical", compiled, re.M) or "others at most" in compiled
    assert re.search(r"^outputs:  .*whole-model onnxruntime's$", compiled, re.M)
    assert compiled.endswith("wrote:    plan\n")
    plan = read_plan(here / "plan")
    assert {part.kind for part in plan.partitions} == kinds
    inspected = done(["hypsc", "inspect", "plan"], here).stdout
    assert all(part.id in inspected for part in plan.partitions)
    verified = told(["hypsc", "verify", "plan", "--model", f"zoo:{model}"], here)
    assert (verified["problems"], verified["model_has_changed"]) == ([], False)
    answered = told(["hypsc", "run", "plan"], here)
    assert [part["id"] for part in answered["partitions"]] == [part.id for part in plan.partitions]


def test_the_summary_of_many_partitions_fits_a_screen(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    compiled = done(["hypsc", "compile", "zoo:mobilenetv2", "-o", "plan", "--cut", "all", "--no-verify"], here).stdout
    lines = compiled.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert "`hypsc inspect plan` shows all" in lines
    assert any(re.match(r"… +\d+ more", line) for line in lines)
    plan = read_plan(here / "plan")
    largest = max(plan.partitions, key=lambda part: part.peak_memory_bytes or 0).id
    assert all(any(line.startswith(name) for line in lines) for name in ("p000", plan.partitions[-1].id, largest))
    inspected = done(["hypsc", "inspect", "plan"], here).stdout
    assert all(f"\n{part.id} " in inspected for part in plan.partitions)


def test_a_model_that_fits_is_left_whole_and_said_so(place: Path, tmp_path: Path) -> None:
    compiled = done(
        ["hypsc", "compile", str(place / "digits.onnx"), "-o", "plan", "--memory", "1GB"], here_of(tmp_path)
    )
    assert "the model fits whole, in one partition" in compiled.stdout
    assert re.search(r"^memory:   [\d.]+ MB resident at most in one request, of 1.00 GB$", compiled.stdout, re.M)


def here_of(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_compile_tells_the_thesis_words(place: Path) -> None:
    text = done(["hypsc", "inspect", "digits"], place).stdout
    assert "split points: 2 mandatory, 2 optional; cut at 4 of them (*)" in text
    assert "H 4/4" in text
    assert max(map(len, text.splitlines())) <= 80


def test_quiet_compile_and_verify_print_nothing(place: Path, tmp_path: Path) -> None:
    model = str(place / "digits.onnx")
    compiled = done(["hypsc", "-q", "compile", model, "-o", "plan"], here_of(tmp_path))
    assert compiled.stdout == ""
    assert (tmp_path / "here" / "plan" / "plan.json").exists()
    assert done(["hypsc", "verify", str(place / "digits"), "--model", model, "-q"], tmp_path).stdout == ""


def test_quiet_inspect_and_run_print_their_results(place: Path) -> None:
    assert "p000" in done(["hypsc", "inspect", "digits", "-q"], place).stdout
    assert "logits" in done(["hypsc", "run", "digits", "-q"], place).stdout


def test_verbose_compile_says_each_step_on_stderr(place: Path, tmp_path: Path) -> None:
    finished = run_command(["hypsc", "compile", str(place / "digits.onnx"), "-o", "plan", "-v"], here_of(tmp_path))
    assert finished.status == 0
    assert "reading the model\n" in finished.stderr
    assert "putting the plan in place\n" in finished.stderr


def test_equal_input_gives_equal_bytes(place: Path, tmp_path: Path) -> None:
    here = here_of(tmp_path)
    for name in ("one", "two"):
        done(["hypsc", "compile", str(place / "digits.onnx"), "-o", name, "--cut", "all", "--no-verify"], here)
    assert snapshot(here / "one") == snapshot(here / "two")


# inspect


def test_inspect_shows_layers_in_eighty_columns(place: Path) -> None:
    text = done(["hypsc", "inspect", "digits.onnx", "--max-params", "10k"], place).stdout
    assert max(map(len, text.splitlines())) <= 80
    for word in ("conv1", "fc1[1/4]", "pooling", "mandatory", "around fc1", "40.4 k parameters"):
        assert word in text


def test_inspect_json_has_every_layer(place: Path) -> None:
    view = told(["hypsc", "inspect", "digits.onnx"], place)
    assert set(view) == {
        "name", "parameters", "weight_bytes", "macs", "input_bytes", "assumed_dims", "layers", "split_points", "note",
        "annotations",
    }  # fmt: skip
    assert set(view["layers"][0]) == {
        "name", "kind", "nodes", "parameters", "weight_bytes", "macs", "output_shape", "cut_tensors", "cut_bytes",
        "ratio", "marks",
    }  # fmt: skip
    assert view["parameters"] == 40_394
    assert sum(layer["parameters"] for layer in view["layers"]) == 40_394
    assert view["layers"][0]["output_shape"][1:] == [16, 8, 8]


def test_inspect_json_of_a_plan_is_the_plan(place: Path) -> None:
    assert told(["hypsc", "inspect", "digits"], place) == json.loads((place / "digits" / "plan.json").read_bytes())


# JSON of the others


def test_compile_json_has_stable_keys(place: Path, tmp_path: Path) -> None:
    value = told(["hypsc", "compile", str(place / "digits.onnx"), "-o", "plan", "--memory", "1GB"], here_of(tmp_path))
    assert set(value) == {
        "folder", "plan", "verification", "unverified", "peak_bytes", "fixed_inputs", "conversion",
    }  # fmt: skip
    assert (value["folder"], value["unverified"]) == ("plan", "")
    assert value["plan"] == json.loads((tmp_path / "here" / "plan" / "plan.json").read_bytes())
    assert set(value["verification"]) == {"borders", "outputs", "problems", "not_compared"}
    numbers = {"largest", "relative", "different", "elements", "request"}
    border = {"tensor", "identical", "dtype", "shape", "problem", *numbers}
    assert set(value["verification"]["borders"][0]) == {*border, "made_by"}
    assert set(value["verification"]["outputs"][0]) == {*border, "reasons"}
    assert 30_000_000 < value["peak_bytes"] < 10**9


def test_run_json_has_stable_keys(place: Path) -> None:
    value = told(["hypsc", "run", "digits"], place)
    assert set(value) == {"requests", "seconds", "throughput_rps", "latencies_s", "outputs", "partitions"}
    assert value["outputs"] == {"logits": {"dtype": "float32", "shape": [1, 10]}}
    assert set(value["partitions"][0]) == {"id", "load_s", "run_s"}


def test_an_error_is_json_too(place: Path) -> None:
    finished = run_command(["hypsc", "inspect", "gone.onnx", "--json"], place)
    assert finished.status == 1
    error = json.loads(finished.stdout)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == "E_NOT_FOUND"
    assert finished.error.startswith(error["message"])


# run


def expected(place: Path, image: Any) -> Any:
    """What onnxruntime answers, run on the whole model."""
    session = onnxruntime.InferenceSession(place / "digits.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def images(count: int) -> Any:
    return hyps_models.sample_inputs("digits", seed=3, batch=count)["image"]


def answer(here: Path, *more: str) -> Any:
    done(["hypsc", "run", "digits", "-o", "answer.npz", *more], here)
    with np.load(here / "answer.npz") as stored:
        assert stored.files == ["logits"]
        return stored["logits"]


def test_run_takes_an_npy(here: Path) -> None:
    np.save(here / "x.npy", images(1))
    np.testing.assert_allclose(answer(here, "-i", "image=x.npy"), expected(here, images(1)), rtol=1e-5)


def test_run_takes_an_npy_without_its_only_name(here: Path) -> None:
    np.save(here / "x=y.npy", images(2))
    np.testing.assert_allclose(answer(here, "-i", "x=y.npy"), expected(here, images(2)), rtol=1e-5)


def test_run_takes_an_npz(here: Path) -> None:
    np.savez(here / "x.npz", image=images(3))
    np.testing.assert_allclose(answer(here, "-i", "x.npz"), expected(here, images(3)), rtol=1e-5)


def test_run_takes_one_dimension_more_for_a_batch(here: Path) -> None:
    batch = images(6).reshape(3, 2, 1, 8, 8)
    np.save(here / "x.npy", batch)
    got = answer(here, "-i", "x.npy")
    assert got.shape == (3, 2, 10)
    np.testing.assert_allclose(got.reshape(6, 10), expected(here, images(6)), rtol=1e-5)
    told_of = told(["hypsc", "run", "digits", "-i", "x.npy"], here)
    assert told_of["requests"] == 3


def test_run_takes_many_where_the_model_takes_one(tmp_path: Path) -> None:
    from plan_fixtures import mlp

    here = here_of(tmp_path)
    flow = mlp(8, 16, 4, batch=1)
    flow.write(here / "plan")
    (here / "model.onnx").write_bytes(flow.whole())
    rows = np.random.default_rng(5).standard_normal((7, 8), np.float32)
    np.save(here / "x.npy", rows)
    done(["hypsc", "run", "plan", "-i", "x.npy", "-o", "y.npz"], here)
    session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = np.concatenate([session.run(None, {"t0": rows[i : i + 1]})[0] for i in range(7)])
    with np.load(here / "y.npz") as stored:
        np.testing.assert_allclose(stored["t2"], wanted, rtol=1e-5)


def test_run_makes_up_a_request_and_shows_the_answer(place: Path) -> None:
    text = done(["hypsc", "run", "digits"], place).stdout
    assert text.startswith("1 request in ")
    assert re.search(r"^logits  float32  1 x 10  .*…$", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_run_replaces_an_answer_only_by_force(here: Path) -> None:
    (here / "y.npz").write_text("mine")
    refused = run_command(["hypsc", "run", "digits", "-o", "y.npz"], here)
    assert (refused.status, (here / "y.npz").read_text()) == (1, "mine")
    done(["hypsc", "run", "digits", "-o", "y.npz", "--force"], here)
    with np.load(here / "y.npz") as stored:
        assert stored["logits"].shape == (1, 10)


def test_run_takes_a_picture(here: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    pixels = (images(1)[0, 0] * 255).clip(0, 255).astype(np.uint8)
    image.fromarray(pixels).save(here / "digit.png")
    wanted = expected(here, pixels[None, None].astype(np.float32) / 255)
    np.testing.assert_allclose(answer(here, "-i", "digit.png"), wanted, rtol=1e-5)


@pytest.mark.network
def test_run_asks_a_worker(here: Path) -> None:
    with started(["hyps-worker", "digits", "--bind", "tcp://127.0.0.1:0"], here) as worker:
        address = serving_address(worker)
        np.save(here / "x.npy", images(2))
        done(["hypsc", "run", "--connect", address, "-i", "image=x.npy", "-o", "y.npz"], here)
        batch = told(["hypsc", "run", "--connect", address], here)
        worker.process.terminate()
        assert worker.finish().status == 0
    with np.load(here / "y.npz") as stored:
        np.testing.assert_allclose(stored["logits"], expected(here, images(2)), rtol=1e-5)
    assert (batch["requests"], batch["partitions"]) == (1, [])


@pytest.mark.network
def test_a_taken_port_is_one_sentence(here: Path) -> None:
    with started(["hyps-worker", "digits", "--bind", "tcp://127.0.0.1:0"], here) as worker:
        second = run_command(["hyps-worker", "digits", "--bind", serving_address(worker)], here)
    assert second.status == 1
    assert "already in use [E_ADDRESS_IN_USE]" in second.error
    assert "--bind" in second.hint


def serving_address(worker: Any) -> str:
    """Wait until a worker says where it serves."""
    import time

    for _ in range(2000):
        found = re.search(r"serving at (\S+):", worker.stderr_so_far())
        if found:
            return found[1]
        time.sleep(0.01)
    raise AssertionError(worker.stderr_so_far())


# verify


def test_verify_compares_several_requests(place: Path) -> None:
    text = done(["hypsc", "verify", "digits", "--model", "digits.onnx", "--samples", "3"], place).stdout
    assert re.search(r"^output +logits ", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_verify_takes_a_request(here: Path) -> None:
    np.savez(here / "x.npz", image=images(2))
    value = told(["hypsc", "verify", "digits", "--model", "digits.onnx", "--inputs", "x.npz"], here)
    report = {"borders", "outputs", "problems", "not_compared"}
    places = {"first_difference", "wrong_partitions", "reproduction"}
    assert set(value) == {*report, *places, "requests", "model_has_changed", "error"}


def test_verify_names_the_tensor_that_an_altered_plan_gets_wrong(here: Path) -> None:
    alter_weights(here / "digits", "conv2")
    finished = run_command(["hypsc", "verify", "digits", "--model", "digits.onnx"], here)
    assert finished.status == 4
    assert finished.error.startswith("the plan does not compute what the model computes: border tensor `pool2.output`")
    assert finished.error.endswith("[E_DIFFERENT]")
    assert "altered" in finished.hint
    as_json = run_command(["hypsc", "verify", "digits", "--model", "digits.onnx", "--json"], here)
    assert (as_json.status, as_json.stderr) == (4, finished.stderr)
    value = json.loads(as_json.stdout)
    assert value["error"]["code"] == "E_DIFFERENT"
    wrong = [border["tensor"] for border in value["borders"] if not border["identical"]]
    assert wrong[0] == "pool2.output"
    assert any("logits" in problem for problem in value["problems"])


def alter_weights(folder: Path, layer: str) -> None:
    """Change a weight of the partition that has the layer, and write the digest of what is there now."""
    import hashlib

    import onnx
    from onnx import numpy_helper

    data = json.loads((folder / "plan.json").read_bytes())
    part = next(part for part in data["partitions"] if layer in part["layers"])
    path = folder / part["file"]
    model = onnx.load(path, load_external_data=False)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = (numpy_helper.to_array(weight) * np.float32(1.5)).astype(np.float32).tobytes()
    path.write_bytes(model.SerializeToString())
    part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "plan.json").write_text(json.dumps(data))


# the manners of the terminal


@pytest.mark.parametrize("argv", [[], *([command] for command in COMMANDS)], ids=lambda argv: " ".join(argv) or "hypsc")
def test_help_comes_at_once_with_examples(place: Path, argv: list[str]) -> None:
    finished = done(["hypsc", *argv, "--help"], place)
    assert finished.seconds < 0.5
    assert "Examples:" in finished.stdout
    assert max(map(len, finished.stdout.splitlines())) <= 80


def test_the_version_is_told(place: Path) -> None:
    assert done(["hypsc", "--version"], place).stdout == f"hypsc {version('hyps')}\n"


def test_a_closed_pipe_is_quiet(place: Path) -> None:
    script = "hypsc inspect digits.onnx | head -1; exit ${PIPESTATUS[0]}"
    finished = run_command(["bash", "-c", script], place, PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    assert finished.stderr == ""
    assert finished.status in (0, 141)
    assert finished.stdout.count("\n") == 1


def on_terminal(argv: Sequence[str], folder: Path, **env: str) -> str:
    """Return what a command that fails shows on a terminal."""
    reader, writer = pty.openpty()
    environment = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **env}
    subprocess.run(
        [str(SCRIPTS / argv[0]), *argv[1:]], cwd=folder, env=environment, stdout=writer, stderr=writer, check=False
    )
    os.close(writer)
    shown = os.read(reader, 65536).decode()
    os.close(reader)
    return shown


def test_colour_is_for_terminals_that_want_it(place: Path) -> None:
    assert "\x1b[" in on_terminal(["hypsc", "run", "gone"], place)
    assert "\x1b[" not in on_terminal(["hypsc", "run", "gone"], place, NO_COLOR="1")
    assert "\x1b" not in run_command(["hypsc", "run", "gone"], place).stderr


def test_a_file_name_that_is_no_text_works_or_is_one_sentence(here: Path) -> None:
    shutil.copy(here / "digits.onnx", os.fsdecode(os.fsencode(here) + b"/m\xff.onnx"))
    shutil.copytree(here / "digits", os.fsdecode(os.fsencode(here) + b"/digits\xff"))
    commands: list[list[str | bytes]] = [
        ["hypsc", "compile", b"m\xff.onnx", "-o", "out"],
        ["hypsc", "compile", "digits.onnx", "-o", b"out\xff"],
        ["hypsc", "inspect", b"digits\xff"],
        ["hypsc", "run", b"digits\xff"],
        ["hypsc", "run", "digits", "-o", b"y\xff.npz"],
    ]
    for argv in commands:
        finished = run_command(argv, here)
        assert finished.status in (0, 1)
        assert finished.status == 0 or finished.error


def test_a_deleted_working_directory_is_one_sentence_or_none(place: Path, tmp_path: Path) -> None:
    gone = here_of(tmp_path)
    script = f"rmdir {gone}; hypsc compile zoo:digits -o plan; hypsc inspect {place}/digits > {tmp_path}/shown"
    finished = run_command(["bash", "-c", script], gone, PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    assert finished.error
    assert finished.status == 0
    assert "p000" in (tmp_path / "shown").read_text()


def test_it_works_without_assertions(place: Path, tmp_path: Path) -> None:
    here = here_of(tmp_path)
    argv = [sys.executable, "-O", "-m", "hyps_compiler.cli"]
    done([*argv, "compile", str(place / "digits.onnx"), "-o", "plan", "--no-verify"], here)
    refused = run_command([*argv, "compile", "gone.onnx", "-o", "p"], here)
    assert (refused.status, "`gone.onnx`" in refused.error) == (1, True)


@pytest.mark.parametrize(
    "script",
    [
        "LANG=C LC_ALL=C PYTHONUTF8=0 hypsc inspect digits.onnx",
        "env -u HOME -u USER -u LOGNAME hypsc inspect digits.onnx",
        "hypsc inspect digits.onnx <&-",
        "LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii hypsc run digits",
    ],
)
def test_a_bare_environment_is_enough(script: str, place: Path) -> None:
    finished = run_command(["bash", "-c", script], place, PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    assert (finished.status, finished.stderr) == (0, "")
    assert finished.stdout
