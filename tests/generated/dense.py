"""Recipes of dense layers, attention, normalisation and recurrence."""

import numpy as np
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Shape, Tensor

Made = list[Tensor]


def _last_fixed(tensor: Tensor) -> bool:
    return tensor.has_fixed(-1) and tensor.size(-1) <= 200


def _rows(tensor: Tensor) -> bool:
    """Return whether it is small and all but the first dimension is fixed."""
    return all(isinstance(dim, int) and dim <= 64 for dim in tensor.shape[1:])


def _dense(g: Grower) -> Made | None:
    x = g.pick(2, _last_fixed) if g.choose(3) else g.pick(3, _last_fixed)
    if x is None:
        return None
    size, out = x.size(-1), (3, 6, 9, 12, 15, 120)[g.choose(6)]
    shape = (*x.shape[:-1], out)
    y = _gemm(g, x, size, out) if len(x.shape) == 2 and g.choose(2) else _matmul(g, x, size, out)
    if g.choose(2):
        y = g.op(("Relu", "Tanh")[g.choose(2)], [y.name], shape)
    return [y]


def _gemm(g: Grower, x: Tensor, size: int, out: int) -> Tensor:
    transposed = g.choose(2)
    weight = g.weight(out, size, scale=0.3) if transposed else g.weight(size, out, scale=0.3)
    biases = [[g.weight(out)], [g.weight(1, out)]] + ([[]] if g.opset >= 11 else [])
    names = [x.name, weight, *biases[g.choose(len(biases))]]
    return g.op("Gemm", names, (x.shape[0], out), transB=transposed, alpha=(1.0, 0.5)[g.choose(2)])


def _matmul(g: Grower, x: Tensor, size: int, out: int) -> Tensor:
    shape = (*x.shape[:-1], out)
    weight = g.weight(size, out, scale=0.3)
    if g.choose(4) == 0:
        weight = g.op("Transpose", [g.weight(out, size, scale=0.3)], (size, out), perm=[1, 0]).name
    y = g.op("MatMul", [x.name, weight], shape)
    if g.choose(2):
        bias = g.weight(out)
        y = g.op("Add", [y.name, bias] if g.choose(2) else [bias, y.name], shape)
    return y


def _wide(g: Grower) -> Made | None:
    """A layer whose weights are too large to stand in the model's file; another may be tied to it."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() in (6, 9, 12, 15))
    if x is None:
        return None
    y = g.op("MatMul", [x.name, g.weight(x.size(), 3000, scale=0.05)], (x.shape[0], 3000))
    y = g.op("Add", [y.name, g.weight(3000)], y.shape)
    return [g.mean(y, 1, (x.shape[0], 1), 1)]


def _softmax(g: Grower) -> Made:
    x = g.fixed()
    return [g.op(("Softmax", "LogSoftmax")[g.choose(2)], [x.name], x.shape, axis=len(x.shape) - 1)]


def _layer_norm(g: Grower) -> Made | None:
    x = g.pick(3, _last_fixed) or g.pick(2, _last_fixed)
    if x is None:
        return None
    size, shape = x.size(-1), (*x.shape[:-1], 1)
    if g.opset >= 17 and g.choose(2):
        names = [x.name, g.weight(size), *([g.weight(size)] if g.choose(2) else [])]
        return g.ops("LayerNormalization", names, [x.shape])
    gap = g.op("Sub", [x.name, g.mean(x, -1, shape, 1).name], x.shape)
    power = g.op("Pow", [gap.name, g.number(2)], x.shape)
    spread = g.op("Add", [g.mean(power, -1, shape, 1).name, g.number(1e-5)], shape)
    y = g.op("Div", [gap.name, g.op("Sqrt", [spread.name], shape).name], x.shape)
    y = g.op("Mul", [y.name, g.weight(size)], x.shape)
    return [g.op("Add", [y.name, g.weight(size)], x.shape)]


def _gelu(g: Grower) -> Made:
    x = g.any()
    scaled = g.op("Div", [x.name, g.number(2**0.5)], x.shape)
    one = g.op("Add", [g.op("Erf", [scaled.name], x.shape).name, g.number(1)], x.shape)
    half = g.op("Mul", [x.name, one.name], x.shape)
    return [g.op("Mul", [half.name, g.number(0.5)], x.shape)]


def _attention(g: Grower) -> Made | None:
    x = g.pick(3, _rows)
    if x is None:
        return None
    size, steps = x.size(-1), x.shape[1]
    query, key, value = (g.op("MatMul", [x.name, g.weight(size, 6)], (*x.shape[:2], 6)) for _ in range(3))
    keys = g.op("Transpose", [key.name], (x.shape[0], 6, steps), perm=[0, 2, 1])
    scores = g.op("MatMul", [query.name, keys.name], (x.shape[0], steps, steps))
    share = g.op("Softmax", [scores.name], scores.shape, axis=2)
    return [g.op("MatMul", [share.name, value.name], (*x.shape[:2], 6))]


def _einsum(g: Grower) -> Made | None:
    x = g.pick(3, lambda t: _rows(t) and t.has_rows)
    if x is None:
        return None
    g.needs_rows = True
    if g.choose(2):
        return [g.op("Einsum", [x.name, x.name], (x.shape[0], x.shape[1], x.shape[1]), equation="bik,bjk->bij")]
    return [g.op("Einsum", [x.name, g.weight(x.size(-1), 5)], (*x.shape[:2], 5), equation="bik,kj->bij")]


def _embedding(g: Grower) -> Made:
    """A table that looks words up and, transposed, scores them at the end: tied weights."""
    ids = g.input((g.batch, 3), T.INT64, below=20)
    table = g.put(np.random.default_rng(g.count).standard_normal((20, 6)).astype(np.float32))
    words = g.op("Gather", [table, ids.name], (g.batch, 3, 6))
    turned = g.op("Transpose", [table], (6, 20), perm=[1, 0])
    g.features.add("tied weights")
    return [words, g.op("MatMul", [words.name, turned.name], (g.batch, 3, 20))]


def _recurrent(g: Grower) -> Made | None:
    """LSTM, GRU or RNN; with and without a first state and a bias, and not all outputs wanted."""
    x = g.pick(3, lambda t: _rows(t) and t.has_rows)
    if x is None:
        return None
    g.needs_rows = True
    kind, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[g.choose(3)]
    steps, size, hidden = x.shape[1], x.size(-1), 3
    turned = g.op("Transpose", [x.name], (steps, x.shape[0], size), perm=[1, 0, 2])
    names = [turned.name, g.weight(1, gates * hidden, size), g.weight(1, gates * hidden, hidden)]
    state: Shape = (1, x.shape[0], hidden)
    if g.choose(2):
        names += [g.weight(1, 2 * gates * hidden) if g.choose(2) else "", "", _first_state(g, x, hidden).name]
    every: Shape | None = (steps, 1, x.shape[0], hidden) if g.choose(2) else None
    shapes = [every, state, state] if kind == "LSTM" else [every, state]
    made = g.ops(kind, names, shapes, hidden_size=hidden)
    last = made[-2] if kind == "LSTM" else made[-1]
    return [g.axes("Squeeze", last, [0], (x.shape[0], hidden))]


def _first_state(g: Grower, x: Tensor, hidden: int) -> Tensor:
    shape = g.op("Concat", [g.ints(1), g.target(x, [hidden])], (3,), T.INT64, axis=0)
    return g.op("Expand", [g.number(0.1), shape.name], (1, x.shape[0], hidden))


RECIPES = {
    "attention": Recipe(_attention),
    "dense": Recipe(_dense),
    "einsum": Recipe(_einsum, since=12),
    "embedding": Recipe(_embedding),
    "gelu": Recipe(_gelu, since=9),
    "layer-norm": Recipe(_layer_norm),
    "recurrent": Recipe(_recurrent, since=8),
    "softmax": Recipe(_softmax),
    "wide": Recipe(_wide),
}
