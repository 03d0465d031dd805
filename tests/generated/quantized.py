"""Recipes of quantized networks: quantize and dequantize pairs, and operators that compute with integers."""

import numpy as np
from onnx import TensorProto as T
from onnx import helper

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]
CONTRIB = "com.microsoft"


def _scale(g: Grower, value: float = 0.02) -> str:
    return g.number(value)


def _zero(g: Grower, value: int = 128) -> str:
    return g.put(np.array(value, dtype=np.uint8))


def _dynamic(g: Grower) -> Made:
    x = g.any()
    quantized, scale, zero = g.ops("DynamicQuantizeLinear", [x.name], [x.shape, (), ()], [T.UINT8, 1, T.UINT8])
    return [g.op("DequantizeLinear", [quantized.name, scale.name, zero.name], x.shape)]


def _fixed(g: Grower) -> Made:
    """A pair around a value, its zero point there or left out, of 8 or 16 bits."""
    x = g.any()
    kinds = [T.UINT8, T.INT8, *([T.INT16, T.UINT16] if g.opset >= 21 else [])]
    of = kinds[g.choose(len(kinds))]
    zero = np.array(3).astype(helper.tensor_dtype_to_np_dtype(of))
    parts = [_scale(g)] + ([g.put(zero)] if of != T.UINT8 or g.choose(2) else [])
    quantized = g.op("QuantizeLinear", [x.name, *parts], x.shape, of)
    # no nested graph may capture what is dequantized: onnxruntime moves the node past a Reshape and then aborts
    y = g.op("DequantizeLinear", [quantized.name, *parts], x.shape)
    return [g.op(("Relu", "Tanh")[g.choose(2)], [y.name], x.shape)]


def _weights(g: Grower) -> Made | None:
    """A dense layer whose weights stand as integers with a scale for each column."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    rows, columns = x.size(), 6
    rng = np.random.default_rng(g.count)
    stored = g.put(rng.integers(-100, 100, (rows, columns)).astype(np.int8))
    scales = g.put(np.linspace(0.001, 0.01, columns, dtype=np.float32))
    weight = g.op("DequantizeLinear", [stored, scales, g.put(np.zeros(columns, np.int8))], (rows, columns), axis=1)
    y = g.op("MatMul", [x.name, weight.name], (x.shape[0], columns))
    return [g.op("Tanh", [y.name], y.shape)]


def _nibbles(g: Grower) -> Made | None:
    """A weight of four bits."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    rows = x.size()
    of = (T.INT4, T.UINT4)[g.choose(2)]
    stored = g.put_tensor(helper.make_tensor("w", of, [rows, 4], [n % 8 for n in range(rows * 4)]))
    weight = g.op("DequantizeLinear", [stored, _scale(g, 0.1)], (rows, 4))
    return [g.op("Tanh", [g.op("MatMul", [x.name, weight.name], (x.shape[0], 4)).name], (x.shape[0], 4))]


def _small_floats(g: Grower) -> Made:
    """Through a float of eight bits, which cannot travel."""
    x = g.any()
    of = (T.FLOAT8E4M3FN, T.FLOAT8E5M2)[g.choose(2)]
    y = g.op("Cast", [g.op("Cast", [x.name], x.shape, of, to=of).name], x.shape, to=T.FLOAT)
    return [g.op("Neg", [y.name], x.shape)]


def _integer_conv(g: Grower) -> Made | None:
    x = g.pick(4, lambda t: all(isinstance(dim, int) and dim <= 16 for dim in t.shape[1:]))
    if x is None:
        return None
    quantized, scale, zero = g.ops("DynamicQuantizeLinear", [x.name], [x.shape, (), ()], [T.UINT8, 1, T.UINT8])
    stored = g.put(np.random.default_rng(g.count).integers(0, 200, (3, x.size(), 1, 1)).astype(np.uint8))
    names = [quantized.name, stored, zero.name] + ([_zero(g, 100)] if g.choose(2) else [])
    y = g.op("ConvInteger", names, (x.shape[0], 3, *x.shape[2:]), T.INT32)
    return [g.op("Mul", [g.cast(y, T.FLOAT).name, scale.name], y.shape)]


def _integer_matmul(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    quantized, scale, zero = g.ops("DynamicQuantizeLinear", [x.name], [x.shape, (), ()], [T.UINT8, 1, T.UINT8])
    stored = g.put(np.random.default_rng(g.count).integers(-100, 100, (x.size(), 6)).astype(np.int8))
    y = g.op("MatMulInteger", [quantized.name, stored, zero.name], (x.shape[0], 6), T.INT32)
    return [g.op("Mul", [g.cast(y, T.FLOAT).name, scale.name], y.shape)]


def _linear_matmul(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    scale, zero, wide = _scale(g), _zero(g), _scale(g, 0.05)
    quantized = g.op("QuantizeLinear", [x.name, scale, zero], x.shape, T.UINT8)
    stored = g.put(np.random.default_rng(g.count).integers(0, 255, (x.size(), 6)).astype(np.uint8))
    names = [quantized.name, scale, zero, stored, _scale(g, 0.01), _zero(g, 120), wide, zero]
    y = g.op("QLinearMatMul", names, (x.shape[0], 6), T.UINT8)
    back = g.op("DequantizeLinear", [y.name, wide, zero], y.shape)
    return [y, g.op("Tanh", [back.name], y.shape)]


def _linear_conv(g: Grower) -> Made | None:
    """Two quantized convolutions added up as integers, then averaged as integers: contrib operators between."""
    x = g.pick(4, lambda t: all(isinstance(dim, int) and dim <= 16 for dim in t.shape[1:]))
    if x is None:
        return None
    scale, zero = _scale(g), _zero(g)
    quantized = g.op("QuantizeLinear", [x.name, scale, zero], x.shape, T.UINT8)
    shape = (x.shape[0], 4, *x.shape[2:])
    made = []
    for index in range(2):
        rng = np.random.default_rng(g.count + index)
        stored = g.put(rng.integers(-100, 100, (4, x.size(), 1, 1)).astype(np.int8))
        bias = [g.put(rng.integers(-50, 50, 4).astype(np.int32))] if g.choose(2) else []
        names = [quantized.name, scale, zero, stored, _scale(g, 0.01), g.put(np.array(0, np.int8)), scale, zero, *bias]
        made.append(g.op("QLinearConv", names, shape, T.UINT8).name)
    added = g.op(
        "QLinearAdd", [made[0], scale, zero, made[1], scale, zero, scale, zero], shape, T.UINT8, domain=CONTRIB
    )
    pooled = g.op(
        "QLinearGlobalAveragePool",
        [added.name, scale, zero, scale, zero],
        (x.shape[0], 4, 1, 1),
        T.UINT8,
        domain=CONTRIB,
        channels_last=0,
    )
    return [g.op("Tanh", [g.op("DequantizeLinear", [pooled.name, scale, zero], pooled.shape).name], pooled.shape)]


RECIPES = {
    "fixed-quantized": Recipe(_fixed, since=10),
    "integer-conv": Recipe(_integer_conv, since=11),
    "integer-matmul": Recipe(_integer_matmul, since=11),
    "linear-conv": Recipe(_linear_conv, since=10),
    "linear-matmul": Recipe(_linear_matmul, since=10),
    "nibbles": Recipe(_nibbles, since=21),
    "quantized": Recipe(_dynamic, since=11),
    "quantized-weights": Recipe(_weights, since=13),
    "small-floats": Recipe(_small_floats, since=19),
}
