"""ResNet-50 (He et al. 2015) with the stride in the 3x3 convolution, as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Feature

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Width of the 3x3 convolutions and number of blocks of each stage."""
_EXPANSION = 4


def build_resnet50(seed: int) -> ModelProto:
    """Return ResNet-50: 25,557,032 parameters, and 53,120 batch-norm statistics that are none."""
    net = ConvNet("resnet50", seed)
    x = net.image()
    x = net.conv_norm_relu(x, "stem", 64, 7, stride=2)
    x = net.max_pool(x, "stem.pool", 3, 2, 1)
    for stage, (width, blocks) in enumerate(_STAGES, 1):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            x = _bottleneck(net, x, f"layer{stage}.{block}", width, stride)
    net.pooled_head(x, "fc")
    return net.model()


def _bottleneck(net: ConvNet, x: Feature, name: str, width: int, stride: int) -> Feature:
    channels = width * _EXPANSION
    y = net.conv_norm_relu(x, f"{name}.reduce", width, 1)
    y = net.conv_norm_relu(y, f"{name}.spatial", width, 3, stride=stride)
    y = net.batch_norm(net.conv(y, f"{name}.expand.conv", channels, 1), f"{name}.expand.norm")
    if x.channels != channels:
        x = net.conv(x, f"{name}.downsample.conv", channels, 1, stride=stride)
        x = net.batch_norm(x, f"{name}.downsample.norm")
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu")
