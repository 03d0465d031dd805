"""Blocks, sides and work of the EfficientNets are the published ones; a sketch is the network without its weights."""

import re
from math import prod

import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto

from hyps_models.efficientnet import EFFICIENTNETS, build_efficientnet, sketch_efficientnet

BLOCKS = {
    "efficientnet-b0": 16,
    "efficientnet-b1": 23,
    "efficientnet-b2": 23,
    "efficientnet-b3": 26,
    "efficientnet-b4": 32,
    "efficientnet-b5": 39,
    "efficientnet-b6": 45,
    "efficientnet-b7": 55,
    "efficientnetv2-b0": 21,
    "efficientnetv2-b1": 27,
    "efficientnetv2-b2": 28,
    "efficientnetv2-b3": 32,
    "efficientnetv2-s": 40,
    "efficientnetv2-m": 57,
    "efficientnetv2-l": 79,
}

GIGAMACS = {
    "efficientnet-b0": 0.386,
    "efficientnet-b1": 0.687,
    "efficientnet-b3": 1.827,
    "efficientnet-b4": 4.394,
    "efficientnet-b5": 10.266,
    "efficientnet-b6": 19.068,
    "efficientnet-b7": 37.746,
    "efficientnetv2-s": 8.366,
    "efficientnetv2-m": 24.582,
    "efficientnetv2-l": 56.08,
}
"""As torchvision publishes them, for those that it has at the same input size."""


@pytest.mark.parametrize("name", sorted(EFFICIENTNETS))
def test_nodes_are_named_by_block(name: str) -> None:
    blocks = [re.match(r"(stem|blocks\.\d+|head|pool|flatten|classifier)\b", node.name) for node in _graph(name).node]

    order = list(dict.fromkeys(block[1] for block in blocks if block is not None))
    assert None not in blocks
    assert order == ["stem", *(f"blocks.{i}" for i in range(BLOCKS[name])), "head", "pool", "flatten", "classifier"]


@pytest.mark.parametrize("name", sorted(GIGAMACS))
def test_work_is_the_published_one(name: str) -> None:
    assert _macs(_graph(name)) / 1e9 == pytest.approx(GIGAMACS[name], rel=0.005)


def test_maps_of_b4_have_their_shapes() -> None:
    shapes = _shapes(_graph("efficientnet-b4"))

    outputs = [shapes[f"blocks.{index}.project.norm.output"] for index in (1, 2, 6, 10, 16, 22, 30)]
    assert outputs == [
        (1, 24, 190, 190),
        (1, 32, 95, 95),
        (1, 56, 48, 48),
        (1, 112, 24, 24),
        (1, 160, 24, 24),
        (1, 272, 12, 12),
        (1, 448, 12, 12),
    ]


def test_first_stage_of_v2_is_fused_without_projection_or_gate() -> None:
    names = [node.name for node in _graph("efficientnetv2-s").node if node.name.startswith("blocks.1.")]

    layers = ["conv", "norm", "silu.sigmoid", "silu.mul"]
    assert names == [*(f"blocks.1.fused.{layer}" for layer in layers), "blocks.1.add"]


def test_sketch_is_the_network_without_its_weights() -> None:
    built, sketch = build_efficientnet("efficientnetv2-b0", 0), sketch_efficientnet("efficientnetv2-b0")

    assert [_told(tensor) for tensor in sketch.graph.initializer] == [
        _told(tensor) for tensor in built.graph.initializer
    ]
    assert not any(tensor.raw_data for tensor in sketch.graph.initializer)
    assert _skeleton(sketch) == _skeleton(built)


def _told(tensor: TensorProto) -> tuple[str, int, tuple[int, ...]]:
    return tensor.name, tensor.data_type, tuple(tensor.dims)


def _skeleton(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    return bare


def _graph(name: str) -> GraphProto:
    """Return the sketch's graph for one image, its shapes inferred."""
    model = sketch_efficientnet(name)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).graph


def _shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def _macs(graph: GraphProto) -> int:
    """Return the multiply-accumulates of convolutions and dense layers."""
    shapes = _shapes(graph)
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    heavy = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    outputs = [shapes.get(node.output[0], ())[2:] for node in heavy]
    return sum(prod(weights[node.input[1]]) * prod(sides) for node, sides in zip(heavy, outputs, strict=True))
