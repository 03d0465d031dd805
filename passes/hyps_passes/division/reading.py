"""What rules read off a node: its attributes, its operands, and the part of an operand that broadcasts."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hyps_passes.division.rule import Facts, IndivisibleError, Part, Span


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """Return an attribute that is one integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """Return an attribute that is a list of integers; None: it is not given."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def text(node: ir.Node, name: str, default: str = "") -> str:
    """Return an attribute that is a string."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input; None: it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """Return an input.

    Raises:
        IndivisibleError: it is left out.
    """
    value = operand(node, index)
    if value is None:
        raise IndivisibleError(f"{node.op_type} has no input {index}")
    return value


def constant_integers(node: ir.Node, index: int, facts: Facts) -> tuple[int, ...] | None:
    """Return an input that is a small constant list of integers (or one integer); None: it is left out.

    Raises:
        IndivisibleError: it is computed.
    """
    value = operand(node, index)
    if value is None:
        return None
    constant = facts.constant(value)
    if constant is None:
        raise IndivisibleError(f"input {index} of {node.op_type} is computed")
    return tuple(int(number) for number in constant.reshape(-1))


def list_of(node: ir.Node, name: str, index: int, facts: Facts) -> tuple[int, ...] | None:
    """Return axes, bounds or sizes: attribute `name` in older opsets, input `index` in newer ones; None: neither.

    Raises:
        IndivisibleError: it is computed.
    """
    attribute = integers(node, name)
    return attribute if attribute is not None else constant_integers(node, index, facts)


def broadcast_part(value: ir.Value | None, rank: int, axis: int, span: Span, facts: Facts) -> Part | None:
    """Return the part of an operand that broadcasts to `rank` axes; None: the operand is read whole.

    Args:
        value: the operand; its axes are the last ones.
        rank: of what it broadcasts to.
        axis: the axis that is divided, of `rank` ones.
        span: along that axis.
        facts: of the model.

    Raises:
        IndivisibleError: the size of the operand's axis is open, so that it may broadcast or not.
    """
    if value is None:
        return None
    shape = facts.shape(value)
    own = axis - (rank - len(shape))
    if own < 0:
        return None
    if shape[own] != 1:
        return Part(own, span)
    if value.shape is not None and not facts.is_fixed(value, own):
        raise IndivisibleError(f"the size of axis {own} of `{value.name}` is open")
    return None


def parts(found: Mapping[int, Part | None]) -> dict[int, Part]:
    """Return the parts of those inputs that are divided."""
    return {index: part for index, part in found.items() if part is not None}


def shape_constant(numbers: Sequence[int]) -> ir.TensorProtocol:
    """Return the int64 list that is given to a node as its shape, axes or bounds."""
    return ir.tensor(list(numbers), dtype=ir.DataType.INT64)


def is_used(value: ir.Value) -> bool:
    """Return whether anything reads the value."""
    return bool(value.uses()) or value.is_graph_output()
