"""The table of reference models, and what can be done with a row: build it, save it, make inputs for it."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from hyps_models.alexnet import build_alexnet
from hyps_models.convnet import sample_images
from hyps_models.densenet import build_densenet169
from hyps_models.digits.network import build_digits, sample_digits
from hyps_models.efficientnet import EFFICIENTNETS, EfficientNet, build_efficientnet
from hyps_models.googlenet import build_googlenet
from hyps_models.meshnet import build_meshnet, sample_volumes
from hyps_models.mobilenet import build_mobilenetv2
from hyps_models.net import Tensors
from hyps_models.recurrent import build_lstm, sample_frames
from hyps_models.resnet import build_resnet50
from hyps_models.transformer import build_encoder, build_encoder_small, sample_tokens
from hyps_models.vgg import build_vgg16
from hyps_models.writing import write_model


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference model."""

    build: Callable[[int], ModelProto]
    """From a seed to the model."""
    sample: Callable[[np.random.Generator, int], Tensors]
    """From a generator and a batch size to inputs."""
    parameters: int
    """Trainable parameters as published; batch-norm statistics and position numbers are buffers and do not count."""
    summary: str


def _efficientnet(name: str, published: EfficientNet) -> Reference:
    summary = f"{published.title}, {published.side}x{published.side} images, 1000 classes"
    sample = partial(sample_images, side=published.side)
    return Reference(partial(build_efficientnet, name), sample, published.parameters, summary)


MODELS: dict[str, Reference] = {
    "alexnet": Reference(build_alexnet, sample_images, 61_100_840, "AlexNet, 224x224 images, 1000 classes"),
    "densenet169": Reference(
        build_densenet169, sample_images, 14_149_480, "DenseNet-169, 224x224 images, 1000 classes"
    ),
    "digits": Reference(build_digits, sample_digits, 40_394, "trained CNN, 8x8 handwritten digits, 10 classes"),
    "encoder": Reference(build_encoder, sample_tokens, 109_482_240, "BERT-base encoder, 12 layers, 768 wide, 12 heads"),
    "encoder-small": Reference(
        build_encoder_small, sample_tokens, 4_385_920, "BERT-tiny encoder, 2 layers, 128 wide, 2 heads"
    ),
    "googlenet": Reference(build_googlenet, sample_images, 6_624_904, "GoogLeNet, 224x224 images, 1000 classes"),
    "lstm": Reference(build_lstm, sample_frames, 237_196, "LSTM classifier, 2 layers, 128 wide, 12 classes"),
    "meshnet": Reference(build_meshnet, sample_volumes, 4_273, "MeshNet, 256x256x256 brain scans, 3 labels per voxel"),
    "mobilenetv2": Reference(build_mobilenetv2, sample_images, 3_504_872, "MobileNetV2, 224x224 images, 1000 classes"),
    "resnet50": Reference(build_resnet50, sample_images, 25_557_032, "ResNet-50, 224x224 images, 1000 classes"),
    "vgg16": Reference(build_vgg16, sample_images, 138_357_544, "VGG16, 224x224 images, 1000 classes"),
    **{name: _efficientnet(name, published) for name, published in EFFICIENTNETS.items()},
}


class UnknownModelError(LookupError):
    """No reference model has this name; an impossible seed or batch size is a ValueError instead.

    Attributes:
        message: one sentence with the name in it.
        hint: the names that there are.
    """

    def __init__(self, name: str) -> None:
        shown = repr(name[:80])[1:-1]  # the name may come from a stranger: no control characters
        self.message = f"no reference model is called `{shown}`"
        self.hint = f"choose one of {', '.join(names())}"
        super().__init__(f"{self.message}; {self.hint}")


def names() -> list[str]:
    """Return the names of all reference models, sorted."""
    return sorted(MODELS)


def build(name: str, seed: int = 0) -> ModelProto:
    """Return the reference model `name`; the same seed gives the same weights.

    `digits` is trained, so `seed` does not change it.

    Raises:
        UnknownModelError: no model has this name.
        ValueError: `seed` is negative.
    """
    return _reference(name).build(_checked_seed(seed))


def save(name: str, path: str | os.PathLike[str], seed: int = 0) -> None:
    """Write the reference model `name` to the file `path`, which appears whole or not at all.

    Raises:
        UnknownModelError: no model has this name.
        ValueError: `seed` is negative.
        OSError: the file cannot be written; an earlier file at `path` is then untouched.
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # renaming would replace a device, and fail on a folder late
        raise OSError(errno.EEXIST, "not a regular file", str(target))
    reference, seed = _reference(name), _checked_seed(seed)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(beside, "xb") as file:
            write_model(reference.build(seed), file)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def sample_inputs(name: str, seed: int = 0, batch: int = 1) -> Tensors:
    """Return inputs that the reference model `name` takes; the same seed gives the same values.

    Raises:
        UnknownModelError: no model has this name.
        ValueError: `seed` is negative or `batch` is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch {batch} is below 1")
    rng = np.random.Generator(np.random.PCG64(_checked_seed(seed)))
    return _reference(name).sample(rng, batch)


def _reference(name: str) -> Reference:
    if name not in MODELS:
        raise UnknownModelError(name)
    return MODELS[name]


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    return seed
