"""Trains the digits network in numpy on scikit-learn's handwritten digits: `python -m hyps_models.digits.train`.

Writes `digits.onnx` and `digits_test.npz` beside itself. Everything is computed in float64 and rounded to float32 at
the end, so that another machine's matrix product gives the same weights but for the last digit.
"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from hyps_models.arrays import Array, convolved, padded, windows
from hyps_models.digits.network import CLASSES, HIDDEN, Weights, network
from hyps_models.writing import write_model

Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]

_TEST_IMAGES = 360
"""A fifth of the data."""
_EPOCHS = 12
_BATCH = 32
_RATE = 0.05
_MOMENTUM = 0.9


def main() -> None:
    """Train, print the accuracy, and write both files."""
    (train_pixels, train_labels), (pixels, labels) = split_digits()
    weights = trained(train_pixels / 16, train_labels)
    accuracy = np.mean(predicted(weights, pixels / 16) == labels)
    click.echo(f"{accuracy:.2%} of {len(labels)} test images")
    folder = Path(__file__).parent
    with open(folder / "digits.onnx", "wb") as file:
        write_model(network(weights), file)
    np.savez_compressed(folder / "digits_test.npz", pixels=pixels, labels=labels.astype(np.uint8))


def split_digits() -> tuple[tuple[Pixels, Labels], tuple[Pixels, Labels]]:
    """Return images `[count, 8, 8]` from 0 to 16 and their digits, to train on and to test on."""
    images, labels = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 8, 8).astype(np.uint8)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    test, train = np.split(order, [_TEST_IMAGES])
    return (pixels[train], labels[train]), (pixels[test], labels[test])


def trained(images: Array, labels: Labels, epochs: int = _EPOCHS) -> Weights:
    """Return weights trained by gradient descent with momentum on images `[count, 8, 8]` between 0 and 1."""
    rng = np.random.Generator(np.random.PCG64(1))
    weights = _initial(rng)
    speeds = {name: np.zeros_like(array) for name, array in weights.items()}
    for epoch in range(epochs):
        rate = _RATE * (1 - epoch / epochs)
        order = rng.permutation(len(labels))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            for name, slope in _slopes(weights, images[batch], labels[batch]).items():
                speeds[name] = _MOMENTUM * speeds[name] - rate * slope
                weights[name] += speeds[name]
    return weights


def predicted(weights: Weights, images: Array) -> Labels:
    """Return the digit seen in each image."""
    return np.asarray(_forward(weights, images)[-1].argmax(axis=1))


def _initial(rng: np.random.Generator) -> Weights:
    shapes = {
        "conv1": (16, 1, 3, 3),
        "conv2": (32, 16, 3, 3),
        "fc1": (HIDDEN, 128),
        "fc2": (CLASSES, HIDDEN),
    }
    weights: Weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.bias"] = np.zeros(shape[0])
    return weights


def _forward(weights: Weights, images: Array) -> list[Array]:
    """Return every layer's result: image, conv1, pool1, conv2, pool2 (`[channels, count, ...]`), flat, fc1, logits."""
    x = images[np.newaxis]
    results = [x]
    for name in ("conv1", "conv2"):
        x = _conv(x, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None, None]
        x = np.maximum(x, 0)
        results.append(x)
        x = windows(x, 2, 2).max(axis=(4, 5))
        results.append(x)
    flat = x.swapaxes(0, 1).reshape(len(images), -1)
    hidden = np.maximum(flat @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    logits = hidden @ weights["fc2.weight"].T + weights["fc2.bias"]
    return [*results, flat, hidden, logits]


def _slopes(weights: Weights, images: Array, labels: Labels) -> Weights:
    """Return the gradient of the mean cross-entropy, by name of the weight."""
    image, conv1, pool1, conv2, pool2, flat, hidden, logits = _forward(weights, images)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    back = (shares - np.eye(CLASSES)[labels]) / len(labels)
    slopes = {"fc2.weight": back.T @ hidden, "fc2.bias": back.sum(axis=0)}
    back = (back @ weights["fc2.weight"]) * (hidden > 0)
    slopes |= {"fc1.weight": back.T @ flat, "fc1.bias": back.sum(axis=0)}
    back = (back @ weights["fc1.weight"]).reshape(pool2.swapaxes(0, 1).shape).swapaxes(0, 1)
    back = _unpooled(back, conv2, pool2)
    slopes |= _conv_slopes("conv2", pool1, back)
    turned = weights["conv2.weight"][:, :, ::-1, ::-1].swapaxes(0, 1)
    back = _unpooled(_conv(back, turned), conv1, pool1)
    return slopes | _conv_slopes("conv1", image, back)


def _conv(x: Array, weight: Array) -> Array:
    """Return the 3x3 convolution that keeps height and width."""
    return convolved(padded(x, 1, 1), weight, 1, 1)


def _conv_slopes(name: str, x: Array, back: Array) -> Weights:
    slope = np.tensordot(back, windows(padded(x, 1, 1), 3, 1), axes=((1, 2, 3), (1, 2, 3)))
    return {f"{name}.weight": slope, f"{name}.bias": back.sum(axis=(1, 2, 3))}


def _unpooled(back: Array, x: Array, pooled: Array) -> Array:
    """Return the gradient before a Relu and the 2x2 pooling behind it: it flows to where a positive maximum was."""
    is_source = (x == _doubled(pooled)) & (x > 0)
    return np.where(is_source, _doubled(back), 0)


def _doubled(x: Array) -> Array:
    return x.repeat(2, axis=2).repeat(2, axis=3)


if __name__ == "__main__":
    main()
