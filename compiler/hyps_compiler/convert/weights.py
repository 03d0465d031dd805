"""Large weights put into an ONNX model whose inputs stand for them, and the model written.

Imports neither TensorFlow nor tf2onnx.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

PAGE_NBYTES = 4096
"""Weights beside the model start at whole pages, so that they can be mapped."""

_LAYOUT_OPERATORS: dict[str, Callable[[onnx.NodeProto, Any], Any]] = {
    "Identity": lambda node, array: array,
    "Transpose": lambda node, array: np.transpose(array, _permutation(node)),
}
"""What a node without further inputs does to a weight, by operator."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A value that is read when it is written, one at a time."""

    read: Callable[[], Any]
    """Returns the value as an array."""
    nbytes: int
    steps: tuple[onnx.NodeProto, ...] = ()
    """Layout nodes taken out of the graph, to be applied to the value in this order."""

    def value(self) -> Any:
        """Return the value as a contiguous array."""
        array = self.read()
        for node in self.steps:
            array = _LAYOUT_OPERATORS[node.op_type](node, array)
        return np.ascontiguousarray(array)


def write_model(model: onnx.ModelProto, weights: Mapping[str, Weight], target: Path) -> None:
    """Write a model with `weights` as initializers in place of the graph inputs of their names.

    Layout operations on a weight are applied to its value and leave the graph. The weights go into a second file
    beside `target`, of its name with `.data` added.

    Args:
        model: the model; it is changed.
        weights: by name of graph input.
        target: the file to write.
    """
    placed = _fold_layout(model.graph, weights)
    kept = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    if placed:
        _add_beside(model.graph, placed, target.with_name(f"{target.name}.data"))
    with target.open("wb") as file:
        file.write(model.SerializeToString())


def _fold_layout(graph: onnx.GraphProto, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Take the layout nodes behind weights out of the graph; return the initializers it then needs, by name."""
    placed: dict[str, Weight] = dict(weights)
    outputs = {value.name for value in graph.output}
    folded: list[onnx.NodeProto] = []
    for node in graph.node:  # in topological order, so that a chain folds in one walk
        if node.op_type in _LAYOUT_OPERATORS and node.input[0] in placed and node.output[0] not in outputs:
            origin = placed[node.input[0]]
            placed[node.output[0]] = Weight(origin.read, origin.nbytes, (*origin.steps, node))
            folded.append(node)
    for node in folded:
        graph.node.remove(node)
    needed = Counter(_used_names(graph))
    return {name: weight for name, weight in placed.items() if name in needed}


def _used_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph, or a graph inside it, reads."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _used_names(attribute.g)


def _permutation(node: onnx.NodeProto) -> list[int] | None:
    """Return a Transpose's order of dimensions; None reverses them."""
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)


def _add_tensor(graph: onnx.GraphProto, name: str, array: Any) -> onnx.TensorProto:
    tensor: onnx.TensorProto = graph.initializer.add()
    tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    return tensor


def _add_beside(graph: onnx.GraphProto, weights: Mapping[str, Weight], data: Path) -> None:
    with data.open("wb") as file:
        for name, weight in weights.items():
            array = weight.value()
            tensor = _add_tensor(graph, name, array)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            file.seek(-file.tell() % PAGE_NBYTES, 1)
            entries = {"location": data.name, "offset": str(file.tell()), "length": str(array.nbytes)}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=entry)
            file.write(array.data)
