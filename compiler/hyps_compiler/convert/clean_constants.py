"""Nodes that compute a constant, replaced by it."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hyps.errors import ExecutionError, ModelError
from hyps.formats.dtypes import numpy_name
from hyps_compiler.ort import open_session, run
from hyps_passes import ops

_KEPT = {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Constant"}
"""Quantized weights are to stay small; a constant by itself is no computation."""

_MOST_INPUT_NBYTES = 2**26
_MOST_GROWTH_NBYTES = 2**16
"""A constant may take so much more than what it is computed from: an Expand is shorter than what it makes."""

Array = np.ndarray[Any, Any]


def fold_constants(model: ir.Model) -> bool:
    """Replace nodes of the graph that depend on nothing but weights by what they compute, in onnxruntime.

    Applies to a node (1) of the standard domain, (2) without graphs inside, (3) that always computes the same, (4)
    whose inputs are all initializers and no inputs of the model, and small.
    """
    changed = False
    for node in list(model.graph):
        if _can_fold(node):
            changed |= _fold(model, node)
    return changed


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a weight that no request can replace; None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input() or value.producer() is not None:
        return None
    return value.const_value.numpy()


def _can_fold(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEPT or ops.is_random(node):
        return False
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return False
    given = [value for value in node.inputs if value is not None]
    return (
        all(value.is_initializer() and not value.is_graph_input() and value.const_value is not None for value in given)
        and sum(value.const_value.nbytes for value in given if value.const_value) <= _MOST_INPUT_NBYTES
    )


def _fold(model: ir.Model, node: ir.Node) -> bool:
    """Compute a node and put its results in its place; return whether that could be done."""
    results = _computed(model, node)
    given_nbytes = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value)
    if results is None or sum(result.nbytes for result in results) > given_nbytes + _MOST_GROWTH_NBYTES:
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False  # an output must be made by a node
    for output, result in zip(node.outputs, results, strict=True):
        name = str(output.name)
        tensor = ir.Tensor(result, name=name)
        weight = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        output.replace_all_uses_with(weight)
        model.graph.initializers[name] = weight
    model.graph.remove(node, safe=True)
    return True


def _computed(model: ir.Model, node: ir.Node) -> list[Array] | None:
    """Return what a node computes; None where onnxruntime does not run it alone."""
    proto = ir.serde.serialize_node(node)
    given = {str(value.name): value.const_value for value in node.inputs if value is not None and value.const_value}
    names = [str(output.name) for output in node.outputs]
    if not all(names):
        return None
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [],
        [onnx.ValueInfoProto(name=name) for name in names],
        [onnx.numpy_helper.from_array(np.asarray(tensor.numpy()), name) for name, tensor in given.items()],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    alone = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    try:
        session = open_session(alone.SerializeToString(), "none")
        results = run(session, names, {})
    except (ModelError, ExecutionError):
        return None
    types = [output.type for output in session.get_outputs()]
    values = [results[name] for name in names]
    return values if all(map(_is_of_type, values, types)) else None


def _is_of_type(value: Any, ort_type: str) -> bool:
    """Return whether a value is a tensor of numbers whose type numpy has: eight-bit floats come as integers."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "biuf"
        and ort_type.startswith("tensor(")
        and str(value.dtype) == numpy_name(ort_type)
    )
