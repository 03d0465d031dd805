"""A small sequence classifier: two LSTM layers and two dense ones over frames of 40 figures, 12 classes."""

from math import sqrt

import numpy as np
from onnx import ModelProto

from hyps_models.net import Net, Tensors

_FRAME = 40
_HIDDEN = 128
_CLASSES = 12
_SAMPLE_FRAMES = 49
"""A second of speech in frames of 20 ms."""


def build_lstm(seed: int) -> ModelProto:
    """Return the classifier: 237,196 parameters; both biases of each gate count, as ONNX stores two."""
    net = Net("lstm", seed)
    x = net.input("frames", ["batch", "sequence", _FRAME])
    x = net.node("Transpose", "sequence_first", [x], perm=[1, 0, 2])
    steps, _ = _lstm(net, x, "lstm1", _FRAME)
    _, last = _lstm(net, steps, "lstm2", _HIDDEN)
    x = net.linear(last, "classifier.fc1", _HIDDEN, _HIDDEN, gain=4.0)
    x = net.node("Relu", "classifier.relu1", [x])
    net.output(net.linear(x, "classifier.fc2", _HIDDEN, _CLASSES, gain=16.0, output="logits"), ["batch", _CLASSES])
    return net.model()


def sample_frames(rng: np.random.Generator, batch: int) -> Tensors:
    """Return `batch` sequences of 49 normalised frames."""
    return {"frames": rng.standard_normal((batch, _SAMPLE_FRAMES, _FRAME), np.float32)}


def _lstm(net: Net, x: str, name: str, inputs: int) -> tuple[str, str]:
    """Append one layer in one direction; return its output of every step and of the last, `[batch, hidden]`."""
    bias = net.drawn((1, 8 * _HIDDEN), 0.05)
    bias[:, 2 * _HIDDEN : 3 * _HIDDEN] += 1  # the forget gate starts open, as is usual, else the past fades at once
    weights = [
        net.normal(f"{name}.weight_ih", (1, 4 * _HIDDEN, inputs), 2 / sqrt(inputs)),
        net.normal(f"{name}.weight_hh", (1, 4 * _HIDDEN, _HIDDEN), 1 / sqrt(_HIDDEN)),
        net.tensor(f"{name}.bias", bias),
    ]
    wanted = [f"{name}.steps", f"{name}.last"]
    steps, last = net.nodes("LSTM", name, [x, *weights], wanted, hidden_size=_HIDDEN)
    direction = {"steps": (steps, 1), "last": (last, 0)}
    squeezed = [
        net.node("Squeeze", f"{name}.squeeze_{key}", [value, net.constant(f"{name}.squeeze_{key}.axes", [axis])])
        for key, (value, axis) in direction.items()
    ]
    return squeezed[0], squeezed[1]
