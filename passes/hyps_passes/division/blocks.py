"""Rules of operators that move blocks of a map into channels and back."""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.reading import integer, text
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span


def divide_to_space(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a DepthToSpace: whole blocks of a spatial axis; channels where theirs lie side by side."""
    block = integer(node, "blocksize")
    if axis == 0:
        return Piece({0: Part(0, span)})
    if axis > 1:
        if span.start % block or span.stop % block:
            raise GrainError(block)
        return Piece({0: Part(axis, Span(span.start // block, span.stop // block))})
    if text(node, "mode", "DCR") != "CRD":
        raise IndivisibleError("its channels are made of channels that lie apart")
    return Piece({0: Part(1, Span(span.start * block**2, span.stop * block**2))})


def divide_to_depth(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a SpaceToDepth for a span of the batch or of a spatial axis."""
    block = integer(node, "blocksize")
    if axis == 1:
        raise IndivisibleError("its channels are made of rows that lie apart")
    scale = block if axis > 1 else 1
    return Piece({0: Part(axis, Span(span.start * scale, span.stop * scale))})


RULES: Mapping[Key, Rule] = {
    ("", "DepthToSpace"): divide_to_space,
    ("", "SpaceToDepth"): divide_to_depth,
}
