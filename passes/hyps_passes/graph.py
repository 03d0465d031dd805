"""The cut graph: layers in an order in which they can run, and the values between them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from hyps.formats.plan import Shard

MODEL = -1
"""Stands for the model itself: the producer of its inputs."""

_NUMPY_DTYPES = frozenset(
    ir.DataType[name]
    for name in "FLOAT DOUBLE FLOAT16 BOOL STRING INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)


@dataclass(frozen=True, slots=True)
class Layer:
    """ONNX nodes that are never separated."""

    index: int
    name: str
    kind: str
    """Operators joined by `+`, the views left out."""
    nodes: tuple[ir.Node, ...]
    """In an order in which they can run."""
    constants: tuple[ir.Node, ...]
    """Nodes that compute from weights alone; every layer that needs one has a copy of its own."""
    weights: tuple[ir.Value, ...]
    parameters: int
    weight_bytes: int
    macs: int | None
    """Multiply-accumulates; None where a shape is unknown."""
    downsampling: str | None
    """`pooling`, `global pooling` or `strided convolution`."""
    work_bytes: int
    """The most activation bytes alive inside it beside its inputs, at the assumed sizes."""
    constant_bytes: int = 0
    """What its constants make of weights when it runs: a quantized weight as floats, say."""
    shard: Shard | None = None
    tables: tuple[tuple[ir.Value, int], ...] = ()
    """Weights of which it only looks up rows that the request names, and the bytes that these take at the most."""

    @property
    def absent_bytes(self) -> int:
        """What of its weights need not be in memory when only rows of its tables are read."""
        return sum(nbytes_of(table) - rows for table, rows in self.tables)


@dataclass(frozen=True, slots=True)
class CutValue:
    """A value that one layer (or the model) makes and others use."""

    name: str
    value: ir.Value
    nbytes: int | None
    producer: int
    """Index of a layer, or MODEL."""
    consumers: tuple[int, ...]
    """Indices of layers, ascending."""
    is_output: bool
    can_cross: bool
    """Whether it may travel between partitions: a tensor of a dtype that numpy has."""


@dataclass(frozen=True)
class CutGraph:
    """A read-only DAG of layers, built once per model; `layers[i].index == i` and order is an order to run in."""

    layers: tuple[Layer, ...]
    values: tuple[CutValue, ...]
    """Sorted by producer, then by name."""

    @cached_property
    def made_by(self) -> dict[int, tuple[CutValue, ...]]:
        """The values of each layer; those of MODEL are the model's inputs."""
        made: dict[int, list[CutValue]] = {}
        for value in self.values:
            made.setdefault(value.producer, []).append(value)
        return {index: tuple(values) for index, values in made.items()}

    @cached_property
    def used_by(self) -> dict[int, tuple[CutValue, ...]]:
        """The values that each layer consumes."""
        used: dict[int, list[CutValue]] = {}
        for value in self.values:
            for consumer in value.consumers:
                used.setdefault(consumer, []).append(value)
        return {index: tuple(values) for index, values in used.items()}

    @cached_property
    def borders(self) -> tuple[tuple[CutValue, ...], ...]:
        """What crosses each border of the running order: `borders[i]` lies behind layer i.

        Model inputs that later layers use do not cross: a request brings them wherever they are needed.
        """
        crossing: list[list[CutValue]] = [[] for _ in self.layers]
        for value in self.values:
            if value.producer == MODEL or not value.consumers:
                continue
            for border in range(value.producer, value.consumers[-1]):
                crossing[border].append(value)
        return tuple(tuple(values) for values in crossing)

    def is_legal(self, border: int) -> bool:
        """Return whether the running order may be cut behind layer `border`."""
        return border < len(self.layers) - 1 and all(value.can_cross for value in self.borders[border])

    def legal_borders(self) -> list[int]:
        """Return every border of the running order that may be cut."""
        return [border for border in range(len(self.layers) - 1) if self.is_legal(border)]

    def cut_values(self, members: Iterable[int]) -> tuple[CutValue, ...]:
        """Return the values that cross the border of any set of layers closed under predecessors.

        Raises:
            ValueError: the set is not closed under predecessors.
        """
        inside = set(members)
        for index in sorted(inside):
            if any(value.producer not in inside for value in self.used_by.get(index, ()) if value.producer != MODEL):
                raise ValueError(f"layer {index} is in the set and one of its predecessors is not")
        return tuple(v for v in self.values if v.producer in inside and any(c not in inside for c in v.consumers))

    @cached_property
    def live_bytes(self) -> tuple[int | None, ...]:
        """The activation bytes alive while each layer runs, those held for later layers and the request's included."""
        ends = {value.name: value.consumers[-1] if value.consumers else value.producer for value in self.values}
        events: list[int] = [0] * (len(self.layers) + 1)
        unknown = False
        for value in self.values:
            if value.nbytes is None:
                unknown = True
                continue
            last = len(self.layers) - 1 if value.is_output else max(ends[value.name], value.producer)
            first = max(value.producer, 0)
            if last >= first:
                events[first] += value.nbytes
                events[last + 1] -= value.nbytes
        if unknown:
            return (None,) * len(self.layers)
        alive, total = [], 0
        for layer, change in zip(self.layers, events, strict=False):
            total += change
            made = sum(v.nbytes or 0 for v in self.made_by.get(layer.index, ()))
            alive.append(total + max(0, layer.work_bytes - made) + layer.constant_bytes)
        return tuple(alive)

    def windows(self, first: int) -> Iterator["Window"]:
        """Yield layers `first` to `last` as one partition, for every `last` from `first` on; no figure ever falls.

        What is absent may fall, but never by more than the peak rises.
        """
        present: dict[int, int] = {}  # of each weight, the bytes that are in memory where only rows of tables are read
        passing = self._crossing(first - 1)
        passing_bytes = sum(passing.values())
        parameters = weight_bytes = absent = kept = dropped = 0
        known = True
        for layer in self.layers[first:]:
            rows = {id(table): nbytes for table, nbytes in layer.tables}
            for weight in layer.weights:
                key, nbytes = id(weight), nbytes_of(weight)
                if key not in present:
                    parameters += elements(weight) if is_parameter(weight) else 0
                    weight_bytes += nbytes
                    absent += nbytes
                before = present.get(key, 0)
                present[key] = min(nbytes, before + rows.get(key, nbytes))
                absent -= present[key] - before
            live = self.live_bytes[layer.index]
            known = known and live is not None
            kept = max(kept, (live or 0) + dropped)
            for value in self.used_by.get(layer.index, ()):
                passing_bytes -= passing.pop(value.name, 0)
            peak = weight_bytes + kept if known else None
            yield Window(first, layer.index, parameters, weight_bytes, peak, passing_bytes, absent)
            ending = (v for v in self.used_by.get(layer.index, ()) if v.producer < first and not v.is_output)
            dropped += sum(v.nbytes or 0 for v in ending if v.consumers[-1] == layer.index)

    def _crossing(self, border: int) -> dict[str, int]:
        """Return the bytes of what layers up to a border have made and later ones or the answer need, by name."""
        if border < 0:
            return {}
        outputs = [value for value in self._outputs if 0 <= value.producer <= border]
        return {value.name: value.nbytes or 0 for value in (*self.borders[border], *outputs)}

    @cached_property
    def _outputs(self) -> tuple[CutValue, ...]:
        return tuple(value for value in self.values if value.is_output)

    def window(self, first: int, last: int) -> "Window":
        """Return the figures of layers `first` to `last` as one partition."""
        return next(window for window in self.windows(first) if window.last == last)


def reordered(graph: CutGraph, order: Sequence[int]) -> CutGraph:
    """Return the graph with its layers in another order in which they can run; `order[i]` is the layer that comes i-th.

    Raises:
        ValueError: a layer would come before one that it needs.
    """
    place = {old: new for new, old in enumerate(order)}
    layers = tuple(replace(graph.layers[old], index=new) for new, old in enumerate(order))
    values = [
        replace(
            value,
            producer=place.get(value.producer, MODEL),
            consumers=tuple(sorted(place[consumer] for consumer in value.consumers)),
        )
        for value in graph.values
    ]
    if any(value.consumers and value.consumers[0] <= value.producer for value in values):
        raise ValueError("a layer comes before one that it needs")
    return CutGraph(layers, tuple(sorted(values, key=lambda value: (value.producer, value.name))))


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive layers taken as one partition; tied weights count once."""

    first: int
    last: int
    parameters: int
    weight_bytes: int
    peak_bytes: int | None
    """Weights and the most activations alive, its inputs kept until it ends; None where a size is unknown."""
    passing_bytes: int = 0
    """Of these, what earlier layers made and only others need: it may lie in a scratch file meanwhile."""
    absent_bytes: int = 0
    """Of the weights, what need not be in memory when only rows of tables are read."""


def can_cross(value: ir.Value) -> bool:
    """Return whether a value may travel between partitions: a tensor of a dtype that numpy has."""
    return isinstance(value.type, ir.TensorType) and value.type.dtype in _NUMPY_DTYPES


def is_plain(dtype: ir.DataType) -> bool:
    """Return whether numpy has the element type."""
    return dtype in _NUMPY_DTYPES


def elements(value: ir.Value) -> int:
    """Return the number of elements of a weight."""
    assert value.const_value is not None
    return value.const_value.size


def nbytes_of(value: ir.Value) -> int:
    """Return the bytes of a weight."""
    assert value.const_value is not None
    return value.const_value.nbytes


def is_parameter(value: ir.Value) -> bool:
    """Return whether a weight counts as parameters: shapes, axes and indices (int64) do not."""
    tensor = value.const_value
    return tensor is not None and tensor.dtype not in (ir.DataType.INT64, ir.DataType.STRING, ir.DataType.BOOL)
