"""Where a model may be cut, must be cut, and is best cut (thesis, section 3.2.5; dynamic-split, section III)."""

from dataclasses import dataclass

from hyps_passes import ops
from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer
from hyps_passes.searches.chain import Limits


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A natural bottleneck: a border that fewer bytes cross than the model's input has (dynamic-split, equation 3)."""

    border: int
    ratio: float
    """Compression ratio: bytes that cross over the bytes of the model's input."""
    is_compressive: bool
    """Smaller than every natural bottleneck before it."""


def complex_layers(graph: CutGraph, limits: Limits) -> list[Layer]:
    """Return the layers that exceed the limits by themselves (thesis, Algorithm 1); shards are judged like any layer.

    The thesis calls a layer complex from the threshold on; here a partition may hold exactly the limit.
    """
    return [layer for layer in graph.layers if not limits.allow(graph.window(layer.index, layer.index))]


def pooling_borders(graph: CutGraph) -> dict[int, str]:
    """Return the borders behind layers that shrink their input, with what kind of layer it is (thesis, Algorithm 2).

    Besides the thesis's pooling layers, global pooling and strided convolutions are told apart as kinds of their own.
    """
    return {
        layer.index: layer.downsampling
        for layer in graph.layers
        if layer.downsampling is not None and layer.index < len(graph.layers) - 1
    }


def is_pooling_kind(kind: str) -> bool:
    """Return whether a kind of `pooling_borders` is pooling proper, not a strided convolution."""
    return kind != ops.STRIDED_CONVOLUTION


def shard_borders(graph: CutGraph) -> list[int]:
    """Return the borders around and between H-partitions."""
    borders: set[int] = set()
    for layer in graph.layers:
        if layer.shard is not None:
            borders.update((layer.index - 1, layer.index))
    return sorted(border for border in borders if 0 <= border < len(graph.layers) - 1)


def mandatory_borders(graph: CutGraph) -> list[tuple[int, str]]:
    """Return the two borders around each sliced layer, with the layer's name (thesis, Algorithm 1)."""
    found = []
    for layer in graph.layers:
        shard = layer.shard
        if shard is not None and shard.index == 0 and layer.index > 0:
            found.append((layer.index - 1, shard.layer))
        if shard is not None and shard.index == shard.count - 1 and layer.index < len(graph.layers) - 1:
            found.append((layer.index, shard.layer))
    return found


def bottlenecks(graph: CutGraph) -> list[Bottleneck]:
    """Return the natural bottlenecks in running order; none where sizes are unknown.

    Where the model takes images (one four-dimensional input), only borders that feature maps cross count, as in
    dynamic-split: behind a flattened layer there is nothing left to split.
    """
    inputs = graph.made_by.get(MODEL, ())
    total = sum(value.nbytes or 0 for value in inputs)
    if not total or any(value.nbytes is None for value in inputs):
        return []
    images = len(inputs) == 1 and _rank(inputs[0]) == 4
    found: list[Bottleneck] = []
    smallest = float(total)
    for border in graph.legal_borders():
        values = graph.borders[border]
        nbytes = [value.nbytes for value in values if value.nbytes is not None]
        if not values or len(nbytes) < len(values) or (images and any(_rank(value) != 4 for value in values)):
            continue
        if sum(nbytes) < total:
            found.append(Bottleneck(border, sum(nbytes) / total, sum(nbytes) < smallest))
            smallest = min(smallest, sum(nbytes))
    return found


def _rank(value: CutValue) -> int | None:
    return None if value.value.shape is None else len(value.value.shape)
