"""VGG16 without batch normalization (Simonyan and Zisserman 2014, configuration D), as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet, Sketch

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage; a maximum pooling ends it."""


def build_vgg16(seed: int) -> ModelProto:
    """Return VGG16: 138,357,544 parameters, 102,764,544 of them in `classifier.fc1`."""
    return _written(ConvNet("vgg16", seed))


def sketch_vgg16() -> ModelProto:
    """Return the graph of the same network without weights: enough for shapes and counts."""
    return _written(Sketch("vgg16"))


def _written(net: ConvNet) -> ModelProto:
    x = net.image(calibrate=False)
    index = 0
    for channels, convs in _STAGES:
        for _ in range(convs):
            x = net.conv(x, f"features.{index}.conv", channels, 3, pad=1, bias=True)
            x = net.relu(x, f"features.{index + 1}.relu")
            index += 2
        x = net.max_pool(x, f"features.{index}.pool", 2, 2)
        index += 1
    net.dense_head(net.flatten(x), (512 * 7 * 7, 4096, 4096))
    return net.model()
