"""The layers of convolutional networks, with a forecast of each value's scale so that random weights stay sane.

A trained network's batch-norm statistics fit what its convolutions compute. Here nothing is trained or measured: the
forecast mean and variance are carried along with every value (independent normal values assumed), convolutions are
He-initialised, and the statistics are the forecast ones with some scatter. So activations neither fade nor grow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import erf, exp, pi, sqrt

import numpy as np

from hyps_models.net import Net, Tensors

CLASSES = 1000
SIDE = 224


@dataclass(frozen=True, slots=True)
class Feature:
    """A value of shape `[batch, channels, height, width]`, or `[batch, channels]` once flattened."""

    name: str
    channels: int
    mean: float
    """Forecast mean over everything."""
    variance: float
    """Forecast variance over everything."""

    @property
    def power(self) -> float:
        """Forecast mean square."""
        return self.mean**2 + self.variance


class ConvNet(Net):
    """A `Net` whose values are features."""

    def image(self, name: str, channels: int = 3, side: int = SIDE) -> Feature:
        """Declare the model's image input, normalised to mean 0 and variance 1, batch dimension left open."""
        return Feature(self.input(name, ["batch", channels, side, side]), channels, 0.0, 1.0)

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
        bias: bool = True,
    ) -> Feature:
        """Append a square convolution."""
        shape = (channels, x.channels // group, kernel, kernel)
        fan_in = shape[1] * kernel * kernel
        inputs = [x.name, self.normal(f"{name}.weight", shape, sqrt(2 / fan_in))]
        if bias:
            inputs.append(self.normal(f"{name}.bias", (channels,), 0.05))
        output = self.node(
            "Conv",
            name,
            inputs,
            dilations=[1, 1],
            group=group,
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )
        return Feature(output, channels, 0.0, 2 * x.power)

    def batch_norm(self, x: Feature, name: str, epsilon: float = 1e-5) -> Feature:
        """Append a batch normalization in inference form, its statistics near the forecast ones."""
        spread = sqrt(x.variance)
        scale = self.normal(f"{name}.weight", (x.channels,), 0.1, 1.0)
        shift = self.normal(f"{name}.bias", (x.channels,), 0.1)
        mean = self.normal(f"{name}.running_mean", (x.channels,), 0.1 * spread, x.mean)
        scatter = 0.8 + 0.4 * self.rng.random(x.channels, np.float32)
        variance = self.tensor(f"{name}.running_var", np.float32(x.variance) * scatter)
        output = self.node(
            "BatchNormalization", name, [x.name, scale, shift, mean, variance], epsilon=epsilon, momentum=0.9
        )
        return Feature(output, x.channels, 0.0, 1.0)

    def relu(self, x: Feature, name: str) -> Feature:
        """Append a Relu."""
        return _rectified(replace(x, name=self.node("Relu", name, [x.name])))

    def relu6(self, x: Feature, name: str) -> Feature:
        """Append a Relu that stops at 6, which exporters write as a Clip."""
        bounds = [self.constant(f"{name}.min", 0.0), self.constant(f"{name}.max", 6.0)]
        return _rectified(replace(x, name=self.node("Clip", name, [x.name, *bounds])))

    def conv_norm_relu(
        self,
        x: Feature,
        name: str,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        epsilon: float = 1e-5,
    ) -> Feature:
        """Append `name.conv`, `name.norm` and `name.relu`."""
        x = self.conv(x, f"{name}.conv", channels, kernel, stride=stride, pad=pad, bias=False)
        return self.relu(self.batch_norm(x, f"{name}.norm", epsilon), f"{name}.relu")

    def max_pool(
        self, x: Feature, name: str, kernel: int, stride: int, pad: int = 0, *, ceil_mode: bool = False
    ) -> Feature:
        """Append a square maximum pooling."""
        output = self.node(
            "MaxPool",
            name,
            [x.name],
            ceil_mode=int(ceil_mode),
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )
        # Between neighbours that are equal (nothing changes) and independent (the mean of four rises by one deviation).
        return replace(x, name=output, mean=x.mean + 0.5 * sqrt(x.variance))

    def average_pool(self, x: Feature, name: str, kernel: int, stride: int) -> Feature:
        """Append a square average pooling without padding."""
        output = self.node("AveragePool", name, [x.name], kernel_shape=[kernel] * 2, strides=[stride] * 2)
        return replace(x, name=output)

    def global_average_pool(self, x: Feature, name: str) -> Feature:
        """Append a global average pooling."""
        return replace(x, name=self.node("GlobalAveragePool", name, [x.name]))

    def concat(self, parts: Sequence[Feature], name: str) -> Feature:
        """Append a concatenation along the channels."""
        channels = sum(part.channels for part in parts)
        mean = sum(part.channels * part.mean for part in parts) / channels
        power = sum(part.channels * part.power for part in parts) / channels
        output = self.node("Concat", name, [part.name for part in parts], axis=1)
        return Feature(output, channels, mean, power - mean**2)

    def add(self, x: Feature, y: Feature, name: str) -> Feature:
        """Append a residual addition."""
        output = self.node("Add", name, [x.name, y.name])
        return Feature(output, x.channels, x.mean + y.mean, x.variance + y.variance)

    def flatten(self, x: Feature, name: str, height: int = 1, width: int = 1) -> Feature:
        """Append a Flatten of a value whose height and width are known."""
        return replace(x, name=self.node("Flatten", name, [x.name], axis=1), channels=x.channels * height * width)

    def dense_relu(self, x: Feature, name: str, channels: int, relu_name: str) -> Feature:
        """Append a dense layer and its Relu."""
        output = self.linear(x.name, name, x.channels, channels, gain=2.0)
        return self.relu(Feature(output, channels, 0.0, 2 * x.power), relu_name)

    def logits(self, x: Feature, name: str, classes: int = CLASSES) -> None:
        """Append the last dense layer and declare its result as the output `logits`, of variance about 1."""
        output = self.linear(x.name, name, x.channels, classes, gain=1 / x.power, output="logits")
        self.output(output, ["batch", classes])


def sample_images(rng: np.random.Generator, batch: int) -> Tensors:
    """Return `batch` images of mean 0 and variance 1: large patches of colour under fine noise, no two alike."""
    patches = rng.standard_normal((batch, 3, 7, 7), np.float32).repeat(SIDE // 7, axis=2).repeat(SIDE // 7, axis=3)
    noise = rng.standard_normal((batch, 3, SIDE, SIDE), np.float32)
    return {"image": np.float32(0.9) * patches + np.float32(0.4) * noise}


def _rectified(x: Feature) -> Feature:
    """Return `x` with the moments of max(0, normal), in closed form."""
    deviation = sqrt(x.variance)
    ratio = x.mean / deviation
    above = 0.5 * (1 + erf(ratio / sqrt(2)))
    density = exp(-(ratio**2) / 2) / sqrt(2 * pi)
    mean = x.mean * above + deviation * density
    power = x.power * above + x.mean * deviation * density
    return replace(x, mean=mean, variance=power - mean**2)
