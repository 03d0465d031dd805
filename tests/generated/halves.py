"""Recipes of half floats, which onnxruntime's CPU kernels mostly compute as float32.

What they make are outputs and no inputs of other recipes: where a border rounds, a rounding or a comparison behind it
would jump.
"""

import numpy as np
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]


def _half(g: Grower) -> Made:
    """A few nodes in float16 behind an input or a cast."""
    x = g.input((g.batch, 6), T.FLOAT16) if g.choose(2) else g.cast(g.fixed(), T.FLOAT16)
    g.rounded.add(x.name)
    weight = g.put(np.array([0.5, -1.25, 2][: 1 + g.choose(2)][-1:], dtype=np.float16))
    for _ in range(1 + g.choose(3)):
        kind = g.choose(4)
        if kind == 0:
            x = g.op(("Relu", "Sigmoid", "Tanh")[g.choose(3)], [x.name], x.shape, T.FLOAT16)
        elif kind == 1:
            x = g.op(("Add", "Mul", "Sub")[g.choose(3)], [x.name, weight], x.shape, T.FLOAT16)
        elif kind == 2:
            x = g.op("Softmax", [x.name], x.shape, T.FLOAT16, axis=len(x.shape) - 1)
        else:
            x = _dense(g, x)
    g.outputs.append(x.info)
    if g.choose(2):
        g.outputs.append(g.cast(x, T.FLOAT).info)
    return []


def _dense(g: Grower, x: Tensor) -> Tensor:
    rng = np.random.default_rng(g.count)
    weight = g.put((rng.standard_normal((x.size(-1), 4)) / 4).astype(np.float16))
    return g.op("MatMul", [x.name, weight], (*x.shape[:-1], 4), T.FLOAT16)


def _brain(g: Grower) -> Made:
    """Through bfloat16, which numpy does not have, so that it cannot travel."""
    x = g.fixed()
    narrow = g.op("Cast", [x.name], x.shape, T.BFLOAT16, to=T.BFLOAT16)
    if g.choose(2):
        narrow = g.op(
            "Concat", [narrow.name, narrow.name], (x.shape[0], 2 * x.size(), *x.shape[2:]), T.BFLOAT16, axis=1
        )
    y = g.op("Cast", [narrow.name], narrow.shape, to=T.FLOAT)
    return [g.op("Neg", [y.name], y.shape)]


def _brain_weight(g: Grower) -> Made:
    x = g.fixed()
    bits = np.random.default_rng(g.count).standard_normal(x.size(-1)).astype(np.float32).view(np.uint32) >> 16
    tensor = T(data_type=T.BFLOAT16, dims=[x.size(-1)], raw_data=bits.astype("<u2").tobytes())
    weight = g.op("Cast", [g.put_tensor(tensor)], (x.size(-1),), to=T.FLOAT)
    return [g.op("Mul", [x.name, weight.name], x.shape)]


RECIPES = {
    "brain": Recipe(_brain, since=13),
    "brain-weight": Recipe(_brain_weight, since=13),
    "half": Recipe(_half),
}
