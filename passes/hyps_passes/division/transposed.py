"""Rules of transposed convolutions, whose kernel writes where that of a convolution reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from hyps_passes.division.convolution import InputChannels, channel_parts
from hyps_passes.division.reading import integer, integers, required, text
from hyps_passes.division.rule import Contraction, Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span


@dataclass(frozen=True, slots=True)
class Stamp:
    """A kernel that is stamped on one axis of the output, once for each row of the input."""

    size: int
    """Of the axis of the input."""
    count: int
    """Of the axis of the output."""
    kernel: int
    stride: int
    dilation: int
    before: int
    """Rows that are cut off at the start of what is stamped."""
    after: int
    """Rows that are cut off at its end."""
    added: int
    """Rows that are added at its end."""

    def over(self, span: Span) -> tuple[Span, "Stamp"]:
        """Return the rows of the input whose stamps touch a span of the output, and the stamp that makes it of them."""
        start, end = span.start + self.before, span.stop - 1 + self.before
        touching = -(-(start - (self.kernel - 1) * self.dilation) // self.stride)
        first = _clip(min(touching, start // self.stride), self.size)  # what is cut off is never negative
        read = Span(first, _clip(end // self.stride, self.size) + 1)
        made = replace(self, size=len(read), count=len(span), before=start - first * self.stride)
        return read, made.ended(0)

    def ended(self, added: int) -> "Stamp":
        """Return the stamp with the end that its sizes ask for, where `added` rows are added to what is stamped.

        Raises:
            IndivisibleError: it adds as many rows as no attribute can.
        """
        excess = (self.size - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 + added
        excess -= self.before + self.count
        added += max(0, -excess)
        if added >= self.stride:
            raise IndivisibleError("its output is larger than what it stamps")
        return replace(self, after=max(0, excess), added=added)


def divide_transposed(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a transposed convolution for a span of the batch, of channels or of a spatial axis."""
    if axis == 0:
        return Piece({0: Part(0, span)})
    if axis == 1:
        return _channels(node, span, facts)
    stamps = _stamps(node, facts)
    read, stamps[axis - 2] = stamps[axis - 2].over(span)
    return Piece({0: Part(axis, read)}, _attributes(stamps))


def _channels(node: ir.Node, span: Span, facts: Facts) -> Piece:
    channels, groups = facts.shape(node.outputs[0])[1], integer(node, "group", 1)
    biases = channel_parts(node, (2,), channels, span, facts)
    if groups == 1:
        return Piece({1: Part(1, span), **biases})
    width = channels // groups
    if span.start % width or span.stop % width:  # the weight would be cut along two axes
        raise GrainError(width)
    whole = Span(span.start // width, span.stop // width)
    rows = facts.shape(required(node, 0))[1] // groups
    read = Span(whole.start * rows, whole.stop * rows)
    return Piece({0: Part(1, read), 1: Part(0, read), **biases}, {"group": ir.AttrInt64("group", len(whole))})


def _stamps(node: ir.Node, facts: Facts) -> list[Stamp]:
    source, kernel = required(node, 0), facts.shape(required(node, 1))[2:]
    rank = len(kernel)
    strides, dilations = (integers(node, name) or (1,) * rank for name in ("strides", "dilations"))
    pads = integers(node, "pads") or (0,) * 2 * rank
    added = integers(node, "output_padding") or (0,) * rank
    stamps = [
        Stamp(*numbers)
        for numbers in zip(
            facts.shape(source)[2:],
            facts.shape(node.outputs[0])[2:],
            kernel,
            strides,
            dilations,
            pads[:rank],
            pads[rank:],
            added,
            strict=True,
        )
    ]
    automatic, sized = text(node, "auto_pad", "NOTSET"), "output_shape" in node.attributes
    for axis, _ in enumerate(stamps, 2):
        if sized and not facts.is_fixed(source, axis):
            raise IndivisibleError(f"what it cuts off depends on axis {axis}, whose size is open")
    if not sized and automatic == "NOTSET":
        return stamps
    return [_automatic(stamp, upper=automatic == "SAME_UPPER") for stamp in stamps]


def _automatic(stamp: Stamp, *, upper: bool) -> Stamp:
    """Return the stamp with what onnxruntime cuts off where the size of the output is given."""
    excess = replace(stamp, before=0).ended(stamp.added).after
    before = excess // 2 if upper else excess - excess // 2
    return replace(stamp, before=before).ended(stamp.added)


def _attributes(stamps: Sequence[Stamp]) -> dict[str, ir.Attr | None]:
    return {
        "auto_pad": None,
        "output_shape": None,
        "pads": ir.AttrInt64s("pads", [s.before for s in stamps] + [s.after for s in stamps]),
        "output_padding": ir.AttrInt64s("output_padding", [s.added for s in stamps]),
    }


def _clip(row: int, size: int) -> int:
    return min(max(row, 0), size - 1)


RULES: Mapping[Key, Rule] = {("", "ConvTranspose"): divide_transposed}

CONTRACTIONS: Mapping[Key, Contraction] = {("", "ConvTranspose"): InputChannels(bias=2, weight_axis=0)}
