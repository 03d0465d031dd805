"""The layers of convolutional networks; a small batch of images runs along while the graph is written.

A trained network's batch-norm statistics fit what its convolutions compute. Here convolutions are He-initialised at
random, so the statistics are measured, as training would have done, on a pilot batch: activations neither fade nor
grow, no channel keeps an offset that all inputs share, and the answer depends on the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod, sqrt
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from hyps_models.arrays import Array, convolved, padded, rounded, windows
from hyps_models.net import Floats, Net, Tensors

CLASSES = 1000
SIDE = 224

_PILOT_BATCH = 4
_PILOT_SIDE = 128
"""Smaller than `SIDE` for speed; the deepest maps are still 4x4."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A value of shape `[batch, channels, height, width]`."""

    name: str
    pilot: Array
    """What it is for the pilot batch, `[channels, batch, height, width]`."""

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.pilot.shape[0])


class ConvNet(Net):
    """A `Net` whose values are features."""

    def image(self, *, side: int = SIDE, pilot_side: int = _PILOT_SIDE, calibrate: bool = True) -> Feature:
        """Declare the model's input of normalised images, batch dimension left open.

        The pilot batch has smaller images than the model takes, for speed. A network without batch normalization needs
        none: `calibrate=False` makes it an empty one.
        """
        batch, drawn_side = (_PILOT_BATCH, pilot_side) if calibrate else (0, side)
        pilot = _images(self.rng, batch, drawn_side).astype(np.float64).swapaxes(0, 1)
        return Feature(self.input("image", ["batch", 3, side, side]), pilot)

    def conv(
        self,
        x: Feature,
        name: str,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
        bias: bool = False,
    ) -> Feature:
        """Append a square convolution."""
        shape = (channels, x.channels // group, kernel, kernel)
        weight = self.drawn(shape, sqrt(2 / prod(shape[1:])))
        inputs = [x.name, self.tensor(f"{name}.weight", weight)]
        pilot = convolved(padded(x.pilot, pad, pad), weight.astype(np.float64), stride, group)
        if bias:
            offset = self.drawn((channels,), 0.05)
            inputs.append(self.tensor(f"{name}.bias", offset))
            pilot += offset[:, None, None, None]
        output = self.node("Conv", name, inputs, dilations=[1, 1], group=group, **window(kernel, stride, pad))
        return Feature(output, pilot)

    def batch_norm(self, x: Feature, name: str, epsilon: float = 1e-5, gain: float = 1.0) -> Feature:
        """Append a batch normalization in inference form, its statistics those of the pilot batch.

        Channels come out with a standard deviation of about `gain`.
        """
        mean_and_variance = _statistics(x.pilot)
        parameters = {
            "weight": gain * (1 + self.drawn((x.channels,), 0.1)),
            "bias": gain * self.drawn((x.channels,), 0.1),
            "running_mean": rounded(mean_and_variance[0]),
            "running_var": rounded(mean_and_variance[1]),
        }
        weights = [self.tensor(f"{name}.{key}", array) for key, array in parameters.items()]
        scale, shift, mean, variance = (array.astype(np.float64)[:, None, None, None] for array in parameters.values())
        output = self.node("BatchNormalization", name, [x.name, *weights], epsilon=epsilon, momentum=0.9)
        return Feature(output, scale * (x.pilot - mean) / np.sqrt(variance + epsilon) + shift)

    def relu(self, x: Feature, name: str) -> Feature:
        """Append a Relu."""
        return Feature(self.node("Relu", name, [x.name]), np.maximum(x.pilot, 0))

    def relu6(self, x: Feature, name: str) -> Feature:
        """Append a Relu that stops at 6, which exporters write as a Clip."""
        bounds = [self.constant(f"{name}.min", 0.0), self.constant(f"{name}.max", 6.0)]
        return Feature(self.node("Clip", name, [x.name, *bounds]), np.clip(x.pilot, 0, 6))

    def sigmoid(self, x: Feature, name: str) -> Feature:
        """Append a Sigmoid."""
        return Feature(self.node("Sigmoid", name, [x.name]), 1 / (1 + np.exp(-x.pilot)))

    def mul(self, x: Feature, y: Feature, name: str) -> Feature:
        """Append a product; sides of 1 in `y` are stretched."""
        return Feature(self.node("Mul", name, [x.name, y.name]), x.pilot * y.pilot)

    def silu(self, x: Feature, name: str) -> Feature:
        """Append `name.sigmoid` and `name.mul`, as exporters write a SiLU."""
        return self.mul(x, self.sigmoid(x, f"{name}.sigmoid"), f"{name}.mul")

    def conv_norm_relu(
        self, x: Feature, name: str, channels: int, kernel: int, *, stride: int = 1, epsilon: float = 1e-5
    ) -> Feature:
        """Append `name.conv`, padded to keep the sides up to the stride, `name.norm` and `name.relu`."""
        x = self.conv(x, f"{name}.conv", channels, kernel, stride=stride, pad=kernel // 2)
        return self.relu(self.batch_norm(x, f"{name}.norm", epsilon), f"{name}.relu")

    def max_pool(
        self, x: Feature, name: str, kernel: int, stride: int, pad: int = 0, *, ceil_mode: bool = False
    ) -> Feature:
        """Append a square maximum pooling; in `ceil_mode` a last window may reach over the border."""
        output = self.node("MaxPool", name, [x.name], ceil_mode=int(ceil_mode), **window(kernel, stride, pad))
        over = (kernel - x.pilot.shape[-1] - 2 * pad) % stride if ceil_mode else 0
        pilot = windows(padded(x.pilot, pad, pad + over, -np.inf), kernel, stride).max(axis=(4, 5))
        return Feature(output, pilot)

    def average_pool(self, x: Feature, name: str, kernel: int, stride: int) -> Feature:
        """Append a square average pooling without padding."""
        output = self.node("AveragePool", name, [x.name], **window(kernel, stride, 0))
        return Feature(output, windows(x.pilot, kernel, stride).mean(axis=(4, 5)))

    def global_average_pool(self, x: Feature, name: str) -> Feature:
        """Append a pooling of each channel to its mean."""
        output = self.node("GlobalAveragePool", name, [x.name])
        return Feature(output, x.pilot.mean(axis=(2, 3), keepdims=True))

    def concat(self, parts: Sequence[Feature], name: str) -> Feature:
        """Append a concatenation along the channels."""
        output = self.node("Concat", name, [part.name for part in parts], axis=1)
        return Feature(output, np.concatenate([part.pilot for part in parts]))

    def add(self, x: Feature, y: Feature, name: str) -> Feature:
        """Append a residual addition."""
        return Feature(self.node("Add", name, [x.name, y.name]), x.pilot + y.pilot)

    def flatten(self, x: Feature) -> str:
        """Append a Flatten, the border between features and dense layers."""
        return self.node("Flatten", "flatten", [x.name], axis=1)

    def pooled_head(self, x: Feature, name: str) -> None:
        """End the network with a global average pooling, a Flatten and the dense layer `name`.

        The layer's biases make all classes equally likely over the pilot batch; else one class would win always, as
        what the pooled features of all inputs share is more than what tells them apart.
        """
        pooled = replace(x, name=self.node("GlobalAveragePool", "pool", [x.name]))
        weight = self.drawn((CLASSES, x.channels), 4 / sqrt(x.channels))
        bias = -weight.astype(np.float64) @ _statistics(x.pilot)[0]
        tensors = (self.tensor(f"{name}.weight", weight), self.tensor(f"{name}.bias", rounded(bias)))
        self.output(self.gemm(self.flatten(pooled), name, tensors, "logits"), ["batch", CLASSES])

    def dense_head(self, x: str, widths: Sequence[int]) -> None:
        """End the network with dense layers, a Relu behind all but the last: `classifier.fc1`, `classifier.fc2` ..."""
        for index, (inputs, outputs) in enumerate(pairwise(widths), 1):
            x = self.linear(x, f"classifier.fc{index}", inputs, outputs, gain=2.0)
            x = self.node("Relu", f"classifier.relu{index}", [x])
        logits = self.linear(x, f"classifier.fc{len(widths)}", widths[-1], CLASSES, output="logits")
        self.output(logits, ["batch", CLASSES])


class Sketch(ConvNet):
    """A network without weights: nodes and shapes only, for what needs no more; made in a moment, however large.

    Its initializers have names, types and dimensions and no data, so that nothing can run it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, seed=0)

    def image(self, *, side: int = SIDE, pilot_side: int = _PILOT_SIDE, calibrate: bool = False) -> Feature:
        """Declare the model's input; there is nothing to calibrate, so the pilot batch is empty whatever is asked."""
        return super().image(side=side, calibrate=False)

    def drawn(self, shape: Sequence[int], std: float = 1.0) -> Floats:
        """Return zeros that take no memory."""
        return np.broadcast_to(np.float32(0), tuple(shape))

    def tensor(self, name: str, array: NDArray[np.generic]) -> str:
        """Append an initializer without data and return its name."""
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.model().graph.initializer.add(name=name, data_type=elem_type, dims=array.shape)
        return name


def sample_images(rng: np.random.Generator, batch: int, side: int = SIDE) -> Tensors:
    """Return `batch` normalised images that differ as photographs do: in overall colour, in patches, in detail."""
    return {"image": _images(rng, batch, side)}


class _Window(TypedDict):
    kernel_shape: list[int]
    pads: list[int]
    strides: list[int]


def window(kernel: int, stride: int, pad: int) -> _Window:
    """Return the attributes of a square window on an image."""
    return _Window(kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2)


def _images(rng: np.random.Generator, batch: int, side: int) -> Floats:
    images = np.zeros((batch, 3, side, side), np.float32)
    for cells in (1, 8, side):
        layer = rng.standard_normal((batch, 3, cells, cells), np.float32) * np.float32(sqrt(1 / 3))
        cell = -(-side // cells)
        images += layer.repeat(cell, axis=2).repeat(cell, axis=3)[..., :side, :side]
    return images


def _statistics(pilot: Array) -> tuple[Array, Array]:
    """Return the mean and the variance of each channel; 0 and 1 where the pilot batch is empty."""
    if pilot.size == 0:
        return np.zeros(len(pilot)), np.ones(len(pilot))
    return pilot.mean(axis=(1, 2, 3)), pilot.var(axis=(1, 2, 3))
