"""Rules of the standard's own attention and of rotary embeddings."""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.heads import cut_along, head_span, refuse_used, scaled
from hyps_passes.division.reading import broadcast_part, integer, operand, parts, required
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span

_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6
_BATCH, _HEADS, _TOKENS = 0, 1, 2
"""Axes of attention whose heads are an axis of their own."""


def divide_attention(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an Attention: some sequences, some heads, or some of the tokens that ask."""
    shape = facts.shape(node.outputs[0])
    if axis == _BATCH:
        inputs = (0, 1, 2, _PAST_KEY, _PAST_VALUE, _LENGTHS)
        found = cut_along(node, dict.fromkeys(inputs, 0), span, shape[0], facts)
        return Piece(parts={**found, **_masked(node, _BATCH, span, facts)})
    is_flat = len(shape) == 3
    if axis == (1 if is_flat else _TOKENS):
        refuse_used(node, (1, 2), "keys and values of all tokens")
        if is_flat:
            refuse_used(node, (3,), "its scores, whose tokens are another axis")
        if integer(node, "is_causal"):
            raise IndivisibleError("Attention lets tokens see only those before them")
        return Piece(parts={0: Part(axis, span), **_masked(node, _TOKENS, span, facts)})
    if axis == len(shape) - 1 and not is_flat:
        raise IndivisibleError("Attention is divided between heads only")
    return _some_heads(node, span, facts, is_flat=is_flat)


def _some_heads(node: ir.Node, span: Span, facts: Facts, *, is_flat: bool) -> Piece:
    """Return the piece for some groups of heads, whose members share keys and values."""
    if is_flat:
        heads, groups = integer(node, "q_num_heads"), integer(node, "kv_num_heads")
        size = facts.shape(node.outputs[0])[2] // heads
    else:
        heads, groups, size = facts.shape(node.inputs[0])[1], facts.shape(node.inputs[1])[1], 1
    chosen = head_span(node, span, groups, size * heads // groups)
    if is_flat:
        refuse_used(node, (1, 2, 3), "keys, values or scores, whose heads are another axis")
    elif heads != groups:
        refuse_used(node, (1, 2), "keys and values, which groups of heads share")
    members = scaled(chosen, heads // groups)
    found = cut_along(node, {_PAST_KEY: 1, _PAST_VALUE: 1}, chosen, groups, facts)
    for index, (own, count) in enumerate(((members, heads), (chosen, groups), (chosen, groups))):
        width = facts.shape(required(node, index))[2] // count
        found[index] = Part(2, scaled(own, width)) if is_flat else Part(_HEADS, own)
    attributes: dict[str, ir.Attr | None] = {}
    if is_flat:
        attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", len(members))
        attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", len(chosen))
    return Piece(parts={**found, **_masked(node, _HEADS, members, facts)}, attributes=attributes)


def _masked(node: ir.Node, axis: int, span: Span, facts: Facts) -> dict[int, Part]:
    """Return the part of the mask, which broadcasts to batch, heads, tokens that ask, and tokens that are asked."""
    return parts({_MASK: broadcast_part(operand(node, _MASK), 4, axis, span, facts)})


def divide_rotary(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a RotaryEmbedding: some sequences, tokens or heads."""
    shape = facts.shape(node.inputs[0])
    is_flat, is_standard = len(shape) == 3, node.domain != "com.microsoft"
    if integer(node, "is_packed_batching"):
        raise IndivisibleError("RotaryEmbedding has sequences in one")
    if axis == 0 or axis == (1 if is_flat else 2):
        tables = (1, 2) if is_standard and operand(node, 3) is None else ()
        indices = 3 if is_standard else 1
        of = 0 if axis == 0 else 1
        if not tables and len(facts.shape(required(node, indices))) < 2:
            if axis:
                raise IndivisibleError("RotaryEmbedding counts tokens from the first one on")
            return Piece(parts={0: Part(0, span)})
        found = cut_along(node, dict.fromkeys(tables or (indices,), of), span, shape[axis], facts)
        return Piece(parts={0: Part(axis, span), **found})
    if not is_flat and axis == len(shape) - 1:
        raise IndivisibleError("RotaryEmbedding is divided between heads only")
    if not is_flat:
        return Piece(parts={0: Part(axis, span)})
    heads = integer(node, "num_heads")
    table = facts.shape(node.inputs[1 if is_standard else 2])
    count = heads or shape[2] // (2 * table[-1])
    chosen = head_span(node, span, count, shape[2] // count)
    attributes = {"num_heads": ir.AttrInt64("num_heads", len(chosen))} if heads else {}
    return Piece(parts={0: Part(axis, span)}, attributes=attributes)


RULES: Mapping[Key, Rule] = {
    ("", "Attention"): divide_attention,
    ("", "RotaryEmbedding"): divide_rotary,
    ("com.microsoft", "RotaryEmbedding"): divide_rotary,
}
