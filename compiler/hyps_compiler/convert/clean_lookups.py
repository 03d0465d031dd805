"""Look-ups whose negative indices are made positive first, which ONNX's Gather does by itself."""

import numpy as np
import onnx_ir as ir

from hyps_compiler.convert.clean_constants import constant

_WIDE = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64}


def drop_index_wrapping(graph: ir.Graph) -> bool:
    """Give each Gather the indices i in place of `i + rows where i < 0 else i`; return whether there was any.

    Applies where the choice is made (1) by a Where, or (2) by adding two products with the condition and its opposite,
    as tf2onnx does.
    """
    changed = False
    for node in list(graph):
        if node.op_type == "Gather" and node.domain in ("", "ai.onnx"):
            origin = _unwrapped(node)
            if origin is not None and _has_rank_of(origin, node.inputs[1]):
                node.replace_input_with(1, origin)
                changed = True
    return changed


def _unwrapped(node: ir.Node) -> ir.Value | None:
    """Return the indices before the wrapping; None where there is none."""
    table, indices = node.inputs[0], node.inputs[1]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if table is None or table.shape is None or indices is None:
        return None
    rows = table.shape[axis]
    choice = indices.producer()
    if not isinstance(rows, int) or choice is None:
        return None
    if choice.op_type == "Where":  # (1)
        condition, wrapped, origin = choice.inputs
        return origin if _is_negative(condition, origin) and _is_sum(wrapped, origin, rows) else None
    if choice.op_type != "Add":  # (2)
        return None
    for one, other in (tuple(choice.inputs), tuple(reversed(choice.inputs))):
        for flag, wrapped in _factors(one):
            for opposite, origin in _factors(other):
                if _is_sum(wrapped, origin, rows) and _is_negative(flag, origin) and _is_opposite(opposite, flag):
                    return origin
    return None


def _has_rank_of(one: ir.Value, other: ir.Value | None) -> bool:
    shapes = (one.shape, None if other is None else other.shape)
    return shapes[0] is not None and shapes[1] is not None and len(shapes[0]) == len(shapes[1])


def _factors(value: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Return the two factors of a product in both orders; none where it is no product."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul":
        return []
    return [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]


def _is_sum(value: ir.Value | None, origin: ir.Value | None, rows: int) -> bool:
    """Return whether a value is `origin` + `rows`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Add" or origin is None:
        return False
    terms = [term for term in node.inputs if term is not origin]
    return len(terms) == 1 and _is_number(terms[0], rows)


def _is_number(value: ir.Value | None, number: int) -> bool:
    known = constant(value)
    return known is not None and known.size == 1 and bool(np.all(known == number))


def _is_negative(value: ir.Value | None, origin: ir.Value | None) -> bool:
    """Return whether a value tells where `origin` is below zero; casts aside."""
    node = _casts(value)[-1].producer() if value is not None else None
    if node is None or node.op_type != "Less" or not _is_number(node.inputs[1], 0):
        return False
    return any(step is origin for step in _casts(node.inputs[0]))


def _is_opposite(value: ir.Value | None, flag: ir.Value | None) -> bool:
    """Return whether a value is the negation of another, which is a truth value or cast from one."""
    node = _casts(value)[-1].producer() if value is not None else None
    return (
        node is not None
        and node.op_type == "Not"
        and flag is not None
        and any(step is node.inputs[0] for step in _casts(flag))
    )


def _casts(value: ir.Value | None) -> list[ir.Value]:
    """Return a value, what it was before it was cast, and so on; only casts that keep signs and truth values."""
    steps: list[ir.Value] = []
    while value is not None:
        steps.append(value)
        node = value.producer()
        if node is None or node.op_type != "Cast" or node.attributes["to"].as_int() not in _WIDE:
            break
        value = node.inputs[0]
    return steps
