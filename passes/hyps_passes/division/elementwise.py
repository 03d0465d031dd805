"""Rules of operators that work on each element by itself, or on each channel with numbers of its own."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from hyps_passes.division.reading import broadcast_part, integer, operand, parts
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span

_MICROSOFT = "com.microsoft"

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign
    Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    """.split()
_NARY = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum Where Xor
    """.split()
_UNARY_MICROSOFT = "Gelu QLinearLeakyRelu QLinearSigmoid QuickGelu".split()
_NARY_MICROSOFT = "BiasGelu FastGelu".split()
_OPERANDS_MICROSOFT = {"QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QLinearWhere": (0, 1, 4)}
"""Which inputs are operands; the others are scales and zero points of whole tensors."""


def _unary(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """The first input gives the shape; the others are numbers."""
    return Piece({0: Part(axis, span)})


def _nary(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    return _broadcast(node, range(len(node.inputs)), axis, span, facts)


def _quantized(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    return _broadcast(node, _OPERANDS_MICROSOFT[node.op_type], axis, span, facts)


def _broadcast(node: ir.Node, operands: Iterable[int], axis: int, span: Span, facts: Facts) -> Piece:
    """Each operand that reaches over the axis is divided along it; what is repeated along it is read whole."""
    rank = len(facts.shape(node.outputs[0]))
    return Piece(parts({index: broadcast_part(operand(node, index), rank, axis, span, facts) for index in operands}))


def _quantize(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Scale and zero point are numbers, or divided where they have entries along the axis.

    Raises:
        GrainError: a block of a blocked quantization shares them.
    """
    shape = facts.shape(node.inputs[0])
    divided = {0: Part(axis, span)}
    along = integer(node, "axis", 1) % max(1, len(shape))
    for index, value in enumerate(node.inputs[1:], 1):
        sizes = () if value is None else facts.shape(value)
        if len(sizes) == 1 and sizes[0] > 1 and along == axis:
            divided[index] = Part(0, span)
        elif len(sizes) > 1:
            divided[index] = Part(axis, _blocks(node, axis, span, shape[axis]) if along == axis else span)
    return Piece(divided)


def _blocks(node: ir.Node, axis: int, span: Span, size: int) -> Span:
    """Return the span of blocks that make up a span of elements."""
    block = integer(node, "block_size", 0) or 1
    if span.start % block or (span.stop % block and span.stop != size):
        if size % block:
            raise IndivisibleError(f"{node.op_type} shares scales among blocks of {block} along axis {axis}")
        raise GrainError(block)
    return Span(span.start // block, -(-span.stop // block))


def _batch_normalization(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Channels have numbers of their own; along other axes all pieces share them."""
    trains = integer(node, "training_mode", 0) or any(value.uses() for value in node.outputs[1:])
    if trains or not integer(node, "spatial", 1):
        raise IndivisibleError("BatchNormalization gathers statistics over the batch, or has numbers per element")
    numbers = {index: Part(0, span) for index in range(1, 5)} if axis == 1 else {}
    return Piece({0: Part(axis, span), **numbers})


RULES: Mapping[Key, Rule] = {
    **{("", op_type): _unary for op_type in _UNARY},
    **{("", op_type): _nary for op_type in _NARY},
    **{(_MICROSOFT, op_type): _unary for op_type in _UNARY_MICROSOFT},
    **{(_MICROSOFT, op_type): _nary for op_type in _NARY_MICROSOFT},
    **{(_MICROSOFT, op_type): _quantized for op_type in _OPERANDS_MICROSOFT},
    **{
        (domain, op_type): _quantize
        for domain in ("", _MICROSOFT)
        for op_type in ("DequantizeLinear", "QuantizeLinear")
    },
    ("", "BatchNormalization"): _batch_normalization,
}
