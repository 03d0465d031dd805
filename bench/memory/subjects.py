"""The models that are measured, and how large each one is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import hyps_models
from compile import WIDTH, write_large
from strangers import SHARED, make_inputs, path_of

MB = 1_000_000

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Subject:
    """One model."""

    name: str
    write: Callable[[Path], None]
    feeds: Callable[[], Feeds]
    further_limits: tuple[int, ...] = ()
    """Bytes that somebody asked for, beside those that come of the model's size."""
    modes: tuple[str, ...] = ("cold", "warm", "cached")
    """Of `inferring.Job`; without weights worth the name they are all the same."""
    has_layouts: bool = True
    """Whether onnxruntime has layouts of its own for it, so that plans for one CPU family differ from portable ones."""

    @property
    def missing(self) -> str:
        """Why it cannot be measured here; empty: it can."""
        if isinstance(self.write, partial) and self.write.func is _copy and not SHARED.is_dir():
            return "the folder of shared models is not there (HYPS_SHARED)"
        return ""


def _zoo(name: str, *further_limits: int, has_layouts: bool = True) -> Subject:
    write, feeds = partial(hyps_models.save, name), partial(hyps_models.sample_inputs, name)
    return Subject(name, write, feeds, further_limits, has_layouts=has_layouts)


def _shared(name: str) -> Subject:
    return Subject(name, partial(_copy, name), partial(make_inputs, name))


def _copy(name: str, target: Path) -> None:
    target.write_bytes(path_of(name).read_bytes())


def _large_feeds() -> Feeds:
    return {"t0": np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)}


SUBJECTS = {
    subject.name: subject
    for subject in (
        _zoo("vgg16", 64 * MB),
        _zoo("resnet50"),
        _zoo("mobilenetv2"),
        _zoo("encoder", has_layouts=False),
        Subject("dense-3gb", write_large, _large_feeds, has_layouts=False),
        replace(_zoo("meshnet", 256 * MB, has_layouts=False), modes=("cold",)),
        _shared("deeplabv3_dm05_nhwc"),
        _shared("squeezenet_fp16"),
        _shared("ultraface_rfb320_op9"),
    )
}
"""The last three have the most weights or feature maps of the real models."""
