"""A finished random model: its file or files, requests for it, and what is special about it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from generated.values import Input

_PAGE = 64
_MOST_SHAPE_BYTES = 4 * 8


@dataclass(frozen=True)
class Grown:
    """A random model and what is strange about it."""

    model: ModelProto
    inputs: tuple[Input, ...]
    features: frozenset[str]
    """Words of generated.declared.FEATURES, and the names of the recipes it was made by."""
    recipes: tuple[str, ...]
    rounded: frozenset[str] = frozenset()
    """Outputs made of half floats, which onnxruntime computes as float32: a border between two nodes rounds."""
    data_files: int = 0
    """In how many files beside the model's its weights lie: none, one, or (2) one for each."""
    opset: int = 17
    needs_rows: bool = False
    """Whether onnxruntime itself fails on a request without rows: some operators bring its process down."""

    @property
    def is_open(self) -> bool:
        """Whether requests of several sizes fit."""
        return any(given.is_open for given in self.inputs)

    def feeds(self, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        """Return a request with the given batch size."""
        rng = np.random.default_rng(seed)
        return {given.name: given.make(batch, rng) for given in self.inputs}

    def save(self, folder: Path) -> Path:
        """Write the model, and its weights beside it where they are external data; return its path."""
        path = folder / "model.onnx"
        model = ModelProto()
        model.CopyFrom(self.model)
        if self.data_files:
            _move_weights(model, folder, one_file=self.data_files == 1)
        path.write_bytes(model.SerializeToString())
        return path


def with_fixed_weights(path: Path) -> Path:
    """Return the file of the same model with no initializer an input, so that onnxruntime may fuse them all."""
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    fixed = path.with_name("fixed.onnx")
    fixed.write_bytes(model.SerializeToString())
    return fixed


def _move_weights(model: ModelProto, folder: Path, *, one_file: bool) -> None:
    """Turn initializers into external data: the offset is left out where it is 0, the length in every third."""
    contents: dict[str, bytearray] = {}
    for index, tensor in enumerate(filter(can_move, model.graph.initializer)):
        location = "all.data" if one_file else f"weights {index}.bin"
        content = contents.setdefault(location, bytearray())
        content.extend(bytes(-len(content) % _PAGE))
        places = {"location": location, "offset": str(len(content)), "length": str(len(tensor.raw_data))}
        if not content:
            del places["offset"]
        if not one_file and index % 3 == 0:
            del places["length"]
        content.extend(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in places.items():
            tensor.external_data.add(key=key, value=value)
    for location, content in contents.items():
        (folder / location).write_bytes(content)


def can_move(tensor: TensorProto) -> bool:
    """Return whether onnxruntime lets the tensor be external data: not where it infers shapes from the values."""
    return tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) > _MOST_SHAPE_BYTES


def operators(model: ModelProto) -> set[str]:
    """Return every operator of the model, nested graphs and functions included; its domain before it if it has one."""
    found: set[str] = set()
    stack = [list(model.graph.node), *(list(function.node) for function in model.functions)]
    while stack:
        for node in stack.pop():
            found.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
            stack.extend(list(graph.node) for graph in _graphs(node))
    return found


def element_types(model: ModelProto) -> set[str]:
    """Return every element type that an initializer, an input, an output or a cast of the model has."""
    graph = model.graph
    found = {tensor.data_type for tensor in graph.initializer}
    found |= {info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}
    found |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    return {TensorProto.DataType.Name(kind) for kind in found if kind}


def _graphs(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
