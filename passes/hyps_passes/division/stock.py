"""New values and small nodes for pieces: names that nobody has, types and sizes like those of the whole."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hyps_passes import ops
from hyps_passes.division.rule import Facts, Span

_SLICE_BY_INPUTS = 10
"""The opset from which `Slice` takes its bounds as inputs."""


class Stock:
    """What the makers of all pieces share."""

    def __init__(self, graph: ir.Graph, facts: Facts, sizes: dict[str, tuple[int, ...]]) -> None:
        """Take the graph, in which constants are registered, and the sizes, to which those of new values are added."""
        self.graph, self.facts, self.sizes = graph, facts, sizes
        self._taken = _names(graph)
        self._numbers: dict[int, ir.Value] = {}

    def fresh(self, name: str) -> str:
        """Return the name, or one like it, if it is taken; from now on it is."""
        while name in self._taken:
            name += "~"
        self._taken.add(name)
        return name

    def describe(self, new: ir.Value, name: str, whole: ir.Value, axis: int | None, length: int) -> ir.Value:
        """Name a part of `whole`, `length` long along `axis`, and give it its type and shape; None: it is all of it."""
        new.name, new.type = self.fresh(name), whole.type
        sizes = list(self.facts.shape(whole))
        dims = None if whole.shape is None else list(whole.shape.dims)
        if axis is not None:
            sizes[axis] = length
            if dims is not None:
                dims[axis] = length
        self.sizes[str(new.name)] = tuple(sizes)
        new.shape = None if dims is None else ir.Shape(dims)
        return new

    def slice_node(self, value: ir.Value, axis: int, span: Span) -> ir.Node:
        """Return the node that cuts a span out of a value."""
        bounds = {"starts": span.start, "ends": span.stop, "axes": axis}
        if self.facts.opset >= _SLICE_BY_INPUTS:
            return ir.Node("", "Slice", [value, *(self.number(bound) for bound in bounds.values())])
        return ir.Node("", "Slice", [value], [ir.AttrInt64s(name, [bound]) for name, bound in bounds.items()])

    def concat_node(self, values: Sequence[ir.Value], axis: int) -> ir.Node:
        """Return the node that puts values side by side."""
        return ir.Node("", "Concat", list(values), [ir.AttrInt64("axis", axis)])

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return a new initializer."""
        tensor.name = self.fresh(name)
        shape = ir.Shape(list(tensor.shape.numpy()))
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def number(self, number: int) -> ir.Value:
        """Return an initializer that holds one integer, as bounds of slices are given; equal ones are the same."""
        if number not in self._numbers:
            self._numbers[number] = self.constant(f"at.{number}", ir.Tensor(np.array([number], np.int64)))
        return self._numbers[number]


def _names(graph: ir.Graph) -> set[str]:
    """Return all names of values and nodes, those of nested graphs included."""
    names = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        names.add(str(node.name))
        names.update(str(value.name) for value in node.outputs)
        for nested in ops.subgraphs(node):
            names |= _names(nested)
    return names
