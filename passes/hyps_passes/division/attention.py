"""Rules of fused attention: by heads, by sequences of the batch, and by tokens that ask where no mask forbids it.

Heads lie side by side along the last axis of what goes in and comes out. Weights of fused projections hold the queries
of all heads, then the keys, then the values: the part for some heads is three blocks of columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hyps_passes.division import attention_standard
from hyps_passes.division.heads import columns, cut_along, head_span, refuse_used, scaled
from hyps_passes.division.reading import integer, integers, operand, required
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span

_BATCH, _TOKENS, _WIDTH = 0, 1, 2
"""Axes of what attention makes."""


@dataclass(frozen=True, slots=True)
class _Projecting:
    """Where the inputs of an attention with its own projection are."""

    columns: tuple[int, ...]
    """Weights, biases, and scales and zero points of columns; one number for all stays."""
    mask: int
    past: int
    added: int | None = None
    """What is added to the scores."""


_PROJECTING: Mapping[str, _Projecting] = {
    "Attention": _Projecting((1, 2), 3, 4, 5),
    "QAttention": _Projecting((1, 2, 4, 7), 5, 8),
}


def divide_projecting(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an attention that projects its input itself: for some heads, or some sequences."""
    places = _PROJECTING[node.op_type]
    refuse_used(node, (1,), "keys and values, whose heads are another axis")
    added = {} if places.added is None else {places.added: 0}
    if axis == _BATCH:
        size = facts.shape(node.inputs[0])[0]
        return Piece(parts=cut_along(node, {0: 0, places.mask: 0, places.past: 1, **added}, span, size, facts))
    if axis == _TOKENS:
        raise IndivisibleError(f"{node.op_type} needs all tokens")
    heads = integer(node, "num_heads")
    width = facts.shape(node.inputs[1])[-1]
    given = integers(node, "qkv_hidden_sizes")
    sizes = given or (width // 3,) * 3
    chosen = head_span(node, span, heads, sizes[2] // heads)
    blocks = _blocks(sizes, heads, chosen)
    constants = {
        index: columns(value, blocks)
        for index in places.columns
        if (value := operand(node, index)) is not None and facts.shape(value)[-1:] == (width,)
    }
    found = cut_along(node, {places.past: 2, **dict.fromkeys(added, 1)}, chosen, heads, facts)
    attributes: dict[str, ir.Attr | None] = {"num_heads": ir.AttrInt64("num_heads", len(chosen))}
    if given:
        lengths = [len(block) for block in blocks]
        attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", lengths)
    return Piece(parts=found, attributes=attributes, constants=constants)


_KEY, _VALUE, _BIAS, _MASK, _ADDED, _PAST_KEY, _PAST_VALUE = 1, 2, 3, 4, 5, 6, 7


def divide_multi_head(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a MultiHeadAttention; onnxruntime has none here whose queries, keys and values are packed."""
    if operand(node, 8) is not None or operand(node, 9) is not None:
        raise IndivisibleError("MultiHeadAttention shares its cache among beams")
    batch, tokens, width = facts.shape(node.outputs[0])
    if axis == _BATCH:
        inputs = (0, _KEY, _VALUE, _MASK, _ADDED, _PAST_KEY, _PAST_VALUE)
        return Piece(parts=cut_along(node, dict.fromkeys(inputs, 0), span, batch, facts))
    refuse_used(node, (1, 2, 3), "keys and values, whose heads and tokens are other axes")
    if axis == _TOKENS:
        if integer(node, "unidirectional"):
            raise IndivisibleError("MultiHeadAttention lets tokens see only those before them")
        mask = operand(node, _MASK)
        masked = {_MASK: 1} if mask is not None and len(facts.shape(mask)) > 2 else {}
        return Piece(parts=cut_along(node, {0: 1, _ADDED: 2, **masked}, span, tokens, facts))
    heads = integer(node, "num_heads")
    chosen = head_span(node, span, heads, width // heads)
    found = {index: _heads_of(facts.shape(required(node, index)), chosen, heads) for index in (0, _KEY, _VALUE)}
    found |= cut_along(node, {_ADDED: 1, _PAST_KEY: 1, _PAST_VALUE: 1}, chosen, heads, facts)
    bias = operand(node, _BIAS)
    asked = facts.shape(node.inputs[0])[_WIDTH]
    blocks = _blocks((asked, asked, width), heads, chosen)
    return Piece(
        parts=found,
        attributes={"num_heads": ir.AttrInt64("num_heads", len(chosen))},
        constants={} if bias is None else {_BIAS: columns(bias, blocks)},
    )


def _heads_of(shape: Sequence[int], chosen: Span, heads: int) -> Part:
    """Return some heads of queries, keys or values: along the width, or an axis of their own."""
    return Part(2, scaled(chosen, shape[2] // heads)) if len(shape) == 3 else Part(1, chosen)


def _blocks(sizes: Sequence[int], heads: int, chosen: Span) -> list[Span]:
    """Return the columns of some heads in each of several blocks that stand side by side."""
    blocks, start = [], 0
    for size in sizes:
        inside = scaled(chosen, size // heads)
        blocks.append(Span(start + inside.start, start + inside.stop))
        start += size
    return blocks


_SEQUENCE_LENGTHS, _POSITIONS, _GROUPED_ADDED, _SINK = 5, 9, 10, 11


def divide_grouped(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a GroupQueryAttention: for some groups of heads that share keys, or some sequences."""
    if axis == _BATCH:
        size = facts.shape(node.outputs[0])[0]
        inputs = (0, 1, 2, 3, 4, _SEQUENCE_LENGTHS, _POSITIONS, _GROUPED_ADDED)
        return Piece(parts=cut_along(node, dict.fromkeys(inputs, 0), span, size, facts))
    if axis == _TOKENS:
        raise IndivisibleError("GroupQueryAttention lets tokens see only those before them")
    refuse_used(node, (1, 2, 3), "keys and values, whose heads are another axis")
    if operand(node, 1) is None:
        raise IndivisibleError("GroupQueryAttention has its queries among keys and values")
    heads, groups = integer(node, "num_heads"), integer(node, "kv_num_heads")
    size = facts.shape(node.outputs[0])[_WIDTH] // heads
    chosen = head_span(node, span, groups, size * heads // groups)
    members = scaled(chosen, heads // groups)
    found = {
        0: Part(_WIDTH, span),
        1: Part(_WIDTH, scaled(chosen, size)),
        2: Part(_WIDTH, scaled(chosen, size)),
        **cut_along(node, {3: 1, 4: 1}, chosen, groups, facts),
        **cut_along(node, {_GROUPED_ADDED: 1, _SINK: 0}, members, heads, facts),
    }
    attributes = {
        "num_heads": ir.AttrInt64("num_heads", len(members)),
        "kv_num_heads": ir.AttrInt64("kv_num_heads", len(chosen)),
    }
    return Piece(parts=found, attributes=attributes)


RULES: Mapping[Key, Rule] = {
    **{("com.microsoft", op_type): divide_projecting for op_type in _PROJECTING},
    ("com.microsoft", "GroupQueryAttention"): divide_grouped,
    ("com.microsoft", "MultiHeadAttention"): divide_multi_head,
    **attention_standard.RULES,
}
