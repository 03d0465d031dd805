"""Look-ups: which weights are tables of which nodes only read the rows that the indices name."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from hyps_passes.division.rule import key_of

TABLE_FROM_NBYTES = 2**20
"""Smaller ones are read whole as fast."""

_MICROSOFT = "com.microsoft"
_VIEWS = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
"""Every element of the output is one of the first input."""
_WIDE = (ir.DataType.INT32, ir.DataType.INT64)
_INDICES = frozenset(ir.DataType[name] for name in "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32".split())


@dataclass(frozen=True, slots=True)
class LookUp:
    """A weight that is only ever read by the row."""

    table: ir.Value
    indices: tuple[ir.Value, ...]
    """The given values whose elements are the rows; each may also have been cut off to 32 bits on its way."""


def find_look_ups(
    nodes: Collection[ir.Node], read: Callable[[ir.Node], Iterable[ir.Value]], is_given: Callable[[ir.Value], bool]
) -> list[LookUp]:
    """Return the tables of nodes that run together, in the order in which they are used.

    A weight is one where it has 1 MiB or more and each of the nodes that reads it is one of these:

    1. a Gather along its first axis,
    2. a GatherBlockQuantized along its first axis, of which it is the data, the scales or the zero points,
    3. an EmbedLayerNormalization in single precision, of which it is the table of words, positions or segments;

    and the indices are a given value, of which nodes may have made another shape, a part, or wider integers.

    Args:
        nodes: all that run together.
        read: returns all that a node reads, what graphs inside it capture included.
        is_given: whether a value is known before the nodes run.
    """
    found: dict[int, LookUp] = {}
    refused: set[int] = set()
    for node in nodes:
        for table in read(node):
            if not is_table(table):
                continue
            indices = _indices(node, table)
            root = None if indices is None else _root(indices, is_given)
            if root is None:
                refused.add(id(table))
                continue
            before = found[id(table)].indices if id(table) in found else ()
            found[id(table)] = LookUp(table, tuple({id(value): value for value in (*before, root)}.values()))
    return [look_up for key, look_up in found.items() if key not in refused]


def is_table(value: ir.Value) -> bool:
    """Return whether the value is a weight that is large enough to be worth looking up."""
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and tensor.nbytes >= TABLE_FROM_NBYTES


def _indices(node: ir.Node, table: ir.Value) -> ir.Value | None:
    """Return by which of its inputs the node looks up rows of a table; None where it reads more than rows of it."""
    places = [index for index, value in enumerate(node.inputs) if value is table]
    if len(places) != 1:
        return None  # it is captured by a graph inside, or used in two ways
    by = _BY_OPERATOR.get(key_of(node), _by_nothing)(node, table, places[0])
    return None if by is None or by >= len(node.inputs) else node.inputs[by]


def _by_nothing(node: ir.Node, table: ir.Value, place: int) -> int | None:
    return None


def _by_gather(node: ir.Node, table: ir.Value, place: int) -> int | None:
    return 1 if place == 0 and _axis(node, "axis", 0, table) == 0 else None


def _by_gather_blocks(node: ir.Node, table: ir.Value, place: int) -> int | None:
    by_rows = _axis(node, "gather_axis", 0, table) == 0 != _axis(node, "quantize_axis", 1, table)
    return 1 if place in (0, 2, 3) and by_rows else None


def _by_embeddings(node: ir.Node, table: ir.Value, place: int) -> int | None:
    is_single = table.const_value is not None and table.const_value.dtype == ir.DataType.FLOAT
    return {2: 0, 3: 8, 4: 1}.get(place) if is_single else None  # half precision is widened as a whole


_BY_OPERATOR: dict[tuple[str, str], Callable[[ir.Node, ir.Value, int], int | None]] = {
    ("", "Gather"): _by_gather,
    (_MICROSOFT, "GatherBlockQuantized"): _by_gather_blocks,
    (_MICROSOFT, "EmbedLayerNormalization"): _by_embeddings,
}


def _axis(node: ir.Node, name: str, default: int, table: ir.Value) -> int | None:
    rank = len(table.const_value.shape) if table.const_value is not None else 0
    attribute = node.attributes.get(name)
    axis = default if attribute is None else attribute.as_int()
    return axis % rank if rank else None


def _root(value: ir.Value, is_given: Callable[[ir.Value], bool]) -> ir.Value | None:
    """Return the given value that all elements of `value` are of; None where there is none."""
    while not is_given(value):
        node = value.producer()
        if node is None or not _keeps_elements(node) or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value if value.dtype in _INDICES else None


def _keeps_elements(node: ir.Node) -> bool:
    if key_of(node) == ("", "Cast"):
        return node.attributes["to"].as_int() in _WIDE
    return key_of(node)[0] == "" and node.op_type in _VIEWS
