"""Rules of table look-ups: by index and by column.

By row a table is divided by a rewrite of its own (`rewrites/divide_table.py`): what a piece does with the rows that
it has not takes more than one node.
"""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.reading import broadcast_part, integer, is_used, operand, parts
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span


def divide_gather(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Gather: fewer indices, or a part of each entry of the table."""
    rank, positions = len(facts.shape(node.inputs[0])), len(facts.shape(node.inputs[1]))
    along = integer(node, "axis") % rank
    if along <= axis < along + positions:
        return Piece(parts={1: Part(axis - along, span)})
    return Piece(parts={0: Part(axis if axis < along else axis - positions + 1, span)})


def divide_gather_elements(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GatherElements, which looks along one axis and stays in place along the others."""
    along = integer(node, "axis") % len(facts.shape(node.inputs[0]))
    indices = Part(axis, span)
    return Piece(parts={1: indices} if axis == along else {0: Part(axis, span), 1: indices})


def divide_gather_nd(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GatherND: fewer index tuples, or a part of what each of them names."""
    shape = facts.shape(node.inputs[1])
    batch = integer(node, "batch_dims")
    if axis < batch:
        return Piece(parts={0: Part(axis, span), 1: Part(axis, span)})
    if axis < len(shape) - 1:
        return Piece(parts={1: Part(axis, span)})
    return Piece(parts={0: Part(axis - (len(shape) - 1) + batch + shape[-1], span)})


def divide_blocked_gather(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GatherBlockQuantized for fewer indices; its entries are packed and scaled in blocks."""
    rank, positions = len(facts.shape(node.inputs[0])), len(facts.shape(node.inputs[1]))
    along = integer(node, "gather_axis") % rank
    if not along <= axis < along + positions:
        raise IndivisibleError("GatherBlockQuantized has packed entries, which are divided by index only")
    return Piece(parts={1: Part(axis - along, span)})


_SEQUENCE, _WIDTH = 1, 2
_POSITIONS_TABLE = 3


def divide_embeddings(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an EmbedLayerNormalization: some sequences, or some tokens of each."""
    if axis == _WIDTH:
        raise IndivisibleError("EmbedLayerNormalization needs all of axis 2")
    if axis == _SEQUENCE and len(node.outputs) > 1 and is_used(node.outputs[1]):
        raise IndivisibleError("EmbedLayerNormalization counts the tokens of whole sequences")
    tokens = (0, 1, 7, 8)
    found = {index: broadcast_part(operand(node, index), 2, axis, span, facts) for index in tokens}
    if axis == _SEQUENCE and operand(node, 8) is None:
        found[_POSITIONS_TABLE] = Part(0, span)
    return Piece(parts=parts(found))


RULES: Mapping[Key, Rule] = {
    ("", "Gather"): divide_gather,
    ("", "GatherElements"): divide_gather_elements,
    ("", "GatherND"): divide_gather_nd,
    ("com.microsoft", "GatherBlockQuantized"): divide_blocked_gather,
    ("com.microsoft", "EmbedLayerNormalization"): divide_embeddings,
}
