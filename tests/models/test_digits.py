"""The digits network recognises digits, and its script made it."""

import io
from importlib.resources import files

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import hyps_models
from hyps_models.writing import write_model


def _accuracy(batch: int) -> float:
    file = io.BytesIO()
    write_model(hyps_models.build("digits"), file)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    images, labels = hyps_models.digits_test()
    logits = [session.run(None, {"image": part})[0] for part in np.split(images, len(images) // batch)]
    return float(np.mean(np.concatenate(logits).argmax(axis=1) == labels))


@pytest.mark.parametrize("batch", [1, 360])
def test_shipped_model_recognises_the_digits_it_never_saw(batch: int) -> None:
    assert _accuracy(batch) >= 0.97


def test_test_images_are_normalised_and_show_every_digit() -> None:
    images, labels = hyps_models.digits_test()

    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(10))


def test_shipped_files_are_small() -> None:
    folder = files("hyps_models.digits")

    assert len(folder.joinpath("digits.onnx").read_bytes()) < 1_000_000
    assert len(folder.joinpath("digits_test.npz").read_bytes()) < 200_000


@pytest.mark.slow
def test_training_again_gives_the_shipped_weights_and_images() -> None:
    train = pytest.importorskip("hyps_models.digits.train", reason="needs scikit-learn", exc_type=ImportError)
    (pixels, labels), (test_pixels, test_labels) = train.split_digits()
    images, shipped_labels = hyps_models.digits_test()

    weights = train.trained(pixels / 16, labels)

    np.testing.assert_array_equal(images[:, 0] * 16, test_pixels)
    np.testing.assert_array_equal(shipped_labels, test_labels)
    for tensor in hyps_models.build("digits").graph.initializer:
        np.testing.assert_allclose(numpy_helper.to_array(tensor), weights[tensor.name], rtol=0, atol=1e-4)
