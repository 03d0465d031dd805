"""Recipes of convolutional networks."""

import numpy as np

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]


def _is_map(tensor: Tensor) -> bool:
    """Return whether it is a feature map of a size that keeps tests quick."""
    return all(isinstance(dim, int) for dim in tensor.shape[1:]) and tensor.size() <= 24 and tensor.size(2) <= 16


def _is_large(tensor: Tensor) -> bool:
    return _is_map(tensor) and all(tensor.size(axis) >= 4 for axis in (2, 3))


def _conv(g: Grower) -> Made | None:
    x = g.pick(4, _is_map)
    if x is None:
        return None
    channels, out, stride = x.size(), 2 + 2 * g.choose(4), 1 + g.choose(2) * _is_large(x)
    group = 2 if channels % 2 == 0 and g.choose(3) == 0 else 1
    sizes = tuple(-(-x.size(axis) // stride) for axis in (2, 3))
    inputs = [x.name, g.weight(out, channels // group, 3, 3, scale=0.2)] + ([g.weight(out)] if g.choose(2) else [])
    y = g.op("Conv", inputs, (x.shape[0], out, *sizes), pads=[1, 1, 1, 1], strides=[stride, stride], group=group)
    if g.choose(2):
        y = _normalized(g, y)
    if g.choose(2):
        y = g.op("Relu", [y.name], y.shape)
    return [y]


def _normalized(g: Grower, x: Tensor) -> Tensor:
    channels = x.size()
    variance = g.put(np.linspace(0.5, 1.5, channels, dtype=np.float32))
    names = [x.name, g.weight(channels), g.weight(channels), g.weight(channels), variance]
    return g.op("BatchNormalization", names, x.shape)


def _deconv(g: Grower) -> Made | None:
    x = g.pick(4, lambda t: _is_map(t) and t.size(2) <= 8)
    if x is None:
        return None
    out = 2 + g.choose(3)
    shape = (x.shape[0], out, 2 * x.size(2), 2 * x.size(3))
    return [g.op("ConvTranspose", [x.name, g.weight(x.size(), out, 2, 2, scale=0.2)], shape, strides=[2, 2])]


def _pool(g: Grower) -> Made | None:
    x = g.pick(4, _is_large)
    if x is None:
        return None
    kind = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")[g.choose(5)]
    if kind.startswith("Global"):
        return [g.op(kind, [x.name], (*x.shape[:2], 1, 1))]
    shape = (*x.shape[:2], x.size(2) // 2, x.size(3) // 2)
    if kind == "MaxPool" and g.choose(3) == 0 and g.opset >= 8:
        g.features.add("an output is used by nobody")
        return g.ops(kind, [x.name], [shape, shape], [1, 7], kernel_shape=[2, 2], strides=[2, 2])[:1]
    return [g.op(kind, [x.name], shape, kernel_shape=[2, 2], strides=[2, 2])]


def _layout(g: Grower) -> Made | None:
    x = g.pick(4, _is_map)
    if x is None:
        return None
    there = g.op("Transpose", [x.name], (x.shape[0], *x.shape[2:], x.shape[1]), perm=[0, 2, 3, 1])
    scaled = g.op("Mul", [there.name, g.weight(x.size())], there.shape)
    return [g.op("Transpose", [scaled.name], x.shape, perm=[0, 3, 1, 2])]


def _excite(g: Grower) -> Made | None:
    x = g.pick(4, _is_map)
    if x is None:
        return None
    channels = x.size()
    pooled = g.op("GlobalAveragePool", [x.name], (*x.shape[:2], 1, 1))
    if g.choose(3) == 0:
        g.features.add("broadcasting")
        return [g.op("Mul", [x.name, pooled.name], x.shape)]
    squeezed = g.op("Conv", [pooled.name, g.weight(2, channels, 1, 1)], (x.shape[0], 2, 1, 1))
    squeezed = g.op("Relu", [squeezed.name], squeezed.shape)
    gate = g.op("Conv", [squeezed.name, g.weight(channels, 2, 1, 1)], pooled.shape)
    gate = g.op("HardSigmoid", [gate.name], gate.shape)
    return [g.op("Mul", [x.name, gate.name], x.shape)]


def _resize(g: Grower) -> Made | None:
    """Twice the size, said by scales or by sizes; the inputs that are not used are left out."""
    x = g.pick(4, lambda t: _is_map(t) and t.size(2) <= 8)
    if x is None:
        return None
    shape = (*x.shape[:2], 2 * x.size(2), 2 * x.size(3))
    scales = g.put(np.array([1, 1, 2, 2], dtype=np.float32))
    mode = ("nearest", "linear")[g.choose(2)]
    if g.opset < 9:
        return [g.op("Upsample", [x.name], shape, scales=[1.0, 1.0, 2.0, 2.0], mode=mode)]
    if g.opset < 10:
        return [g.op("Upsample", [x.name, scales], shape, mode=mode)]
    if g.opset < 11:
        return [g.op("Resize", [x.name, scales], shape, mode=mode)]
    if g.opset >= 13 and g.choose(2):
        return [g.op("Resize", [x.name, "", "", g.target(x, shape[1:])], shape, mode=mode)]  # type: ignore[arg-type]  # _is_map
    region = "" if g.opset >= 13 else g.put(np.zeros(0, dtype=np.float32))
    return [g.op("Resize", [x.name, region, scales], shape, mode=mode)]


def _norms(g: Grower) -> Made | None:
    x = g.pick(4, _is_map)
    if x is None:
        return None
    channels = x.size()
    if g.choose(2):
        return [g.op("InstanceNormalization", [x.name, g.weight(channels), g.weight(channels)], x.shape)]
    return [g.op("LRN", [x.name], x.shape, size=3)]


def _depth(g: Grower) -> Made | None:
    x = g.pick(4, lambda t: _is_map(t) and t.size(2) % 2 == 0 and t.size(3) % 2 == 0)
    if x is None:
        return None
    deep = (x.shape[0], 4 * x.size(), x.size(2) // 2, x.size(3) // 2)
    y = g.op("SpaceToDepth", [x.name], deep, blocksize=2)
    return [g.op("DepthToSpace", [y.name], x.shape, blocksize=2)]


def _sampled(g: Grower) -> Made | None:
    x = g.pick(4, _is_map)
    if x is None:
        return None
    grid = g.input((x.shape[0], 3, 3, 2))
    return [g.op("GridSample", [x.name, grid.name], (*x.shape[:2], 3, 3), align_corners=1)]


RECIPES = {
    "conv": Recipe(_conv),
    "deconv": Recipe(_deconv),
    "depth": Recipe(_depth, since=11),
    "excite": Recipe(_excite),
    "layout": Recipe(_layout),
    "norms": Recipe(_norms),
    "pool": Recipe(_pool),
    "resize": Recipe(_resize),
    "sampled": Recipe(_sampled, since=16, until=19),
}
