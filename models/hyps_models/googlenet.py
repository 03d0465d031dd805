"""GoogLeNet with batch normalization and without auxiliary classifiers (Szegedy et al. 2014), as torchvision has it.

As there, the branch that the paper draws with a 5x5 convolution has a 3x3 one, and poolings round up.
"""

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Feature

_EPSILON = 1e-3
_STAGES = (
    ("inception3", ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)), 3),
    (
        "inception4",
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        2,
    ),
    ("inception5", ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)), 0),
)
"""Blocks of channels 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pooled; the kernel of the pooling behind, if any."""


def build_googlenet(seed: int) -> ModelProto:
    """Return GoogLeNet: 6,624,904 parameters."""
    net = ConvNet("googlenet", seed)
    x = net.image()
    x = net.conv_norm_relu(x, "conv1", 64, 7, stride=2, epsilon=_EPSILON)
    x = net.max_pool(x, "pool1", 3, 2, ceil_mode=True)
    x = net.conv_norm_relu(x, "conv2", 64, 1, epsilon=_EPSILON)
    x = net.conv_norm_relu(x, "conv3", 192, 3, epsilon=_EPSILON)
    x = net.max_pool(x, "pool2", 3, 2, ceil_mode=True)
    for stage, blocks, pool in _STAGES:
        for letter, channels in zip("abcde"[: len(blocks)], blocks, strict=True):
            x = _inception(net, x, f"{stage}{letter}", channels)
        if pool:
            x = net.max_pool(x, f"{stage}.pool", pool, 2, ceil_mode=True)
    net.pooled_head(x, "fc")
    return net.model()


def _inception(net: ConvNet, x: Feature, name: str, channels: tuple[int, ...]) -> Feature:
    plain, reduced3, wide3, reduced5, wide5, pooled = channels
    branch1 = net.conv_norm_relu(x, f"{name}.branch1", plain, 1, epsilon=_EPSILON)
    branch2 = net.conv_norm_relu(x, f"{name}.branch2.reduce", reduced3, 1, epsilon=_EPSILON)
    branch2 = net.conv_norm_relu(branch2, f"{name}.branch2.spatial", wide3, 3, epsilon=_EPSILON)
    branch3 = net.conv_norm_relu(x, f"{name}.branch3.reduce", reduced5, 1, epsilon=_EPSILON)
    branch3 = net.conv_norm_relu(branch3, f"{name}.branch3.spatial", wide5, 3, epsilon=_EPSILON)
    branch4 = net.max_pool(x, f"{name}.branch4.pool", 3, 1, 1, ceil_mode=True)
    branch4 = net.conv_norm_relu(branch4, f"{name}.branch4.project", pooled, 1, epsilon=_EPSILON)
    return net.concat([branch1, branch2, branch3, branch4], f"{name}.concat")
