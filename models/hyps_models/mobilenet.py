"""MobileNetV2 at width 1.0 (Sandler et al. 2018), as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Feature

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage."""


def build_mobilenetv2(seed: int) -> ModelProto:
    """Return MobileNetV2: 3,504,872 parameters, and 34,112 batch-norm statistics that are none."""
    net = ConvNet("mobilenetv2", seed)
    x = _conv_norm_relu6(net, net.image(), "features.0", 32, 3, stride=2)
    index = 1
    for expansion, channels, blocks, first_stride in _STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _inverted_residual(net, x, f"features.{index}", expansion, channels, stride)
            index += 1
    x = _conv_norm_relu6(net, x, f"features.{index}", 1280, 1)
    net.pooled_head(x, "classifier")
    return net.model()


def _inverted_residual(net: ConvNet, x: Feature, name: str, expansion: int, channels: int, stride: int) -> Feature:
    hidden = x.channels * expansion
    y = _conv_norm_relu6(net, x, f"{name}.expand", hidden, 1) if expansion > 1 else x
    y = _conv_norm_relu6(net, y, f"{name}.depthwise", hidden, 3, stride=stride, group=hidden)
    y = net.batch_norm(net.conv(y, f"{name}.project.conv", channels, 1), f"{name}.project.norm")
    return net.add(x, y, f"{name}.add") if stride == 1 and x.channels == channels else y


def _conv_norm_relu6(
    net: ConvNet, x: Feature, name: str, channels: int, kernel: int, *, stride: int = 1, group: int = 1
) -> Feature:
    x = net.conv(x, f"{name}.conv", channels, kernel, stride=stride, pad=kernel // 2, group=group)
    return net.relu6(net.batch_norm(x, f"{name}.norm"), f"{name}.relu6")
