"""Real models: cut at pooling points and at every layer at every level of optimization, run in parts, compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cut_fixtures import Feeds, distance, is_same, plain_session, stage, whole_answer
from hyps.formats.plan import Optimization
from hyps.local import LocalRunner
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from strangers import SHARED, make_inputs, path_of

NAMES = """
    deeplabv3_dm05_nhwc fsmn_vad_online gpt2_tiny_random_kv micro_kws_qoperator ppocr_rec_crnn_lstm silero_vad_v6
    squeezenet_fp16 ultraface_rfb320_op9 voicevox_intonation_loop voicevox_spectrogram_tf
""".split()
LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of shared models is not there")


@dataclass(frozen=True)
class Shared:
    """A shared model, inputs for it, and onnxruntime's answers with its default options and without optimizations."""

    path: Path
    feeds: Feeds
    answer: dict[str, Any]
    plain: dict[str, Any]

    def noise(self) -> float:
        """Return how far onnxruntime's own optimizations move an output."""
        return max(distance(value, self.plain[name]) for name, value in self.answer.items())


def shared(name: str) -> Shared:
    path, feeds = path_of(name), make_inputs(name)
    session = plain_session(path, optimized=True)
    names = [output.name for output in session.get_outputs()]
    answer = dict(zip(names, session.run(names, feeds), strict=True))
    return Shared(path, feeds, answer, whole_answer(path, feeds))


def cases() -> Iterator[Any]:
    for name in NAMES:
        for level in LEVELS:
            for cut in ("pooling", "all"):
                is_slow = cut == "all" and level != "none"
                marks = [pytest.mark.slow] if is_slow else []
                yield pytest.param(name, level, cut, marks=marks, id=f"{name}-{level}-{cut}")


@pytest.mark.parametrize(("name", "level", "cut"), list(cases()))
def test_parts_compute_what_the_model_computes(name: str, level: Optimization, cut: str, tmp_path: Path) -> None:
    model = shared(name)
    options = Options(request=Request(cuts=(cut,)), optimization=level, feeds=model.feeds, verify=False)
    compiled = compile_model(model.path, tmp_path / "plan", options)
    graph = compiled.division.graph
    assert len(compiled.plan.partitions) == (len(graph.layers) if cut == "all" else len(compiled.division.borders) + 1)

    staged, _ = stage(model.path, tmp_path / "stage", level, model.feeds)
    whole = whole_answer(staged.path, model.feeds, list(model.answer))
    with LocalRunner(tmp_path / "plan", exact=True, threads=1) as parts:
        exact = parts.run(model.feeds)
    if name == "squeezenet_fp16" and level == "none":  # the whole keeps float32 between the nodes, a border rounds
        assert all(distance(value, exact[out]) < 1e-2 for out, value in whole.items())
    else:
        assert all(is_same(value, exact[out]) for out, value in whole.items())

    with LocalRunner(tmp_path / "plan") as parts:
        answer = parts.run(model.feeds)
    tolerance = 1e-2 if name == "squeezenet_fp16" else max(1e-5, 2 * model.noise())
    assert all(distance(value, answer[out]) <= tolerance for out, value in model.answer.items())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_not_multiplied(name: str, tmp_path: Path) -> None:
    """All partitions together hold the model's weights and no more than 2 % beside."""
    model = shared(name)
    options = Options(request=Request(cuts=("all",)), optimization="none", feeds=model.feeds, verify=False)
    plan = compile_model(model.path, tmp_path / "plan", options).plan
    files = {ref.path: ref.nbytes for part in plan.partitions for ref in part.weights}
    large = sum(files.values())
    inline = sum(part.weight_bytes for part in plan.partitions if not part.weights)
    padding = 4096 * sum(len(part.weights) for part in plan.partitions) * 8
    total = sum(part.weight_bytes for part in plan.partitions)
    tied = 2048  # what is used on both sides of a cut stands in both partitions, where it is small
    assert plan.model.weight_bytes <= total <= 1.02 * plan.model.weight_bytes + tied
    assert large + inline <= 1.02 * plan.model.weight_bytes + padding + tied


def test_every_shared_model_is_tested() -> None:
    assert sorted(path.stem for path in SHARED.glob("*.onnx")) == NAMES
