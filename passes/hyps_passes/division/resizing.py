"""Rules of resizing: a piece reads whole periods of the positions, so that it looks at the rows the whole looks at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import onnx_ir as ir

from hyps_passes.division.reading import constant_integers, integer, integers, operand, required, shape_constant, text
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span

_MODES_BY_ATTRIBUTE = 11
"""The opset from which Resize says how it finds and rounds positions, and may be given sizes."""

_MOST_PERIOD = 1024

_TAPS = {"linear": (0, 1), "cubic": (-1, 2)}
"""Rows before and behind the one at or before a position that it is made of."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many positions are made of how many rows; the positions repeat with them."""

    made: int
    read: int
    corners: bool
    """Whether the first and the last row are the first and the last position, so that the spaces between count."""

    def around(self, rows: Span, size: int) -> Span:
        """Return the smallest span of whole periods, or up to the end, that holds some rows."""
        last = -(-(rows.stop - self.corners) // self.read) * self.read + self.corners
        return Span(rows.start // self.read * self.read, min(max(last, rows.start + 1), size))

    def period(self, span: Span) -> Span:
        """Return rows whose periods have the positions of a span."""
        last = (span.stop - 1) * self.read
        return Span(
            span.start * self.read // self.made, (-(-last // self.made) if self.corners else last // self.made) + 1
        )

    def positions(self, read: Span, size: int, count: int) -> Span:
        """Return the positions that are made of whole periods of rows."""
        start = read.start // self.read * self.made
        if read.stop == size:
            return Span(start, count)
        return Span(start, (read.stop - self.corners) // self.read * self.made + self.corners)


@dataclass(frozen=True, slots=True)
class Resizing:
    """How one axis is resized."""

    size: int
    count: int
    scale: np.float32
    ratio: Ratio
    mode: str
    coordinates: str
    rounding: str

    def rows(self, span: Span) -> Span:
        """Return the rows that a span of positions is made of."""
        if self.mode == "nearest":
            found = self.nearest(np.arange(span.start, span.stop), self.size, self.count)
            return Span(int(found.min()), int(found.max()) + 1)
        before, behind = _TAPS[self.mode]
        first, last = self._exact(span.start), self._exact(span.stop - 1)
        behind -= last.denominator == 1  # it is a row itself; what lies before it may look as far as this
        return Span(self._clip(floor(first) + before), self._clip(floor(last) + behind) + 1)

    def nearest(self, positions: np.ndarray[Any, Any], size: int, count: int) -> np.ndarray[Any, Any]:
        """Return the row of each position where `count` positions are made of `size` rows, as onnxruntime does."""
        found = _POSITIONS[self.coordinates](positions.astype(np.float32), self.scale, size, count)
        return np.clip(_ROUNDINGS[self.rounding](found).astype(np.int64), 0, size - 1)

    def _exact(self, position: int) -> Fraction:
        """Return where among the rows a position lies, without rounding."""
        ratio = Fraction(self.ratio.read, self.ratio.made)
        if self.coordinates in ("asymmetric", "align_corners"):
            return position * ratio
        center = (position + Fraction(1, 2)) * ratio
        return center if self.coordinates == "tf_half_pixel_for_nn" else center - Fraction(1, 2)

    def _clip(self, row: int) -> int:
        return min(max(row, 0), self.size - 1)


def divide_resize(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Resize or Upsample.

    It applies where the axis keeps its size, or all positions lie between rows as those of one period of rows do.
    """
    source = required(node, 0)
    shape, counts = facts.shape(source), facts.shape(node.outputs[0])
    if text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise IndivisibleError("it keeps the ratio of its axes")
    if not _is_float(source) and text(node, "mode", "nearest") != "nearest":
        raise IndivisibleError("its integers are rounded by code that depends on the shape")
    coordinates = _coordinates(node, facts)
    if coordinates == "tf_crop_and_resize":
        raise IndivisibleError("it crops as an input says")
    axes = [number % len(shape) for number in integers(node, "axes") or range(len(shape))]
    if axis not in axes:
        return Piece({0: Part(axis, span)})
    at = axes.index(axis)
    wanted = _wanted(node, facts)
    scale = wanted.scale(at, shape[axis])
    if shape[axis] == counts[axis] and scale == 1:
        return Piece({0: Part(axis, span)}, constants=wanted.resized(at, len(span)))
    if shape[axis] == 1:  # all positions are that row, whatever the scale
        return wanted.repeated(at, len(span))
    resizing = _resizing(node, shape[axis], counts[axis], scale, facts, sized=wanted.sizes is not None)
    read, made = _read(resizing, span)
    if wanted.sizes is None and floor(np.float32(len(read)) * scale) != len(made):
        raise IndivisibleError("its scale is none of whole numbers")
    _check(resizing, read, made, span)
    surplus = (span.start - made.start, made.stop - span.stop)
    return Piece({0: Part(axis, read)}, constants=wanted.resized(at, len(made)), surplus=surplus)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How large the resized axes are to be: their sizes, or else their scales."""

    index: int | None
    """The input that says so; None: an attribute."""
    sizes: tuple[int, ...] | None
    scales: tuple[float, ...]

    def scale(self, at: int, size: int) -> np.float32:
        """Return the scale of an axis of some size, as onnxruntime has it."""
        return np.float32(self.scales[at]) if self.sizes is None else np.float32(self.sizes[at]) / np.float32(size)

    def resized(self, at: int, count: int) -> dict[int, ir.TensorProtocol]:
        """Return the input that gives sizes, if one does, with another one at its place `at`."""
        if self.sizes is None or self.index is None:
            return {}
        return {self.index: shape_constant([*self.sizes[:at], count, *self.sizes[at + 1 :]])}

    def repeated(self, at: int, count: int) -> Piece:
        """Return the piece that makes `count` positions of a single row."""
        if self.sizes is not None:
            return Piece(constants=self.resized(at, count))
        scales = [*self.scales[:at], float(count), *self.scales[at + 1 :]]
        if self.index is None:
            return Piece(attributes={"scales": ir.AttrFloat32s("scales", scales)})
        return Piece(constants={self.index: ir.tensor(scales, dtype=ir.DataType.FLOAT)})


def _wanted(node: ir.Node, facts: Facts) -> Wanted:
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return Wanted(None, None, tuple(attribute.as_floats()))
    by_sizes = node.op_type == "Resize" and facts.opset >= _MODES_BY_ATTRIBUTE
    sizes = constant_integers(node, 3, facts) if by_sizes else None
    if sizes:
        return Wanted(3, sizes, ())
    index = 2 if by_sizes else 1
    scales = facts.constant(operand(node, index))
    if scales is None or not scales.size:
        raise IndivisibleError("its scales are computed")
    return Wanted(index, None, tuple(float(scale) for scale in scales.reshape(-1)))


def _read(resizing: Resizing, span: Span) -> tuple[Span, Span]:
    """Return the rows that a piece reads and the positions that it makes of them."""
    ratio, size = resizing.ratio, resizing.size
    period = ratio.period(span)
    rows = resizing.rows(span).hull(Span(min(period.start, size - 1), min(period.stop, size)))
    read = ratio.around(rows, size)
    made = ratio.positions(read, size, resizing.count)
    if len(made) == 1 and resizing.coordinates == "pytorch_half_pixel":  # a single position is the first row there
        read = ratio.around(read.hull(Span(max(0, read.start - 1), min(size, read.stop + 1))), size)
        made = ratio.positions(read, size, resizing.count)
    return read, made


def _check(resizing: Resizing, read: Span, made: Span, span: Span) -> None:
    """Refuse where the piece's arithmetic might give other rows than the whole's.

    Raises:
        IndivisibleError: it might.
    """
    assert made.start <= span.start < span.stop <= made.stop, (resizing, span, made)
    if resizing.mode == "nearest":
        positions = np.arange(span.start, span.stop)
        there = resizing.nearest(positions, resizing.size, resizing.count)
        here = resizing.nearest(positions - made.start, len(read), len(made)) + read.start
        if not np.array_equal(there, here):
            raise IndivisibleError("its positions are rounded to other rows in pieces")


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _coordinates(node: ir.Node, facts: Facts) -> str:
    if node.op_type == "Upsample" or facts.opset < _MODES_BY_ATTRIBUTE:
        return "asymmetric"
    return text(node, "coordinate_transformation_mode", "half_pixel")


def _resizing(node: ir.Node, size: int, count: int, scale: np.float32, facts: Facts, *, sized: bool) -> Resizing:
    coordinates, mode = _coordinates(node, facts), text(node, "mode", "nearest")
    if integer(node, "antialias"):
        raise IndivisibleError("it smooths over as many rows as its scale says")
    corners = coordinates == "align_corners"
    if corners:
        ratio = Fraction(count - 1, max(1, size - 1))
    else:
        ratio = Fraction(count, size) if sized else Fraction(float(scale)).limit_denominator(_MOST_PERIOD)
    if not ratio or (np.float32(ratio.numerator) / np.float32(ratio.denominator) != scale and not corners):
        raise IndivisibleError("its scale is none of small whole numbers")
    if 2 * ratio.denominator > size:
        raise IndivisibleError(f"its positions repeat only after {ratio.denominator} of {size} rows")
    if coordinates == "half_pixel_symmetric" and size * ratio != count:
        raise IndivisibleError("it shifts its positions by what its scale leaves over")
    rounding = text(node, "nearest_mode", "round_prefer_floor")
    if node.op_type == "Upsample" or facts.opset < _MODES_BY_ATTRIBUTE:
        rounding = "ceil" if scale < 1 else "floor"
    name = "linear" if mode == "bilinear" else mode
    return Resizing(size, count, scale, Ratio(ratio.numerator, ratio.denominator, corners), name, coordinates, rounding)


def _half_pixel(positions: Floats, scale: np.float32, size: int, count: int) -> Floats:
    return (positions + np.float32(0.5)) / scale - np.float32(0.5)


def _at_corners(positions: Floats, scale: np.float32, size: int, count: int) -> Floats:
    return positions * np.float32(size - 1) / np.float32(max(1, count - 1))


_POSITIONS: Mapping[str, Callable[[Floats, np.float32, int, int], Floats]] = {
    "align_corners": _at_corners,
    "asymmetric": lambda positions, scale, size, count: positions / scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel,
    "pytorch_half_pixel": _half_pixel,
    "tf_half_pixel_for_nn": lambda positions, scale, size, count: (positions + np.float32(0.5)) / scale,
}
"""How a position is found among the rows, in the arithmetic of onnxruntime."""

_ROUNDINGS: Mapping[str, Callable[[Floats], Floats]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda positions: np.floor(positions + np.float32(0.5)),
    "round_prefer_floor": lambda positions: np.ceil(positions - np.float32(0.5)),
}

RULES: Mapping[Key, Rule] = {
    ("", "Resize"): divide_resize,
    ("", "Upsample"): divide_resize,
}
