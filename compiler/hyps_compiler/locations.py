"""The files in which a model's weights lie, read from its bytes without protobuf, whose import costs more than a check.

For keys of the cache, and to tell whose a file is: whoever compiles the model finds them with onnx and judges where
they may be.
"""

import mmap
from pathlib import Path

from hyps_compiler.wire import Buffer, fields

_DOWN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""By message, the fields on the way to a tensor's external data (onnx.proto), and what they hold."""
_KEY, _VALUE = 1, 2


def locations(data: Buffer) -> list[str]:
    """Return the names of the files in which tensors of a model lie, sorted; nothing where the bytes are no model.

    >>> locations(b"no model at all")
    []
    """
    found = set()
    todo = [("model", 0, len(data))]
    while todo:
        kind, start, end = todo.pop()
        if kind == "entry":
            found.add(_location(data, start, end))
            continue
        down = _DOWN[kind]
        todo += [(down[field], first, last) for field, first, last in fields(data, start, end) if field in down]
    return sorted(found - {""})


def locations_in(path: Path) -> list[str]:
    """Return the names of the files in which tensors of the model file lie, sorted."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return locations(data)


def _location(data: Buffer, start: int, end: int) -> str:
    """Return what an entry of a tensor's external data says of its place; empty where it says something else."""
    told = {field: data[first:last] for field, first, last in fields(data, start, end)}
    return told.get(_VALUE, b"").decode("utf-8", "surrogateescape") if told.get(_KEY) == b"location" else ""
