"""What nodes of pieces say of themselves: of which tensor of the model they make which span.

It is written into the partitions' files as metadata of the nodes. Nothing runs by it: who verifies a plan compares what
a piece makes with the span of the model's own tensor that it claims to be.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

_PART = "hyps.part."
"""Key of a node's metadata, before the number of the output."""
NEW = "hyps.new"
"""Key of a node's metadata: the model has no node that it could be compared with; merges, for one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A part of a tensor of the model."""

    of: str
    """The tensor's name in the model."""
    axis: int | None = None
    """Counted from the front; None: it is the whole tensor."""
    start: int = 0
    stop: int = 0

    def __str__(self) -> str:
        """Return `12 to 15 of axis 2`, or `all`."""
        return "all" if self.axis is None else f"{self.start} to {self.stop - 1} of axis {self.axis}"


def write_claim(value: ir.Value, claim: Claim) -> None:
    """Note at the node that makes a value which part of the model's tensor it is."""
    node = value.producer()
    assert node is not None
    span = {} if claim.axis is None else {"axis": claim.axis, "span": [claim.start, claim.stop]}
    node.metadata_props[f"{_PART}{node.outputs.index(value)}"] = json.dumps({"of": claim.of, **span})


def mark_new(node: ir.Node) -> None:
    """Note that the model has no such node."""
    node.metadata_props[NEW] = "true"


def read_claims(metadata: Mapping[str, str]) -> dict[int, Claim]:
    """Return the claims in a node's metadata by number of its output; what is no claim is left out."""
    found = {}
    for key, text in metadata.items():
        number = key.removeprefix(_PART)
        claim = _claim(text) if number != key and number.isascii() and number.isdigit() else None
        if claim is not None:
            found[int(number)] = claim
    return found


def _claim(text: str) -> Claim | None:
    try:
        told: Any = json.loads(text)
        of, axis, (start, stop) = told["of"], told.get("axis"), told.get("span", (0, 0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = [start, stop, *([] if axis is None else [axis])]
    is_sound = isinstance(of, str) and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    return Claim(of, axis, start, stop) if is_sound and (axis is None or start < stop) else None
