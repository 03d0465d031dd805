"""Who makes what: from the spans of a region's last output back to those of everything it is made of."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from hyps_passes.division.rule import Contraction, GrainError, IndivisibleError, Part, Piece, Span, key_of
from hyps_passes.division.rules import CONTRACTIONS, RULES
from hyps_passes.division.scene import Scene
from hyps_passes.division.spans import MaybeSpan, even_spans, handed_on, hull, new_parts, owned, widened
from hyps_passes.graph import can_cross

UNIT = Span(0, 1)
"""The span of a value that is only made whole."""

_MOST_WHOLE_ELEMENTS = 65_536
"""Up to here a piece may hold a constant whole to use a part of it."""

_CONCAT_OF_ANY = 4
"""The opset from which `Concat` takes more than floats."""

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)

ConstantKey = tuple[ir.Value, Part]


@dataclass(frozen=True, slots=True)
class Share:
    """What the pieces make of one node; the tuples have an entry per piece."""

    node: ir.Node
    axis: int | None
    """Of its outputs, counted from the front; None: who needs it makes it whole."""
    size: int
    """Of the axis; 1 of what is made whole."""
    made: tuple[MaybeSpan, ...]
    owned: tuple[MaybeSpan, ...]
    """What each piece hands out to the rest of the model; all empty where nothing outside needs it."""
    answers: tuple[Piece | None, ...]
    """How the piece makes it; None: it makes nothing of it."""


@dataclass(slots=True)
class Layout:
    """How a region is divided into pieces."""

    ranges: tuple[Span, ...]
    """Of the last node's output, or of its sum."""
    shares: dict[ir.Node, Share] = field(default_factory=dict)
    needs: dict[ir.Value, tuple[MaybeSpan, ...]] = field(default_factory=dict)
    """Of each value that the region makes and that is used, what each piece needs of it."""
    handed: dict[ir.Value, tuple[MaybeSpan, ...]] = field(default_factory=dict)
    """Of the same values, what each piece hands on to later ones, of what it makes."""
    constants: dict[ConstantKey, Piece | None] = field(default_factory=dict)
    """How parts of what constant nodes make are made; None: cut out of the whole when it runs."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Into how many pieces a region can be divided: at most `size // grain`."""

    size: int
    grain: int

    @property
    def most(self) -> int:
        """The most pieces."""
        return self.size // self.grain


def find_extent(scene: Scene) -> Extent:
    """Return how long the divided axis, or the sum, of the region is, and what its spans are multiples of.

    Raises:
        IndivisibleError: not even two pieces can be made.
    """
    size = _size(scene)
    if size < 2:
        raise IndivisibleError(f"the axis of `{scene.last.name}` has length {size}")
    grain = _Settling(scene, size).settle(2, at_first=True)[1]
    return Extent(size, grain)


def lay_out(scene: Scene, count: int) -> Layout:
    """Return how the region is divided into `count` pieces.

    Raises:
        IndivisibleError: it cannot be, or not into so many.
    """
    extent = find_extent(scene)
    if count > extent.most:
        raise IndivisibleError(f"{count} pieces of {extent.size}, which can be divided into {extent.most} at most")
    return _Settling(scene, extent.size).settle(count)[0]


class _NodeGrainError(Exception):
    """A rule wants spans of its node at multiples of a grain."""

    def __init__(self, node: ir.Node, grain: int) -> None:
        super().__init__(node.name, grain)
        self.node, self.grain = node, grain


class _Settling:
    """Finds spans that every rule takes.

    First all pieces are aligned to the grain that a rule asks for. Where that does not help, since the node stands
    behind a halo, its own spans are widened: some of it is computed twice then.
    """

    def __init__(self, scene: Scene, size: int) -> None:
        self._scene, self._size = scene, size
        self._aligned: dict[ir.Node, int] = {}
        self._widened: dict[ir.Node, int] = {}

    def settle(self, count: int, *, at_first: bool = False) -> tuple[Layout, int]:
        """Return the layout and the grain; `at_first` takes the smallest first piece, and the rest as the second."""
        while True:
            grain = math.lcm(*self._aligned.values())
            ranges = even_spans(self._size, count, grain)
            if at_first:
                ranges = [Span(0, grain), Span(grain, self._size)]
            try:
                return _Attempt(self._scene, ranges, self._widened).layout(), grain
            except _NodeGrainError as error:
                self._answer(error.node, error.grain, count)

    def _answer(self, node: ir.Node, grain: int, count: int) -> None:
        """Align the pieces, or widen the node's spans, so that they stand at multiples of a grain."""
        before = self._aligned.pop(node, 1)
        aligned = math.lcm(before, grain)
        fits = count * math.lcm(aligned, *self._aligned.values()) <= self._size
        if aligned > before and fits and node not in self._widened:
            self._aligned[node] = aligned
            return
        wide = math.lcm(aligned, self._widened.get(node, 1))
        if node in self._scene.constants or wide == self._widened.get(node):
            raise IndivisibleError(f"what `{node.name}` makes can only be divided at multiples of {grain}")
        self._widened[node] = wide


class _Attempt:
    """One pass from the last node to the first, with given spans of the last one's output."""

    def __init__(self, scene: Scene, ranges: Sequence[MaybeSpan], grains: dict[ir.Node, int]) -> None:
        self._scene, self._grains, self._count = scene, grains, len(ranges)
        self._layout = Layout(tuple(span for span in ranges if span is not None))
        assert len(self._layout.ranges) == self._count, ranges
        self._demands: dict[ir.Value, list[list[Part | None]]] = {}
        """Per value and piece, the parts that its readers ask for; None: all of it."""

    def layout(self) -> Layout:
        for node in reversed(self._scene.nodes):
            if any(value in self._demands or self._scene.is_output(value) for value in node.outputs):
                is_sum = node is self._scene.last and self._scene.region.axis is None
                share = self._sum(node) if is_sum else self._share(node)
                self._layout.shares[node] = share
                self._read(node, share)
        for node, share in self._layout.shares.items():
            for value in node.outputs:
                if value in self._layout.needs:
                    self._hand_on(value, share)
        return self._layout

    def _sum(self, node: ir.Node) -> Share:
        """Return the share of the last node where each piece makes an addend of its output."""
        contraction, facts = contraction_of(node), self._scene.facts
        answers = [
            self._answer(node, partial(contraction.piece, node, span, index, facts))
            for index, span in enumerate(self._layout.ranges)
        ]
        self._check_sizes(node.outputs[:1])
        every = (UNIT,) * self._count
        return Share(node, None, 1, every, every, tuple(answers))

    def _share(self, node: ir.Node) -> Share:
        axis = self._axis(node)
        used = [v for v in node.outputs if v in self._demands or self._scene.is_output(v)]
        size = 1 if axis is None else self._common_size(used, axis)
        self._check_sizes(used)
        needs = {value: self._needs(value, axis, size) for value in used}
        needed = self._widened(node, [hull(spans) for spans in zip(*needs.values(), strict=True)], size)
        owns: list[MaybeSpan] = [None] * self._count
        if any(self._scene.is_output(value) for value in used):
            owns = self._owned(node, needed, size)
            needed = self._widened(node, [hull(pair) for pair in zip(needed, owns, strict=True)], size)
        for value, spans in needs.items():
            wanted = owns if self._scene.is_output(value) else [None] * self._count
            self._layout.needs[value] = tuple(hull(pair) for pair in zip(spans, wanted, strict=True))
        made = new_parts(needed, str(node.name)) if self._scene.region.carry else needed
        answers = tuple(None if span is None else self._ask(node, axis, span, size) for span in made)
        return Share(node, axis, size, tuple(made), tuple(owns), answers)

    def _check_sizes(self, values: Iterable[ir.Value]) -> None:
        """Make sure that the parts of values can be given their sizes: nothing may fail once they are being made."""
        for value in values:
            self._scene.facts.shape(value)

    def _axis(self, node: ir.Node) -> int | None:
        """Return the axis along which all readers want it; None where they want it whole, or do not agree."""
        demands = [part for v in node.outputs for parts in self._demands.get(v, ()) for part in parts]
        axes = {part.axis for part in demands if part is not None}
        if not demands:
            axes = {axis_of(self._scene, node)}
        return axes.pop() if len(axes) == 1 else None

    def _common_size(self, values: Iterable[ir.Value], axis: int) -> int:
        found = set()
        for value in values:
            found.add(fixed_size(self._scene, value, axis))
        if len(found) > 1:
            raise IndivisibleError(f"its outputs differ in axis {axis}")
        if found == {0}:
            raise IndivisibleError(f"there is nothing along axis {axis}")
        return found.pop()

    def _needs(self, value: ir.Value, axis: int | None, size: int) -> list[MaybeSpan]:
        parts = self._demands.get(value, [[] for _ in range(self._count)])
        if axis is None:
            return [UNIT if asked else None for asked in parts]
        return [hull(Span(0, size) if part is None else part.span for part in asked) for asked in parts]

    def _widened(self, node: ir.Node, spans: Sequence[MaybeSpan], size: int) -> list[MaybeSpan]:
        return [widened(span, self._grains.get(node, 1), size) for span in spans]

    def _owned(self, node: ir.Node, needed: Sequence[MaybeSpan], size: int) -> list[MaybeSpan]:
        for value in node.outputs:
            if self._scene.is_output(value):
                self._check_joint(value)
        if node is self._scene.last:
            return list(self._layout.ranges)
        if all(span is None for span in needed):
            return even_spans(size, self._count, self._grains.get(node, 1))
        return owned(needed, size)

    def _ask(self, node: ir.Node, axis: int | None, span: Span, size: int) -> Piece:
        if axis is None or len(span) == size:
            return Piece()
        rule = RULES.get(key_of(node))
        if rule is None:
            raise IndivisibleError(f"`{node.name}`: {node.op_type} cannot be divided")
        return self._answer(node, partial(rule, node, axis, span, self._scene.facts))

    def _answer(self, node: ir.Node, ask: Callable[[], Piece]) -> Piece:
        try:
            return self._checked(node, ask())
        except GrainError as error:
            raise _NodeGrainError(node, error.grain) from error
        except IndivisibleError as error:
            raise _at(node, error) from error

    def _read(self, node: ir.Node, share: Share) -> None:
        """Note what the pieces of a node ask of its inputs."""
        for index, answer in enumerate(share.answers):
            for value, part in () if answer is None else reads(node, answer):
                if self._scene.inside(value):
                    empty: list[list[Part | None]] = [[] for _ in range(self._count)]
                    self._demands.setdefault(value, empty)[index].append(part)
                elif part is not None and self._scene.is_constant(value):
                    self._constant(value, part)
                elif part is not None and not can_cross(value):
                    raise IndivisibleError(f"`{value.name}` is {value.dtype}, of which there are no slices")

    def _checked(self, node: ir.Node, answer: Piece) -> Piece:
        """Return the answer without parts that are all of an input."""
        parts = {}
        for index, part in answer.parts.items():
            value = node.inputs[index]
            assert value is not None, (node.name, index)
            size = fixed_size(self._scene, value, part.axis)  # what is all of it must be so in every request
            assert 0 <= part.span.start < part.span.stop <= size, (node.name, value.name, part, size)
            if len(part.span) < size:
                parts[index] = part
        return replace(answer, parts=parts)

    def _constant(self, value: ir.Value, part: Part) -> None:
        """Find out how a part of a constant is made."""
        node = value.producer()
        if node is None or value.is_initializer() or (value, part) in self._layout.constants:
            return
        shape = self._scene.facts.shape(value)
        try:
            answer = self._ask(node, part.axis, part.span, shape[part.axis])
            wanted = [(v, p) for v, p in reads(node, answer) if p is not None]
        except (IndivisibleError, _NodeGrainError):
            if math.prod(shape) > _MOST_WHOLE_ELEMENTS:
                raise
            self._layout.constants[value, part] = None
            return
        self._layout.constants[value, part] = answer
        for source, along in wanted:
            self._constant(source, along)

    def _hand_on(self, value: ir.Value, share: Share) -> None:
        parts = handed_on(self._layout.needs[value], share.made) if self._scene.region.carry else []
        if any(parts):
            self._check_joint(value)
        self._layout.handed[value] = tuple(parts)

    def _check_joint(self, value: ir.Value) -> None:
        """Make sure that parts of a value can go from one partition to another and be joined there."""
        if not can_cross(value):
            raise IndivisibleError(f"`{value.name}` cannot travel between partitions")
        if self._scene.facts.opset < _CONCAT_OF_ANY and value.dtype not in _FLOATS:
            raise IndivisibleError(
                f"`{value.name}` is {value.dtype}, of which opset {_CONCAT_OF_ANY} joins parts first"
            )


def reads(node: ir.Node, answer: Piece) -> Iterator[tuple[ir.Value, Part | None]]:
    """Yield the inputs that a piece takes from the node, and which part of each; None: all of it."""
    for index, value in enumerate(node.inputs):
        if value is not None and index not in answer.absent and index not in answer.constants:
            yield value, answer.parts.get(index)


def axis_of(scene: Scene, node: ir.Node) -> int:
    """Return the region's axis, counted from the front, in what a node makes for the rest of the model.

    Raises:
        IndivisibleError: there is none.
    """
    value, axis = _first_output(scene, node), scene.region.axis
    if axis is None:
        raise IndivisibleError(f"`{value.name}` leaves the region and is no part of the sum")
    rank = len(scene.facts.shape(value))
    if not -rank <= axis < 0:
        raise IndivisibleError(f"`{value.name}` has no axis {axis}")
    return rank + axis


def fixed_size(scene: Scene, value: ir.Value, axis: int) -> int:
    """Return the size of an axis, counted from the front, that all requests share.

    Raises:
        IndivisibleError: there is no such axis, or requests differ in it.
    """
    shape = scene.facts.shape(value)
    if axis >= len(shape):
        raise IndivisibleError(f"`{value.name}` has no axis {axis}")
    if not scene.is_constant(value) and not scene.facts.is_fixed(value, axis):
        raise IndivisibleError(
            f"axis {axis} of `{value.name}` differs between requests; `--input` can fix the size of an input"
        )
    return shape[axis]


def contraction_of(node: ir.Node) -> Contraction:
    """Return how the node's sum is divided.

    Raises:
        IndivisibleError: it is no sum.
    """
    contraction = CONTRACTIONS.get(key_of(node))
    if contraction is None:
        raise IndivisibleError(f"`{node.name}`: {node.op_type} is no sum that can be divided")
    return contraction


def _size(scene: Scene) -> int:
    last = scene.last
    if scene.region.axis is not None:
        return fixed_size(scene, _first_output(scene, last), axis_of(scene, last))
    try:
        return contraction_of(last).size(last, scene.facts)
    except IndivisibleError as error:
        raise _at(last, error) from error


def _first_output(scene: Scene, node: ir.Node) -> ir.Value:
    return next(value for value in node.outputs if scene.is_output(value))


def _at(node: ir.Node, error: IndivisibleError) -> IndivisibleError:
    return IndivisibleError(f"`{node.name}`: {error.reason}")
