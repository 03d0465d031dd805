"""Layers of equal cost have one signature, others another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from cut_fixtures import stage
from hyps_passes.layers import build_cut_graph
from hyps_passes.signatures import layer_signature
from model_fixtures import model_of, save


def _convolution(name: str, source: str, target: str, **attributes: Any) -> NodeProto:
    return helper.make_node("Conv", [source, f"{name}.w"], [target], name=name, **attributes)


def _signatures(
    tmp_path: Path, nodes: Sequence[NodeProto], weights: Mapping[str, tuple[int, ...]], size: int = 8, seed: int = 0
) -> list[str]:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    path = save(model_of(nodes, [image], [answer], arrays), tmp_path / f"m{len(list(tmp_path.iterdir()))}.onnx")
    staged, measured = stage(path, tmp_path / f"stage-{path.stem}")
    graph = build_cut_graph(staged.model, measured.sizes)
    return [layer_signature(graph, layer) for layer in graph.layers]


PADDED = {"pads": [1, 1, 1, 1]}
SHAPES = {"a.w": (3, 3, 3, 3), "b.w": (3, 3, 3, 3)}


@pytest.fixture
def plain(tmp_path: Path) -> list[str]:
    nodes = [_convolution("a", "image", "x", **PADDED), _convolution("b", "x", "answer", **PADDED)]
    return _signatures(tmp_path, nodes, SHAPES)


def test_equal_layers_of_one_model_share_their_signature(plain: list[str]) -> None:
    assert len(plain) == 2
    assert plain[0] == plain[1]


def test_names_and_weights_do_not_matter(tmp_path: Path, plain: list[str]) -> None:
    nodes = [_convolution("c", "image", "y", **PADDED), _convolution("d", "y", "answer", **PADDED)]
    other = _signatures(tmp_path, nodes, {"c.w": (3, 3, 3, 3), "d.w": (3, 3, 3, 3)}, seed=1)

    assert other == plain


@pytest.mark.parametrize(
    ("attributes", "shape", "size"),
    [
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (3, 3, 3, 3), 8),
        ({"pads": [2, 2, 2, 2]}, (3, 3, 5, 5), 8),
        ({"pads": [1, 1, 1, 1]}, (3, 3, 3, 3), 16),
    ],
)
def test_attributes_weights_shapes_and_sizes_matter(
    tmp_path: Path, plain: list[str], attributes: dict[str, Any], shape: tuple[int, ...], size: int
) -> None:
    node = _convolution("a", "image", "answer", **attributes)
    (other,) = _signatures(tmp_path, [node], {"a.w": shape}, size)

    assert other != plain[0]


def test_numbers_that_decide_what_is_done_matter(tmp_path: Path) -> None:
    def softmax(axis: int) -> list[str]:
        node = helper.make_node("Softmax", ["image"], ["answer"], axis=axis)
        return _signatures(tmp_path, [node], {})

    assert softmax(1) == softmax(1)
    assert softmax(1) != softmax(2)
