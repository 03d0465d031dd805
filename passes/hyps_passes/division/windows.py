"""How a kernel slides over an axis, and what of the axis some of its positions look at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from hyps_passes.division.reading import integers, text
from hyps_passes.division.rule import Facts, IndivisibleError, Span


@dataclass(frozen=True, slots=True)
class Window:
    """A kernel that slides over one axis, padded at both ends."""

    size: int
    """Of the axis of the input, without padding."""
    count: int
    """Positions of the kernel: the size of the output's axis."""
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """Rows from the first to the last one that the kernel looks at from one position."""
        return (self.kernel - 1) * self.dilation + 1

    def reach(self, span: Span) -> Span:
        """Return the rows that a span of positions looks at; those below 0 and from `size` on are padding."""
        start = span.start * self.stride - self.before
        return Span(start, start + (len(span) - 1) * self.stride + self.extent)

    def over(self, span: Span) -> tuple[Span, "Window"]:
        """Return the real rows that a span of positions looks at, and the window that makes the span of them.

        The last position may stand out over the padding (`ceil_mode`); then the window of the piece has the same
        padding behind and lets its last position stand out as far.

        Raises:
            IndivisibleError: the positions look at padding alone.
        """
        reach = self.reach(span)
        read = Span(max(reach.start, 0), min(reach.stop, self.size))
        if read.stop <= read.start:
            raise IndivisibleError(f"positions {span.start} to {span.stop - 1} look at padding alone")
        before, after = max(0, -reach.start), min(max(0, reach.stop - self.size), self.after)
        return read, replace(self, size=len(read), count=len(span), before=before, after=after)

    def over_any(self, span: Span) -> tuple[Span, "Window"]:
        """Do as `over` does; positions that look at padding alone get a row that none of them looks at.

        Only for operators that take any padding.
        """
        reach = self.reach(span)
        if reach.start < self.size and reach.stop > 0:
            return self.over(span)
        stride = max(self.stride, 2)  # so that no further position begins before the row
        row = Span(0, 1) if reach.stop <= 0 else Span(self.size - 1, self.size)
        before = (len(span) - 1) * stride + self.extent
        return row, replace(self, size=1, count=len(span), stride=stride, before=before, after=0)


def windows_of(
    node: ir.Node, facts: Facts, source: ir.Value, kernel: Sequence[int], *, first_axis: int = 2
) -> list[Window]:
    """Return the windows of a convolution or pooling, one for each spatial axis.

    Args:
        node: the operator.
        facts: of the values around it.
        source: the input over which the kernel slides.
        kernel: its sizes.
        first_axis: the first spatial axis of input and output.

    Raises:
        IndivisibleError: an automatic padding cannot be written down.
    """
    rank = len(kernel)
    sizes = facts.shape(source)[first_axis : first_axis + rank]
    counts = facts.shape(node.outputs[0])[first_axis : first_axis + rank]
    strides, dilations = (integers(node, name) or (1,) * rank for name in ("strides", "dilations"))
    automatic = text(node, "auto_pad", "NOTSET")
    pads = (integers(node, "pads") if automatic == "NOTSET" else None) or (0,) * 2 * rank
    windows = [
        Window(*numbers)
        for numbers in zip(sizes, counts, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    ]
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return windows
    for axis, window in enumerate(windows, first_axis):
        if window.stride > 1 and not facts.is_fixed(source, axis):
            raise IndivisibleError(f"its padding depends on axis {axis}, whose size is open")
    return [_same(window, lower=automatic == "SAME_LOWER") for window in windows]


def _same(window: Window, *, lower: bool) -> Window:
    """Return the window with the padding that onnxruntime gives it, which forgets the dilation."""
    needed = (-(-window.size // window.stride) - 1) * window.stride + window.kernel - window.size
    if needed < -1:
        raise IndivisibleError("its stride passes over rows, and its automatic padding is negative")
    before = (max(needed, 0) + lower) // 2
    return replace(window, before=before, after=max(needed, 0) - before)


def window_attributes(windows: Sequence[Window]) -> dict[str, ir.Attr | None]:
    """Return the attributes that say where the windows of a piece stand; the padding is written down."""
    return {
        "auto_pad": None,
        "pads": ir.AttrInt64s("pads", [w.before for w in windows] + [w.after for w in windows]),
        "strides": ir.AttrInt64s("strides", [w.stride for w in windows]),
    }
