"""Heads of attention: side by side along an axis, in blocks of a constant, or beside what they share."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hyps_passes.division.reading import is_used, operand
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Part, Span


def head_span(node: ir.Node, span: Span, heads: int, size: int) -> Span:
    """Return the heads of a span of an axis on which `heads` heads of `size` positions lie side by side.

    Raises:
        GrainError: it does not begin and end between heads.
        IndivisibleError: there is one head.
    """
    if heads < 2:
        raise IndivisibleError(f"{node.op_type} has one head, or one group of heads")
    if size > 1 and (span.start % size or span.stop % size):
        raise GrainError(size)
    return Span(span.start // size, span.stop // size)


def scaled(span: Span, size: int) -> Span:
    """Return the positions of a span of heads where each takes `size`."""
    return Span(span.start * size, span.stop * size)


def refuse_used(node: ir.Node, outputs: Sequence[int], why: str) -> None:
    """Refuse where one of the outputs is used, which lies otherwise than the first one."""
    if any(index < len(node.outputs) and is_used(node.outputs[index]) for index in outputs):
        raise IndivisibleError(f"{node.op_type} hands out {why}")


def cut_along(node: ir.Node, axes: Mapping[int, int], span: Span, size: int, facts: Facts) -> dict[int, Part]:
    """Return the parts of those inputs that have an axis of `size`; one position there serves all.

    Args:
        node: whose inputs they are.
        axes: axis by input.
        span: along it.
        size: of the whole axis.
        facts: of the model.

    Raises:
        IndivisibleError: an input has another size there.
    """
    found: dict[int, Part] = {}
    for index, axis in axes.items():
        value = operand(node, index)
        if value is None:
            continue
        shape = facts.shape(value)
        if axis < len(shape) and shape[axis] == size:
            found[index] = Part(axis, span)
        elif axis >= len(shape) or shape[axis] != 1 or not facts.is_fixed(value, axis):
            raise IndivisibleError(f"input {index} of {node.op_type} has shape {'x'.join(map(str, shape))}")
    return found


def columns(value: ir.Value, spans: Sequence[Span]) -> ir.TensorProtocol:
    """Return some blocks of the last axis of a constant, side by side.

    Raises:
        IndivisibleError: it is computed.
    """
    tensor = value.const_value
    if tensor is None or not value.is_initializer():
        raise IndivisibleError(f"`{value.name}`, of which several blocks are needed, is computed")

    def chosen() -> ir.TensorProtocol:
        whole = tensor.numpy()
        blocks = [whole[..., span.start : span.stop] for span in spans]
        return ir.Tensor(np.ascontiguousarray(np.concatenate(blocks, axis=-1)), dtype=tensor.dtype)

    dims = [*tensor.shape.numpy()[:-1], sum(len(span) for span in spans)]
    return ir.LazyTensor(chosen, dtype=tensor.dtype, shape=ir.Shape(dims), name=tensor.name)
