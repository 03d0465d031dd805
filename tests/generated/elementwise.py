"""Recipes that work element by element, on every type."""

import numpy as np
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]

_UNARY = {
    "Abs": 7, "Atan": 7, "Ceil": 7, "Cos": 7, "Elu": 7, "Erf": 9, "Exp": 7, "Floor": 7, "Gelu": 20, "HardSwish": 14,
    "Identity": 7, "LeakyRelu": 7, "Mish": 18, "Relu": 7, "Round": 11, "Selu": 7, "Shrink": 9, "Sigmoid": 7,
    "Sign": 9, "Sin": 7, "Softplus": 7, "Softsign": 7, "Tanh": 7, "ThresholdedRelu": 10, "Celu": 12, "HardSigmoid": 7,
}  # fmt: skip
"""Operator to its first opset."""

_NUMBERS = (T.DOUBLE, T.INT32, T.INT64)
_NARROW = (T.INT8, T.UINT8, T.INT16, T.UINT16, T.UINT32, T.UINT64)


def _unary(g: Grower) -> Made:
    x = g.any()
    kinds = [name for name, since in _UNARY.items() if since <= g.opset]
    return [g.op(kinds[g.choose(len(kinds))], [x.name], x.shape)]


def _clip(g: Grower) -> Made:
    x = g.any()
    if g.opset < 11:
        return [g.op("Clip", [x.name], x.shape, min=-0.7, max=0.9)]
    low, high = g.number(-0.7), g.number(0.9)
    return [g.op("Clip", [[x.name, low], [x.name, low, high], [x.name, "", high]][g.choose(3)], x.shape)]


def _binary(g: Grower) -> Made:
    x = g.any()
    kind = ("Add", "Mul", "Sub", "Max", "Min", "Div")[g.choose(6)]
    return [g.op(kind, [x.name, g.same(x).name], x.shape)]


def _many(g: Grower) -> Made:
    x = g.any()
    kind = ("Sum", "Mean", "Max", "Min")[g.choose(4)]
    names = [g.same(x).name for _ in range(1 + g.choose(3))]
    return [g.op(kind, [x.name, *names], x.shape)]


def _broadcast(g: Grower) -> Made:
    x = g.fixed()
    g.features.add("broadcasting")
    other = (g.weight(), g.weight(1, x.size(-1)), g.weight(*[1] * len(x.shape)), g.weight(1))[g.choose(4)]
    return [g.op(("Add", "Mul", "Sub")[g.choose(3)], [x.name, other] if g.choose(2) else [other, x.name], x.shape)]


def _outer(g: Grower) -> Made | None:
    """Two values broadcast against each other: each is stretched along another axis."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 16)
    if x is None:
        return None
    g.features.add("broadcasting")
    column = g.axes("Unsqueeze", x, [2], (*x.shape, 1))
    row = g.axes("Unsqueeze", g.same(x), [1], (x.shape[0], 1, x.shape[1]))
    return [g.op("Mul", [column.name, row.name], (*x.shape, x.shape[1]))]


def _prelu(g: Grower) -> Made:
    x = g.fixed()
    return [g.op("PRelu", [x.name, g.weight(x.size(-1))], x.shape)]


def _where(g: Grower) -> Made:
    x = g.any()
    mask = g.op("Greater", [x.name, g.weight()], x.shape, T.BOOL)
    return [g.op("Where", [mask.name, x.name, g.same(x).name], x.shape)]


def _logic(g: Grower) -> Made:
    x = g.any()
    less = g.op("Less", [x.name, g.weight()], x.shape, T.BOOL)
    more = g.op("Greater", [x.name, g.same(x).name], x.shape, T.BOOL)
    both = g.op(("And", "Or", "Xor")[g.choose(3)], [less.name, more.name], x.shape, T.BOOL)
    return [g.op("Not", [both.name], x.shape, T.BOOL)] if g.choose(2) else [both]


def _truth_input(g: Grower) -> Made:
    x = g.input((g.batch, 3), T.BOOL)
    return [g.op("Not", [x.name], x.shape, T.BOOL)]


def _nan(g: Grower) -> Made:
    x = g.any()
    root = g.op("Sqrt", [x.name], x.shape)
    broken = g.op("IsNaN", [root.name], x.shape, T.BOOL)
    return [g.op("Where", [broken.name, x.name, root.name], x.shape)]


def _cast(g: Grower) -> Made:
    x = g.any()
    y = g.cast(x, (T.INT64, T.DOUBLE)[g.choose(2)])
    if y.of == T.DOUBLE:
        # not two casts in a row: onnxruntime drops those and then fails where a nested graph captures the second
        y = g.op("Tanh", [y.name], x.shape, T.DOUBLE)
    y = g.cast(y, T.FLOAT)
    return [g.op("Neg", [y.name], x.shape)]  # a cast before a ReduceMean is fused into a node of two types


def _typed(g: Grower) -> Made:
    """Arithmetic in another type, from an input or a cast, that later recipes may go on with."""
    of = _NUMBERS[g.choose(len(_NUMBERS))]
    x = g.any(of) if g.choose(3) else g.input((g.batch, 4), of)
    return [g.op(("Add", "Mul", "Sub")[g.choose(3)], [x.name, g.same(x).name], x.shape, of)]


def _narrow(g: Grower) -> Made:
    """Small integers, which few operators take: from an input, through views, back to floats."""
    of = _NARROW[g.choose(len(_NARROW))]
    x = g.input((g.batch, 6), of, below=100)
    y = g.op("Concat", [x.name, x.name], (g.batch, 12), of, axis=1)
    y = g.op("Transpose", [y.name], (12, g.batch), of, perm=[1, 0])
    y = g.op("Transpose", [y.name], (g.batch, 12), of, perm=[1, 0])
    return [y, g.op("Neg", [g.cast(y, T.FLOAT).name], y.shape)] if g.choose(2) else [y]


def _modulo(g: Grower) -> Made:
    x = g.any(T.INT64)
    divisor = g.put(np.array(3, dtype=np.int64))
    return [g.op("Mod", [x.name, divisor], x.shape, T.INT64)]


def _bits(g: Grower) -> Made:
    x = g.input((g.batch, 5), T.UINT8, below=200)
    shift = g.put(np.array([1, 2, 0, 3, 1], dtype=np.uint8))
    y = g.op("BitShift", [x.name, shift], x.shape, T.UINT8, direction=("LEFT", "RIGHT")[g.choose(2)])
    if g.opset >= 18:
        y = g.op("BitwiseXor", [y.name, x.name], x.shape, T.UINT8)
    return [y]


def _scalars(g: Grower) -> Made:
    """A value without axes, and one broadcast from it."""
    x = g.any()
    total = g.op("ReduceMax", [x.name], (), keepdims=0)
    half = g.op("Mul", [total.name, g.number(0.5)], ())
    g.features.add("a scalar value")
    return [half, g.op("Sub", [x.name, half.name], x.shape)]


def _scalar_input(g: Grower) -> Made:
    x = g.any()
    given = g.input(())
    g.features.add("a scalar input")
    return [g.op("Mul", [x.name, given.name], x.shape)]


RECIPES = {
    "binary": Recipe(_binary),
    "bits": Recipe(_bits, since=11),
    "broadcast": Recipe(_broadcast),
    "cast": Recipe(_cast),
    "clip": Recipe(_clip),
    "logic": Recipe(_logic, since=9),
    "many": Recipe(_many, since=8),
    "modulo": Recipe(_modulo, since=10),
    "nan": Recipe(_nan, since=9),
    "narrow": Recipe(_narrow),
    "outer": Recipe(_outer),
    "prelu": Recipe(_prelu, since=9),
    "scalar-input": Recipe(_scalar_input),
    "scalars": Recipe(_scalars),
    "truth-input": Recipe(_truth_input),
    "typed": Recipe(_typed),
    "unary": Recipe(_unary),
    "where": Recipe(_where, since=9),
}
