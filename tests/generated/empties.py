"""Recipes with tensors that have no elements, and what comes of them."""

import numpy as np
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]


def _empty(g: Grower, x: Tensor) -> Tensor:
    """Return [rows of x, 0]: an input, or a slice of x."""
    g.features.add("a tensor without elements")
    if g.choose(2) and x.shape[0] == g.batch:
        return g.input((g.batch, 0))
    if g.opset < 10:
        return g.op("Slice", [x.name], (x.shape[0], 0), axes=[1], starts=[1], ends=[1])
    return g.op("Slice", [x.name, g.ints(1), g.ints(1), g.ints(1)], (x.shape[0], 0))


def _pick(g: Grower) -> Tensor | None:
    return g.pick(2, lambda t: t.has_fixed(1) and 2 <= t.size() <= 24)


def _product(g: Grower) -> Made | None:
    """A sum over nothing: zeros."""
    x = _pick(g)
    if x is None:
        return None
    weight = g.put(np.zeros((0, 5), dtype=np.float32))
    g.features.add("a product over no elements")
    y = g.op("MatMul", [_empty(g, x).name, weight], (x.shape[0], 5))
    return [g.op("Add", [y.name, g.weight(5)], y.shape)]


def _joined(g: Grower) -> Made | None:
    x = _pick(g)
    if x is None:
        return None
    g.features.add("a concat with no elements")
    return [g.op("Concat", [x.name, _empty(g, x).name], x.shape, axis=1)]


def _reduced(g: Grower) -> Made | None:
    x = _pick(g)
    if x is None:
        return None
    empty = _empty(g, x)
    g.features.add("a reduction of no elements")
    return [g.reduce("ReduceSum", empty, 1, (x.shape[0], 1), 1)]


def _handed_on(g: Grower) -> Made | None:
    """Elementwise on nothing, which is an output."""
    x = _pick(g)
    if x is None:
        return None
    y = g.op("Tanh", [_empty(g, x).name], (x.shape[0], 0))
    turned = g.op("Transpose", [y.name], (0, x.shape[0]), perm=[1, 0])
    g.features.add("an output without elements")
    return [g.cast(turned, T.INT64)]


RECIPES = {
    "empty-concat": Recipe(_joined),
    "empty-output": Recipe(_handed_on),
    "empty-product": Recipe(_product),
    "empty-reduce": Recipe(_reduced, since=11),
}
