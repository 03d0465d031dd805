"""Damages the partitions of a plan, as a bug of ours would, so that the plan is accepted and wrong."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

Array = NDArray[Any]


@contextmanager
def damaged(plan: Path, partition: str) -> Iterator[ModelProto]:
    """Yield a partition's model, its weights inside, to be changed; the plan's digests are made to fit."""
    told = json.loads((plan / "plan.json").read_text())
    (entry,) = (part for part in told["partitions"] if part["id"] == partition)
    file = plan / entry["file"]
    model = onnx.load(file)
    yield model
    data = model.SerializeToString()
    file.write_bytes(data)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    entry["weights"] = []
    (plan / "plan.json").write_text(json.dumps(told))


def change_weight(model: ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Put another value in the place of the one weight whose name begins with `name`."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name.startswith(name))
    before = numpy_helper.to_array(tensor)
    value = np.ascontiguousarray(change(before)).astype(before.dtype)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def swap_weights(model: ModelProto, one: str, other: str) -> None:
    """Exchange two weights of one shape."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    left, right = numpy_helper.to_array(tensors[one]), numpy_helper.to_array(tensors[other])
    assert left.shape == right.shape
    tensors[one].CopyFrom(numpy_helper.from_array(right, one))
    tensors[other].CopyFrom(numpy_helper.from_array(left, other))


def node_of(model: ModelProto, output: str) -> NodeProto:
    """Return the node that makes the tensor."""
    (node,) = (node for node in model.graph.node if output in node.output)
    return node


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set an attribute, present or not."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
