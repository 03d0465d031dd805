"""Decides the partitions: mandatory split points and slices first, then whole layers in as few parts as fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hyps.errors import InfeasibleError, UsageError, printable
from hyps.formats.plan import SplitPoint
from hyps.formats.quantities import format_nbytes
from hyps_passes.graph import CutGraph, Layer, Window
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.slice_dense import DenseLayer, Refusal, SliceDense, find_dense
from hyps_passes.searches import chain, split_points

BASE_BYTES = 95_000_000
"""What a worker process needs beside its partitions.

Measured: 62 to 76 MB for Python, numpy, onnxruntime with one session, ZeroMQ and the digests of the files; 10 MB that
the worker leaves free for onnxruntime's code once partitions run; the rest is for other machines' libraries."""

CUTS = ("mandatory", "pooling", "strided", "bottleneck", "all")
"""What `--cut` understands besides tensor names."""


@dataclass(frozen=True, slots=True)
class Request:
    """How the user wants the model divided."""

    max_params: int | None = None
    memory_bytes: int | None = None
    cuts: tuple[str, ...] = ("mandatory",)
    """Words of CUTS."""
    tensors: tuple[str, ...] = ()
    """Names of tensors to cut at."""
    partitions: int | None = None

    @property
    def limits(self) -> chain.Limits:
        """What one partition may hold."""
        memory = None if self.memory_bytes is None else self.memory_bytes - BASE_BYTES
        return chain.Limits(self.max_params, memory)


@dataclass(frozen=True, slots=True)
class Division:
    """The cut graph after all rewrites, and where it is cut."""

    graph: CutGraph
    borders: tuple[int, ...]
    """Ascending; a partition ends behind each."""
    rewrites: tuple[str, ...]
    points: tuple[SplitPoint, ...]

    @property
    def windows(self) -> list[tuple[int, int]]:
        """First and last layer of each partition."""
        if not self.graph.layers:
            return []
        ends = [*self.borders, len(self.graph.layers) - 1]
        return list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))


def divide(model: ir.Model, sizes: dict[str, tuple[int, ...]], fused: frozenset[str], request: Request) -> Division:
    """Slice what must be sliced and choose the borders.

    Args:
        model: the staged model; slices are made in it.
        sizes: concrete shapes; those of new tensors are added.
        fused: names of values inside layers.
        request: limits and wishes.

    Raises:
        InfeasibleError: the limits cannot be met; says by which layer, and what would do.
    """
    graph, rewrites = sliced(model, sizes, fused, request)
    return cut_at(graph, _borders(graph, request), rewrites)


def sliced(
    model: ir.Model, sizes: dict[str, tuple[int, ...]], fused: frozenset[str], request: Request
) -> tuple[CutGraph, tuple[str, ...]]:
    """Slice what exceeds the limits by itself; return the layers and the rewrites made, with the arguments of `divide`.

    Raises:
        InfeasibleError: a layer cannot be sliced; says which, and what would do.
    """
    graph = build_cut_graph(model, sizes, fused=fused)
    rewrites = []
    while blockers := split_points.complex_layers(graph, request.limits):
        count = _fewest_slices(model, sizes, fused, blockers[0], request)
        graph, rewrite, fused = _slice(model, sizes, fused, blockers[0], count)
        rewrites.append(str(rewrite))
    return graph, tuple(rewrites)


def cut_at(
    graph: CutGraph, borders: Sequence[int], rewrites: tuple[str, ...], reason: str = "keeps the limits, or asked for"
) -> Division:
    """Return the division of the layers behind each of `borders`, which are ascending."""
    return Division(graph, tuple(borders), rewrites, tuple(_points(graph, borders, reason)))


def parse_cuts(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of CUTS among `words`, and the rest, which are names of tensors.

    Raises:
        UsageError: a word is empty.
    """
    stripped = [word.strip() for word in words]
    if not all(stripped):
        raise UsageError("--cut has an empty name in it", f"give {', '.join(CUTS)} or names of tensors")
    return tuple(w for w in stripped if w in CUTS) or ("mandatory",), tuple(w for w in stripped if w not in CUTS)


def smallest_memory(model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str]) -> int:
    """Return the smallest `--memory` that `divide` can keep."""
    return BASE_BYTES + _smallest(model, sizes, fused, _PEAK)


def smallest_max_params(model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str]) -> int:
    """Return the smallest `--max-params` that `divide` can keep."""
    return _smallest(model, sizes, fused, _PARAMETERS)


@dataclass(frozen=True, slots=True)
class _Figure:
    """What a limit is about: of a partition, and of one output row of a shard."""

    of_window: Callable[[Window], int]
    of_row: Callable[[CutGraph, Layer, DenseLayer], int]

    def of_layer(self, graph: CutGraph, layer: Layer) -> int:
        return self.of_window(graph.window(layer.index, layer.index))

    def beside_rows(self, graph: CutGraph, shard: Layer, dense: DenseLayer) -> int:
        """Return what a shard of the dense layer holds beside its output rows."""
        return self.of_layer(graph, shard) - self.of_row(graph, shard, dense) * _rows_of(shard)

    def least(self, graph: CutGraph, layer: Layer) -> int:
        """Return what the layer holds, a shard cut down to one output row."""
        if layer.shard is None:
            return self.of_layer(graph, layer)
        dense = find_dense(layer, fewest_rows=1)
        assert isinstance(dense, DenseLayer), dense
        return self.beside_rows(graph, layer, dense) + self.of_row(graph, layer, dense)


def _rows_of(shard: Layer) -> int:
    assert shard.shard is not None
    start, stop = shard.shard.range
    return stop - start


def _row_peak_bytes(graph: CutGraph, shard: Layer, dense: DenseLayer) -> int:
    """Return the weights of a row, what is made of them, and what the shard makes on the way to the row's outputs."""
    if graph.live_bytes[shard.index] is None:
        return dense.row_bytes
    made = sum(value.nbytes or 0 for value in graph.made_by.get(shard.index, ()))
    return dense.row_bytes + dense.row_constant_bytes + max(0, shard.work_bytes - made) // _rows_of(shard)


_PARAMETERS = _Figure(lambda window: window.parameters, lambda graph, shard, dense: dense.row_parameters)
_PEAK = _Figure(chain.needed_nbytes, _row_peak_bytes)


def _smallest(model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str], figure: _Figure) -> int:
    """Return the smallest limit that can be kept, found by slicing the largest layer of a copy until none can be."""
    model, sizes = model.clone(), dict(sizes)
    graph = build_cut_graph(model, sizes, fused=fused)
    smallest: list[int] = []
    while graph.layers:
        worst = max(graph.layers, key=lambda layer: figure.least(graph, layer))
        smallest.append(figure.least(graph, worst))
        if worst.shard is not None or isinstance(find_dense(worst), Refusal):
            break
        graph, _, fused = _slice(model, sizes, fused, worst, 2)
    return min(
        smallest, default=0
    )  # the last is not always the least: a merge needs room for its inputs and its output


def _slice(
    model: ir.Model, sizes: dict[str, tuple[int, ...]], fused: frozenset[str], layer: Layer, count: int
) -> tuple[CutGraph, SliceDense, frozenset[str]]:
    """Slice the layer in the model and return the new layers, what was done, and what is still fused."""
    dense = find_dense(layer)
    assert isinstance(dense, DenseLayer), dense
    rewrite = SliceDense(layer.name, count)
    fused -= {str(value.name) for value in dense.product.inputs if value is not None}
    rewrite.apply(model, dense, sizes)
    return build_cut_graph(model, sizes, fused=fused), rewrite, fused


def _fewest_slices(
    model: ir.Model, sizes: dict[str, tuple[int, ...]], fused: frozenset[str], layer: Layer, request: Request
) -> int:
    """Return into how many slices the layer must be cut; what they hold beside their rows is seen in a copy.

    Raises:
        InfeasibleError: it cannot be sliced, or one row is too much.
    """
    dense = Refusal(layer.name, "it is an H-partition already") if layer.shard else find_dense(layer)
    if isinstance(dense, Refusal):
        raise _infeasible(model, sizes, fused, layer, dense, request)
    trial, tried = model.clone(), dict(sizes)
    twin = build_cut_graph(trial, tried, fused=fused).layers[layer.index]
    graph, _, _ = _slice(trial, tried, fused, twin, 2)
    shards = [made for made in graph.layers if made.shard is not None and made.shard.layer == layer.name]
    counts = [2]
    for limit, figure in ((request.limits.parameters, _PARAMETERS), (request.limits.peak_bytes, _PEAK)):
        if limit is not None:
            available = limit - max(figure.beside_rows(graph, shard, dense) for shard in shards)
            counts.append(_slices(dense, figure.of_row(graph, shards[0], dense), available))
    if max(counts) > dense.rows:
        refusal = Refusal(layer.name, "one output row alone is too large")
        raise _infeasible(model, sizes, fused, layer, refusal, request)
    return max(counts)


def _slices(dense: DenseLayer, per_row: int, available: int) -> int:
    """Return the fewest slices whose largest has rows for at most `available`."""
    rows = available // per_row if per_row else dense.rows * (available >= 0)
    return -(-dense.rows // rows) if rows > 0 else dense.rows + 1


def _infeasible(
    model: ir.Model,
    sizes: Mapping[str, tuple[int, ...]],
    fused: frozenset[str],
    layer: Layer,
    refusal: Refusal,
    request: Request,
) -> InfeasibleError:
    name = printable(layer.name)
    if request.max_params is not None and layer.parameters > request.max_params:
        return InfeasibleError(
            f"layer `{name}` ({layer.kind}) holds {layer.parameters} parameters, more than --max-params"
            f" {request.max_params}, and cannot be sliced: {refusal.reason}",
            f"the smallest that would do is --max-params {smallest_max_params(model, sizes, fused)}",
        )
    graph = build_cut_graph(model, sizes, fused=fused)
    needed = _PEAK.of_layer(graph, layer) + BASE_BYTES
    return InfeasibleError(
        f"layer `{name}` ({layer.kind}) needs {format_nbytes(needed)} of memory, more than --memory"
        f" {format_nbytes(request.memory_bytes or 0)}, and cannot be sliced: {refusal.reason}",
        f"the smallest that would do is --memory {_round_up(smallest_memory(model, sizes, fused))}",
    )


def _round_up(nbytes: int) -> str:
    return f"{-(-nbytes // 10**6)}MB"


def _borders(graph: CutGraph, request: Request) -> list[int]:
    forced = set(split_points.shard_borders(graph))
    pooling = split_points.pooling_borders(graph)
    if "all" in request.cuts:
        forced.update(graph.legal_borders())
    if "pooling" in request.cuts:
        forced.update(border for border, kind in pooling.items() if split_points.is_pooling_kind(kind))
    if "strided" in request.cuts:
        forced.update(border for border, kind in pooling.items() if not split_points.is_pooling_kind(kind))
    if "bottleneck" in request.cuts:
        forced.update(point.border for point in split_points.bottlenecks(graph))
    forced.update(border for border in (_border_behind(graph, name) for name in request.tensors) if border is not None)
    forced.intersection_update(graph.legal_borders())
    if request.partitions is None:
        borders = chain.fewest_partitions(graph, forced, request.limits)
        assert borders is not None, "every layer keeps the limits"
        return borders
    return _exactly(graph, forced, request, request.partitions)


def _exactly(graph: CutGraph, forced: set[int], request: Request, count: int) -> list[int]:
    if count > len(graph.layers):
        raise InfeasibleError(
            f"--partitions {count} is too many: the model has {len(graph.layers)} layers, which are never separated",
            f"give --partitions {len(graph.layers)} or fewer",
        )
    least = chain.fewest_partitions(graph, forced, request.limits) or []
    if len(least) + 1 > count:
        raise InfeasibleError(
            f"--partitions {count} is too few: the limits and cuts asked for need {len(least) + 1}",
            f"give --partitions {len(least) + 1} or more",
        )
    borders = chain.balanced_partitions(graph, forced, request.limits, count)
    if borders is None:
        raise InfeasibleError(f"the model cannot be divided into exactly {count} partitions at its legal borders")
    return borders


def _border_behind(graph: CutGraph, tensor: str) -> int | None:
    """Return the border behind the layer that makes the tensor; None behind the last layer."""
    for value in graph.values:
        if value.name == tensor:
            return value.producer if 0 <= value.producer < len(graph.layers) - 1 else None
    for layer in graph.layers:
        if any(value.name == tensor for node in layer.nodes for value in node.outputs):
            return layer.index if layer.index < len(graph.layers) - 1 else None
    return None


def _points(graph: CutGraph, borders: Sequence[int], why: str) -> list[SplitPoint]:
    """Return the mandatory points, then the optional ones, then what else was chosen, each in running order."""
    chosen, told = set(borders), set()
    points = []
    for border, layer in split_points.mandatory_borders(graph):
        points.append(_point(graph, border, "mandatory", True, f"around {printable(layer)}"))
        told.add(border)
    for border, kind in sorted(split_points.pooling_borders(graph).items()):
        points.append(_point(graph, border, "optional", border in chosen, kind))
        told.add(border)
    for found in split_points.bottlenecks(graph):
        if found.border not in told:
            reason = f"{'compressive' if found.is_compressive else 'natural'} bottleneck, ratio {found.ratio:.3f}"
            points.append(_point(graph, found.border, "optional", found.border in chosen, reason))
            told.add(found.border)
    inside = set(split_points.shard_borders(graph))
    points += [_point(graph, b, "chosen", True, why) for b in borders if b not in told | inside]
    return points


def _point(graph: CutGraph, border: int, kind: str, is_chosen: bool, reason: str) -> SplitPoint:
    values = graph.borders[border]
    nbytes = [value.nbytes for value in values]
    return SplitPoint(
        tensors=tuple(value.name for value in values),
        nbytes=None if None in nbytes else sum(n for n in nbytes if n is not None),
        kind=kind,  # type: ignore[arg-type]  # one of the three words, by the callers above
        chosen=is_chosen,
        reason=reason,
        after=graph.layers[border].name,
    )
