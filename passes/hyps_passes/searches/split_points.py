"""Where a model may be cut, must be cut, and is best cut (thesis, section 3.2.5; dynamic-split, section 3)."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from hyps_passes import ops
from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer
from hyps_passes.searches.chain import Limits

_GLOBAL_POOLING = ops.POOLING["GlobalAveragePool"]


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A natural bottleneck: a border that fewer bytes cross than the model's input has (dynamic-split, section 3)."""

    border: int
    ratio: float
    """Compression ratio: bytes that cross over the bytes of the model's input; below 1."""
    is_compressive: bool
    """Smaller than every natural bottleneck before it, of the borders that were looked at."""


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


def bottlenecks(graph: CutGraph, borders: Iterable[int] | None = None) -> list[Bottleneck]:
    """Return the natural bottlenecks among borders, in running order (dynamic-split, equation 3).

    The compression ratio of a border is that of all that travels when the model is cut there, be it one tensor or
    several: see `compression_ratio`. A border that nothing crosses, or of a size that is unknown, is none.

    Compressive are those that are smaller than each one before them. By equations 4 to 6 no other border can be the
    best one between a device and a server that computes everything faster: the border before it carries no more, and
    leaves more to the server. Which borders count as the paper's layers is for the caller to say, and so is, with it,
    what a compressive one is compared with:

    * `feature_borders`, the default: every layer whose output is a feature map, as the paper counts VGG16;
    * `block_borders`: outputs of blocks only, as the paper counts EfficientNets;
    * `single_borders`: where one tensor crosses, the paper's chain of layers taken literally;
    * `CutGraph.legal_borders`: all, dense layers too.

    Args:
        graph: the layers in running order.
        borders: the borders to choose from, in any order.
    """
    chosen = feature_borders(graph) if borders is None else sorted(set(borders))
    found: list[Bottleneck] = []
    smallest = 1.0
    for border in chosen:
        ratio = _ratio(graph, _travelling(graph, border))
        if ratio is not None and ratio < 1:
            found.append(Bottleneck(border, ratio, ratio < smallest))
            smallest = min(smallest, ratio)
    return found


def compression_ratio(graph: CutGraph, members: Collection[int]) -> float | None:
    """Return the bytes that cross the border of any set of layers closed under predecessors, over the model input's.

    The device that has the input runs the set, another one the rest: each tensor travels once, however many layers
    read it, and an input that the rest reads travels as well. Bytes are of one request, at the sizes of the graph; for
    an input of bytes and maps of floats the ratio is thus four times the paper's, which counts elements.

    Returns:
        None where nothing crosses or a size is unknown.

    Raises:
        ValueError: the set is not closed under predecessors.
    """
    inside = set(members)
    inputs = (v for v in graph.made_by.get(MODEL, ()) if any(consumer not in inside for consumer in v.consumers))
    return _ratio(graph, (*inputs, *graph.cut_values(inside)))


def feature_borders(graph: CutGraph) -> list[int]:
    """Return the legal borders that only feature maps cross, where the model takes images; else all legal ones.

    Images are one input of four dimensions. Behind a flattened map there is nothing left to split.
    """
    inputs = graph.made_by.get(MODEL, ())
    if len(inputs) != 1 or _rank(inputs[0]) != 4:
        return graph.legal_borders()
    return [b for b in graph.legal_borders() if all(_rank(value) == 4 for value in graph.borders[b])]


def single_borders(graph: CutGraph) -> list[int]:
    """Return the legal borders that exactly one tensor crosses."""
    return [border for border in graph.legal_borders() if len(_travelling(graph, border)) == 1]


def block_borders(graph: CutGraph, block_of: Callable[[str], str | None]) -> dict[str, int]:
    """Return the border behind each block by the block's name, in running order.

    A block is what its name says: the layers that `block_of` gives the same name. Its output is the smallest of the
    tensors that cross alone between its last layer and the next block's first; the first of them where several are of
    one size. Behind the last block the network's global pooling, if any, is the limit: the head is no block.

    A block without such a border has none: its layers mix with another block's, or several tensors leave it.

    Args:
        graph: the layers in running order.
        block_of: from a layer's name to the name of its block; None for stem, head and whatever else is in none.
    """
    spans: dict[str, tuple[int, int]] = {}
    for layer in graph.layers:
        block = block_of(layer.name)
        if block is not None:
            spans[block] = (spans.get(block, (layer.index, 0))[0], layer.index)
    singles = single_borders(graph)
    borders = {}
    for block, (first, last) in spans.items():
        outer = [span for other, span in spans.items() if other != block]
        if any(start < last and end > first for start, end in outer):
            continue
        end = min((start for start, _ in outer if start > last), default=_head(graph, last))
        between = [border for border in singles if last <= border < end]
        if between:
            borders[block] = min(between, key=lambda border: (_nbytes(_travelling(graph, border)) or 0, border))
    return borders


def _head(graph: CutGraph, after: int) -> int:
    """Return the first layer behind layer `after` that pools globally, or how many layers there are."""
    pooled = (layer.index for layer in graph.layers[after + 1 :] if layer.downsampling == _GLOBAL_POOLING)
    return next(pooled, len(graph.layers))


def _travelling(graph: CutGraph, border: int) -> tuple[CutValue, ...]:
    """Return what crosses the border, inputs that later layers read included: where they run nobody has them."""
    inputs = (v for v in graph.made_by.get(MODEL, ()) if v.consumers and v.consumers[-1] > border)
    return (*inputs, *graph.borders[border])


def _ratio(graph: CutGraph, values: tuple[CutValue, ...]) -> float | None:
    total, nbytes = _nbytes(graph.made_by.get(MODEL, ())), _nbytes(values)
    return nbytes / total if total and nbytes is not None and values else None


def _nbytes(values: Iterable[CutValue]) -> int | None:
    """Return the bytes of all values; None where one is unknown."""
    known = [value.nbytes for value in values]
    return None if None in known else sum(nbytes or 0 for nbytes in known)


def _rank(value: CutValue) -> int | None:
    return None if value.value.shape is None else len(value.value.shape)
