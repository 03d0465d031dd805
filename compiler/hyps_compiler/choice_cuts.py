"""The ways of dividing layers that the choice tries: what each one covers, and how it rewrites the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError, key_of
from hyps_passes.division.rules import CONTRACTIONS
from hyps_passes.graph import Layer
from hyps_passes.rewrites.divide_recurrent import WAYS, RecurrentLayer, find_recurrent
from hyps_passes.rewrites.divide_table import TableLayer, find_table
from hyps_passes.rewrites.open_pieces import Group, OpenPieces
from hyps_passes.rewrites.recurrent_cell import is_recurrent
from hyps_passes.rewrites.slice_dense import DenseLayer, Refusal, SliceDense, find_dense, row_ranges

Sizes = dict[str, tuple[int, ...]]

_MOST_AXES = 3
"""The outermost that can be divided: others would hardly do better, and their parts are not contiguous."""
_MOST_ENDS = 8
_MOST_PIECES = 1024
_FEW_PIECES = 128
_SUM_S = 1e-3
"""Sums in another order round differently: they have to be worth it."""
_STRIDED_S = 0.2e-3


class Cut(Protocol):
    """One way to divide consecutive layers into any number of pieces up to `units`."""

    @property
    def units(self) -> int:
        """The most pieces that there can be; every piece is some of them."""
        ...

    @property
    def least(self) -> int:
        """The fewest pieces."""
        ...

    @property
    def most(self) -> int:
        """The most pieces worth trying: each is a partition, with a file of its own."""
        ...

    @property
    def penalty_s(self) -> float:
        """What speaks against it, as seconds of a request."""
        ...

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the values that come in; a fusion with what makes them is given up."""
        ...

    def apply(self, model: ir.Model, sizes: Sizes, count: int) -> str:
        """Divide into `count` pieces and return the rewrite's text form.

        Raises:
            IndivisibleError: it cannot be.
        """
        ...


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Output rows of a dense layer, by `SliceDense`."""

    layer: Layer
    units: int
    inputs: frozenset[str]

    least = 2
    penalty_s = 0.0

    @property
    def most(self) -> int:
        """As many as there are rows."""
        return self.units

    def apply(self, model: ir.Model, sizes: Sizes, count: int) -> str:
        """Divide, as in `Cut`."""
        names = {node.name: node for node in model.graph}
        dense = find_dense(replace(self.layer, nodes=tuple(names[node.name] for node in self.layer.nodes)))
        if not isinstance(dense, DenseLayer):
            raise IndivisibleError(dense.reason)
        rewrite = SliceDense(self.layer.name, count)
        rewrite.apply(model, dense, sizes)
        return str(rewrite)


@dataclass(frozen=True, slots=True)
class RegionPieces:
    """Pieces of a region of nodes along one axis, or parts of the sum that its last node makes."""

    region: Region
    units: int
    inputs: frozenset[str]
    groups: tuple[Group, ...] = ()
    """Of the nodes of each piece, what is an H-partition of its own; empty: the piece is one."""

    least = 2

    @property
    def most(self) -> int:
        """The fewer, the more nodes each has."""
        return max(_MOST_PIECES // len(self.region.nodes), _FEW_PIECES)

    @property
    def penalty_s(self) -> float:
        """What a sum costs beside its additions, and what cutting along the innermost axis costs beside its bytes."""
        return {None: _SUM_S, -1: _STRIDED_S}.get(self.region.axis, 0.0)

    def apply(self, model: ir.Model, sizes: Sizes, count: int) -> str:
        """Divide, as in `Cut`."""
        rewrite = Divide(self.region, count)
        rewrite.apply(model, sizes)
        if not self.groups:
            return str(rewrite)
        opening = OpenPieces(self.region.name, self.groups)
        opening.apply(model)
        return f"{rewrite},{opening}"


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of the table of a look-up."""

    table: TableLayer
    carry: bool
    inputs: frozenset[str]

    least = 2
    most = _MOST_PIECES
    penalty_s = 0.0

    @property
    def units(self) -> int:
        """The most pieces."""
        return self.table.most

    def apply(self, model: ir.Model, sizes: Sizes, count: int) -> str:
        """Divide, as in `Cut`."""
        rewrite = self.table.rewrite(count, carry=self.carry)
        rewrite.apply(model, sizes)
        return str(rewrite)


@dataclass(frozen=True, slots=True)
class RecurrentPieces:
    """Directions, gates, samples or time steps of a recurrent layer."""

    layer: RecurrentLayer
    inputs: frozenset[str]

    most = _MOST_PIECES
    penalty_s = 0.0

    @property
    def units(self) -> int:
        """The most pieces."""
        return self.layer.most

    @property
    def least(self) -> int:
        """The fewest pieces."""
        return self.layer.least

    def apply(self, model: ir.Model, sizes: Sizes, count: int) -> str:
        """Divide, as in `Cut`."""
        rewrite = self.layer.rewrite(count)
        rewrite.apply(model, sizes)
        return str(rewrite)


def dense_rows(layer: Layer) -> DenseRows | str:
    """Return the cut of a dense layer into output rows, or why it cannot be cut."""
    dense = Refusal(layer.name, "it is an H-partition already") if layer.shard else find_dense(layer)
    if isinstance(dense, Refusal):
        return dense.reason
    inputs = frozenset(str(value.name) for value in dense.product.inputs if value is not None)
    return DenseRows(layer, dense.rows, inputs)


def special_cuts(model: ir.Model, layer: Layer, sizes: Sizes) -> tuple[list[tuple[object, Cut]], list[str]]:
    """Return the cuts that are made for operators of one kind, each with a key of its own, and why others are none."""
    found: list[tuple[object, Cut]] = []
    reasons: list[str] = []
    inputs = _outside(layer.nodes)
    if any(node.op_type == "Gather" for node in layer.nodes):
        table = find_table(model, layer, sizes)
        if isinstance(table, TableLayer):
            found += [(("table", carry), TableRows(table, carry, inputs)) for carry in (False, True)]
        else:
            reasons.append(table.reason)
    if any(is_recurrent(node) for node in layer.nodes):
        for way in WAYS:
            pieces = find_recurrent(layer, way, sizes)
            if isinstance(pieces, RecurrentLayer):
                found.append((way, RecurrentPieces(pieces, inputs)))
            else:
                reasons.append(pieces.reason)
    return found, reasons


@dataclass(frozen=True, slots=True)
class Way:
    """How layers of one signature can be divided as a region."""

    nodes: int
    """How many of the layers' nodes are in the region, from the first on."""
    axis: int | None
    carry: bool
    units: int
    groups: int = 1
    """Into how many H-partitions each piece is opened."""

    def cut(self, layers: Sequence[Layer]) -> RegionPieces:
        """Return the cut of such layers."""
        nodes = [node for layer in layers for node in layer.nodes][: self.nodes]
        region = Region(_title(layers), tuple(str(node.name) for node in nodes), self.axis, self.carry)
        return RegionPieces(region, self.units, _outside(nodes), _groups(layers, region.nodes, self.groups))


def region_ways(
    model: ir.Model, layers: Sequence[Layer], sizes: Sizes, *, carry: bool, opened: bool
) -> tuple[list[Way], list[str]]:
    """Return how consecutive layers can be divided as one region, along each axis and each sum, and why not otherwise.

    The region ends with the last layer; where that cannot be divided as a whole, with one of its nodes. `opened` asks
    for what costs more: the other value of `carry`, and pieces that are several H-partitions.
    """
    found: list[Way] = []
    reasons: list[str] = []
    nodes = [node for layer in layers for node in layer.nodes]
    most_axes = _MOST_AXES + (len(layers) == 1)
    for end in _ends(layers[-1], len(nodes)):
        for axis in _axes(nodes[end - 1], sizes):
            if axis is not None and len({known.axis for known in found} - {None}) >= most_axes:
                continue
            for kind, groups in _variants(axis, len(layers), carry=carry, opened=opened):
                way = Way(end, axis, kind, 0, groups)
                try:
                    found.append(replace(way, units=extent(model, way.cut(layers).region, sizes).most))
                except IndivisibleError as error:
                    reasons.append(error.reason)
        if any(way.axis is not None for way in found):
            break  # a shorter region saves less
    return [way for way in found if way.units >= 2], reasons


def _variants(axis: int | None, layers: int, *, carry: bool, opened: bool) -> list[tuple[bool, int]]:
    """Return with which `carry`, and in how many groups, pieces are tried."""
    if not opened:
        return [(carry, 1)]
    if layers == 1 or axis is None:
        return [(not carry, 1)]
    return [(not carry, 1), *((True, count) for count in sorted({2, layers}))]


def _ends(layer: Layer, total: int) -> list[int]:
    """Return how many nodes the region may have: all, or without the last ones of its last layer."""
    before = total - len(layer.nodes)
    heavy = [index for index, node in enumerate(layer.nodes) if key_of(node) in CONTRACTIONS]
    shorter = range(heavy[0] if heavy else 0, len(layer.nodes) - 1)
    return [total, *(before + index + 1 for index in reversed(shorter))][:_MOST_ENDS]


def _axes(node: ir.Node, sizes: Sizes) -> list[int | None]:
    """Return the axes of the first output, from the end, that have two entries or more, and None for its sum."""
    shape = sizes.get(str(node.outputs[0].name), ())
    axes: list[int | None] = [index - len(shape) for index, size in enumerate(shape) if size > 1]
    return [*axes, None] if key_of(node) in CONTRACTIONS else axes


def _groups(layers: Sequence[Layer], members: Sequence[str], count: int) -> tuple[Group, ...]:
    """Return the nodes of the layers in `count` groups of nearly as many layers; one group is none."""
    if count == 1:
        return ()
    groups = []
    for first, stop in row_ranges(len(layers), count):
        nodes = (str(node.name) for layer in layers[first:stop] for node in layer.nodes)
        groups.append(Group(_title(layers[first:stop]), tuple(name for name in nodes if name in members)))
    return tuple(group for group in groups if group.nodes)


def _title(layers: Sequence[Layer]) -> str:
    return layers[0].name if len(layers) == 1 else f"{layers[0].name}..{layers[-1].name}"


def _outside(nodes: Sequence[ir.Node]) -> frozenset[str]:
    inside = set(nodes)
    values = (value for node in nodes for value in node.inputs if value is not None)
    return frozenset(str(value.name) for value in values if value.producer() not in inside)
