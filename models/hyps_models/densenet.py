"""DenseNet-169 (Huang et al. 2016), as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Feature

_BLOCKS = (6, 12, 32, 32)
"""Layers of each dense block; a transition that halves channels and sides stands between two."""
_GROWTH = 32
_BOTTLENECK = 4 * _GROWTH
_STEM = 64


def build_densenet169(seed: int) -> ModelProto:
    """Return DenseNet-169: 14,149,480 parameters."""
    net = ConvNet("densenet169", seed)
    x = net.conv_norm_relu(net.image(), "features.stem", _STEM, 7, stride=2)
    x = net.max_pool(x, "features.pool0", 3, 2, 1)
    for index, layers in enumerate(_BLOCKS, 1):
        x = _dense_block(net, x, f"features.denseblock{index}", layers)
        if index < len(_BLOCKS):
            x = _norm_relu_conv(net, x, f"features.transition{index}", x.channels // 2, 1)
            x = net.average_pool(x, f"features.transition{index}.pool", 2, 2)
    x = net.relu(net.batch_norm(x, "features.norm5"), "features.relu5")
    net.pooled_head(x, "classifier")
    return net.model()


def _dense_block(net: ConvNet, x: Feature, name: str, layers: int) -> Feature:
    """Append layers of which each sees the outputs of all before it, joined anew by a Concat of its own."""
    parts = [x]
    for index in range(1, layers + 1):
        layer = f"{name}.denselayer{index}"
        y = net.concat(parts, f"{layer}.concat") if index > 1 else x
        y = _norm_relu_conv(net, y, f"{layer}.reduce", _BOTTLENECK, 1)
        parts.append(_norm_relu_conv(net, y, f"{layer}.spatial", _GROWTH, 3))
    return net.concat(parts, f"{name}.concat")


def _norm_relu_conv(net: ConvNet, x: Feature, name: str, channels: int, kernel: int) -> Feature:
    x = net.relu(net.batch_norm(x, f"{name}.norm"), f"{name}.relu")
    return net.conv(x, f"{name}.conv", channels, kernel, pad=kernel // 2)
