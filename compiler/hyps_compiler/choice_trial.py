"""Tries a cut on a copy of the layers it divides, and finds the fewest pieces that keep the limits."""

from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from hyps_compiler.choice_cuts import Cut, Sizes
from hyps_compiler.choice_windows import Flow, last_need
from hyps_passes import ops
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.graph import CutGraph, Layer, nbytes_of
from hyps_passes.layers import SHARD, build_cut_graph, tensor_nbytes
from hyps_passes.searches.chain import Limits

_EXACT_PIECES = 32
"""Up to so many, one less is worth another trial."""
_MACS_PER_S = 10e9
_COPIED_BYTES_PER_S = 4e9
_READ_BYTES_PER_S = 1e9
_PARTITION_S = 0.2e-3
_COPIES = ("Slice", "Concat", "Sum", "Add")
_FLAT = 0.998
"""Of what larger pieces take: smaller ones do not help."""
_HOPELESS = 1.1
"""Times the limit, by a line that is not quite straight."""
_TOLD_ELEMENTS = 1024
"""Constants up to this size tell layers apart that are otherwise alike: shapes, axes, pads."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the layers are like once they are cut, whatever the limits."""

    peak_bytes: int
    """Of the layer that takes most memory, what else is there included."""
    largest: str
    """What that layer is, in words that fit all layers of the same signature."""
    parameters: int
    """Of the layer that holds most."""
    price_s: float
    """Seconds that cutting adds to a request, roughly."""

    def excess(self, limits: Limits) -> float:
        """Return how far it is from the limits: above 1 it breaks one."""
        over = 0.0 if limits.parameters is None else self.parameters / max(limits.parameters, 1)
        if limits.peak_bytes is None:
            return over
        return max(over, self.peak_bytes / limits.peak_bytes if limits.peak_bytes > 0 else self.peak_bytes + 2.0)


@dataclass(frozen=True, slots=True)
class Found:
    """A cut, into how many pieces, and what comes of it."""

    cut: Cut
    count: int
    outcome: Outcome


class Excerpt:
    """Consecutive layers as a model of their own, with what else is in memory while they run."""

    def __init__(
        self, model: ir.Model, flow: Flow, window: tuple[int, int], sizes: Sizes, fused: frozenset[str]
    ) -> None:
        """Take the model, its layers, the first and the last of these, all sizes, and the values that fusions drop."""
        graph = flow.graph
        self.layers = graph.layers[window[0] : window[1] + 1]
        self.sizes, self.fused = sizes, fused
        self._view, self._alive = _view(model, graph, *window)
        self._held, self._unlimited = flow.crossing(*window).held, Limits(may_spill=flow.may_spill)
        self._opsets, self._ir_version = model.opset_imports, model.ir_version
        self.signature = (flow.may_spill, self._held, *self._signature())
        """Equal for layers that differ in names and weights alone."""

    def model(self) -> ir.Model:
        """Return a fresh copy of the layers; weights are shared."""
        graph = self._view.clone()
        graph.opset_imports.update(self._opsets)
        return ir.Model(graph, ir_version=self._ir_version)

    def outcome(self, cut: Cut, count: int) -> Outcome:
        """Return what comes of the cut into `count` pieces.

        Raises:
            IndivisibleError: it cannot be made.
        """
        model, sizes = self.model(), dict(self.sizes)
        cut.apply(model, sizes, count)
        graph = self._graph(model, sizes, self.fused - cut.inputs)
        peaks = [self._peak_bytes(graph, layer.index) for layer in graph.layers]
        largest = graph.layers[peaks.index(max(peaks))]
        return Outcome(
            peak_bytes=max(peaks),
            largest=_what(largest),
            parameters=max(layer.parameters for layer in graph.layers),
            price_s=self._price(graph, sizes) - self._whole_price_s + cut.penalty_s,
        )

    @cached_property
    def _whole_price_s(self) -> float:
        return self._price(self._graph(self.model(), self.sizes, self.fused), self.sizes)

    def _graph(self, model: ir.Model, sizes: Sizes, fused: frozenset[str]) -> CutGraph:
        graph = build_cut_graph(model, sizes, fused=fused)
        values = (replace(value, is_output=value.is_output or value.name in self._alive) for value in graph.values)
        return CutGraph(graph.layers, tuple(values))

    def _peak_bytes(self, graph: CutGraph, index: int) -> int:
        return layer_nbytes(graph, index, self._unlimited) + (0 if graph.live_bytes[index] is None else self._held)

    def _price(self, graph: CutGraph, sizes: Sizes) -> float:
        """Return the seconds of a request that are about how it is divided."""
        macs = sum(layer.macs or 0 for layer in graph.layers)
        read, before = 0, frozenset[int]()
        for layer in graph.layers:
            read += sum(nbytes_of(weight) for weight in layer.weights if id(weight) not in before)
            before = frozenset(map(id, layer.weights))
        copied = _copied_nbytes(graph, sizes) / _COPIED_BYTES_PER_S
        return macs / _MACS_PER_S + copied + read / _READ_BYTES_PER_S + len(graph.layers) * _PARTITION_S

    def _signature(self) -> tuple[object, ...]:
        numbers: dict[ir.Value | None, int] = {None: -1}
        for value in (*self._view.inputs, *self._view.initializers.values()):
            numbers.setdefault(value, len(numbers))
        told: list[object] = [self._told(value) for value in numbers]
        for node in self._view:
            told.append((node.domain, node.op_type, node.meta.get(SHARD) is not None))
            told.append(tuple(str(node.attributes[name]) for name in sorted(node.attributes)))
            told.append(tuple(numbers[value] for value in node.inputs))
            for value in node.outputs:
                numbers[value] = len(numbers)
                told.append(self._told(value))
        return (*told, tuple(numbers[value] for value in self._view.outputs))

    def _told(self, value: ir.Value | None) -> object:
        if value is None:
            return None
        tensor = value.const_value if value.is_initializer() else None
        shape = ops.Shapes(self.sizes)(value)
        known = tensor.tobytes() if tensor is not None and _is_told(tensor) else None
        return (shape, str(value.shape), str(value.dtype), known, value.name in self._alive, value.name in self.fused)


def fewest_pieces(excerpt: Excerpt, cut: Cut, limits: Limits, tried: dict[int, Outcome]) -> Found | str:
    """Return the cut into the fewest pieces that keep the limits, or why none do.

    What a layer holds is taken to fall with the size of the pieces: the size is found by lines through what was tried.

    Args:
        excerpt: the layers.
        cut: how to divide them.
        limits: what each of them may hold afterwards.
        tried: outcomes by the count of pieces; new ones are added.
    """
    try:
        return _Search(excerpt, cut, limits, tried).fewest()
    except IndivisibleError as error:
        return error.reason


class _Search:
    """Looks for the largest pieces, in units, with which the limits are kept."""

    def __init__(self, excerpt: Excerpt, cut: Cut, limits: Limits, tried: dict[int, Outcome]) -> None:
        self._excerpt, self._cut, self._limits, self._tried = excerpt, cut, limits, tried
        self._seen: dict[int, float] = {}
        """The excess by the size of the pieces, all alike."""

    def fewest(self) -> Found | str:
        most = min(self._cut.units, self._cut.most)
        least = -(-self._cut.units // most)
        high = -(-self._cut.units // self._cut.least)
        if self._excess(high) <= 1:
            return self._found(high)
        size = max(least, min(high - 1, high // 2))
        while self._excess(size) > 1:
            if size <= least or self._is_hopeless(least):
                return f"in any number of pieces up to {most}, {self._outcome(min(self._seen)).largest} is too large"
            high, size = size, max(least, min(size - 1, self._guess(size // 4)))
        return self._found(self._largest(size, high))

    def _largest(self, low: int, high: int) -> int:
        """Return the size between one that fits and one that does not, beyond which there would be no fewer pieces."""
        while self._pieces(low) > self._pieces(high - 1) and high - low > self._tolerated(low):
            middle = (low + high) // 2
            size = middle if len(self._seen) % 3 == 0 else min(high - 1, max(low + 1, self._guess(middle)))
            low, high = (size, high) if self._excess(size) <= 1 else (low, size)
        return low

    def _found(self, size: int) -> Found:
        return Found(self._cut, self._pieces(size), self._outcome(size))

    def _pieces(self, size: int) -> int:
        return -(-self._cut.units // size)

    def _outcome(self, size: int) -> Outcome:
        count = self._pieces(size)
        if count not in self._tried:
            self._tried[count] = self._excerpt.outcome(self._cut, count)
        return self._tried[count]

    def _excess(self, size: int) -> float:
        even = -(-self._cut.units // self._pieces(size))
        return self._seen.setdefault(even, self._outcome(size).excess(self._limits))

    def _tolerated(self, size: int) -> int:
        """Return how far the size may be from the largest that fits: not at all where pieces are few."""
        return 0 if self._pieces(size) <= _EXACT_PIECES else size // _EXACT_PIECES

    def _guess(self, otherwise: int) -> int:
        """Return the size at which the line through the two trials nearest to the limits reaches them."""
        nearest = sorted(self._seen, key=lambda size: (abs(self._seen[size] - 1), size))[:2]
        if len(nearest) < 2:
            return otherwise
        one, two = nearest
        slope = (self._seen[two] - self._seen[one]) / (two - one)
        return int(one + (1 - self._seen[one]) / slope) if slope > 0 else otherwise

    def _is_hopeless(self, least: int) -> bool:
        """Return whether the smallest pieces would break the limits too, by the line through the smallest tried."""
        if len(self._seen) < 2:
            return False
        one, two = sorted(self._seen)[:2]
        slope = (self._seen[two] - self._seen[one]) / (two - one)
        is_flat = self._seen[one] > _FLAT * self._seen[two]
        return is_flat or self._seen[one] - slope * (one - least) > _HOPELESS


def layer_nbytes(graph: CutGraph, index: int, limits: Limits) -> int:
    """Return the memory that a layer alone cannot do without, as `Limits.needed_nbytes` does of its window."""
    if limits.may_spill:
        return limits.needed_nbytes(graph.window(index, index))
    layer, live = graph.layers[index], graph.live_bytes[index]
    spared = layer.absent_bytes if limits.reads_rows and live is not None else 0
    return layer.weight_bytes - spared + (live or 0)  # windows of huge graphs take long


def _view(model: ir.Model, graph: CutGraph, first: int, last: int) -> tuple[ir.GraphView, frozenset[str]]:
    """Return the layers as a view of the model's graph, and which of its inputs are needed after it."""
    layers = graph.layers[first : last + 1]
    inside = {node for layer in layers for node in (*layer.constants, *layer.nodes)}
    nodes = [node for node in model.graph if node in inside]
    used = [v for v in graph.values if v.producer < first and any(first <= c <= last for c in v.consumers)]
    made = [v for v in graph.values if first <= v.producer <= last and last_need(graph, v) > last]
    weights = {str(weight.name): weight for layer in layers for weight in layer.weights}
    view = ir.GraphView(
        [value.value for value in used],
        [value.value for value in made],
        nodes=nodes,
        initializers=[weights[name] for name in sorted(weights)],
        opset_imports=dict(model.opset_imports),
    )
    return view, frozenset(value.name for value in used if last_need(graph, value) > last)


def _what(layer: Layer) -> str:
    if layer.shard is not None:
        return "a piece with what it reads"
    merges = all(node.op_type in _COPIES for node in layer.nodes)
    return "what puts the pieces together" if merges else f"the {layer.kind} that is left"


def _copied_nbytes(graph: CutGraph, sizes: Sizes) -> int:
    """Return the bytes that nodes copy or add up."""
    shapes = ops.Shapes(sizes)
    nodes = (node for layer in graph.layers for node in layer.nodes if node.op_type in _COPIES)
    return sum(tensor_nbytes(value, shapes) or 0 for node in nodes for value in node.outputs)


def _is_told(tensor: ir.TensorProtocol) -> bool:
    return tensor.size <= _TOLD_ELEMENTS and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
