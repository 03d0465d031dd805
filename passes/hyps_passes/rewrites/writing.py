"""Makes the nodes, constants and parts that a rewrite puts in the place of one node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import Claim, write_claim
from hyps_passes.division.constants import slice_tensor
from hyps_passes.layers import SHARD

SLICE_BY_INPUTS = 10
"""The opset from which `Slice` takes its bounds as inputs."""

AXES_AS_INPUTS = 13
"""The opset from which `Unsqueeze` and `Split` take their axes and lengths as inputs."""

Dims = Sequence[int | ir.SymbolicDim]


@dataclass
class Writer:
    """Collects what replaces a node, in running order, and notes the sizes of the new tensors."""

    model: ir.Model
    sizes: dict[str, tuple[int, ...]]
    shard: Shard | None = None
    """The H-partition that the nodes written now belong to."""
    nodes: list[ir.Node] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return self.model.graph.opset_imports.get("", 0)

    def make(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        dims: Mapping[int, int] | Dims,
        name: str,
        *attributes: ir.Attr,
    ) -> ir.Value:
        """Return the one output, called `name`, of a new standard node.

        Args:
            op_type: the operator.
            inputs: what it reads.
            like: has the output's element type and, where `dims` is a mapping, its other dimensions.
            dims: the output's dimensions, or those that differ from `like`'s by axis.
            name: of the output and the node.
            attributes: of the node.
        """
        node = ir.Node("", op_type, list(inputs), attributes, num_outputs=1, name=name)
        self.add(node)
        output = node.outputs[0]
        output.name = name
        self.declare(output, like, dims)
        return output

    def add(self, node: ir.Node) -> None:
        """Put a node behind the others, into the H-partition that is being written."""
        if self.shard is not None:
            node.meta[SHARD] = self.shard
        self.nodes.append(node)

    def declare(self, value: ir.Value, like: ir.Value, dims: Mapping[int, int] | Dims) -> None:
        """Give a named value the type of another one and its shape and size, where they are known."""
        value.type = like.type
        changed = dims if isinstance(dims, Mapping) else dict(enumerate(dims))
        rank = None if isinstance(dims, Mapping) else len(dims)
        if rank is not None or like.shape is not None:
            whole = [0] * rank if rank is not None else list(like.shape)  # type: ignore[arg-type]  # one of them is there
            value.shape = ir.Shape([changed.get(axis, dim) for axis, dim in enumerate(whole)])
        sizes = [0] * rank if rank is not None else list(self.sizes.get(str(like.name), ()))
        if sizes:
            told = [changed.get(axis, size) for axis, size in enumerate(sizes)]
            if all(isinstance(size, int) for size in told):
                self.sizes[str(value.name)] = tuple(int(size) for size in told)  # type: ignore[arg-type]  # all are

    def part(self, value: ir.Value, axis: int, start: int, stop: int, suffix: str) -> ir.Value:
        """Return positions `start` to `stop` - 1 of a value: of a constant now, of another one by a `Slice`."""
        name = f"{value.name}.{suffix}"
        if value.const_value is not None and value.is_initializer():
            return self.lazy(slice_tensor(value.const_value, axis, start, stop), name)
        if self.opset < SLICE_BY_INPUTS:
            bounds = {"starts": [start], "ends": [stop], "axes": [axis]}
            attributes = [ir.AttrInt64s(key, numbers) for key, numbers in bounds.items()]
            made = self.make("Slice", [value], value, {axis: stop - start}, name, *attributes)
        else:
            numbers = [self.numbers([number]) for number in (start, stop, axis)]
            made = self.make("Slice", [value, *numbers], value, {axis: stop - start}, name)
        write_claim(made, Claim(str(value.name), axis, start, stop))
        return made

    def lazy(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Return a constant of that value; one of that name that is there already is another part, or the same one."""
        initializers = self.model.graph.initializers
        while name in initializers:
            name += "~"
        tensor.name = name
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]  # a tensor's shape is a Shape
        self.model.graph.register_initializer(value)
        return value

    def numbers(self, numbers: Sequence[int]) -> ir.Value:
        """Return a constant vector of int64, the same for the same numbers."""
        name = f"hyps.int64.{'x'.join(map(str, numbers))}"
        return self._known(name, np.array(numbers, np.int64))

    def numbers32(self, number: int) -> ir.Value:
        """Return a constant int32, the same for the same number."""
        return self._known(f"hyps.int32.{number}", np.array(number, np.int32))

    def scalar(self, number: float) -> ir.Value:
        """Return a constant float32, the same for the same number."""
        return self._known(f"hyps.float32.{float(np.float32(number))!r}", np.array(number, np.float32))

    def _known(self, name: str, array: "np.ndarray[Any, Any]") -> ir.Value:
        """Return the constant of that name if it has that value, else a new one."""
        value = self.model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or tensor.size != array.size or not np.array_equal(tensor.numpy(), array):
            return self.array(array, name)
        return value

    def array(self, array: "np.ndarray[Any, Any]", name: str) -> ir.Value:
        """Return a constant."""
        return self.lazy(ir.Tensor(array), name)

    def unsqueeze(self, value: ir.Value, axis: int, name: str, dims: Dims) -> ir.Value:
        """Return the value with an axis of length 1 more, so that its dimensions are `dims`."""
        if self.opset < AXES_AS_INPUTS:
            return self.make("Unsqueeze", [value], value, dims, name, ir.AttrInt64s("axes", [axis]))
        return self.make("Unsqueeze", [value, self.numbers([axis])], value, dims, name)


def replace_value(whole: ir.Value, by: ir.Value) -> None:
    """Have everything that reads `whole` read `by`, which takes over its name."""
    whole.replace_all_uses_with(by, replace_graph_outputs=True)
    by.name, whole.name = whole.name, None
