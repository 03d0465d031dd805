"""Grows a random model step by step; every choice is made by a function, so that hypothesis can shrink it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from generated.finishing import finished
from generated.grown import Grown
from generated.values import BATCH, FLOAT, Array, Choose, Dim, Input, Shape, Tensor, tensor_input


@dataclass(frozen=True)
class Recipe:
    """A way to add a few nodes."""

    make: Callable[["Grower"], Sequence[Tensor] | None]
    """Adds nodes and returns what later recipes may use; None where nothing fits."""
    since: int = 7
    """The first opset with all its operators in the form in which it uses them."""
    until: int = 99


class Grower:
    """A graph that grows."""

    def __init__(self, choose: Choose, opset: int) -> None:
        self.choose = choose
        self.opset = opset
        self.batch: Dim = BATCH if choose(3) else 2
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.arrays: dict[str, Array] = {}
        """The float weights, which others may be tied to."""
        self.values: list[Tensor] = []
        self.inputs: list[Input] = []
        self.input_names: set[str] = set()
        self.outputs: list[ValueInfoProto] = []
        """Outputs that are fixed already: sequences, maps, caches."""
        self.functions: list[FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.used: set[str] = set()
        self.rounded: set[str] = set()
        """Names of values made of half floats."""
        self.recipes: list[str] = []
        self.features: set[str] = set()
        self.count = 0
        self.needs_rows = False
        """Whether it has an operator that fails in onnxruntime itself where there are no rows."""
        self.least_ir = 3

    def grow(self, steps: int, table: Mapping[str, Recipe]) -> Grown:
        """Return a model of about `steps` recipes of the table."""
        for index in range(1 + self.choose(2)):
            shape: Shape = (self.batch, 4, 8, 8) if not (index or self.choose(3)) else (self.batch, 12)
            self.values.append(self.input(shape, name=f"input{index}"))
        names = sorted(name for name, recipe in table.items() if recipe.since <= self.opset <= recipe.until)
        for _ in range(steps):
            name = names[self.choose(len(names))]
            made = table[name].make(self)
            if made is not None:
                self.recipes.append(name)
                self.values.extend(made)
        if not self.nodes:
            self.values.append(self.op("Relu", [self.values[0].name], self.values[0].shape))
        return finished(self)

    # nodes

    def name(self) -> str:
        """Return a name that nothing has yet."""
        self.count += 1
        return f"t{self.count}"

    def op(
        self, op_type: str, inputs: Sequence[str], shape: Shape, of: int = FLOAT, *, domain: str = "", **attributes: Any
    ) -> Tensor:
        """Add a node with one output of the shape and element type."""
        return self.ops(op_type, inputs, [shape], [of], domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[str],
        shapes: Sequence[Shape | None],
        of: Sequence[int] = (),
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[Tensor]:
        """Add a node with several outputs; those of shape None are left out and have the empty name."""
        kinds = of or [FLOAT] * len(shapes)
        pairs = zip(shapes, kinds, strict=True)
        made = [Tensor("" if shape is None else self.name(), shape or (), kind) for shape, kind in pairs]
        node = helper.make_node(
            op_type, list(inputs), [t.name for t in made], name=self._node_name(), domain=domain, **attributes
        )
        while node.output and not node.output[-1]:
            del node.output[-1]
        self.add(node)
        return [tensor for tensor in made if tensor.name]

    def add(self, node: NodeProto) -> None:
        """Add a node that is ready."""
        self.used.update(node.input)
        self.nodes.append(node)
        if node.domain:
            self.domains.setdefault(node.domain, 1)
        if any(not name for name in node.input):
            self.features.add("an optional input is omitted")
        if any(not name for name in node.output):
            self.features.add("an output is omitted")
        if any(name in self.rounded for name in node.input):
            self.rounded.update(node.output)

    def _node_name(self) -> str:
        return ("", f"node{self.count}", f"scope/node{self.count}")[self.choose(3)]

    # inputs and weights

    def input(self, shape: Shape, of: int = FLOAT, *, below: int = 5, name: str = "") -> Tensor:
        """Add an input of the model."""
        tensor = Tensor(name or f"in{len(self.inputs)}", shape, of)
        self.add_input(tensor_input(tensor, below))
        return tensor

    def add_input(self, given: Input) -> None:
        """Add an input that may be no tensor."""
        self.inputs.append(given)
        self.input_names.add(given.name)

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        """Return a weight of the shape: sometimes one that others use already, sometimes made by a Constant node."""
        tied = [name for name, value in self.arrays.items() if value.shape == shape]
        kind = self.choose(6)
        if tied and kind == 0:
            self.features.add("tied weights")
            return tied[self.choose(len(tied))]
        rng = np.random.default_rng([self.count, len(self.weights)])
        value = (rng.standard_normal(shape) * scale).astype(np.float32)
        return self.constant(value) if kind == 1 else self.put(value)

    def put(self, value: Array) -> str:
        """Add an initializer."""
        name = self.put_tensor(numpy_helper.from_array(value))
        if value.dtype == np.float32:
            self.arrays[name] = value
        return name

    def put_tensor(self, tensor: TensorProto) -> str:
        """Add an initializer of a type that numpy may not have."""
        name = tensor.name = f"w{len(self.weights)}"
        self.weights[name] = tensor
        return name

    def constant(self, value: Array) -> str:
        """Add a Constant node."""
        name = self.name()
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def ints(self, *numbers: int) -> str:
        """Return a list of integers, as an initializer or from a Constant node."""
        value = np.array(numbers, dtype=np.int64)
        return self.constant(value) if self.choose(2) else self.put(value)

    def scalar(self, number: int) -> str:
        """Return an integer from a Constant node."""
        return self.constant(np.array(number, dtype=np.int64))

    def number(self, number: float) -> str:
        """Return a float scalar that is an initializer."""
        return self.put(np.array(number, dtype=np.float32))

    # values that are there

    def pick(self, rank: int, fits: Callable[[Tensor], bool] = lambda tensor: True, of: int = FLOAT) -> Tensor | None:
        """Return a value of the rank, newer ones more often; none that is always empty."""
        found = [v for v in self.values if len(v.shape) == rank and v.of == of and not v.is_empty and fits(v)]
        if not found:
            return None
        return found[-1 - min(self.choose(len(found)), self.choose(len(found)))]

    def any(self, of: int = FLOAT) -> Tensor:
        """Return a value that is no scalar; a cast one where there is none of the type."""
        found = [v for v in self.values if v.of == of and v.shape and not v.is_empty]
        if not found:
            return self.cast(self.any(), of)
        return found[-1 - self.choose(len(found))]

    def fixed(self) -> Tensor:
        """Return a float value whose dimensions but the first are fixed."""
        found = [v for v in self.values if v.of == FLOAT and len(v.shape) > 1 and not v.is_empty]
        found = [v for v in found if all(isinstance(dim, int) for dim in v.shape[1:])]
        return found[-1 - self.choose(len(found))]

    def same(self, tensor: Tensor) -> Tensor:
        """Return a value of the same shape and type, perhaps itself."""
        found = [v for v in self.values if v.shape == tensor.shape and v.of == tensor.of] or [tensor]
        return found[self.choose(len(found))]

    # nodes whose form depends on the opset

    def cast(self, tensor: Tensor, of: int) -> Tensor:
        """Add a Cast."""
        made = self.op("Cast", [tensor.name], tensor.shape, of, to=of)
        if of in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            self.rounded.add(made.name)
        return made

    def axes(self, op_type: str, source: Tensor, axes: Sequence[int], shape: Shape) -> Tensor:
        """Add Squeeze or Unsqueeze."""
        if self.opset >= 13:
            return self.op(op_type, [source.name, self.ints(*axes)], shape, source.of)
        return self.op(op_type, [source.name], shape, source.of, axes=list(axes))

    def mean(self, source: Tensor, axis: int, shape: Shape, keepdims: int) -> Tensor:
        """Add ReduceMean."""
        return self.reduce("ReduceMean", source, axis, shape, keepdims)

    def reduce(self, op_type: str, source: Tensor, axis: int, shape: Shape, keepdims: int) -> Tensor:
        """Add a reduction of one axis."""
        self.needs_rows = True  # onnxruntime forgets to reduce [0, 5] to [0, 1], against its own inference
        axis = axis % len(source.shape) if self.opset < 11 else axis
        if self.opset >= (13 if op_type == "ReduceSum" else 18):
            return self.op(op_type, [source.name, self.ints(axis)], shape, source.of, keepdims=keepdims)
        return self.op(op_type, [source.name], shape, source.of, axes=[axis], keepdims=keepdims)

    def target(self, source: Tensor, rest: Sequence[int]) -> str:
        """Return the shape [size of the first axis of the source, *rest], computed in the graph."""
        shape = self.op("Shape", [source.name], (len(source.shape),), TensorProto.INT64)
        first = self.op("Gather", [shape.name, self.scalar(0)], (), TensorProto.INT64)
        lifted = self.axes("Unsqueeze", first, [0], (1,))
        return self.op("Concat", [lifted.name, self.ints(*rest)], (1 + len(rest),), TensorProto.INT64, axis=0).name

    def flag(self, tensor: Tensor) -> str:
        """Return a scalar truth value that depends on the tensor's size, or on its values."""
        if self.choose(2) and self.opset >= 9:
            shape = self.op("Shape", [tensor.name], (len(tensor.shape),), TensorProto.INT64)
            size = self.op("Gather", [shape.name, self.scalar(0)], (), TensorProto.INT64)
            return self.op("Greater", [size.name, self.scalar(2)], (), TensorProto.BOOL).name
        total = self.op("ReduceMax", [tensor.name], (), keepdims=0)
        return self.op("Greater", [total.name, self.number(0.3)], (), TensorProto.BOOL).name
