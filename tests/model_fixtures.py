"""Graphs for tests: random DAGs over many operators, grown by a function that makes every choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array = NDArray[Any]
Choose = Callable[[int], int]
"""`choose(n)` is a number from 0 to n - 1: drawn by hypothesis, or by a seeded generator."""

Dim = int | str
BATCH = "N"


@dataclass(frozen=True)
class Tensor:
    """A value of the graph that is being grown."""

    name: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Grown:
    """A random model and what is strange about it."""

    model: ModelProto
    inputs: tuple[Tensor, ...]
    oddities: tuple[str, ...]
    recipes: tuple[str, ...]

    def feeds(self, batch: int = 2, seed: int = 0) -> dict[str, Array]:
        """Return a request with the given batch size."""
        rng = np.random.default_rng(seed)
        return {t.name: rng.standard_normal(_sizes(t.shape, batch)).astype(np.float32) for t in self.inputs}


def _sizes(shape: tuple[Dim, ...], batch: int) -> list[int]:
    return [batch if isinstance(dim, str) else dim for dim in shape]


def chooser(seed: int) -> Choose:
    """Return choices made by a seeded generator."""
    rng = np.random.default_rng(seed)
    return lambda count: int(rng.integers(count))


def save(model: ModelProto, path: Any) -> Any:
    """Write the model as one file and return its path."""
    path.write_bytes(model.SerializeToString())
    return path


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: dict[str, Array] | None = None,
    *,
    opset: int = 17,
    contrib: bool = False,
    ir_version: int = 8,
) -> ModelProto:
    """Return a model of plain parts."""
    inits = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "made", list(inputs), list(outputs), inits)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("com.microsoft", 1)] if contrib else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def floats(name: str, *shape: Dim | None) -> ValueInfoProto:
    """Return a declaration of a float tensor."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def grow(choose: Choose, *, steps: int, opset: int = 17) -> Grown:
    """Return a random model of about `steps` recipes; every choice is `choose`'s."""
    return _Grower(choose, opset).grow(steps)


class _Grower:
    def __init__(self, choose: Choose, opset: int) -> None:
        self.choose = choose
        self.opset = opset
        self.batch: Dim = BATCH if choose(3) else 2
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.values: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.extra_outputs: list[str] = []
        self.used: set[str] = set()
        self.recipes: list[str] = []
        self.count = 0
        self.has_nested_weights = False
        """As only IR 4 and newer allow."""

    def grow(self, steps: int) -> Grown:
        for index in range(1 + self.choose(2)):
            shape: tuple[Dim, ...] = (self.batch, 4, 8, 8) if not (index or self.choose(3)) else (self.batch, 12)
            tensor = Tensor(f"input{index}", shape)
            self.inputs.append(tensor)
            self.values.append(tensor)
        names = sorted(RECIPES)
        for _ in range(steps):
            name = names[self.choose(len(names))]
            made = RECIPES[name](self)
            if made:
                self.recipes.append(name)
                self.values.extend(made)
        if not self.nodes:
            self.values.append(self.op("Relu", [self.values[0].name], self.values[0].shape))
        return self._finished()

    # what recipes are made of

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def op(self, op_type: str, inputs: Sequence[str], shape: tuple[Dim, ...], **attributes: Any) -> Tensor:
        """Add a node with one output."""
        return self.ops(op_type, inputs, [shape], **attributes)[0]

    def ops(
        self, op_type: str, inputs: Sequence[str], shapes: Sequence[tuple[Dim, ...]], **attributes: Any
    ) -> list[Tensor]:
        """Add a node with several outputs."""
        made = [Tensor(self.name(), shape) for shape in shapes]
        node = helper.make_node(op_type, list(inputs), [t.name for t in made], name=self._node_name(), **attributes)
        self.used.update(inputs)
        self.nodes.append(node)
        return made

    def _node_name(self) -> str:
        return ("", f"node{self.count}", f"scope/node{self.count}")[self.choose(3)]

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        """Return a weight of the shape: sometimes one that others use already, sometimes made by a Constant node."""
        tied = [name for name, value in self.weights.items() if value.shape == shape and value.dtype == np.float32]
        kind = self.choose(6)
        if tied and kind == 0:
            return tied[self.choose(len(tied))]
        rng = np.random.default_rng([self.count, len(self.weights)])
        value = (rng.standard_normal(shape) * scale).astype(np.float32)
        return self.constant(value) if kind == 1 else self.put(value)

    def put(self, value: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = value
        return name

    def constant(self, value: Array) -> str:
        name = self.name()
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def ints(self, *numbers: int) -> str:
        value = np.array(numbers, dtype=np.int64)
        return self.constant(value) if self.choose(2) else self.put(value)

    def pick(self, rank: int, fits: Callable[[Tensor], bool] = lambda tensor: True) -> Tensor | None:
        """Return a value of the rank, newer ones more often."""
        found = [value for value in self.values if len(value.shape) == rank and fits(value)]
        if not found:
            return None
        return found[-1 - min(self.choose(len(found)), self.choose(len(found)))]

    def any(self) -> Tensor:
        return self.values[-1 - self.choose(len(self.values))]

    def same(self, tensor: Tensor) -> Tensor:
        """Return a value of the same shape, perhaps itself."""
        found = [value for value in self.values if value.shape == tensor.shape] or [tensor]
        return found[self.choose(len(found))]

    def axes(self, op_type: str, source: str, axes: Sequence[int], shape: tuple[Dim, ...]) -> Tensor:
        """Add Squeeze or Unsqueeze, in the form of the opset."""
        if self.opset >= 13:
            return self.op(op_type, [source, self.ints(*axes)], shape)
        return self.op(op_type, [source], shape, axes=list(axes))

    def mean(self, source: Tensor, axis: int, shape: tuple[Dim, ...], keepdims: int) -> Tensor:
        if self.opset >= 18:
            return self.op("ReduceMean", [source.name, self.ints(axis)], shape, keepdims=keepdims)
        return self.op("ReduceMean", [source.name], shape, axes=[axis], keepdims=keepdims)

    def flag(self, tensor: Tensor) -> str:
        """Return the name of a scalar truth value that depends on the tensor's size, or on its values."""
        if self.choose(2):
            size = self.op("Gather", [self.op("Shape", [tensor.name], (len(tensor.shape),)).name, self.scalar(0)], ())
            return self.op("Greater", [size.name, self.scalar(2)], ()).name
        total = self.op("ReduceMax", [tensor.name], (), keepdims=0)
        return self.op("Greater", [total.name, self.put(np.array(0.3, dtype=np.float32))], ()).name

    def scalar(self, number: int) -> str:
        return self.constant(np.array(number, dtype=np.int64))

    # putting it together

    def _finished(self) -> Grown:
        oddities = []
        outputs = [v for v in self.values if v.name not in self.used and v not in self.inputs]
        made = [v for v in self.values if v not in self.inputs]
        outputs = outputs[-4:] or made[-1:]
        if self.choose(3) == 0:
            outputs.append(made[self.choose(len(made))])  # one that others use as well, perhaps
        outputs = list(dict.fromkeys(outputs))
        infos = [_info(v) for v in outputs]
        inputs = [_info(v) for v in self.inputs]
        if self.choose(5) == 0:
            infos.append(inputs[0])
            oddities.append("an input is an output")
        floats_ = [name for name, value in self.weights.items() if value.dtype == np.float32 and value.ndim]
        if floats_ and self.choose(5) == 0:
            name = floats_[self.choose(len(floats_))]
            infos.append(floats(name, *self.weights[name].shape))
            oddities.append("an initializer is an output")
        ir_version = 8
        if self.choose(4) == 0:
            ir_version = 8 if self.choose(2) else 3 if not self.has_nested_weights else 4
            inputs += [_weight_info(name, value) for name, value in self.weights.items()]
            oddities.append("initializers are inputs")
        nodes = self.nodes
        if self.choose(4) == 0:
            nodes = list(reversed(nodes))
            oddities.append("not sorted")
        inits = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(nodes, "grown", inputs, infos, inits)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version, producer_name="tests"
        )
        return Grown(model, tuple(self.inputs), tuple(oddities), tuple(self.recipes))


Recipe = Callable[[_Grower], list[Tensor] | None]


def _info(tensor: Tensor) -> ValueInfoProto:
    return floats(tensor.name, *tensor.shape)


def _weight_info(name: str, value: Array) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _channels(tensor: Tensor, axis: int = 1) -> int:
    size = tensor.shape[axis]
    assert isinstance(size, int)
    return size


def _is_large(tensor: Tensor) -> bool:
    return all(isinstance(d, str) or d >= 4 for d in tensor.shape[2:]) and _channels(tensor) <= 24


def _conv(g: _Grower) -> list[Tensor] | None:
    x = g.pick(4, lambda t: _channels(t) <= 24)
    if x is None:
        return None
    channels, out, stride = _channels(x), 2 + 2 * g.choose(4), 1 + g.choose(2) * _is_large(x)
    group = 2 if channels % 2 == 0 and g.choose(3) == 0 else 1
    sizes = tuple(-(-_channels(x, axis) // stride) for axis in (2, 3))
    inputs = [x.name, g.weight(out, channels // group, 3, 3, scale=0.2)] + ([g.weight(out)] if g.choose(2) else [])
    y = g.op("Conv", inputs, (x.shape[0], out, *sizes), pads=[1, 1, 1, 1], strides=[stride, stride], group=group)
    if g.choose(2):
        y = _normalized(g, y)
    if g.choose(2):
        y = g.op("Relu", [y.name], y.shape)
    return [y]


def _normalized(g: _Grower, x: Tensor) -> Tensor:
    channels = _channels(x)
    variance = g.put(np.linspace(0.5, 1.5, channels, dtype=np.float32))
    names = [x.name, g.weight(channels), g.weight(channels), g.weight(channels), variance]
    return g.op("BatchNormalization", names, x.shape)


def _pool(g: _Grower) -> list[Tensor] | None:
    x = g.pick(4, _is_large)
    if x is None:
        return None
    kind = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")[g.choose(4)]
    if kind.startswith("Global"):
        return [g.op(kind, [x.name], (*x.shape[:2], 1, 1))]
    sizes = tuple(_channels(x, axis) // 2 for axis in (2, 3))
    if kind == "MaxPool" and g.choose(3) == 0:  # the second output is used by nobody
        return g.ops(kind, [x.name], [(*x.shape[:2], *sizes)] * 2, kernel_shape=[2, 2], strides=[2, 2])[:1]
    return [g.op(kind, [x.name], (*x.shape[:2], *sizes), kernel_shape=[2, 2], strides=[2, 2])]


def _unary(g: _Grower) -> list[Tensor]:
    x = g.any()
    kind = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Abs", "Identity", "Erf", "Softplus")[g.choose(8)]
    return [g.op(kind, [x.name], x.shape)]


def _clip(g: _Grower) -> list[Tensor]:
    x = g.any()
    low, high = (g.put(np.array(value, dtype=np.float32)) for value in (-0.7, 0.9))
    return [g.op("Clip", [[x.name, low], [x.name, low, high], [x.name, "", high]][g.choose(3)], x.shape)]


def _binary(g: _Grower) -> list[Tensor]:
    x = g.any()
    kind = ("Add", "Mul", "Sub", "Max")[g.choose(4)]
    return [g.op(kind, [x.name, g.same(x).name], x.shape)]


def _broadcast(g: _Grower) -> list[Tensor]:
    x = g.any()
    last = x.shape[-1]
    assert isinstance(last, int)
    other = g.weight(1, last) if g.choose(2) else g.weight()
    return [g.op("Add" if g.choose(2) else "Mul", [x.name, other] if g.choose(2) else [other, x.name], x.shape)]


def _concat(g: _Grower) -> list[Tensor] | None:
    x = g.any()
    axis = 1
    if _channels(x) > 24:
        return None
    found = [v for v in g.values if v.shape[:1] == x.shape[:1] and v.shape[2:] == x.shape[2:] and _channels(v) <= 24]
    y = found[g.choose(len(found))]
    shape = (x.shape[0], _channels(x) + _channels(y), *x.shape[2:])
    return [g.op("Concat", [x.name, y.name], shape, axis=axis if g.choose(2) else axis - len(shape))]


def _split(g: _Grower) -> list[Tensor] | None:
    x = g.any()
    size = _channels(x)
    if size < 2:
        return None
    first = 1 + g.choose(size - 1)
    shapes = [(x.shape[0], part, *x.shape[2:]) for part in (first, size - first)]
    if g.opset >= 13:
        made = g.ops("Split", [x.name, g.ints(first, size - first)], shapes, axis=1)
    else:
        made = g.ops("Split", [x.name], shapes, axis=1, split=[first, size - first])
    return made[g.choose(2) :]


def _layout(g: _Grower) -> list[Tensor] | None:
    x = g.pick(4)
    if x is None:
        return None
    there = g.op("Transpose", [x.name], (x.shape[0], *x.shape[2:], x.shape[1]), perm=[0, 2, 3, 1])
    scaled = g.op("Mul", [there.name, g.weight(_channels(x))], there.shape)
    return [g.op("Transpose", [scaled.name], x.shape, perm=[0, 3, 1, 2])]


def _flatten(g: _Grower) -> list[Tensor] | None:
    x = g.pick(4) or g.pick(3)
    if x is None:
        return None
    size = int(np.prod([d for d in x.shape[1:] if isinstance(d, int)]))
    if size > 600:
        return None
    if g.choose(2):
        return [g.op("Flatten", [x.name], (x.shape[0], size))]
    return [g.op("Reshape", [x.name, _target(g, x, [-1])], (x.shape[0], size))]


def _target(g: _Grower, x: Tensor, rest: list[int]) -> str:
    """Return the name of the shape [size of the first axis of x, *rest], computed in the graph."""
    shape = g.op("Shape", [x.name], (len(x.shape),))
    first = g.op("Gather", [shape.name, g.scalar(0)], ())
    lifted = g.axes("Unsqueeze", first.name, [0], (1,))
    return g.op("Concat", [lifted.name, g.ints(*rest)], (1 + len(rest),), axis=0).name


def _sequence(g: _Grower) -> list[Tensor] | None:
    x = g.pick(2, lambda t: _channels(t) % 3 == 0)
    if x is None:
        return None
    size = _channels(x) // 3
    return [g.op("Reshape", [x.name, _target(g, x, [3, size])], (x.shape[0], 3, size))]


def _dense(g: _Grower) -> list[Tensor] | None:
    x = g.pick(2) if g.choose(3) else g.pick(3)
    if x is None:
        return None
    size, out = _channels(x, -1), (3, 6, 9, 12, 15, 120)[g.choose(6)]
    shape = (*x.shape[:-1], out)
    if len(x.shape) == 2 and g.choose(2):
        transposed = g.choose(2)
        weight = g.weight(out, size, scale=0.3) if transposed else g.weight(size, out, scale=0.3)
        bias = [[], [g.weight(out)], [g.weight(1, out)]][g.choose(3)]
        y = g.op("Gemm", [x.name, weight, *bias], shape, transB=transposed, alpha=(1.0, 0.5)[g.choose(2)])
    else:
        weight = g.weight(size, out, scale=0.3)
        if g.choose(4) == 0:
            weight = g.op("Transpose", [g.weight(out, size, scale=0.3)], (size, out), perm=[1, 0]).name
        y = g.op("MatMul", [x.name, weight], shape)
        if g.choose(2):
            bias = [g.weight(out)]
            y = g.op("Add", [y.name, bias[0]] if g.choose(2) else [bias[0], y.name], shape)
    if g.choose(2):
        y = g.op(("Relu", "Tanh")[g.choose(2)], [y.name], shape)
    return [y]


def _softmax(g: _Grower) -> list[Tensor]:
    x = g.any()
    return [g.op("Softmax", [x.name], x.shape, axis=len(x.shape) - 1)]


def _cast(g: _Grower) -> list[Tensor]:
    x = g.any()
    if g.choose(2):
        y = g.op("Cast", [x.name], x.shape, to=TensorProto.INT64)
    else:
        # not two casts in a row: onnxruntime drops those and then fails where a nested graph captures the second
        y = g.op("Tanh", [g.op("Cast", [x.name], x.shape, to=TensorProto.DOUBLE).name], x.shape)
    y = g.op("Cast", [y.name], x.shape, to=TensorProto.FLOAT)
    return [g.op("Neg", [y.name], x.shape)]  # a cast before a ReduceMean is fused into a node of two types


def _where(g: _Grower) -> list[Tensor]:
    x = g.any()
    mask = g.op("Greater", [x.name, g.weight()], x.shape)
    return [g.op("Where", [mask.name, x.name, g.same(x).name], x.shape)]


def _layer_norm(g: _Grower) -> list[Tensor] | None:
    x = g.pick(3) or g.pick(2)
    if x is None:
        return None
    shape = (*x.shape[:-1], 1)
    gap = g.op("Sub", [x.name, g.mean(x, -1, shape, 1).name], x.shape)
    power = g.op("Pow", [gap.name, g.put(np.array(2, dtype=np.float32))], x.shape)
    spread = g.op("Add", [g.mean(power, -1, shape, 1).name, g.put(np.array(1e-5, dtype=np.float32))], shape)
    y = g.op("Div", [gap.name, g.op("Sqrt", [spread.name], shape).name], x.shape)
    size = _channels(x, -1)
    y = g.op("Mul", [y.name, g.weight(size)], x.shape)
    return [g.op("Add", [y.name, g.weight(size)], x.shape)]


def _gelu(g: _Grower) -> list[Tensor]:
    x = g.any()
    scaled = g.op("Div", [x.name, g.put(np.array(2**0.5, dtype=np.float32))], x.shape)
    one = g.op("Add", [g.op("Erf", [scaled.name], x.shape).name, g.put(np.array(1, dtype=np.float32))], x.shape)
    half = g.op("Mul", [x.name, one.name], x.shape)
    return [g.op("Mul", [half.name, g.put(np.array(0.5, dtype=np.float32))], x.shape)]


def _attention(g: _Grower) -> list[Tensor] | None:
    x = g.pick(3)
    if x is None:
        return None
    size, steps = _channels(x, -1), x.shape[1]
    query, key, value = (g.op("MatMul", [x.name, g.weight(size, 6)], (*x.shape[:2], 6)) for _ in range(3))
    keys = g.op("Transpose", [key.name], (x.shape[0], 6, steps), perm=[0, 2, 1])
    scores = g.op("MatMul", [query.name, keys.name], (x.shape[0], steps, steps))
    share = g.op("Softmax", [scores.name], scores.shape, axis=2)
    return [g.op("MatMul", [share.name, value.name], (*x.shape[:2], 6))]


def _excite(g: _Grower) -> list[Tensor] | None:
    x = g.pick(4, lambda t: _channels(t) <= 24)
    if x is None:
        return None
    channels = _channels(x)
    pooled = g.op("GlobalAveragePool", [x.name], (*x.shape[:2], 1, 1))
    if g.choose(3) == 0:
        return [g.op("Mul", [x.name, pooled.name], x.shape)]
    squeezed = g.op("Conv", [pooled.name, g.weight(2, channels, 1, 1)], (x.shape[0], 2, 1, 1))
    squeezed = g.op("Relu", [squeezed.name], squeezed.shape)
    gate = g.op("Conv", [squeezed.name, g.weight(channels, 2, 1, 1)], pooled.shape)
    gate = g.op("HardSigmoid", [gate.name], gate.shape)
    return [g.op("Mul", [x.name, gate.name], x.shape)]


def _quantized(g: _Grower) -> list[Tensor]:
    x = g.any()
    quantized, scale, zero = g.ops("DynamicQuantizeLinear", [x.name], [x.shape, (), ()])
    return [g.op("DequantizeLinear", [quantized.name, scale.name, zero.name], x.shape)]


def _fixed_quantized(g: _Grower) -> list[Tensor]:
    x = g.any()
    parts = [g.put(np.array(0.02, dtype=np.float32)), g.put(np.array(128, dtype=np.uint8))]
    quantized = g.op("QuantizeLinear", [x.name, *parts], x.shape)
    # no nested graph may capture what is dequantized: onnxruntime moves the node past a Reshape and then aborts
    y = g.op("DequantizeLinear", [quantized.name, *parts], x.shape)
    return [g.op(("Relu", "Tanh")[g.choose(2)], [y.name], x.shape)]


def _top(g: _Grower) -> list[Tensor] | None:
    x = g.pick(2, lambda t: _channels(t) >= 3)
    if x is None:
        return None
    shape = (x.shape[0], 3)
    values, indices = g.ops("TopK", [x.name, g.ints(3)], [shape, shape], axis=1)
    picked = g.op("GatherElements", [x.name, indices.name], shape, axis=1)
    return [values, picked] if g.choose(2) else [picked]


def _recurrent(g: _Grower) -> list[Tensor] | None:
    x = g.pick(3)
    if x is None:
        return None
    steps, size = x.shape[1], _channels(x, -1)
    turned = g.op("Transpose", [x.name], (steps, x.shape[0], size), perm=[1, 0, 2])
    hidden = 3
    names = [turned.name, g.weight(1, 4 * hidden, size), g.weight(1, 4 * hidden, hidden)]
    _, last, _ = g.ops("LSTM", names, [(steps, 1, x.shape[0], hidden), *[(1, x.shape[0], hidden)] * 2], hidden_size=3)
    return [g.axes("Squeeze", last.name, [0], (x.shape[0], hidden))]


def _of_constants(g: _Grower) -> list[Tensor]:
    """Nodes that compute from constants alone, used twice."""
    x = g.any()
    last = x.shape[-1]
    assert isinstance(last, int)
    size = g.ints(last)
    ones = g.op("ConstantOfShape", [size], (last,), value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.75]))
    both = g.op("Add", [ones.name, g.weight(last)], (last,))
    first = g.op("Mul", [x.name, both.name], x.shape)
    second = g.op("Tanh", [first.name], x.shape)
    return [g.op("Add", [second.name, both.name], x.shape)]


def _list_of_parts(g: _Grower) -> list[Tensor] | None:
    """A sequence, which cannot travel between partitions."""
    x = g.pick(2)
    if x is None:
        return None
    parts = g.op("SplitToSequence", [x.name], (), axis=1, keepdims=1)
    joined = g.op("ConcatFromSequence", [parts.name], x.shape, axis=1)
    first = g.op("SequenceAt", [parts.name, g.scalar(0)], (x.shape[0], 1))
    return [joined, first]


def _if(g: _Grower) -> list[Tensor]:
    """Branches that capture outer values, one of them two levels deep; both name their insides alike."""
    x = g.any()
    y, z = g.same(x), g.same(x)
    condition = g.flag(x)
    inner = helper.make_node(
        "If",
        [condition],
        ["inner_out"],
        name="inner",
        then_branch=_branch([helper.make_node("Mul", [x.name, z.name], ["deep"])], "deep"),
        else_branch=_branch([helper.make_node("Sub", [z.name, y.name], ["deep2"])], "deep2"),
    )
    half = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half")
    then = [helper.make_node("Constant", [], ["half"], value=half), inner]
    then.append(helper.make_node("Mul", ["inner_out", "half"], ["out"]))
    other = _branch([helper.make_node("Mul", [y.name, "half"], ["out"])], "out")
    other.initializer.append(half)
    g.used.update((x.name, y.name, z.name))
    g.has_nested_weights = True
    made = g.op("If", [condition], x.shape, then_branch=_branch(then, "out"), else_branch=other)
    return [made]


def _branch(nodes: Sequence[NodeProto], output: str) -> GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [info])


def _loop(g: _Grower) -> list[Tensor]:
    """A loop that captures outer values, one of them from a nested loop."""
    x = g.any()
    y, z = g.same(x), g.same(x)
    inner = helper.make_graph(
        [helper.make_node("Add", ["state", z.name], ["next"]), helper.make_node("Identity", ["go"], ["still"])],
        "inner",
        _loop_inputs("go", "state"),
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), floats("next")],
    )
    _forget_shapes(inner)
    nodes = [
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("v", TensorProto.INT64, [], [2])),
        helper.make_node("Loop", ["two", "more", "carried"], ["grown"], body=inner),
        helper.make_node("Mul", ["grown", y.name], ["product"]),
        helper.make_node("Tanh", ["product"], ["carried_out"]),
        helper.make_node("Identity", ["more"], ["more_out"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        _loop_inputs("more", "carried"),
        [helper.make_tensor_value_info("more_out", TensorProto.BOOL, []), floats("carried_out")],
    )
    _forget_shapes(body)
    g.used.update((y.name, z.name))
    trips = g.scalar(1 + g.choose(3))
    return [g.op("Loop", [trips, "", x.name], x.shape, body=body)]


def _loop_inputs(condition: str, state: str) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"step_{state}", TensorProto.INT64, []),
        helper.make_tensor_value_info(condition, TensorProto.BOOL, []),
        floats(state),
    ]


def _forget_shapes(graph: GraphProto) -> None:
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.ClearField("shape")


def _scan(g: _Grower) -> list[Tensor] | None:
    """A scan along the second axis that captures a weight and an outer value."""
    x = g.pick(3)
    if x is None:
        return None
    size = _channels(x, -1)
    start = g.op("Mul", [g.mean(x, 1, (x.shape[0], size), 0).name, g.weight(size)], (x.shape[0], size))
    outer = g.same(start)
    weight = g.weight(size)
    nodes = [
        helper.make_node("Add", ["state", "slice"], ["sum"]),
        helper.make_node("Mul", ["sum", weight], ["scaled"]),
        helper.make_node("Add", ["scaled", outer.name], ["shifted"]),
        helper.make_node("Tanh", ["shifted"], ["state_out"]),
        helper.make_node("Identity", ["state_out"], ["slice_out"]),
    ]
    # sizes in nested graphs need names of their own: onnxruntime reuses buffers of equal names
    state, part = (f"rows{g.count}", f"columns{g.count}"), (f"rows{g.count}", f"width{g.count}")
    body = helper.make_graph(
        nodes,
        "scan",
        [floats("state", *state), floats("slice", *part)],
        [floats("state_out", *state), floats("slice_out", *part)],
    )
    g.used.update((outer.name, weight))
    last, all_ = g.ops(
        "Scan",
        [start.name, x.name],
        [start.shape, x.shape],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    return [last, all_]


RECIPES: dict[str, Recipe] = {
    "attention": _attention,
    "binary": _binary,
    "broadcast": _broadcast,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "conv": _conv,
    "dense": _dense,
    "excite": _excite,
    "fixed-quantized": _fixed_quantized,
    "flatten": _flatten,
    "gelu": _gelu,
    "if": _if,
    "layer-norm": _layer_norm,
    "layout": _layout,
    "list-of-parts": _list_of_parts,
    "loop": _loop,
    "of-constants": _of_constants,
    "pool": _pool,
    "quantized": _quantized,
    "recurrent": _recurrent,
    "scan": _scan,
    "sequence": _sequence,
    "softmax": _softmax,
    "split": _split,
    "top": _top,
    "unary": _unary,
    "where": _where,
}
"""What a random model is made of, by name."""


def operators(model: ModelProto) -> set[str]:
    """Return every operator of the model, nested graphs included."""
    found: set[str] = set()
    stack = [model.graph]
    while stack:
        for node in stack.pop().node:
            found.add(node.op_type)
            stack.extend(a.g for a in node.attribute if a.type == AttributeProto.GRAPH)
    return found


def passes_checker(model: ModelProto) -> bool:
    """Return whether onnx itself accepts the model."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True
