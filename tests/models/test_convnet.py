"""The pilot batch goes through the same arithmetic as the graph."""

import io
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest

from hyps_models.convnet import ConvNet, Feature
from hyps_models.writing import write_model


def _pooled(net: ConvNet, x: Feature) -> Feature:
    x = net.max_pool(x, "plain", 3, 2, 1)
    return net.average_pool(net.max_pool(x, "ceil", 3, 2, ceil_mode=True), "average", 2, 2)


def _convolved(net: ConvNet, x: Feature) -> Feature:
    x = net.conv(x, "biased", 12, 5, stride=3, pad=2, bias=True)
    x = net.relu(net.conv(x, "grouped", 6, 3, pad=1, group=3), "relu")
    return net.conv(x, "depthwise", 6, 3, stride=2, group=6)


def _joined(net: ConvNet, x: Feature) -> Feature:
    y = net.relu6(net.batch_norm(net.conv(x, "conv", 3, 1), "norm"), "relu6")
    return net.concat([net.add(x, y, "add"), y], "concat")


@pytest.mark.parametrize("layers", [_pooled, _convolved, _joined])
def test_pilot_is_what_onnxruntime_computes(layers: Callable[[ConvNet, Feature], Feature]) -> None:
    net = ConvNet("test", seed=0)
    image = net.image()
    last = layers(net, image)
    net.output(last.name, ["batch", last.channels, *last.pilot.shape[2:]])
    model = net.model()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = image.pilot.shape[2]
    file = io.BytesIO()
    write_model(model, file)

    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": image.pilot.swapaxes(0, 1).astype(np.float32)})

    np.testing.assert_allclose(result, last.pilot.swapaxes(0, 1), rtol=0, atol=1e-5 * np.abs(last.pilot).max())


def test_network_without_calibration_still_knows_its_shapes() -> None:
    net = ConvNet("test", seed=0)

    x = net.conv(net.image(calibrate=False), "conv", 8, 3, stride=2, pad=1)

    assert net.max_pool(x, "pool", 2, 2).pilot.shape == (8, 0, 56, 56)


def test_batch_norm_evens_out_the_pilot() -> None:
    net = ConvNet("test", seed=0)

    x = net.batch_norm(net.conv(net.image(), "conv", 64, 3), "norm")

    assert np.abs(x.pilot.mean(axis=(1, 2, 3))).max() < 0.5
    np.testing.assert_allclose(x.pilot.var(axis=(1, 2, 3)).mean(), 1, rtol=0.1)
