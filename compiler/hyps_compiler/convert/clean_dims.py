"""Where a dimension of a value comes from: the operators that hand a size on as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hyps_compiler.convert.clean_constants import constant
from hyps_compiler.convert.clean_layout import permutation


@dataclass(frozen=True)
class Dim:
    """One dimension of a value, not known before a request."""

    value: ir.Value
    axis: int


def origin(value: ir.Value, axis: int) -> int | Dim:
    """Return a dimension of a value: known, or that of the first value it surely equals."""
    while True:
        size = None if value.shape is None else value.shape[axis]
        if isinstance(size, int):
            return size
        node = value.producer()
        rule = None if node is None or node.domain not in ("", "ai.onnx") else _RULES.get(node.op_type)
        step = None if node is None or rule is None or value.shape is None else rule(node, axis, len(value.shape))
        if step is None:
            return Dim(value, axis)
        value, axis = step


_Step = tuple[ir.Value, int] | None
"""The value and the axis that a dimension comes from; None where that is not known."""


def _same(node: ir.Node, axis: int, _rank: int) -> _Step:
    return None if node.inputs[0] is None else (node.inputs[0], axis)


def _first(node: ir.Node, axis: int, rank: int) -> _Step:
    """Convolutions and pooling leave the batch as it is."""
    return _same(node, axis, rank) if axis == 0 else None


def _transpose(node: ir.Node, axis: int, _rank: int) -> _Step:
    order = permutation(node)
    return None if order is None or node.inputs[0] is None else (node.inputs[0], order[axis])


def _unsqueeze(node: ir.Node, axis: int, rank: int) -> _Step:
    added = _axes(node, rank)
    if added is None or axis in added or node.inputs[0] is None:
        return None
    return node.inputs[0], axis - sum(other < axis for other in added)


def _squeeze(node: ir.Node, axis: int, rank: int) -> _Step:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    gone = _axes(node, len(source.shape))
    if gone is None:
        return None
    left = [other for other in range(len(source.shape)) if other not in gone]
    return (source, left[axis]) if len(left) == rank else None


def _axes(node: ir.Node, rank: int) -> set[int] | None:
    """Return the second input as axes of a tensor with so many; None where they are not known."""
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if given is None else {int(axis) % rank for axis in given.reshape(-1)}


def _reshape(node: ir.Node, axis: int, rank: int) -> _Step:
    """A 0 in a constant shape copies the size at its place."""
    target = constant(node.inputs[1])
    zero_is_zero = "allowzero" in node.attributes and node.attributes["allowzero"].as_int()
    if target is None or zero_is_zero or target.size != rank or int(target.reshape(-1)[axis]) != 0:
        return None
    return _same(node, axis, rank)


def _broadcast(node: ir.Node, axis: int, rank: int) -> _Step:
    return _from_operands(node.inputs, axis - rank)


def _matmul(node: ir.Node, axis: int, rank: int) -> _Step:
    left, right = node.inputs[:2]
    if left is None or right is None or left.shape is None or right.shape is None:
        return None
    if min(len(left.shape), len(right.shape)) < 2:
        return None
    if axis == rank - 2:
        return left, len(left.shape) - 2
    if axis == rank - 1:
        return right, len(right.shape) - 1
    return _from_operands((left, right), axis - rank)


def _from_operands(operands: Sequence[ir.Value | None], place: int) -> _Step:
    """Return the one operand that decides a size, counted from the last: the others have 1 or nothing there."""
    deciding: list[tuple[ir.Value, int]] = []
    for operand in operands:
        if operand is None or operand.shape is None:
            return None
        if len(operand.shape) >= -place and operand.shape[place] != 1:
            deciding.append((operand, len(operand.shape) + place))
    if len(deciding) == 2 and origin(*deciding[0]) == origin(*deciding[1]):
        return deciding[0]
    return deciding[0] if len(deciding) == 1 else None


_RULES: dict[str, Callable[[ir.Node, int, int], _Step]] = {
    **dict.fromkeys(
        ("Abs", "Cast", "Clip", "Erf", "Exp", "Identity", "LayerNormalization", "Neg", "Reciprocal"), _same
    ),
    **dict.fromkeys(("Relu", "Sigmoid", "Softmax", "Sqrt", "Tanh"), _same),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _broadcast),
    **dict.fromkeys(("AveragePool", "Conv", "GlobalAveragePool", "MaxPool"), _first),
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""How an operator's result gets a dimension from an input."""
