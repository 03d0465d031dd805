"""Whole networks of convolutions in pieces: each family must be divided, not refused, and compute what it did."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cut_fixtures import distance, plain_session
from engine_fixtures import Divided, Net, divided, prepared, sizes_of
from hyps_passes.division.engine import extent
from hyps_passes.division.region import Region

CLOSE = 1e-5
MICROSOFT = "com.microsoft"


def _check(data: st.DataObject, net: Net, value: str, axes: list[int | None], *, tolerance: float = CLOSE) -> Divided:
    """Divide the whole network at random and hold it against itself."""
    axis, carry = data.draw(st.sampled_from(axes)), data.draw(st.booleans())
    whole, nodes = _with_shapes(net, value), tuple(node.name for node in net.nodes)
    model = prepared(whole)
    found = extent(model, Region("net", nodes, axis, carry), sizes_of(model))
    cut = divided(whole, nodes, axis, data.draw(st.integers(2, min(5, found.most))), carry=carry)
    expected, made = cut.run(net.feeds())
    assert distance(expected[value], made[value]) <= tolerance
    before, after = cut.computed()
    if carry:
        for op_type in ("Conv", "FusedConv", "QLinearConv"):
            assert after.get(op_type, 0) <= before.get(op_type, 0)
    return cut


def _with_shapes(net: Net, value: str) -> onnx.ModelProto:
    """Return the model with the shapes that a run finds, where inference does not know the operators."""
    whole = net.proto(value)
    if not any(node.domain for node in net.nodes):
        return whole
    names = [name for node in net.nodes for name in node.output if name]
    everything = net.proto(*names)
    made = plain_session(everything.SerializeToString()).run(names, net.feeds())
    del whole.graph.value_info[:], whole.graph.output[:]
    for name, array in zip(names, made, strict=True):
        info = onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        (whole.graph.output if name == value else whole.graph.value_info).append(info)
    return whole


def _conv(net: Net, value: str, made: int, read: int, kernel: int = 3, rank: int = 2, **attributes: Any) -> str:
    group = attributes.get("group", 1)
    weight = net.weight(made, read // group, *[kernel] * rank)
    if not {"pads", "auto_pad"} & attributes.keys():
        attributes["pads"] = [kernel // 2] * 2 * rank
    return net.add("Conv", value, weight, net.weight(made), **attributes)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_dilated_convolutions_of_a_volume(data: st.DataObject) -> None:
    """As MeshNet has them: the reach grows with the dilation until it is wider than the volume."""
    sizes = data.draw(st.tuples(st.integers(5, 16), st.integers(3, 6), st.integers(3, 6)))
    dilations = data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4))
    net, channels = Net({"x": (1, 1, *sizes)}), 1
    value = "x"
    for dilation in dilations:
        value = _conv(net, value, 3, channels, rank=3, dilations=[dilation] * 3, pads=[dilation] * 6)
        if data.draw(st.booleans()):
            numbers = [net.weight(3) for _ in range(3)]
            value = net.add("BatchNormalization", value, *numbers, net.constant(np.ones(3, np.float32)))
        value, channels = net.add(data.draw(st.sampled_from(["Relu", "Elu"])), value), 3
    _check(data, net, _conv(net, value, 2, 3, kernel=1, rank=3), [-1, -2, -3])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_residual_blocks_with_strides_and_pooling(data: st.DataObject) -> None:
    """A stem with pooling, then blocks whose first convolution and shortcut may have a stride."""
    size = data.draw(st.integers(17, 26))
    net = Net({"x": (data.draw(st.integers(1, 2)), 3, size, size + 3)})
    stem_kernel, same = data.draw(st.sampled_from([3, 5, 7])), data.draw(st.booleans())
    padding: dict[str, Any] = {"auto_pad": data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))} if same else {}
    value = net.add("Relu", _conv(net, "x", 4, 3, kernel=stem_kernel, strides=[2, 2], **padding))
    pool = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    ceil = data.draw(st.integers(0, 1))
    value = net.add(pool, value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=ceil)
    channels = 4
    for _ in range(data.draw(st.integers(1, 2))):
        stride, made = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.sampled_from([4, 6]))
        inner = net.add("Relu", _conv(net, value, made, channels, strides=[stride] * 2, **padding))
        inner = _conv(net, inner, made, made)
        if stride > 1 or made != channels:
            value = _conv(net, value, made, channels, kernel=1, strides=[stride] * 2, **padding)
        value, channels = net.add("Relu", net.add("Add", inner, value)), made
    _check(data, net, value, [-1, -2])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_depthwise_separable_blocks(data: st.DataObject) -> None:
    """As MobileNetV2 has them, in tiles, and by what is summed over: then a piece has its own channels throughout."""
    stride, multiplier = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 2))
    net = Net({"x": (1, 4, 9, 7)})
    bounds = [net.constant(np.float32(bound)) for bound in (0, 6)]
    inner = net.add("Clip", _conv(net, "x", 6, 4, kernel=1), *bounds)
    inner = _conv(net, inner, 6 * multiplier, 6, strides=[stride] * 2, group=6)
    inner = net.add("Clip", inner, *bounds)
    value = _conv(net, inner, 4, 6 * multiplier, kernel=1)
    axes: list[int | None] = [-1, -2, -3, None]
    if stride == 1 and data.draw(st.booleans()):
        value, axes = net.add("Add", value, "x"), [-1, -2, -3]
    _check(data, net, value, axes)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_quantized_convolutions(data: st.DataObject) -> None:
    """Integers are the same, bit for bit: the only float is what goes in and what comes out."""
    net = Net({"x": (1, 3, 12, 9)})
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(120))
    value = net.add("QuantizeLinear", "x", scale, zero)
    channels = 3
    for _ in range(data.draw(st.integers(1, 3))):
        group = data.draw(st.sampled_from([1, channels]))
        made = group * data.draw(st.integers(1, 2))
        weight = net.constant(net_integers(data, (made, channels // group, 3, 3)))
        scales = net.constant(np.linspace(0.002, 0.004, made, dtype=np.float32))
        zeros = net.constant(np.zeros(made, np.int8))
        bias = net.constant(np.arange(made, dtype=np.int32) * 50)
        stride = data.draw(st.sampled_from([1, 1, 2]))
        operands = [value, scale, zero, weight, scales, zeros, scale, zero, bias]
        value = net.add("QLinearConv", *operands, group=group, strides=[stride] * 2, pads=[1, 1, 1, 1])
        channels = made
    value = net.add("MaxPool", value, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    _check(data, net, net.add("DequantizeLinear", value, scale, zero), [-1, -2], tolerance=0)


def net_integers(data: st.DataObject, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """Return random 8-bit weights."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    return rng.integers(-127, 128, shape).astype(np.int8)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_maps_that_are_halved_and_doubled_again(data: st.DataObject) -> None:
    """As a U-Net has them: the way up is resized or stamped, and joined with the way down."""
    size = 4 * data.draw(st.integers(2, 5))
    net = Net({"x": (1, 2, size, size)}, opset=19)
    down = net.add("Relu", _conv(net, "x", 3, 2))
    inner = net.add("Relu", _conv(net, net.add("MaxPool", down, kernel_shape=[2, 2], strides=[2, 2]), 4, 3))
    deep = net.add("Relu", _conv(net, net.add("AveragePool", inner, kernel_shape=[2, 2], strides=[2, 2]), 4, 4))
    for beside, channels in ((inner, 4), (down, 3)):
        deep = net.add("Concat", _doubled(data, net, deep), beside, axis=1)
        deep = net.add("Relu", _conv(net, deep, 4, 4 + channels))
    _check(data, net, deep, [-1, -2])


def _doubled(data: st.DataObject, net: Net, value: str) -> str:
    """Return four channels at twice the size."""
    way = data.draw(st.sampled_from(["stamped", "nearest", "half_pixel", "asymmetric"]))
    if way == "stamped":
        kernel = data.draw(st.sampled_from([2, 4]))
        weight = net.weight(4, 4, kernel, kernel)
        return net.add("ConvTranspose", value, weight, strides=[2, 2], pads=[kernel // 2 - 1] * 4)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    mode: dict[str, Any] = (
        {"mode": "nearest"} if way == "nearest" else {"mode": "linear", "coordinate_transformation_mode": way}
    )
    return net.add("Resize", value, "", scales, **mode)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_blocks_of_channels_that_become_a_larger_map(data: st.DataObject) -> None:
    """As super-resolution has them, with mirrored borders in front of convolutions that are not padded."""
    net = Net({"x": (1, 2, 8, 7)}, opset=19)
    mode = data.draw(st.sampled_from(["reflect", "edge", "wrap", "constant"]))
    border = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    value = _conv(net, net.add("Pad", "x", border, mode=mode), 12, 2, pads=[0] * 4)
    value = net.add(
        "DepthToSpace", net.add("Relu", value), blocksize=2, mode=data.draw(st.sampled_from(["DCR", "CRD"]))
    )
    value = _conv(net, net.add("Pad", value, border, mode=mode), 2, 3, pads=[0] * 4)
    _check(data, net, value, [-1, -2])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_convolutions_fused_with_activation_and_residual(data: st.DataObject) -> None:
    net = Net({"x": (1, 3, 9, 10)})
    value = "x"
    for _ in range(data.draw(st.integers(1, 3))):
        weight, bias = net.weight(3, 3, 3, 3), net.weight(3)
        inner = net.add("FusedConv", value, weight, bias, domain=MICROSOFT, activation="Relu", pads=[1] * 4)
        operands = [inner, net.weight(3, 3, 1, 1), net.weight(3), value]
        value = net.add("FusedConv", *operands, domain=MICROSOFT, activation="Sigmoid", pads=[0] * 4)
    _check(data, net, value, [-1, -2])
    if len(net.nodes) == 2:
        _check(data, net, value, [None])


@pytest.mark.parametrize("carry", [False, True])
def test_integer_sums_are_added_as_integers(carry: bool) -> None:
    net = Net({"x": (1, 6, 5, 5)})
    value = net.add("QuantizeLinear", "x", net.constant(np.float32(0.05)), net.constant(np.uint8(100)))
    weight = net.constant(np.arange(4 * 6 * 9, dtype=np.uint8).reshape(4, 6, 3, 3))
    zeros = [net.constant(np.uint8(zero)) for zero in (100, 90)]
    value = net.add("ConvInteger", value, weight, *zeros, pads=[1] * 4)
    cut = divided(net.proto(value), ["n0", "n1"], None, 3, carry=carry)
    expected, made = cut.run(net.feeds())
    np.testing.assert_array_equal(expected[value], made[value])
