"""AlexNet in one tower (Krizhevsky 2014), as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet

_CONVS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, kernel, stride and padding of each convolution."""
_POOLED = (0, 1, 4)
"""Convolutions with a maximum pooling behind them."""


def build_alexnet(seed: int) -> ModelProto:
    """Return AlexNet: 61,100,840 parameters, 96 % of them in dense layers."""
    net = ConvNet("alexnet", seed)
    x = net.image(calibrate=False)
    index = 0
    for position, (channels, kernel, stride, pad) in enumerate(_CONVS):
        x = net.conv(x, f"features.{index}.conv", channels, kernel, stride=stride, pad=pad, bias=True)
        x = net.relu(x, f"features.{index + 1}.relu")
        index += 2
        if position in _POOLED:
            x = net.max_pool(x, f"features.{index}.pool", 3, 2)
            index += 1
    net.dense_head(net.flatten(x), (256 * 6 * 6, 4096, 4096))
    return net.model()
