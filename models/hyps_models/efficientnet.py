"""EfficientNet B0 to B7 (Tan and Le 2019) and EfficientNetV2 B0 to B3, S, M, L (Tan and Le 2021), as published.

Nodes are named by block: `blocks.7.depthwise.conv` belongs to the eighth block, counted from 0 through all stages.
"""

from dataclasses import dataclass
from math import ceil

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Feature, Sketch

_EPSILON = 1e-3
_RESIDUAL_GAIN = 0.15
"""What a block adds to what it gets is small beside it, as in trained networks; else small differences between inputs
grow from block to block, and behind fifty of them no statistics of a pilot batch fit another batch."""
_PILOT_SIDE = 192
"""The deepest maps are 6x6 then, so that not every place of theirs feels the border through a 5x5 kernel."""
_DIVISOR = 8
"""Scaled channels are multiples of it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one kind."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    """Of the first block; the others keep the sides."""
    kernel: int = 3
    is_fused: bool = False
    """One convolution in place of expansion and depthwise convolution, and no squeeze-and-excite (Fused-MBConv)."""


@dataclass(frozen=True, slots=True)
class EfficientNet:
    """One published network."""

    title: str
    stages: tuple[Stage, ...]
    side: int
    """Rows and columns of the images it was published for."""
    parameters: int
    """Trainable parameters as published."""
    width: float = 1.0
    """Factor of all channels, those of stem and head included."""
    depth: float = 1.0
    """Factor of the number of blocks of each stage, rounded up."""
    stem: int = 32
    head: int = 1280
    least_kept: float = 0.0
    """Where rounding scaled channels would leave less than this share of them, they are rounded up."""

    def scaled(self, channels: int) -> int:
        """Return the channels times the width, as a multiple of eight."""
        wanted = channels * self.width
        nearest = max(_DIVISOR, int(wanted + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
        return nearest if nearest >= self.least_kept * wanted else nearest + _DIVISOR


_V1 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, kernel=5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, kernel=5),
    Stage(6, 192, 4, 2, kernel=5),
    Stage(6, 320, 1, 1),
)
_V2 = (
    Stage(1, 16, 1, 1, is_fused=True),
    Stage(4, 32, 2, 2, is_fused=True),
    Stage(4, 48, 2, 2, is_fused=True),
    Stage(4, 96, 3, 2),
    Stage(6, 112, 5, 1),
    Stage(6, 192, 8, 2),
)
_V2_S = (
    Stage(1, 24, 2, 1, is_fused=True),
    Stage(4, 48, 4, 2, is_fused=True),
    Stage(4, 64, 4, 2, is_fused=True),
    Stage(4, 128, 6, 2),
    Stage(6, 160, 9, 1),
    Stage(6, 256, 15, 2),
)
_V2_M = (
    Stage(1, 24, 3, 1, is_fused=True),
    Stage(4, 48, 5, 2, is_fused=True),
    Stage(4, 80, 5, 2, is_fused=True),
    Stage(4, 160, 7, 2),
    Stage(6, 176, 14, 1),
    Stage(6, 304, 18, 2),
    Stage(6, 512, 5, 1),
)
_V2_L = (
    Stage(1, 32, 4, 1, is_fused=True),
    Stage(4, 64, 7, 2, is_fused=True),
    Stage(4, 96, 7, 2, is_fused=True),
    Stage(4, 192, 10, 2),
    Stage(6, 224, 19, 1),
    Stage(6, 384, 25, 2),
    Stage(6, 640, 7, 1),
)

EFFICIENTNETS: dict[str, EfficientNet] = {
    "efficientnet-b0": EfficientNet("EfficientNet-B0", _V1, 224, 5_288_548, least_kept=0.9),
    "efficientnet-b1": EfficientNet("EfficientNet-B1", _V1, 240, 7_794_184, 1.0, 1.1, least_kept=0.9),
    "efficientnet-b2": EfficientNet("EfficientNet-B2", _V1, 260, 9_109_994, 1.1, 1.2, least_kept=0.9),
    "efficientnet-b3": EfficientNet("EfficientNet-B3", _V1, 300, 12_233_232, 1.2, 1.4, least_kept=0.9),
    "efficientnet-b4": EfficientNet("EfficientNet-B4", _V1, 380, 19_341_616, 1.4, 1.8, least_kept=0.9),
    "efficientnet-b5": EfficientNet("EfficientNet-B5", _V1, 456, 30_389_784, 1.6, 2.2, least_kept=0.9),
    "efficientnet-b6": EfficientNet("EfficientNet-B6", _V1, 528, 43_040_704, 1.8, 2.6, least_kept=0.9),
    "efficientnet-b7": EfficientNet("EfficientNet-B7", _V1, 600, 66_347_960, 2.0, 3.1, least_kept=0.9),
    "efficientnetv2-b0": EfficientNet("EfficientNetV2-B0", _V2, 224, 7_139_704),
    "efficientnetv2-b1": EfficientNet("EfficientNetV2-B1", _V2, 240, 8_141_052, 1.0, 1.1),
    "efficientnetv2-b2": EfficientNet("EfficientNetV2-B2", _V2, 260, 10_096_086, 1.1, 1.2),
    "efficientnetv2-b3": EfficientNet("EfficientNetV2-B3", _V2, 300, 14_358_406, 1.2, 1.4),
    "efficientnetv2-s": EfficientNet("EfficientNetV2-S", _V2_S, 384, 21_458_488, stem=24),
    "efficientnetv2-m": EfficientNet("EfficientNetV2-M", _V2_M, 480, 54_139_356, stem=24),
    "efficientnetv2-l": EfficientNet("EfficientNetV2-L", _V2_L, 480, 118_515_272),
}


def build_efficientnet(name: str, seed: int) -> ModelProto:
    """Return the network of the table that is called `name`."""
    return _written(ConvNet(name, seed), EFFICIENTNETS[name])


def sketch_efficientnet(name: str) -> ModelProto:
    """Return the graph of the same network without weights: enough for shapes and counts."""
    return _written(Sketch(name), EFFICIENTNETS[name])


def _written(net: ConvNet, published: EfficientNet) -> ModelProto:
    x = net.image(side=published.side, pilot_side=_PILOT_SIDE)
    x = _conv_norm_silu(net, x, "stem", published.scaled(published.stem), 3, stride=2)
    index = 0
    for stage in published.stages:
        channels = published.scaled(stage.channels)
        append = _fused_block if stage.is_fused else _block
        for number in range(ceil(stage.blocks * published.depth)):
            stride = stage.stride if number == 0 else 1
            is_residual = stride == 1 and x.channels == channels
            gain = _RESIDUAL_GAIN if is_residual else 1.0
            y = append(net, x, f"blocks.{index}", stage, channels, stride, gain)
            x = net.add(y, x, f"blocks.{index}.add") if is_residual else y
            index += 1
    x = _conv_norm_silu(net, x, "head", published.scaled(published.head), 1)
    net.pooled_head(x, "classifier")
    return net.model()


def _block(net: ConvNet, x: Feature, name: str, stage: Stage, channels: int, stride: int, gain: float) -> Feature:
    """Append an MBConv: expansion, depthwise convolution, squeeze-and-excite, projection."""
    hidden = x.channels * stage.expansion
    y = _conv_norm_silu(net, x, f"{name}.expand", hidden, 1) if stage.expansion > 1 else x
    y = _conv_norm_silu(net, y, f"{name}.depthwise", hidden, stage.kernel, stride=stride, group=hidden)
    y = _squeeze_and_excite(net, y, f"{name}.se", x.channels // 4)
    return _conv_norm(net, y, f"{name}.project", channels, 1, gain=gain)


def _fused_block(net: ConvNet, x: Feature, name: str, stage: Stage, channels: int, stride: int, gain: float) -> Feature:
    """Append a Fused-MBConv; without expansion it is a single convolution."""
    if stage.expansion == 1:
        y = _conv_norm(net, x, f"{name}.fused", channels, stage.kernel, stride=stride, gain=gain)
        return net.silu(y, f"{name}.fused.silu")
    y = _conv_norm_silu(net, x, f"{name}.fused", x.channels * stage.expansion, stage.kernel, stride=stride)
    return _conv_norm(net, y, f"{name}.project", channels, 1, gain=gain)


def _squeeze_and_excite(net: ConvNet, x: Feature, name: str, squeezed: int) -> Feature:
    """Append a gate on each channel, made of the means of all."""
    y = net.global_average_pool(x, f"{name}.pool")
    y = net.silu(net.conv(y, f"{name}.reduce.conv", squeezed, 1, bias=True), f"{name}.reduce.silu")
    y = net.sigmoid(net.conv(y, f"{name}.expand.conv", x.channels, 1, bias=True), f"{name}.sigmoid")
    return net.mul(x, y, f"{name}.mul")


def _conv_norm_silu(
    net: ConvNet, x: Feature, name: str, channels: int, kernel: int, *, stride: int = 1, group: int = 1
) -> Feature:
    return net.silu(_conv_norm(net, x, name, channels, kernel, stride=stride, group=group), f"{name}.silu")


def _conv_norm(
    net: ConvNet,
    x: Feature,
    name: str,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    group: int = 1,
    gain: float = 1.0,
) -> Feature:
    x = net.conv(x, f"{name}.conv", channels, kernel, stride=stride, pad=kernel // 2, group=group)
    return net.batch_norm(x, f"{name}.norm", _EPSILON, gain)
