"""Parts of a table: of an initializer, or of what nodes make of one."""

import math

import onnx_ir as ir

from hyps_passes.division.reading import integer
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Part, Piece, Span, key_of, piece_node
from hyps_passes.division.rules import RULES
from hyps_passes.rewrites.writing import Writer


def stored_table(node: ir.Node, axis: int, facts: Facts) -> tuple[ir.Value, ir.Node | None]:
    """Return the table that a Gather along `axis` is to read, and the DequantizeLinear that goes behind it then.

    A table that is dequantized with a scale for all of it, or one for each column, is read as it is stored.
    """
    table = node.inputs[0]
    assert table is not None
    scaling = table.producer()
    if scaling is None or scaling.op_type != "DequantizeLinear":
        return table, None
    scale, rank = facts.shape(scaling.inputs[1]), len(facts.shape(table))
    is_for_all = scale in ((), (1,))
    if not is_for_all and (len(scale) > 1 or integer(scaling, "axis", 1) % rank == axis):
        return table, None
    quantized = scaling.inputs[0]
    assert quantized is not None
    return quantized, scaling


def find_grain(table: ir.Value, axis: int, facts: Facts) -> int:
    """Return what spans of a table must be multiples of.

    Raises:
        IndivisibleError: it cannot be divided along the axis.
    """
    grain, size = 1, facts.shape(table)[axis]
    while grain < size:
        try:
            _check(table, Part(axis, Span(0, grain)), facts)
        except GrainError as error:
            grain = math.lcm(grain, error.grain)
        else:
            return grain
    raise IndivisibleError(f"`{table.name}` has no parts along axis {axis}")


def make_part(writer: Writer, value: ir.Value, part: Part, facts: Facts, suffix: str) -> ir.Value:
    """Return a part of a table; nodes between it and an initializer are written for the part alone."""
    span = part.span
    if value.is_initializer():
        return writer.part(value, part.axis, span.start, span.stop, suffix)
    node, answer = _answer(value, part, facts)
    inputs = [
        writer.lazy(answer.constants[index], f"{node.name}.{index}.{suffix}")
        if index in answer.constants
        else make_part(writer, source, answer.parts[index], facts, suffix)
        if source is not None and index in answer.parts
        else source
        for index, source in enumerate(node.inputs)
    ]
    made = piece_node(node, answer, inputs, f"{node.name}.{suffix}")
    output = made.outputs[node.outputs.index(value)]
    output.name = f"{value.name}.{suffix}"
    writer.add(made)
    writer.declare(output, value, {part.axis: len(span)})
    return output


def _check(value: ir.Value, part: Part, facts: Facts) -> None:
    if value.is_initializer():
        return
    node, answer = _answer(value, part, facts)
    for index, inner in answer.parts.items():
        source = node.inputs[index]
        assert source is not None
        _check(source, inner, facts)


def _answer(value: ir.Value, part: Part, facts: Facts) -> tuple[ir.Node, Piece]:
    node = value.producer()
    rule = None if node is None else RULES.get(key_of(node))
    if node is None or rule is None:
        raise IndivisibleError(f"`{value.name}` is made by {'no node' if node is None else node.op_type}")
    return node, rule(node, part.axis, part.span, facts)
