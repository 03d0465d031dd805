"""Rules of operators that mix one axis and leave the others apart: softmax, normalizations, reductions."""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from hyps_passes.division.reading import (
    broadcast_part,
    constant_integers,
    integer,
    integers,
    list_of,
    operand,
    parts,
)
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span

_SOFTMAX_OVER_ONE_AXIS = 13

Mixed = Callable[[ir.Node, Sequence[int], Facts], Sequence[int]]
"""From a node and the shape of its first input to the axes that it needs whole, counted from the front."""


def _refuse_mixed(node: ir.Node, axis: int, mixed: Sequence[int]) -> None:
    if axis in mixed:
        raise IndivisibleError(f"{node.op_type} needs all of axis {axis}")


def _along_last(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    return (integer(node, "axis", -1) % len(shape),)


def _along_first(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    return (integer(node, "axis", 0) % len(shape),)


def _softmax_axes(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    """Return the axis; before opset 13 it and all behind it were one."""
    if facts.opset >= _SOFTMAX_OVER_ONE_AXIS:
        return _along_last(node, shape, facts)
    return range(integer(node, "axis", 1) % len(shape), len(shape))


def _quantized_softmax_axes(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    """Return the same; the node says itself by which opset it reads its axis."""
    if integer(node, "opset") >= _SOFTMAX_OVER_ONE_AXIS:
        return _along_last(node, shape, facts)
    return range(integer(node, "axis", -1) % len(shape), len(shape))


def _from_axis(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    return range(integer(node, "axis", -1) % len(shape), len(shape))


def _mean_variance_axes(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    axes = integers(node, "axes")
    return tuple(axis % len(shape) for axis in ((0, 2, 3) if axes is None else axes))


def _cumulated_axis(node: ir.Node, shape: Sequence[int], facts: Facts) -> Sequence[int]:
    axes = constant_integers(node, 1, facts) or ()
    return tuple(axis % len(shape) for axis in axes)


def _same_place(mixed: Mixed) -> Rule:
    """Return the rule of an operator whose outputs lie as its first input does, but for the axes it needs whole."""

    def divide(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
        _refuse_mixed(node, axis, mixed(node, facts.shape(node.inputs[0]), facts))
        return Piece(parts={0: Part(axis, span)})

    return divide


def _with_operands(mixed: Mixed, *others: int) -> Rule:
    """Return the rule of an operator whose inputs `others` broadcast to the first: scales, biases, what is added."""

    def divide(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
        shape = facts.shape(node.inputs[0])
        _refuse_mixed(node, axis, mixed(node, shape, facts))
        found = {index: broadcast_part(operand(node, index), len(shape), axis, span, facts) for index in others}
        return Piece(parts=parts({0: Part(axis, span), **found}))

    return divide


def divide_reduction(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a reduction over other axes, which the output keeps with one position or does without."""
    rank = len(facts.shape(node.inputs[0]))
    axes = list_of(node, "axes", 1, facts)
    if not axes and integer(node, "noop_with_empty_axes"):
        return Piece(parts={0: Part(axis, span)})
    return _reduced(node, axis, span, rank, range(rank) if not axes else [index % rank for index in axes])


def divide_choice(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an ArgMax or ArgMin over another axis."""
    shape = facts.shape(node.inputs[0])
    return _reduced(node, axis, span, len(shape), _along_first(node, shape, facts))


def _reduced(node: ir.Node, axis: int, span: Span, rank: int, mixed: Sequence[int]) -> Piece:
    if integer(node, "keepdims", 1):
        _refuse_mixed(node, axis, mixed)
        return Piece(parts={0: Part(axis, span)})
    kept = [index for index in range(rank) if index not in mixed]
    return Piece(parts={0: Part(kept[axis], span)})


_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
_SOFTMAX = _same_place(_softmax_axes)
_SKIP = _with_operands(_along_last, 1, 2, 3, 4)
_LAYER = _with_operands(_from_axis, 1, 2)

RULES: Mapping[Key, Rule] = {
    ("", "Softmax"): _SOFTMAX,
    ("", "LogSoftmax"): _SOFTMAX,
    ("", "Hardmax"): _SOFTMAX,
    ("com.microsoft", "QLinearSoftmax"): _same_place(_quantized_softmax_axes),
    ("", "LayerNormalization"): _LAYER,
    ("", "SimplifiedLayerNormalization"): _LAYER,
    ("", "RMSNormalization"): _LAYER,
    ("com.microsoft", "SkipLayerNormalization"): _SKIP,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _with_operands(_along_last, 1, 2, 3),
    ("", "LpNormalization"): _same_place(_along_last),
    ("", "MeanVarianceNormalization"): _same_place(_mean_variance_axes),
    ("", "CumSum"): _same_place(_cumulated_axis),
    ("", "TopK"): _same_place(_along_last),
    ("", "ArgMax"): divide_choice,
    ("", "ArgMin"): divide_choice,
    **{("", name): divide_reduction for name in [*_REDUCTIONS.split(), "ReduceSumSquare"]},
}
