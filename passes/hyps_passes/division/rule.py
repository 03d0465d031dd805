"""How one operator is divided: what a piece of its output needs of each of its inputs.

A rule looks at one node, an axis of its output and a span along it, and answers with a `Piece`: the same computation
for that span alone. Spatial tiles, output channels, attention heads, columns and rows of a product are all spans;
what differs is the axis. Where a sum over an axis of the inputs is cut up instead, a `Contraction` makes pieces that
are added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from hyps_passes.ops import STANDARD_DOMAINS, Shapes

if TYPE_CHECKING:
    import numpy as np

Key = tuple[str, str]
"""Domain, empty for the standard one, and operator."""

_MOST_CONSTANT_ELEMENTS = 65_536


class IndivisibleError(Exception):
    """The node, or this axis of it, cannot be divided.

    Attributes:
        reason: a phrase for people, such as "Softmax needs all of axis 3".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class GrainError(Exception):
    """The span can be had only at multiples of `grain`: whole groups of a convolution, whole heads.

    Attributes:
        grain: a divisor of the axis's size, above 1.
    """

    def __init__(self, grain: int) -> None:
        super().__init__(f"spans must begin and end at multiples of {grain}")
        self.grain = grain


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start` to `stop` - 1 along an axis; never empty."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def hull(self, other: "Span") -> "Span":
        """Return the smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))


@dataclass(frozen=True, slots=True)
class Part:
    """What of an input is read: a span along one of its axes, counted from the front."""

    axis: int
    span: Span


@dataclass(frozen=True, slots=True)
class Piece:
    """The node that makes one span of what the whole node makes."""

    parts: Mapping[int, Part] = field(default_factory=dict)
    """By index of the input; an input that is not named is read whole."""
    attributes: Mapping[str, ir.Attr | None] = field(default_factory=dict)
    """Attributes that differ from the node's; None: left out."""
    constants: Mapping[int, ir.TensorProtocol] = field(default_factory=dict)
    """Inputs that are other constants than the node's, such as the shape of a Reshape. Large ones are lazy tensors."""
    absent: frozenset[int] = frozenset()
    """Inputs that are left out, such as a bias that another piece adds."""
    kind: Key | None = None
    """The operator, where it is another one."""
    surplus: tuple[int, int] = (0, 0)
    """Positions that the node makes in front of the span and behind it; they are cut away."""


class Facts:
    """What a rule may know of the values around a node."""

    def __init__(self, shapes: Shapes, opset: int) -> None:
        """Take the concrete shapes, open dimensions at their assumed sizes, and the standard opset's version."""
        self._shapes, self.opset = shapes, opset

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the concrete shape.

        Raises:
            IndivisibleError: it is unknown.
        """
        shape = self._shapes(value)
        if shape is None:
            raise IndivisibleError(f"the shape of `{value and value.name}` is unknown")
        return shape

    def is_fixed(self, value: ir.Value, axis: int) -> bool:
        """Return whether the axis has the same size in every request, so that spans of it can be written down."""
        if value.const_value is not None:
            return True
        return value.shape is not None and len(value.shape) > axis and isinstance(value.shape[axis], int)

    def constant(self, value: ir.Value | None) -> "np.ndarray[Any, Any] | None":
        """Return the value of a small initializer, such as a shape, axes or pads; None of anything else."""
        tensor = None if value is None else value.const_value
        if value is None or not value.is_initializer() or tensor is None or tensor.size > _MOST_CONSTANT_ELEMENTS:
            return None
        return tensor.numpy()


Rule = Callable[[ir.Node, int, Span, Facts], Piece]
"""From a node, an axis of its outputs counted from the front, and a span along it, to the piece that makes the span.

All outputs of the node that are used are divided along the same axis and span; an operator for which that is wrong
refuses. Raises IndivisibleError or GrainError.
"""


class Contraction(Protocol):
    """How an operator that sums over an axis of its inputs is divided along that axis; the pieces are added."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the length of the sum: the input channels of a convolution, the rows of a weight matrix.

        Raises:
            IndivisibleError: the node is no such sum, or its pieces could not be added.
        """

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Return the piece for a span of the sum; what is added once (a bias) goes with `index` 0.

        Raises:
            IndivisibleError, GrainError: as a rule.
        """

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return the operators of one input that follow the sum: an activation that was fused into the node."""


def key_of(node: ir.Node) -> Key:
    """Return the key under which a node's rule stands."""
    return ("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type)


def piece_node(node: ir.Node, piece: Piece, inputs: "list[ir.Value | None]", name: str) -> ir.Node:
    """Return the node of a piece, with as many unnamed outputs as `node`.

    Args:
        node: the whole node.
        piece: what the rule answered.
        inputs: one per input of `node`: the parts it asked for and the constants it brought, in place.
        name: of the new node.
    """
    attributes = {**node.attributes, **piece.attributes}
    domain, op_type = piece.kind or (node.domain, node.op_type)
    kept = [None if index in piece.absent else value for index, value in enumerate(inputs)]
    if op_type in ("Concat", "QLinearConcat"):  # its inputs have no places: an empty one among them is an error
        kept = [value for value in kept if value is not None]
    while kept and kept[-1] is None:
        kept.pop()
    given = [attribute for attribute in attributes.values() if attribute is not None]
    return ir.Node(domain, op_type, kept, given, num_outputs=len(node.outputs), name=name)
