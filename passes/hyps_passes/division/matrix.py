"""Rules of matrix products: rows, columns, stacked matrices; and their sum over the inner axis.

Both operands may be activations (attention scores): a span of rows is a part of the left one, a span of columns a part
of the right one, a span of stacked matrices a part of each that has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hyps_passes.division.matrix_blocks import NBITS, NBITS_CONTRACTION, divide_nbits
from hyps_passes.division.reading import broadcast_part, integer, operand, parts, required, text
from hyps_passes.division.rule import Contraction, Facts, IndivisibleError, Key, Part, Piece, Rule, Span

_GEMM_WITHOUT_BIAS = 11
_ACTIVATION = "activation"
_ACTIVATION_ATTRIBUTES = {
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "ThresholdedRelu": ("alpha",),
}


@dataclass(frozen=True, slots=True)
class _Side:
    """Where one matrix (or stack of them) stands among a node's inputs, and where its rows and columns are."""

    index: int
    row: int | None
    """Axis of the rows; None: a vector that is a single row."""
    column: int | None
    """Axis of the columns; None: a vector that is a single column."""
    stack: tuple[int, ...]
    """Axes of the stacked matrices, outermost first."""


@dataclass(frozen=True, slots=True)
class _Operands:
    """What an operator multiplies, and which inputs go along with rows and columns of the product."""

    left: int
    right: int
    with_rows: tuple[int, ...] = ()
    """Scales and zero points of the left matrix: one for all, or one per row."""
    with_columns: tuple[int, ...] = ()
    """Scales and zero points of the right matrix: one for all, or one per column."""
    bias: int | None = None
    refusal: str = ""
    """Why the sum cannot be cut up; empty: it can."""
    rows_refusal: str = ""
    """Why the left matrix cannot be cut up; empty: it can."""


_ROUNDED = "its sum is rounded to 8 bits, so that parts of it cannot be added"
_DYNAMIC = "it takes the scale of its input from all of it"

_TABLE: Mapping[Key, _Operands] = {
    ("", "MatMul"): _Operands(0, 1),
    ("", "Gemm"): _Operands(0, 1, bias=2),
    ("", "MatMulInteger"): _Operands(0, 1, (2,), (3,)),
    ("", "QLinearMatMul"): _Operands(0, 3, (1, 2, 6, 7), (4, 5), refusal=_ROUNDED),
    ("com.microsoft", "FusedGemm"): _Operands(0, 1, bias=2),
    ("com.microsoft", "FusedMatMul"): _Operands(0, 1),
    ("com.microsoft", "TransposeMatMul"): _Operands(0, 1),
    ("com.microsoft", "MatMulIntegerToFloat"): _Operands(0, 1, (2, 4), (3, 5), bias=6),
    ("com.microsoft", "QGemm"): _Operands(0, 3, (1, 2), (4, 5), bias=6),
    ("com.microsoft", "DynamicQuantizeMatMul"): _Operands(
        0, 1, (), (2, 3), bias=4, refusal=_DYNAMIC, rows_refusal=_DYNAMIC
    ),
}


def divide_product(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece for a span of rows, of columns or of stacked matrices."""
    operands = _TABLE[_key(node)]
    rank = len(facts.shape(node.outputs[0]))
    left, right = _sides(node, operands, facts)
    columns = rank - 1 if right.column is not None else None
    rows = None if left.row is None else rank - 1 - (columns is not None)
    if axis == columns:
        found = {operands.right: Part(right.column or 0, span)}
        along = operands.with_columns
    elif operands.rows_refusal:
        raise IndivisibleError(f"{node.op_type} is divided by columns only: {operands.rows_refusal}")
    elif axis == rows:
        found = {operands.left: Part(left.row or 0, span)}
        along = operands.with_rows
    else:
        depth = (rank - (columns is not None) - (rows is not None)) - axis  # 1: the innermost stack
        return Piece(parts=_stacked(node, operands, (left, right), depth, span, facts))
    for index in along:
        found |= _companion(operand(node, index), index, is_row=axis == rows, span=span, facts=facts)
    if operands.bias is not None:
        found |= parts({operands.bias: broadcast_part(operand(node, operands.bias), rank, axis, span, facts)})
    return Piece(parts=found)


class _Product:
    """The sum over the inner axis of a product."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the columns of the left matrix."""
        operands = _TABLE[_key(node)]
        if operands.refusal:
            raise IndivisibleError(f"{node.op_type}: {operands.refusal}")
        if _key(node) == ("com.microsoft", "QGemm") and operand(node, 7) is not None:
            raise IndivisibleError(f"{node.op_type}: {_ROUNDED}")
        side = _sides(node, operands, facts)[0]
        return facts.shape(node.inputs[side.index])[_inner(side, is_left=True)]

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Return the product of columns `span` of the left matrix and the same rows of the right one."""
        self.size(node, facts)
        operands = _TABLE[_key(node)]
        left, right = _sides(node, operands, facts)
        found = {
            left.index: Part(_inner(left, is_left=True), span),
            right.index: Part(_inner(right, is_left=False), span),
        }
        kind, attributes = _without_activation(node)
        bias = None if operands.bias is None else operand(node, operands.bias)
        if index == 0 or bias is None:
            return Piece(parts=found, attributes=attributes, kind=kind)
        assert operands.bias is not None
        if node.op_type == "Gemm" and facts.opset < _GEMM_WITHOUT_BIAS:
            return Piece(parts=found, constants={operands.bias: _zero(bias)})
        return Piece(parts=found, attributes=attributes, absent=frozenset({operands.bias}), kind=kind)

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return the activation of a FusedGemm."""
        activation = text(node, _ACTIVATION) if node.op_type == "FusedGemm" else ""
        if not activation:
            return ()
        prefix = f"{_ACTIVATION}_"
        given = {
            name: ir.AttrFloat32(name, node.attributes[prefix + name].as_float())
            for name in _ACTIVATION_ATTRIBUTES.get(activation, ())
            if prefix + name in node.attributes
        }
        return ((("", activation), given),)


def _key(node: ir.Node) -> Key:
    return ("com.microsoft" if node.domain == "com.microsoft" else "", node.op_type)


def _without_activation(node: ir.Node) -> tuple[Key | None, dict[str, ir.Attr | None]]:
    """Return the operator and the attributes of the same product without an activation behind it."""
    if node.op_type != "FusedGemm":
        return None, {}
    return ("", "Gemm"), {name: None for name in node.attributes if name.startswith(_ACTIVATION)}


def _zero(bias: ir.Value) -> ir.TensorProtocol:
    """Return a bias of nothing, for opsets in which a Gemm must have one."""
    dtype = bias.dtype or ir.DataType.FLOAT
    return ir.Tensor(np.zeros(1, dtype.numpy()), dtype=dtype)


def _sides(node: ir.Node, operands: _Operands, facts: Facts) -> tuple[_Side, _Side]:
    left = len(facts.shape(required(node, operands.left)))
    right = len(facts.shape(required(node, operands.right)))
    return (
        _side(operands.left, left, is_left=True, transposed=_flag(node, "A"), deep=_flag(node, "BatchA")),
        _side(operands.right, right, is_left=False, transposed=_flag(node, "B"), deep=_flag(node, "BatchB")),
    )


def _flag(node: ir.Node, name: str) -> bool:
    return integer(node, f"trans{name}") != 0


def _side(index: int, rank: int, *, is_left: bool, transposed: bool, deep: bool) -> _Side:
    """Return where the axes of one operand are.

    Args:
        index: of the input.
        rank: its number of axes.
        is_left: whether it is the left operand; a vector is a row there, a column on the right.
        transposed: whether rows and columns are exchanged.
        deep: whether the rows stand in front of the stacked matrices (`transBatchA` of FusedMatMul).
    """
    if rank == 1:
        return _Side(index, None if is_left else 0, 0 if is_left else None, ())
    axes = list(range(rank))
    if deep:
        axes = [*axes[1:-1], 0, axes[-1]]
    row, column = axes[-2:]
    return _Side(index, column if transposed else row, row if transposed else column, tuple(axes[:-2]))


def _inner(side: _Side, *, is_left: bool) -> int:
    """Return the axis that is summed over."""
    axis = side.column if is_left else side.row
    assert axis is not None
    return axis


def _stacked(
    node: ir.Node, operands: _Operands, sides: tuple[_Side, _Side], depth: int, span: Span, facts: Facts
) -> dict[int, Part]:
    """Return the parts for a span of stacked matrices; `depth` counts their axes from the innermost one, from 1."""
    found: dict[int, Part] = {}
    for side in sides:
        if depth > len(side.stack):
            continue
        own, value = side.stack[-depth], required(node, side.index)
        if facts.shape(value)[own] == 1:
            if value.shape is not None and not facts.is_fixed(value, own):
                raise IndivisibleError(f"the size of axis {own} of `{value.name}` is open")
            continue
        found[side.index] = Part(own, span)
    for index in (*operands.with_rows, *operands.with_columns):
        value_or_none = operand(node, index)
        shape = () if value_or_none is None else facts.shape(value_or_none)
        own = len(shape) - 2 - depth
        if own >= 0 and shape[own] != 1:
            found[index] = Part(own, span)
    return found


def _companion(value: ir.Value | None, index: int, *, is_row: bool, span: Span, facts: Facts) -> dict[int, Part]:
    """Return the part of a scale or zero point: one number per row or per column, or one for all."""
    shape = () if value is None else facts.shape(value)
    if not shape:
        return {}
    axis = len(shape) - 2 if is_row and len(shape) > 1 else len(shape) - 1
    return {} if shape[axis] == 1 else {index: Part(axis, span)}


_PRODUCT: Contraction = _Product()

RULES: Mapping[Key, Rule] = {**dict.fromkeys(_TABLE, divide_product), NBITS: divide_nbits}

CONTRACTIONS: Mapping[Key, Contraction] = {**dict.fromkeys(_TABLE, _PRODUCT), NBITS: NBITS_CONTRACTION}
