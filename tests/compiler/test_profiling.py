"""Real models are measured in real processes: what is told must fit together; how fast they are is for benches."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from command_fixtures import started
from hyps.errors import InfeasibleError, ModelError, ProfileError, UsageError
from hyps.formats.profiles import Profile, decode_profile, profile_problems
from hyps.terminal import HypsCommand
from hyps_compiler.cli import main
from hyps_compiler.profiling import ProfileOptions, make_profile, profile_model, read_profile
from hyps_compiler.profiling_report import show_link, show_profile
from model_fixtures import model_of, save
from plan_fixtures import sharded

WAIT_S = 20.0


@pytest.fixture(scope="module")
def digits() -> Profile:
    return profile_model("zoo:digits", ProfileOptions(device="pi", batches=(1, 3), threads=1, repeats=2))


def _total(profile: Profile, batch: int) -> float:
    return profile.session_s[batch] + sum(layer.samples[batch].median_s for layer in profile.layers)


def test_a_profile_tells_of_every_layer_and_border(digits: Profile) -> None:
    assert profile_problems(digits) == []
    assert (digits.device, digits.model, digits.batches, digits.threads) == ("pi", "digits", (1, 3), 1)
    assert {"hyps", "numpy", "onnxruntime"} <= digits.versions.keys()
    assert len(digits.borders) == len(digits.layers) - 1 == 5
    assert {layer.source for layer in digits.layers} == {"measured"}
    assert digits.peak_memory_bytes is not None
    assert 20e6 < digits.peak_memory_bytes < 500e6
    conv = next(layer for layer in digits.layers if layer.name.startswith("conv1"))
    assert (conv.macs, conv.input_bytes, conv.output_bytes) == (9216, 256, 4096)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_put_together_are_the_whole(digits: Profile, batch: int) -> None:
    assert digits.whole is not None
    assert _total(digits, batch) == pytest.approx(digits.whole[batch].median_s, rel=1e-6, abs=1e-6)


def test_a_border_tells_what_crosses_it_and_what_both_sides_took(digits: Profile) -> None:
    first = digits.borders[0]

    assert (len(first.tensors), first.tensor_bytes, first.nbytes) == (1, (4096,), 4096)
    assert first.producers == (digits.layers[0].name,)
    for border in digits.borders:
        assert set(border.head_s) == set(border.tail_s) == {1, 3}
        done = next(place for place, layer in enumerate(digits.layers) if layer.name == border.after)
        head_s = sum(layer.samples[1].median_s for layer in digits.layers[: done + 1]) + border.export_s[1]
        assert head_s + digits.session_s[1] >= border.head_s[1].median_s * (1 - 1e-6)


def test_more_borders_than_asked_for_are_modelled_and_say_so() -> None:
    profile = profile_model("zoo:digits", ProfileOptions(threads=1, repeats=1, borders=2))

    assert profile_problems(profile) == []
    assert [border.source for border in profile.borders].count("measured") == 2
    assert "modelled" in {layer.source for layer in profile.layers}
    assert profile.whole is not None
    assert _total(profile, 1) == pytest.approx(profile.whole[1].median_s, rel=1e-6, abs=1e-6)
    assert all(layer.samples[1].n == 0 for layer in profile.layers if layer.source == "modelled")


def test_a_model_with_several_inputs_and_words_is_measured() -> None:
    profile = profile_model("zoo:encoder-small", ProfileOptions(batches=(1, 2), threads=1, repeats=1, borders=4))

    assert profile_problems(profile) == []
    assert any(len(border.tensors) > 1 for border in profile.borders)


def test_two_threads_and_a_given_shape_are_kept() -> None:
    options = ProfileOptions(threads=2, repeats=1, borders=1, shapes={"frames": (1, 16, 40)})

    profile = profile_model("zoo:lstm", options)

    assert (profile.threads, profile.assumed_dims["sequence"]) == (2, 16)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of three layers of 16 MB each."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((2048, 2048)).astype(np.float32) for i in range(3)}
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}") for i in range(3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2048]) for name in ("x", "y")]
    return save(model_of(nodes, ends[:1], ends[1:], weights), tmp_path_factory.mktemp("heavy") / "heavy.onnx")


def test_a_device_too_small_for_the_whole_measures_layer_by_layer(heavy: Path) -> None:
    memory_bytes = 110_000_000  # the process takes 48 MB, a layer 33, the whole 100

    profile = profile_model(heavy, ProfileOptions(threads=1, repeats=1, memory_bytes=memory_bytes))

    assert profile_problems(profile) == []
    assert profile.whole is None
    assert len(profile.layers) == 3
    assert all(layer.samples[1].median_s > 0 for layer in profile.layers)
    assert all(not border.head_s for border in profile.borders)
    assert profile.peak_memory_bytes is not None
    assert profile.peak_memory_bytes <= memory_bytes


def test_a_layer_too_large_for_the_memory_is_refused_with_what_would_do(heavy: Path) -> None:
    with pytest.raises(InfeasibleError, match="the largest layer needs") as caught:
        profile_model(heavy, ProfileOptions(threads=1, repeats=1, memory_bytes=60_000_000))

    assert "--memory" in caught.value.hint


def test_a_batch_of_a_model_without_one_is_refused(heavy: Path) -> None:
    with pytest.raises(UsageError, match="leave no first dimension open"):
        profile_model(heavy, ProfileOptions(batches=(1, 4)))


def test_a_shape_with_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch other than 1"):
        profile_model("zoo:digits", ProfileOptions(shapes={"image": (2, 1, 8, 8)}))


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError):
        profile_model("zoo:nothing", ProfileOptions())


def test_what_is_shown_fits_a_terminal(digits: Profile) -> None:
    text = show_profile(digits)

    assert max(map(len, text.splitlines())) <= 80
    assert "conv1" in text
    assert "6 layers, 0 of them modelled" in text


def call(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)), prog_name="hypsc")


@pytest.fixture
def written(tmp_path: Path, digits: Profile) -> Path:
    path = tmp_path / "digits.json"
    assert isinstance(main.commands["profile"], HypsCommand)
    result = call("profile", "zoo:digits", "-o", path, "--threads", 1, "--quick", "--device", "pi")
    assert result.exit_code == 0, result.output
    assert "slowest layers" in result.stdout
    return path


def test_a_profile_is_written_and_never_over_another_file(written: Path) -> None:
    before = written.read_bytes()
    result = call("profile", "zoo:digits", "-o", written)

    assert result.exit_code == 1
    assert "exists" in result.stderr
    assert written.read_bytes() == before
    assert decode_profile(before).device == "pi"
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_a_profile_is_scaled_without_measuring_again(written: Path) -> None:
    result = call("profile", written, "--scale", "0.25", "--device", "slow", "--json")

    slow = msgspec.convert(json.loads(result.stdout), Profile, strict=False)
    assert (slow.device, slow.scaled_from, slow.scale) == ("slow", "pi", 0.25)
    before = decode_profile(written.read_bytes()).layers[0].samples[1].median_s
    assert slow.layers[0].samples[1].median_s == pytest.approx(4 * before)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("zoo:digits", "--batch", "0"),
        ("zoo:digits", "--batch", "1,x"),
        ("zoo:digits", "--repeats", "0"),
        ("zoo:digits", "--input", "nonsense"),
        ("--connect", "nonsense"),
        ("--connect", "tcp://127.0.0.1:1", "--scale", "0.5"),
    ],
)
def test_what_cannot_be_understood_is_refused(args: tuple[str, ...]) -> None:
    result = call("profile", *args)

    assert result.exit_code == 2, result.output


def test_a_file_that_is_no_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")

    with pytest.raises(ProfileError, match=r"bad\.json"):
        read_profile(tmp_path / "bad.json")
    with pytest.raises(ProfileError, match="does not exist"):
        make_profile(str(tmp_path / "none.json"), ProfileOptions())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("worker")
    sharded().write(folder / "plan")
    argv = ["hyps-worker", str(folder / "plan"), "--bind", "tcp://127.0.0.1:0", "--device", "far"]
    with started(argv, folder) as running:
        deadline_s = time.monotonic() + WAIT_S
        while "serving at " not in running.stderr_so_far():
            assert time.monotonic() < deadline_s, running.stderr_so_far()
            time.sleep(0.05)
        yield running.stderr_so_far().split()[2].rstrip(":")


@pytest.mark.network
def test_a_link_to_a_worker_is_measured_alone_or_for_a_profile(address: str, written: Path) -> None:
    alone = call("profile", "--connect", address)
    kept = call("profile", written, "--connect", address, "--json")

    assert alone.exit_code == 0, alone.output
    assert alone.stdout.startswith(f"link to {address}: ")
    (link,) = msgspec.convert(json.loads(kept.stdout), Profile, strict=False).links
    assert (link.peer, link.device) == (address, "far")
    assert link.up_bytes_per_s > 1e6
    assert len(show_link(link).splitlines()) == 1
