"""Recipes of models that are called again and again: what was seen before comes in, and goes out grown."""

from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]


def _cache(g: Grower) -> Made | None:
    """Attention over past and present keys; the past may be empty."""
    x = g.pick(2, lambda t: t.shape[0] == g.batch and t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    past = g.input((g.batch, 2, f"past{g.count}", 4))
    row = g.op("MatMul", [x.name, g.weight(x.size(), 8)], (g.batch, 8))
    new = g.op("Reshape", [row.name, g.target(row, [2, 1, 4])], (g.batch, 2, 1, 4))
    present = g.op("Concat", [past.name, new.name], (g.batch, 2, f"present{g.count}", 4), axis=2)
    g.outputs.append(present.info)
    keys = g.op("Transpose", [present.name], (g.batch, 2, 4, present.shape[2]), perm=[0, 1, 3, 2])
    scores = g.op("MatMul", [new.name, keys.name], (g.batch, 2, 1, present.shape[2]))
    share = g.op("Softmax", [scores.name], scores.shape, axis=3)
    seen = g.op("MatMul", [share.name, present.name], (g.batch, 2, 1, 4))
    g.features.add("a cache goes in and out")
    return [g.op("Reshape", [seen.name, g.target(x, [8])], (g.batch, 8))]


def _counter(g: Grower) -> Made:
    """A step count that goes in and out as a scalar."""
    step = g.input((), T.INT64, below=9)
    after = g.op("Add", [step.name, g.scalar(1)], (), T.INT64)
    g.outputs.append(after.info)
    g.features.add("a cache goes in and out")
    x = g.any()
    return [g.op("Mul", [x.name, g.cast(after, T.FLOAT).name], x.shape)]


RECIPES = {"cache": Recipe(_cache), "counter": Recipe(_counter)}
