"""The small MeshNet is the large one but for its side, and its labels follow the volume."""

import io

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hyps_models.meshnet import CLASSES, build_meshnet, sample_volumes
from hyps_models.writing import write_model


def _labels(side: int, volume: NDArray[np.generic]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    write_model(build_meshnet(0, side), file)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"volume": volume})[0])


def test_every_voxel_gets_a_label_and_every_label_is_given() -> None:
    labels = _labels(32, sample_volumes(np.random.default_rng(0), 2, 32)["volume"])

    assert labels.shape == (2, 32, 32, 32)
    assert labels.dtype == np.uint8
    shares = np.bincount(labels.reshape(-1), minlength=CLASSES) / labels.size
    assert len(shares) == CLASSES
    assert shares.min() > 0.05


def test_a_voxel_is_seen_as_far_as_the_dilations_reach_and_no_farther() -> None:
    volume = sample_volumes(np.random.default_rng(0), 1, 48)["volume"]
    changed = volume.copy()
    changed[0, 0, 24, 24, 24] += 100

    places = np.argwhere(_labels(48, volume)[0] != _labels(48, changed)[0])

    assert 8 < np.abs(places - 24).max() <= 1 + 1 + 1 + 2 + 4 + 8 + 1


@pytest.mark.parametrize("side", [16, 256])
def test_weights_do_not_depend_on_the_side(side: int) -> None:
    small, other = build_meshnet(3, side), build_meshnet(3, 32)

    assert [t.raw_data for t in small.graph.initializer] == [t.raw_data for t in other.graph.initializer]
