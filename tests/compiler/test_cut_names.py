"""Names given with `--cut`."""

from pathlib import Path
from typing import Literal

import pytest

import hyps_compiler
import hyps_models
from hyps.errors import ModelError
from hyps_compiler.cut_names import cut_tensors
from hyps_compiler.source import Source, open_source


@pytest.fixture
def digits(tmp_path: Path) -> Source:
    hyps_models.save("digits", tmp_path / "digits.onnx")
    return open_source(tmp_path / "digits.onnx")


def tensors(source: Source, *names: str) -> tuple[str, ...]:
    """Return the tensors of names of layers or tensors."""
    folder = source.path.parent / "names"
    folder.mkdir()
    return cut_tensors(source, names, folder, shapes={}, feeds=None, max_tensor_nbytes=10**9)


def test_tensors_are_taken_as_they_are(digits: Source) -> None:
    assert tensors(digits, "pool1.output", "conv2.output") == ("pool1.output", "conv2.output")
    assert not list((digits.path.parent / "names").iterdir())


def test_a_layer_stands_for_what_it_hands_on(digits: Source) -> None:
    assert tensors(digits, "pool2.output", "conv1", "pool2") == ("pool2.output", "relu1.output")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("poling", "did you mean `pooling`?"),
        ("konv1", "did you mean `conv1`?"),
        ("relu1.outputs", "did you mean `relu1.output`?"),
        ("zzz", "`hypsc inspect` lists the layers behind which it can be cut"),
    ],
)
def test_a_name_of_neither_is_refused_with_the_nearest(digits: Source, name: str, hint: str) -> None:
    with pytest.raises(ModelError, match="no layer of the model and no tensor inside it") as caught:
        tensors(digits, "pool1.output", name)
    assert caught.value.hint == hint


@pytest.mark.parametrize("optimize", ["none", "portable"])
def test_a_model_is_cut_behind_a_layer(tmp_path: Path, optimize: Literal["none", "portable"]) -> None:
    plan = hyps_compiler.compile("zoo:digits", tmp_path / "plan", cut="conv1", optimize=optimize, verify=False)
    assert [point.tensors for point in plan.split_points if point.chosen] == [("relu1.output",)]
