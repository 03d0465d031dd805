"""How much memory a model asks for, as far as that can be told before anything is run.

A file of a hundred bytes may ask for terabytes: by a tensor of a shape that it writes down, by many constants that
onnxruntime would compute when it loads them, or by a list of sizes that doubles node by node, which both onnx and
onnxruntime would follow number by number to learn a shape.
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from hyps.errors import ModelError, printable
from hyps.formats.quantities import format_nbytes
from hyps_compiler.lists import check_lists, settle_lists
from hyps_compiler.skeleton import Shapes, infer, lighten, told_shapes
from hyps_compiler.tensors import shape, shape_nbytes
from hyps_compiler.walk import bodies, graphs_in, initializer_names, sparse_tensors

_LEFT_ALONE = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"})
"""What onnxruntime does not compute beforehand though all inputs are constants."""
_FOLLOW_WEIGHTS = frozenset({"Cast", "CastLike", "Constant", "DequantizeLinear"})
"""What these make is as large as a weight in the file, at a few bytes for each of its elements."""
_MOST_FOLDED = 4
"""How many of the largest tensors all that follows from constants may take together: onnxruntime keeps it once it has
computed it, and adapters that are not merged each make a full weight."""
_ROUNDS = 4
"""How often a shape is computed from sizes that are known once another one is."""


class SizeError(ModelError):
    """The model asks for more memory than it may; one that is too large as a file or has too many nodes does not."""

    default_code = "E_LIMIT"


def check_sizes(model: ModelProto, max_tensor_nbytes: int, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
    """Refuse a model with a tensor, other than its weights, that would be too large.

    Args:
        model: one that has passed `check_model`.
        max_tensor_nbytes: most bytes that a tensor may take; what is computed from constants alone may take four times
            as many together.
        shapes: of a request's inputs; without them, and where shapes are computed, sizes are not known.

    Raises:
        SizeError: as said.
        ModelError: it computes shapes from more numbers than any model needs (`E_LIMIT`).
    """
    light = lighten(model, shapes or {})
    shaped = infer(light)
    for _ in range(_ROUNDS):
        lengths = check_lists(shaped.graph)
        if not settle_lists(light, shaped, lengths):
            break
        shaped = infer(light)
    for sparse in sparse_tensors(model):  # onnxruntime makes them dense
        check_nbytes(sparse.values.name, sparse.dims, sparse.values.data_type, max_tensor_nbytes)
    weights = initializer_names(model.graph)
    for body, _ in bodies(shaped):
        for name, (dims, kind) in told_shapes(body).items() if isinstance(body, GraphProto) else ():
            if name not in weights:
                check_nbytes(name, dims, kind, max_tensor_nbytes)
    made = _made_of_constants(shaped.graph, set(weights), ChainMap())
    if made > _MOST_FOLDED * max_tensor_nbytes:
        raise _over_limit("what the model computes from constants alone", made, max_tensor_nbytes, times=_MOST_FOLDED)


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


def _over_limit(what: str, nbytes: int, max_tensor_nbytes: int, *, times: int = 1) -> SizeError:
    """Return the refusal of what needs more than `times` a tensor's limit; the hint is one that would let it pass."""
    enough = -(-nbytes // (times * 10**6))
    limit = f"the limit of {format_nbytes(times * max_tensor_nbytes)}"
    return SizeError(
        f"{what} needs {format_nbytes(nbytes)}, more than {limit}{f', {times} times that of a tensor' * (times > 1)}",
        f"if you trust the model and have memory for it, give --max-tensor-bytes {enough}MB (Python: `max_tensor`)",
    )


def _made_of_constants(graph: GraphProto, constants: set[str], outer: Shapes) -> int:
    """Return the bytes that onnxruntime would add to the weights by computing what depends on nothing else.

    Names that the graph's constants get are added to `constants`.
    """
    told = outer.new_child(told_shapes(graph))
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


def _nbytes(names: Iterable[str], told: Shapes) -> int:
    known = [told[name] for name in names if name in told]
    return sum(shape_nbytes(dims, kind) or 0 for dims, kind in known)
