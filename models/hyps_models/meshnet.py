"""MeshNet (Fedorov et al. 2017): labels every voxel of a brain scan with 17 KB of weights and gigabytes of maps.

Seven 3x3x3 convolutions with growing dilation, each with batch normalization and a Relu, keep the volume's size; a
1x1x1 convolution scores three tissues, and the answer is the label of each voxel. As in `convnet`, the batch-norm
statistics are those of a small pilot volume that runs along while the graph is written.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from onnx import ModelProto, TensorProto

from hyps_models.arrays import Array, rounded
from hyps_models.net import Floats, Net, Tensors

SIDE = 256
CLASSES = 3

_CHANNELS = 5
_DILATIONS = (1, 1, 1, 2, 4, 8, 1)
_PILOT_SIDE = 24
"""Wider than the 17 voxels that the widest dilation spans."""


@dataclass(frozen=True, slots=True)
class _Volume:
    """A value of shape `[batch, channels, depth, height, width]`."""

    name: str
    pilot: Array
    """What it is for the pilot volume, `[channels, depth, height, width]`."""


def build_meshnet(seed: int, side: int = SIDE) -> ModelProto:
    """Return the network for volumes of `side` voxels each way: 4,273 parameters, whatever the side."""
    net = Net("meshnet", seed)
    pilot = _volumes(net.rng, 1, _PILOT_SIDE)[0].astype(np.float64)
    x = _Volume(net.input("volume", ["batch", 1, side, side, side]), pilot)
    for index, dilation in enumerate(_DILATIONS, 1):
        x = _block(net, x, f"block{index}", dilation)
    scores = _scores(net, x)
    labels = net.node("ArgMax", "argmax", [scores], axis=1, keepdims=0)
    labels = net.node("Cast", "cast", [labels], "labels", to=TensorProto.UINT8)
    net.output(labels, ["batch", side, side, side], TensorProto.UINT8)
    return net.model()


def sample_volumes(rng: np.random.Generator, batch: int, side: int = SIDE) -> Tensors:
    """Return `batch` normalised volumes that differ overall, in patches and in detail."""
    return {"volume": _volumes(rng, batch, side)}


def _block(net: Net, x: _Volume, name: str, dilation: int) -> _Volume:
    weight = net.drawn((_CHANNELS, len(x.pilot), 3, 3, 3), sqrt(2 / (27 * len(x.pilot))))
    inputs = [x.name, net.tensor(f"{name}.conv.weight", weight)]
    conv = _conv(net, f"{name}.conv", inputs, 3, dilation)
    normalized = _batch_norm(net, _Volume(conv, _convolved(x.pilot, weight, dilation)), f"{name}.norm")
    return _Volume(net.node("Relu", f"{name}.relu", [normalized.name]), np.maximum(normalized.pilot, 0))


def _batch_norm(net: Net, x: _Volume, name: str) -> _Volume:
    parameters = {
        "weight": 1 + net.drawn((_CHANNELS,), 0.1),
        "bias": net.drawn((_CHANNELS,), 0.1),
        "running_mean": rounded(x.pilot.mean(axis=(1, 2, 3))),
        "running_var": rounded(x.pilot.var(axis=(1, 2, 3))),
    }
    weights = [net.tensor(f"{name}.{key}", array) for key, array in parameters.items()]
    scale, shift, mean, variance = (array.astype(np.float64)[:, None, None, None] for array in parameters.values())
    output = net.node("BatchNormalization", name, [x.name, *weights], epsilon=1e-5, momentum=0.9)
    return _Volume(output, scale * (x.pilot - mean) / np.sqrt(variance + 1e-5) + shift)


def _scores(net: Net, x: _Volume) -> str:
    """Append the 1x1x1 convolution; its biases make the labels equally likely over the pilot volume."""
    weight = net.drawn((CLASSES, _CHANNELS, 1, 1, 1), 1 / sqrt(_CHANNELS))
    bias = -weight[:, :, 0, 0, 0].astype(np.float64) @ x.pilot.mean(axis=(1, 2, 3))
    inputs = [x.name, net.tensor("classifier.weight", weight), net.tensor("classifier.bias", rounded(bias))]
    return _conv(net, "classifier", inputs, 1, 1)


def _conv(net: Net, name: str, inputs: list[str], kernel: int, dilation: int) -> str:
    """Append a convolution that keeps the volume's size."""
    return net.node(
        "Conv",
        name,
        inputs,
        dilations=[dilation] * 3,
        group=1,
        kernel_shape=[kernel] * 3,
        pads=[dilation * (kernel // 2)] * 6,
        strides=[1] * 3,
    )


def _convolved(x: Array, weight: Floats, dilation: int) -> Array:
    """Return the convolution of `x`, padded with zeros to keep its size."""
    side = x.shape[-1]
    wide = np.pad(x, ((0, 0), *[(dilation, dilation)] * 3))
    result = np.zeros((len(weight), side, side, side))
    for offset in np.ndindex(3, 3, 3):
        window = tuple(slice(step * dilation, step * dilation + side) for step in offset)
        result += np.tensordot(weight[(..., *offset)].astype(np.float64), wide[(slice(None), *window)], axes=1)
    return result


def _volumes(rng: np.random.Generator, batch: int, side: int) -> Floats:
    volumes = rng.standard_normal((batch, 1, side, side, side), np.float32)
    for cells in (1, 8):
        layer = rng.standard_normal((batch, 1, cells, cells, cells), np.float32)
        cell = -(-side // cells)
        volumes += layer.repeat(cell, axis=2).repeat(cell, axis=3).repeat(cell, axis=4)[..., :side, :side, :side]
    volumes *= np.float32(sqrt(1 / 3))
    return volumes
