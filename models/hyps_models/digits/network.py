"""The digits network's graph, the trained model that is shipped, and the images it was never trained on."""

from importlib.resources import files

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from hyps_models.arrays import Array
from hyps_models.convnet import window
from hyps_models.net import Floats, Net, Tensors

HIDDEN = 256
CLASSES = 10

Weights = dict[str, Array]


def network(weights: Weights) -> ModelProto:
    """Return the network with these weights: two convolutions, each with a pooling, and two dense layers."""
    net = Net("digits", seed=0)
    names = {name: net.tensor(name, array.astype(np.float32)) for name, array in weights.items()}
    x = net.input("image", ["batch", 1, 8, 8])
    for index in (1, 2):
        conv = [x, names[f"conv{index}.weight"], names[f"conv{index}.bias"]]
        x = net.node("Conv", f"conv{index}", conv, dilations=[1, 1], group=1, **window(3, 1, 1))
        x = net.node("Relu", f"relu{index}", [x])
        x = net.node("MaxPool", f"pool{index}", [x], **window(2, 2, 0))
    x = net.node("Flatten", "flatten", [x], axis=1)
    x = net.gemm(x, "fc1", (names["fc1.weight"], names["fc1.bias"]))
    x = net.node("Relu", "relu3", [x])
    net.output(net.gemm(x, "fc2", (names["fc2.weight"], names["fc2.bias"]), "logits"), ["batch", CLASSES])
    return net.model()


def build_digits(seed: int) -> ModelProto:
    """Return the trained network; its weights are what training made them, whatever the `seed`."""
    del seed
    return onnx.load_from_string(files(__package__).joinpath("digits.onnx").read_bytes())


def digits_test() -> tuple[Floats, NDArray[np.int64]]:
    """Return the 360 held-out images, `[360, 1, 8, 8]` between 0 and 1, and the digit each one shows."""
    with files(__package__).joinpath("digits_test.npz").open("rb") as file, np.load(file) as arrays:
        return arrays["pixels"][:, np.newaxis].astype(np.float32) / 16, arrays["labels"].astype(np.int64)


def sample_digits(rng: np.random.Generator, batch: int) -> Tensors:
    """Return `batch` of the held-out images."""
    images, _ = digits_test()
    return {"image": images[rng.integers(len(images), size=batch)]}
