"""Rules of padding: a piece is padded where the whole is, by as much as its span has of the border."""

from collections.abc import Mapping

import onnx_ir as ir

from hyps_passes.division.reading import constant_integers, list_of, shape_constant, text
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span


def divide_padding(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Pad, whatever it fills borders with; it may crop the axis, too."""
    shape = facts.shape(node.inputs[0])
    named = constant_integers(node, 3, facts)
    axes = [number % len(shape) for number in (range(len(shape)) if named is None else named)]
    pads = list(list_of(node, "pads", 1, facts) or ())
    if len(pads) != 2 * len(axes):
        raise IndivisibleError("what it adds is not given")
    if axis not in axes:
        return Piece({0: Part(axis, span)})
    at = axes.index(axis)
    before, after = pads[at], pads[at + len(axes)]
    cropped = Span(max(0, -before), shape[axis] - max(0, -after))
    wanted = Span(span.start - max(0, before), span.stop - max(0, before))
    read = _read(text(node, "mode", "constant"), wanted, len(cropped))
    pads[at], pads[at + len(axes)] = max(0, -wanted.start), max(0, wanted.stop - len(cropped))
    made = Span(read.start - pads[at], read.stop + pads[at + len(axes)])
    part = Part(axis, Span(read.start + cropped.start, read.stop + cropped.start))
    surplus = (wanted.start - made.start, made.stop - wanted.stop)
    if "pads" in node.attributes:
        return Piece({0: part}, {"pads": ir.AttrInt64s("pads", pads)}, surplus=surplus)
    return Piece({0: part}, constants={1: shape_constant(pads)}, surplus=surplus)


def _read(mode: str, wanted: Span, size: int) -> Span:
    """Return the rows that a span needs, some of them negative or beyond the end; at least one row."""
    if size < 1:
        raise IndivisibleError("it pads an axis of which nothing is left")
    added = max(-wanted.start, wanted.stop - size)
    if mode == "wrap" and added > 0:
        if added > size:
            raise IndivisibleError("it repeats an axis more than once")
        return Span(0, size)
    read = Span(min(max(wanted.start, 0), size - 1), max(min(wanted.stop, size), 1))
    if mode == "reflect" and added > 0:
        if added >= size:
            raise IndivisibleError("it mirrors more rows than there are")
        if wanted.start < 0:
            read = read.hull(Span(0, 1 - wanted.start))
        if wanted.stop > size:
            read = read.hull(Span(2 * size - wanted.stop - 1, size))
    return read


RULES: Mapping[Key, Rule] = {
    ("", "Pad"): divide_padding,
    ("com.microsoft", "Pad"): divide_padding,
}
