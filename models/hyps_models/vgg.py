"""VGG16 without batch normalization (Simonyan and Zisserman 2014, configuration D), as torchvision has it."""

from onnx import ModelProto

from hyps_models.convnet import ConvNet

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage; a maximum pooling ends it."""


def build_vgg16(seed: int) -> ModelProto:
    """Return VGG16: 138,357,544 parameters, 102,764,544 of them in `classifier.fc1`."""
    net = ConvNet("vgg16", seed)
    x = net.image("image")
    index = 0
    for channels, convs in _STAGES:
        for _ in range(convs):
            x = net.conv(x, f"features.{index}.conv", channels, 3, pad=1)
            x = net.relu(x, f"features.{index + 1}.relu")
            index += 2
        x = net.max_pool(x, f"features.{index}.pool", 2, 2)
        index += 1
    x = net.flatten(x, "flatten", 7, 7)
    x = net.dense_relu(x, "classifier.fc1", 4096, "classifier.relu1")
    x = net.dense_relu(x, "classifier.fc2", 4096, "classifier.relu2")
    net.logits(x, "classifier.fc3")
    return net.model()
