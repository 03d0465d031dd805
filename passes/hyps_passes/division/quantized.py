"""Rules of quantized operators whose operands come each with a scale and a zero point."""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.reading import integer
from hyps_passes.division.rule import Facts, Key, Part, Piece, Rule, Span

_FIRST, _STEP = 2, 3
"""Scale and zero point of the output come first, then each operand with its own."""


def divide_quantized_concat(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a QLinearConcat: the same span of all operands, or of those that the span reaches into."""
    along = integer(node, "axis", 1) % len(facts.shape(node.outputs[0]))
    operands = range(_FIRST, len(node.inputs), _STEP)
    if axis != along:
        return Piece({index: Part(axis, span) for index in operands})
    parts, absent, start = {}, set[int](), 0
    for index in operands:
        size = facts.shape(node.inputs[index])[axis]
        first, stop = max(span.start - start, 0), min(span.stop - start, size)
        if first < stop:
            parts[index] = Part(axis, Span(first, stop))
        else:
            absent.update(range(index, index + _STEP))
        start += size
    return Piece(parts, absent=frozenset(absent))


RULES: Mapping[Key, Rule] = {("com.microsoft", "QLinearConcat"): divide_quantized_concat}
