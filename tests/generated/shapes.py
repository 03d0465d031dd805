"""Recipes that rearrange, pick, count and reduce; some make as many rows as the values say."""

import numpy as np
from onnx import TensorProto as T
from onnx import helper

from generated.grower import Grower, Recipe
from generated.values import Shape, Tensor, tensor_input

Made = list[Tensor]
_MOST = 24


def _narrow(tensor: Tensor) -> bool:
    return tensor.has_fixed(1) and tensor.size() <= _MOST


def _concat(g: Grower) -> Made | None:
    x = g.fixed()
    if not _narrow(x):
        return None
    found = [v for v in g.values if v.shape[:1] == x.shape[:1] and v.shape[2:] == x.shape[2:] and v.of == x.of]
    found = [v for v in found if len(v.shape) > 1 and _narrow(v)]
    y = found[g.choose(len(found))]
    shape = (x.shape[0], x.size() + y.size(), *x.shape[2:])
    return [g.op("Concat", [x.name, y.name], shape, axis=1 if g.choose(2) or g.opset < 11 else 1 - len(shape))]


def _split(g: Grower) -> Made | None:
    x = g.fixed()
    size = x.size()
    if size < 2:
        return None
    first = 1 + g.choose(size - 1)
    shapes: list[Shape | None] = [(x.shape[0], part, *x.shape[2:]) for part in (first, size - first)]
    if g.opset >= 13:
        made = g.ops("Split", [x.name, g.ints(first, size - first)], shapes, axis=1)
    else:
        made = g.ops("Split", [x.name], shapes, axis=1, split=[first, size - first])
    kept = made[g.choose(2) :]
    if len(kept) < 2:
        g.features.add("an output is used by nobody")
    return kept


def _flatten(g: Grower) -> Made | None:
    x = g.pick(4) or g.pick(3)
    if x is None or not all(isinstance(dim, int) for dim in x.shape[1:]):
        return None
    size = int(np.prod([x.size(axis) for axis in range(1, len(x.shape))]))
    if size > 600:
        return None
    if g.choose(2):
        return [g.op("Flatten", [x.name], (x.shape[0], size))]
    return [g.op("Reshape", [x.name, g.target(x, [-1])], (x.shape[0], size))]


def _sequence(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() % 3 == 0)
    if x is None:
        return None
    size = x.size() // 3
    return [g.op("Reshape", [x.name, g.target(x, [3, size])], (x.shape[0], 3, size))]


def _tile(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    return [g.op("Tile", [x.name, g.ints(1, 2)], (x.shape[0], 2 * x.size()))]


def _expand(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    lifted = g.axes("Unsqueeze", x, [1], (x.shape[0], 1, x.shape[1]))
    return [g.op("Expand", [lifted.name, g.ints(1, 3, 1)], (x.shape[0], 3, x.shape[1]))]


def _slice(g: Grower) -> Made | None:
    """Part of an axis, from the front, the back, or backwards; the axes are left out where they need not be said."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() >= 4) or g.pick(3, lambda t: t.has_fixed(1) and t.size() >= 4)
    if x is None:
        return None
    size = x.size()
    if g.opset < 10:
        return [g.op("Slice", [x.name], (x.shape[0], 2, *x.shape[2:]), axes=[1], starts=[1], ends=[3])]
    kind = g.choose(4)
    if kind == 0:
        names = [x.name, g.ints(1), g.ints(3), g.ints(1)]
    elif kind == 1:
        names = [x.name, g.ints(-2), g.ints(2**31 - 1), g.ints(1), g.ints(1)]
    elif kind == 2:
        names = [x.name, g.ints(3), g.ints(-size - 1), g.ints(1), g.ints(-2)]
    else:
        names = [x.name, g.ints(*[0] * 2), g.ints(2**31 - 1, 2), "", g.ints(1, 1)]
    return [g.op("Slice", names, (x.shape[0], 2, *x.shape[2:]))]


def _pad(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None or x.size() < 2:
        return None
    shape = (x.shape[0], x.size() + 3)
    mode = ("constant", "edge", "reflect")[g.choose(3)]
    if mode == "reflect":
        shape = (x.shape[0], x.size() + 1)
    pads = [0, 1, 0, 0] if mode == "reflect" else [0, 1, 0, 2]
    if g.opset < 11:
        return [g.op("Pad", [x.name], shape, pads=pads, mode=mode)]
    filled = [g.number(0.25)] if mode == "constant" and g.choose(2) else []
    return [g.op("Pad", [x.name, g.ints(*pads), *filled], shape, mode=mode)]


def _gather(g: Grower) -> Made:
    x = g.fixed()
    picked = [0, -1] if g.opset >= 11 else [0, 0]
    return [g.op("Gather", [x.name, g.ints(*picked)], (x.shape[0], 2, *x.shape[2:]), axis=1)]


def _gather_rows(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    index = np.array([[0], [1]], dtype=np.int64)
    if x.shape[0] not in (g.batch, 2) or g.choose(2):
        turned = g.op("Transpose", [x.name], (x.shape[1], x.shape[0]), perm=[1, 0])
        rows = g.op("GatherND", [turned.name, g.put(index[:1])], (1, x.shape[0]))
        return [g.op("Transpose", [rows.name], (x.shape[0], 1), perm=[1, 0])]
    return [g.op("GatherND", [x.name, g.put(index[:1])], (1, x.shape[1]))]


def _scatter(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    update = g.op("Neg", [g.op("Gather", [x.name, g.ints(0)], (x.shape[0], 1), axis=1).name], (x.shape[0], 1))
    where = g.op("Mul", [g.cast(update, T.INT64).name, g.scalar(0)], update.shape, T.INT64)
    kind = "ScatterElements" if g.opset >= 11 else "Scatter"
    return [g.op(kind, [x.name, where.name, update.name], x.shape, axis=1)]


def _scatter_rows(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    row = g.weight(1, x.size())
    return [g.op("ScatterND", [x.name, g.put(np.array([[0]], dtype=np.int64)), row], x.shape)]


def _reduce(g: Grower) -> Made:
    x = g.fixed()
    kinds = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    kind = kinds[g.choose(len(kinds))]
    return [g.reduce(kind, x, -1, (*x.shape[:-1], 1), 1)]


def _squeeze(g: Grower) -> Made | None:
    x = g.pick(3, lambda t: t.shape[1] == 1)
    if x is None:
        x = g.pick(2)
        if x is None:
            return None
        x = g.op("Sin", [g.axes("Unsqueeze", x, [1], (x.shape[0], 1, x.shape[1])).name], (x.shape[0], 1, x.shape[1]))
    return [g.axes("Squeeze", x, [1], (x.shape[0], x.shape[2]))]


def _cumsum(g: Grower) -> Made:
    x = g.fixed()
    reverse, exclusive = g.choose(2), g.choose(2)
    return [g.op("CumSum", [x.name, g.scalar(len(x.shape) - 1)], x.shape, reverse=reverse, exclusive=exclusive)]


def _top(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() >= 3)
    if x is None:
        return None
    shape = (x.shape[0], 3)
    if g.opset < 11:
        if g.opset < 10:
            values, indices = g.ops("TopK", [x.name], [shape, shape], [1, 7], axis=1, k=3)
        else:
            values, indices = g.ops("TopK", [x.name, g.ints(3)], [shape, shape], [1, 7], axis=1)
        return [values, g.cast(indices, T.FLOAT)]
    values, indices = g.ops("TopK", [x.name, g.ints(3)], [shape, shape], [1, 7], axis=1)
    picked = g.op("GatherElements", [x.name, indices.name], shape, axis=1)
    return [values, picked] if g.choose(2) else [picked]


def _best(g: Grower) -> Made:
    x = g.fixed()
    kind = ("ArgMax", "ArgMin")[g.choose(2)]
    return [g.op(kind, [x.name], (*x.shape[:-1], 1), T.INT64, axis=len(x.shape) - 1, keepdims=1)]


def _one_hot(g: Grower) -> Made:
    x = g.fixed()
    best = g.op("ArgMax", [x.name], x.shape[:-1], T.INT64, axis=len(x.shape) - 1, keepdims=0)
    ends = g.put(np.array([0, 2], dtype=np.float32))
    return [g.op("OneHot", [best.name, g.scalar(7), ends], (*x.shape[:-1], 7))]


def _positions(g: Grower) -> Made:
    """As many rows as there are positive elements."""
    x = g.fixed()
    mask = g.op("Greater", [x.name, g.number(0.2)], x.shape, T.BOOL)
    found = g.op("NonZero", [mask.name], (len(x.shape), f"K{g.count}"), T.INT64)
    g.features.add("as many rows as the values say")
    return [g.op("Transpose", [found.name], (found.shape[1], found.shape[0]), T.INT64, perm=[1, 0])]


def _compress(g: Grower) -> Made | None:
    x = g.pick(2, _narrow)
    if x is None:
        return None
    most = g.reduce("ReduceMax", x, 1, (x.shape[0],), 0)
    mask = g.op("Greater", [most.name, g.number(0.5)], most.shape, T.BOOL)
    g.features.add("as many rows as the values say")
    return [g.op("Compress", [x.name, mask.name], (f"K{g.count}", x.shape[1]), axis=0)]


def _unique(g: Grower) -> Made:
    """Some of the four outputs; those in the middle may be left out."""
    x = g.cast(g.any(), T.INT32 if g.choose(2) else T.INT64)
    x = g.cast(x, T.FLOAT)
    rows, wanted = f"K{g.count}", g.choose(4)
    shapes: list[Shape | None] = [(rows,), None, None, None]
    if wanted in (1, 3):
        shapes[2] = (f"M{g.count}",)
    if wanted in (2, 3):
        shapes[3] = (rows,)
    g.features.add("as many rows as the values say")
    return g.ops("Unique", [x.name], shapes, [1, 7, 7, 7], sorted=1)


def _of_constants(g: Grower) -> Made:
    """Nodes that compute from constants alone, used twice."""
    x = g.fixed()
    last = x.size(-1)
    size = g.ints(last)
    ones = g.op("ConstantOfShape", [size], (last,), value=helper.make_tensor("v", T.FLOAT, [1], [0.75]))
    both = g.op("Add", [ones.name, g.weight(last)], (last,))
    first = g.op("Mul", [x.name, both.name], x.shape)
    second = g.op("Tanh", [first.name], x.shape)
    return [g.op("Add", [second.name, both.name], x.shape)]


def _range(g: Grower) -> Made:
    """Positions counted from the size of the batch, as decoders do."""
    x = g.fixed()
    shape = g.op("Shape", [x.name], (len(x.shape),), T.INT64)
    size = g.op("Gather", [shape.name, g.scalar(0)], (), T.INT64)
    steps = g.op("Range", [g.scalar(0), size.name, g.scalar(1)], (x.shape[0],), T.INT64)
    lifted = g.axes("Unsqueeze", steps, list(range(1, len(x.shape))), (x.shape[0], *[1] * (len(x.shape) - 1)))
    return [g.op("Add", [x.name, g.cast(lifted, T.FLOAT).name], x.shape)]


def _triangle(g: Grower) -> Made | None:
    x = g.pick(3)
    if x is None:
        return None
    return [g.op("Trilu", [x.name], x.shape, upper=g.choose(2))]


def _size(g: Grower) -> Made:
    x = g.any()
    count = g.op("Size", [x.name], (), T.INT64)
    g.features.add("a scalar value")
    return [g.op("Div", [x.name, g.cast(count, T.FLOAT).name], x.shape)]


def _any_rank(g: Grower) -> Made:
    """Reshaped as a request says, so that nobody knows the rank; then an output."""
    x = g.any()
    name = f"in{len(g.inputs)}"
    given = tensor_input(Tensor(name, (f"R{g.count}",), T.INT64))
    g.add_input(type(given)(name, given.info, lambda batch, rng: np.array([-1, 1, 1][: batch + 1]), is_open=True))
    y = g.op("Reshape", [x.name, name], ())
    y = g.op("Abs", [y.name], ())
    g.outputs.append(g.op("Sigmoid", [y.name], ()).info)
    g.outputs[-1].type.tensor_type.ClearField("shape")
    g.features.add("an output of unknown rank")
    return []


RECIPES = {
    "any-rank": Recipe(_any_rank),
    "best": Recipe(_best),
    "compress": Recipe(_compress, since=9),
    "concat": Recipe(_concat),
    "cumsum": Recipe(_cumsum, since=11),
    "expand": Recipe(_expand, since=8),
    "flatten": Recipe(_flatten),
    "gather": Recipe(_gather),
    "gather-rows": Recipe(_gather_rows, since=11),
    "of-constants": Recipe(_of_constants, since=9),
    "one-hot": Recipe(_one_hot, since=9),
    "pad": Recipe(_pad),
    "positions": Recipe(_positions, since=9),
    "range": Recipe(_range, since=11),
    "reduce": Recipe(_reduce),
    "scatter": Recipe(_scatter, since=9),
    "scatter-rows": Recipe(_scatter_rows, since=11),
    "sequence": Recipe(_sequence),
    "size": Recipe(_size),
    "slice": Recipe(_slice),
    "split": Recipe(_split),
    "squeeze": Recipe(_squeeze),
    "tile": Recipe(_tile),
    "top": Recipe(_top),
    "triangle": Recipe(_triangle, since=14),
    "unique": Recipe(_unique, since=11),
}
