"""How much memory a model asks for, as far as that can be told before anything is run.

A file of a hundred bytes may ask for terabytes: by a tensor of a shape that it writes down, by many constants that
onnxruntime would compute when it loads them, or by a list of sizes that doubles node by node, which both onnx and
onnxruntime would follow number by number to learn a shape.
"""

import logging
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, inliner

from hyps.errors import ModelError, printable
from hyps.formats.quantities import format_nbytes
from hyps_compiler.ordering import order
from hyps_compiler.tensors import count_elements, is_external, shape, shape_nbytes
from hyps_compiler.walk import bodies, graphs_in, initializer_names, sparse_tensors

_Shape = tuple[tuple[int, ...], int]
"""Dimensions and element type of what no request changes."""
_Shapes = ChainMap[str, _Shape]
"""By name, inner graphs first."""

logger = logging.getLogger(__name__)

_MOST_LISTED = 2**20
"""Most numbers of a list that shapes are computed from; onnxruntime takes 220 bytes for each, to load the model."""
_SHORT_NBYTES = 4096
"""Weights up to here may be shapes; longer ones are left out."""
_ANY_RANK = 64
_ONNX_ERRORS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError)
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_LEFT_ALONE = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"})
"""What onnxruntime does not compute beforehand though all inputs are constants."""
_FOLLOW_WEIGHTS = frozenset({"Cast", "CastLike", "Constant", "DequantizeLinear"})
"""What these make is as large as a weight in the file, at a few bytes for each of its elements."""


class SizeError(ModelError):
    """The model asks for more memory than it may; one that is too large as a file or has too many nodes does not."""

    default_code = "E_LIMIT"


def check_sizes(model: ModelProto, max_tensor_nbytes: int, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
    """Refuse a model with a tensor, other than its weights, that would be too large.

    Args:
        model: one that has passed `check_model`.
        max_tensor_nbytes: most bytes that a tensor may take.
        shapes: of a request's inputs; without them, and where shapes depend on values, sizes are not known.

    Raises:
        SizeError: as said, or that computes more than that from constants alone, or a list of more numbers from shapes
            than any model needs.
    """
    light = _without_weights(model, shapes or {})
    _sort(light)
    if light.functions:
        light = _inlined(light)
    _check_lists(_inferred(light, follow_numbers=False).graph, ChainMap(), ChainMap())
    for sparse in sparse_tensors(model):  # onnxruntime makes them dense
        check_nbytes(sparse.values.name, sparse.dims, sparse.values.data_type, max_tensor_nbytes)
    shaped = _inferred(light, follow_numbers=True)
    weights = initializer_names(model.graph)
    for body, _ in bodies(shaped):
        for name, (dims, kind) in _told(body).items() if isinstance(body, GraphProto) else ():
            if name not in weights:
                check_nbytes(name, dims, kind, max_tensor_nbytes)
    made = _made_of_constants(shaped.graph, set(weights), ChainMap())
    if made > max_tensor_nbytes:
        raise _over_limit("what the model computes from constants alone", made, max_tensor_nbytes)


def check_nbytes(name: str, dims: Sequence[int], data_type: int, max_tensor_nbytes: int) -> None:
    """Refuse a tensor that is too large; strings have no size.

    Raises:
        SizeError: as said.
    """
    nbytes = shape_nbytes(dims, data_type)
    if nbytes is not None and nbytes > max_tensor_nbytes:
        raise _over_limit(f"tensor `{printable(name)}` of shape {shape(dims)}", nbytes, max_tensor_nbytes)


def check_array(name: str, dims: Sequence[int], dtype: str | None, max_tensor_nbytes: int) -> None:
    """Refuse an array of numpy's `dtype` that is too large; strings, and what has no dtype, have no size.

    Raises:
        SizeError: as said.
    """
    if dtype is not None and dtype != "string":
        check_nbytes(name, dims, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), max_tensor_nbytes)


def _over_limit(what: str, nbytes: int, max_tensor_nbytes: int) -> SizeError:
    """Return the refusal of something too large; the hint is the limit that would let it pass."""
    enough = -(-nbytes // 10**6)
    return SizeError(
        f"{what} needs {format_nbytes(nbytes)}, more than the limit of {format_nbytes(max_tensor_nbytes)}",
        f"if the model is trusted and there is memory for it, give --max-tensor-bytes {enough}MB",
    )


def _without_weights(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Return the model without what could only mislead or weigh: long weights, declared types of what nodes make."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list(shapes[value.name])))
    given = {value.name for value in graph.input}
    graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output if value.name not in given)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SHORT_NBYTES and not is_external(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in model.graph.sparse_initializer:
        kind = sparse.values.data_type
        graph.input.append(onnx.helper.make_tensor_value_info(sparse.values.name, kind, list(sparse.dims)))
    return light


def _sort(model: ModelProto) -> None:
    for body, _ in bodies(model):
        sequence, _ = order(body)
        if sequence != list(range(len(sequence))):
            nodes = [body.node[index] for index in sequence]
            copies = GraphProto(node=nodes)
            del body.node[:]
            body.node.extend(copies.node)


def _inlined(light: ModelProto) -> ModelProto:
    try:
        return inliner.inline_local_functions(light)
    except _ONNX_ERRORS as error:
        logger.debug("onnx cannot inline the functions, so sizes inside are not checked: %s", error)
        return light


def _inferred(light: ModelProto, *, follow_numbers: bool) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=follow_numbers)
    except _ONNX_ERRORS as error:
        logger.debug("onnx cannot infer shapes, so sizes are checked later: %s", error)
        return light


def _told(graph: GraphProto) -> dict[str, _Shape]:
    found = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        if tensor.HasField("shape") and all(size >= 0 for size in dims):
            found[value.name] = dims, tensor.elem_type
    return found


def _check_lists(graph: GraphProto, lengths: ChainMap[str, int], outer: _Shapes) -> None:
    """Refuse a list of numbers, known without a request, that is longer than a shape or a set of indices ever is.

    `lengths` has the most numbers that the list of this name may have, for lists that follow from constants and ranks.
    """
    told = outer.new_child(_told(graph))
    lengths = lengths.new_child()
    for tensor in graph.initializer:
        if tensor.data_type in _WHOLE and len(tensor.dims) <= 1:
            lengths[tensor.name] = count_elements(tensor.dims)
    for node in graph.node:
        length = _length(node, lengths, told)
        if length is not None and node.output:
            dims, _ = told.get(node.output[0], ((length,), 0))
            lengths[node.output[0]] = min(length, count_elements(dims))
            if lengths[node.output[0]] > _MOST_LISTED and len(dims) == 1:
                raise SizeError(
                    f"node `{printable(node.name or node.output[0])}` lists up to {length} numbers that follow from"
                    f" shapes and constants, more than the limit of {_MOST_LISTED}",
                    "it cannot be a model that someone trained: do not use it",
                )
        for nested in graphs_in(node):
            _check_lists(nested, lengths, told)


def _length(node: NodeProto, lengths: ChainMap[str, int], told: _Shapes) -> int | None:
    """Return the most numbers in what the node makes, where onnx and onnxruntime would work them out."""
    inputs = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size"):
        return len(told[inputs[0]][0]) if inputs and inputs[0] in told else _ANY_RANK
    if node.op_type == "Constant":
        return max((_listed(attribute) for attribute in node.attribute), default=None)
    if not inputs or any(name not in lengths for name in inputs):
        return None
    parts = [lengths[name] for name in inputs]
    return sum(parts) if node.op_type == "Concat" else max(parts)


def _listed(attribute: AttributeProto) -> int:
    return count_elements(attribute.t.dims) if attribute.HasField("t") else max(1, len(attribute.ints))


def _made_of_constants(graph: GraphProto, constants: set[str], outer: _Shapes) -> int:
    """Return the bytes that onnxruntime would add to the weights by computing what depends on nothing else.

    Names that the graph's constants get are added to `constants`.
    """
    told = outer.new_child(_told(graph))
    constants |= initializer_names(graph)
    made = 0
    for node in graph.node:
        nested = list(graphs_in(node))
        made += sum(_made_of_constants(inner, set(constants), told) for inner in nested)
        inputs = {name for name in node.input if name}
        if nested or node.op_type in _LEFT_ALONE or not inputs <= constants:
            continue
        constants.update(node.output)
        if node.op_type not in _FOLLOW_WEIGHTS:
            made += max(0, _nbytes(node.output, told) - _nbytes(inputs, told))
    return made


def _nbytes(names: Iterable[str], told: _Shapes) -> int:
    known = [told[name] for name in names if name in told]
    return sum(shape_nbytes(dims, kind) or 0 for dims, kind in known)
