"""Rules of normalizations over what lies around an element: of its channel, its group of channels, its neighbours."""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.convolution import channel_parts
from hyps_passes.division.reading import integer
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span

_SCALES_PER_CHANNEL = 21


def divide_instances(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an InstanceNormalization for a span of the batch or of channels."""
    if axis > 1:
        raise IndivisibleError(f"{node.op_type} needs all of axis {axis}")
    channels = facts.shape(node.outputs[0])[1]
    numbers = channel_parts(node, (1, 2), channels, span, facts) if axis == 1 else {}
    return Piece({0: Part(axis, span), **numbers})


def divide_groups(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GroupNormalization for a span of the batch or of whole groups."""
    if axis > 1:
        raise IndivisibleError(f"{node.op_type} needs all of axis {axis}")
    if axis == 0:
        return Piece({0: Part(0, span)})
    channels, groups = facts.shape(node.outputs[0])[1], integer(node, "num_groups", 1)
    width = channels // groups
    if span.start % width or span.stop % width:
        raise GrainError(width)
    whole = Span(span.start // width, span.stop // width)
    numbers = Part(0, span if facts.opset >= _SCALES_PER_CHANNEL else whole)
    count = ir.AttrInt64("num_groups", len(whole))
    return Piece({0: Part(1, span), 1: numbers, 2: numbers}, {"num_groups": count})


def divide_neighbours(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an LRN, which sums over the channels around an element."""
    if axis == 1:
        raise IndivisibleError(f"{node.op_type} needs channels around those it makes")
    return Piece({0: Part(axis, span)})


RULES: Mapping[Key, Rule] = {
    ("", "GroupNormalization"): divide_groups,
    ("", "InstanceNormalization"): divide_instances,
    ("", "LRN"): divide_neighbours,
}
