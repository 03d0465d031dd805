"""Looks into the bytes of a model that protobuf does not parse: how deep its graphs stand in each other.

Protobuf stops at 100 messages within each other; since version 7 it says so, before it does not.
"""

import mmap
from collections.abc import Iterator

Buffer = bytes | mmap.mmap

_GRAPH_OF_MODEL, _NODE_OF_GRAPH, _ATTRIBUTE_OF_NODE, _GRAPH_OF_ATTRIBUTE, _GRAPHS_OF_ATTRIBUTE = 7, 1, 5, 6, 11
_DOWN = {
    "model": {_GRAPH_OF_MODEL: "graph"},
    "graph": {_NODE_OF_GRAPH: "node"},
    "node": {_ATTRIBUTE_OF_NODE: "attribute"},
    "attribute": {_GRAPH_OF_ATTRIBUTE: "graph", _GRAPHS_OF_ATTRIBUTE: "graph"},
}
"""By message, the fields on the way to nested graphs (onnx.proto), and what they hold."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def nests_deeper(data: bytes, most: int) -> bool:
    """Return whether graphs stand in each other more than `most` deep; False where the bytes are no model.

    >>> nests_deeper(b"no model at all", 32)
    False
    """
    todo = [("model", 0, len(data), 0)]
    while todo:
        kind, start, end, depth = todo.pop()
        if depth > most + 1:  # the model's own graph is not in another
            return True
        down = _DOWN[kind]
        for field, first, last in fields(data, start, end):
            if (inner := down.get(field)) is not None:
                todo.append((inner, first, last, depth + (inner == "graph")))
    return False


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, beginning and end of the fields of a message that hold bytes; ends where it is no message.

    A field that says it is longer than its message ends with that.
    """
    while start < end:
        key, start = _varint(data, start, end)
        field, wire = key >> 3, key & 7
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire in (_VARINT, _LENGTH):
            length, start = _varint(data, start, end)
        if start > end or wire not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
            return
        if wire == _VARINT:
            continue
        if wire == _LENGTH:
            yield field, start, min(start + length, end)
        start += length


def _varint(data: Buffer, start: int, end: int) -> tuple[int, int]:
    """Return the number at `start` and where it ends; behind `end` where there is none."""
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
    return 0, end + 1
