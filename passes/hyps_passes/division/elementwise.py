"""Rules of operators that work on each element by itself, or on each channel with numbers of its own."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span

_MICROSOFT = "com.microsoft"

_BROADCAST = 7
"""The opset from which operators broadcast as numpy does, and normalize by stored numbers unless told."""

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
    rank, size = _output_shape(node, axis, facts)
    parts = {}
    for index in operands:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        shape = facts.shape(value)
        if facts.opset < _BROADCAST and len(shape) != rank and node.domain != _MICROSOFT:
            raise IndivisibleError(f"{node.op_type} broadcasts in the way of opset {facts.opset}")
        along = axis - (rank - len(shape))
        if along >= 0 and shape[along] == size:
            parts[index] = Part(along, span)
        elif along >= 0 and shape[along] != 1:
            raise IndivisibleError(f"{node.op_type} broadcasts {shape[along]} to {size} along axis {axis}")
    return Piece(parts)


def _quantize(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Scale and zero point are numbers, or divided where they have entries along the axis.

    Raises:
        GrainError: a block of a blocked quantization shares them.
    """
    shape = facts.shape(node.inputs[0])
    parts = {0: Part(axis, span)}
    along = _number(node, "axis", 1) % max(1, len(shape))
    for index, value in enumerate(node.inputs[1:], 1):
        sizes = () if value is None else facts.shape(value)
        if len(sizes) == 1 and sizes[0] > 1 and along == axis:
            parts[index] = Part(0, span)
        elif len(sizes) > 1:
            parts[index] = Part(axis, _blocks(node, axis, span, shape[axis]) if along == axis else span)
    return Piece(parts)


def _blocks(node: ir.Node, axis: int, span: Span, size: int) -> Span:
    """Return the span of blocks that make up a span of elements."""
    block = _number(node, "block_size", 0) or 1
    if span.start % block or (span.stop % block and span.stop != size):
        if size % block:
            raise IndivisibleError(f"{node.op_type} shares scales among blocks of {block} along axis {axis}")
        raise GrainError(block)
    return Span(span.start // block, -(-span.stop // block))


def _batch_normalization(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Channels have numbers of their own; along other axes all pieces share them."""
    trains = _number(node, "training_mode", 0) or any(value.uses() for value in node.outputs[1:])
    if trains or not _number(node, "spatial", 1) or (facts.opset < _BROADCAST and not _number(node, "is_test", 0)):
        raise IndivisibleError("BatchNormalization gathers statistics over the batch, or has numbers per element")
    parts = {0: Part(axis, span)}
    if axis == 1:
        parts.update({index: Part(0, span) for index in range(1, 5)})
    return Piece(parts)


def _output_shape(node: ir.Node, axis: int, facts: Facts) -> tuple[int, int]:
    """Return the rank of the output and its size along the axis."""
    shape = facts.shape(node.outputs[0])
    return len(shape), shape[axis]


def _number(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


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
