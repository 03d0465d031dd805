"""Rules of operators that look where another input says: any place of a map, whose channels and batch stay apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hyps_passes.division.convolution import Convolution, InputChannels
from hyps_passes.division.reading import integer, operand
from hyps_passes.division.rule import Contraction, Facts, IndivisibleError, Key, Part, Piece, Rule, Span


def divide_grid(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GridSample: of places, each of which may lie anywhere in the map, or of channels."""
    if axis == 1:
        return Piece({0: Part(1, span)})
    if axis == 0:
        return Piece({0: Part(0, span), 1: Part(0, span)})
    return Piece({1: Part(axis - 1, span)})


def divide_regions(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a RoiAlign or MaxRoiPool: some regions, or some channels of all."""
    if axis == 1:
        return Piece({0: Part(1, span)})
    if axis > 1:
        raise IndivisibleError(f"{node.op_type} needs all of axis {axis}")
    return Piece({index: Part(0, span) for index in (1, 2) if operand(node, index) is not None})


def divide_deformed(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a DeformConv for a span of the batch or of output channels."""
    if axis > 1:
        raise IndivisibleError(f"{node.op_type} may look anywhere along axis {axis}")
    if axis == 0:
        return Piece({index: Part(0, span) for index in (0, 2, 4) if operand(node, index) is not None})
    if integer(node, "offset_group", 1) > 1:
        raise IndivisibleError("its channels have offsets of their own")
    return Convolution(companions=(3,))(node, axis, span, facts)


@dataclass(frozen=True, slots=True)
class DeformedChannels(InputChannels):
    """The sum of a DeformConv over its input channels, all of which look at the same places."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the input channels.

        Raises:
            IndivisibleError: they are divided into groups, of the weight or of the offsets.
        """
        if integer(node, "offset_group", 1) > 1:
            raise IndivisibleError("its channels have offsets of their own")
        return InputChannels.size(self, node, facts)


RULES: Mapping[Key, Rule] = {
    ("", "DeformConv"): divide_deformed,
    ("", "GridSample"): divide_grid,
    ("", "MaxRoiPool"): divide_regions,
    ("", "RoiAlign"): divide_regions,
    ("com.microsoft", "GridSample"): divide_grid,
}

CONTRACTIONS: Mapping[Key, Contraction] = {("", "DeformConv"): DeformedChannels(bias=3)}
