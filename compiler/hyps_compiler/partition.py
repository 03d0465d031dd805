"""Decides the partitions: layers that do not fit are divided first, then whole layers go in as few parts as fit."""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from hyps.errors import InfeasibleError, UsageError, printable
from hyps.formats.plan import SplitPoint
from hyps.formats.quantities import format_nbytes
from hyps_compiler.choice import Blocked, Choice, Sliced, smallest, start_over
from hyps_compiler.choice_cuts import DenseRows, dense_rows
from hyps_compiler.interop.dividing import Arranged, divide_as_wanted, in_stages
from hyps_compiler.interop.wanted import Wanted
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph
from hyps_passes.searches import chain, split_points

BASE_BYTES = 54_000_000
"""What a worker process needs beside its partitions.

Measured: 32 to 36 MB for Python, numpy, onnxruntime, ZeroMQ and the command once what only starting needed has been
given back, 16 MB of code that partitions touch once they run, and 1 MB by which a partition may be measured larger than
it was reckoned; the rest is for other machines' libraries."""

NODE_BASE_BYTES = BASE_BYTES + 4_000_000
"""The same of a worker in a cluster, which has links to others, threads of its own and the next request's messages.

Measured: 54.3 to 56.5 MB with the code."""

_PORTIONS = 8
_LEAST_PORTION_BYTES = 4_000_000

SPARE_BYTES = 3_000_000
"""What plans may be measured to take beyond what is reckoned: budgets that are recommended have it to spare."""

ANNOTATIONS = "annotations"
"""The word of CUTS that asks for the borders that the model's own annotations name."""

CUTS = ("mandatory", "pooling", "strided", "bottleneck", "all", ANNOTATIONS)
"""What `--cut` understands besides tensor names."""

_MOST_REASONS = 2


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
    carry: bool = True
    """Whether tiles hand their overlap on: nothing is computed twice then, but they run one after another. Otherwise
    they do so only where nothing else fits."""
    reads_rows: bool = True
    """Whether of tables only those rows count that a request looks up. Otherwise whole tables do."""
    configuration: str | None = None
    """Which of the model's annotations to follow; None: the only ones."""
    wanted: Wanted | None = None
    """What these annotations say, once the model is read; see `kept_in`."""
    reserve_bytes: int = 0
    """What a plan was measured to take beyond what is reckoned: its layers get that much less."""

    def kept_in(self, made: Container[str]) -> tuple[str, ...]:
        """Return the tensors that must outlive fusion: those to cut at, and those between stages that are wanted.

        Of the latter those that the model, which has `made` them, still has: quantizing does away with some.
        """
        crossing = self.wanted.crossing if self.wanted else ()
        return tuple(dict.fromkeys((*self.tensors, *(name for name in crossing if name in made))))

    @property
    def limits(self) -> chain.Limits:
        """What one partition may hold."""
        memory = None if self.memory_bytes is None else self.memory_bytes - BASE_BYTES - self.reserve_bytes
        return chain.Limits(self.max_params, memory, reads_rows=self.reads_rows)


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
    """Divide the layers that do not fit and choose the borders.

    Args:
        model: the staged model; layers are divided in it.
        sizes: concrete shapes; those of new tensors are added.
        fused: names of values inside layers.
        request: limits and wishes.

    Raises:
        InfeasibleError: the limits cannot be met; says by which layer, and what would do.
    """
    wished: tuple[str, ...] = ()
    if request.wanted is not None:
        divided = divide_as_wanted(model, sizes, fused, request.wanted.shards)
        wished, fused = divided.rewrites, divided.fused
    portion = _portion_bytes(model, sizes, fused, request)
    if portion is not None:
        trial, tried = model.clone(), dict(sizes)
        finer, rest = _sliced_evenly(trial, tried, fused, portion)
        found = Choice(trial, tried, rest, request.limits, carry=request.carry).divide() if finer else None
        if isinstance(found, Sliced):
            model.graph = trial.graph
            sizes.update(tried)
            return _cut(found.graph, request, portion, (*wished, *finer, *found.rewrites))
    graph, rewrites = sliced(model, sizes, fused, request, may_spill=True)
    return _cut(graph, request, portion, (*wished, *rewrites))


def _cut(graph: CutGraph, request: Request, portion: int | None, rewrites: tuple[str, ...]) -> Division:
    """Return the division of layers that keep the limits, in the order of the stages where these are wanted."""
    arranged = Arranged(graph, (), {}) if request.wanted is None else in_stages(graph, request.wanted)
    borders = _borders(arranged.graph, request, portion, arranged.reasons)
    return cut_at(arranged.graph, borders, rewrites, reasons=arranged.reasons)


def _portion_bytes(
    model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str], request: Request
) -> int | None:
    """Return how much weight a partition should have at most where not all fits; None: it does, or the user says how.

    What is not kept is read for every request. The finer the partitions, the more of them can be kept beside the room
    that one in passing and the next one take.
    """
    most = request.limits.peak_bytes
    if most is None or most <= 0 or request.partitions is not None:
        return None
    graph = build_cut_graph(model, sizes, fused=fused)
    if not graph.layers or request.limits.allow(graph.window(0, len(graph.layers) - 1)):
        return None
    return max(most // _PORTIONS, _LEAST_PORTION_BYTES)


def _sliced_evenly(
    model: ir.Model, sizes: dict[str, tuple[int, ...]], fused: frozenset[str], portion: int
) -> tuple[list[str], frozenset[str]]:
    """Slice dense layers with more weight than `portion` into output rows; return what was done, and what is fused.

    It costs next to nothing, other than to divide any other layer that would fit.
    """
    done: list[str] = []
    for layer in build_cut_graph(model, sizes, fused=fused).layers:
        rows = dense_rows(layer) if layer.weight_bytes > portion else ""
        if isinstance(rows, DenseRows):
            count = min(-(-layer.weight_bytes // portion), rows.units)
            done.append(rows.apply(model, sizes, count))
            fused -= rows.inputs
    return done, fused


def sliced(
    model: ir.Model,
    sizes: dict[str, tuple[int, ...]],
    fused: frozenset[str],
    request: Request,
    *,
    may_spill: bool = False,
) -> tuple[CutGraph, tuple[str, ...]]:
    """Divide what exceeds the limits by itself; return the layers and the rewrites, with the arguments of `divide`.

    `may_spill` says whether the device can send activations to a scratch file, which is done where nothing else helps.

    Raises:
        InfeasibleError: no way of dividing a layer makes it fit; says which, and what would do.
    """
    whole = Choice(model.clone(), dict(sizes), fused, request.limits, carry=request.carry)
    choice = replace(whole, model=model, sizes=sizes)
    found = choice.divide()
    if isinstance(found, Blocked) and may_spill and request.memory_bytes is not None:
        whole = replace(whole, limits=replace(whole.limits, may_spill=True))
        found = start_over(choice, whole).divide()
    if isinstance(found, Blocked):
        raise _infeasible(whole, found, request)
    return found.graph, found.rewrites


def cut_at(
    graph: CutGraph,
    borders: Sequence[int],
    rewrites: tuple[str, ...],
    reason: str = "keeps the limits, or asked for",
    reasons: Mapping[int, str] | None = None,
) -> Division:
    """Return the division of the layers behind each of `borders`, which are ascending.

    `reason` is why they are chosen, but where `reasons` has another one.
    """
    return Division(graph, tuple(borders), rewrites, tuple(_points(graph, borders, reason, reasons or {})))


def parse_cuts(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of CUTS among `words`, and the rest, which are names of tensors.

    Raises:
        UsageError: a word is empty.
    """
    stripped = [word.strip() for word in words]
    if not all(stripped):
        raise UsageError("--cut has an empty name in it", f"give {', '.join(CUTS)} or names of tensors or layers")
    return tuple(w for w in stripped if w in CUTS) or ("mandatory",), tuple(w for w in stripped if w not in CUTS)


def smallest_memory(model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str]) -> int:
    """Return the smallest `--memory` that `divide` can keep."""
    limits = chain.Limits(may_spill=True, reads_rows=True)
    return BASE_BYTES + smallest(Choice(model, dict(sizes), fused, limits), "peak_bytes")


def smallest_max_params(model: ir.Model, sizes: Mapping[str, tuple[int, ...]], fused: frozenset[str]) -> int:
    """Return the smallest `--max-params` that `divide` can keep."""
    return smallest(Choice(model, dict(sizes), fused, chain.Limits()), "parameters")


def _infeasible(whole: Choice, blocked: Blocked, request: Request) -> InfeasibleError:
    layer, limits = blocked.layer, request.limits
    what = f"layer `{printable(layer.name)}` ({layer.kind})"
    reason = printable("; ".join(blocked.reasons[:_MOST_REASONS]), 300)
    if limits.parameters is not None and layer.parameters > limits.parameters:
        return InfeasibleError(
            f"{what} holds {layer.parameters} parameters, more than --max-params {limits.parameters}, and cannot be"
            f" sliced: {reason}",
            f"the smallest that would do is --max-params {smallest(whole, 'parameters')}",
        )
    window = blocked.graph.window(layer.index, layer.index)
    needed = whole.limits.needed_nbytes(window) + BASE_BYTES + request.reserve_bytes
    least = BASE_BYTES + smallest(whole, "peak_bytes") + max(SPARE_BYTES, request.reserve_bytes)
    return InfeasibleError(
        f"{what} needs {format_nbytes(needed)} of memory, more than --memory"
        f" {format_nbytes(request.memory_bytes or 0)}, and cannot be sliced: {reason}",
        f"the smallest that would do is --memory {_round_up(least)}",
    )


def _round_up(nbytes: int) -> str:
    return f"{-(-nbytes // 10**6)}MB"


def _borders(graph: CutGraph, request: Request, portion: int | None, wanted: Collection[int]) -> list[int]:
    forced = {*split_points.shard_borders(graph), *wanted}
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
        borders = chain.fewest_partitions(graph, forced, _kept_limits(graph, request), portion)
        if borders is None and wanted:  # in another order than the one in which every layer keeps them
            raise InfeasibleError(
                "the limits cannot be kept in the order of the stages that the model's annotations name",
                "leave `annotations` out of --cut, or give more",
            )
        assert borders is not None, "every layer keeps the limits"
        return borders
    return _exactly(graph, forced, request, request.partitions)


def _kept_limits(graph: CutGraph, request: Request) -> chain.Limits:
    """Return the limits that every layer keeps: with activations in a scratch file only where it must be."""
    limits = request.limits
    return replace(limits, may_spill=bool(split_points.complex_layers(graph, limits)))


def _exactly(graph: CutGraph, forced: set[int], request: Request, count: int) -> list[int]:
    if count > len(graph.layers):
        raise InfeasibleError(
            f"--partitions {count} is too many: the model has {len(graph.layers)} layers, which are never separated",
            f"give --partitions {len(graph.layers)} or fewer",
        )
    limits = _kept_limits(graph, request)
    least = chain.fewest_partitions(graph, forced, limits) or []
    if len(least) + 1 > count:
        raise InfeasibleError(
            f"--partitions {count} is too few: the limits and cuts asked for need {len(least) + 1}",
            f"give --partitions {len(least) + 1} or more",
        )
    borders = chain.balanced_partitions(graph, forced, limits, count)
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


def _points(graph: CutGraph, borders: Sequence[int], why: str, reasons: Mapping[int, str]) -> list[SplitPoint]:
    """Return the mandatory points, then the optional ones, then what else was chosen, each in running order."""
    chosen, told = set(borders), set()
    points = []

    def with_wish(border: int, reason: str) -> str:
        return f"{reason}; {reasons[border]}" if border in reasons else reason

    for border, layer in split_points.mandatory_borders(graph):
        points.append(_point(graph, border, "mandatory", True, with_wish(border, f"around {printable(layer)}")))
        told.add(border)
    for border, kind in sorted(split_points.pooling_borders(graph).items()):
        points.append(_point(graph, border, "optional", border in chosen, with_wish(border, kind)))
        told.add(border)
    for found in split_points.bottlenecks(graph):
        if found.border not in told:
            reason = f"{'compressive' if found.is_compressive else 'natural'} bottleneck, ratio {found.ratio:.3f}"
            points.append(
                _point(graph, found.border, "optional", found.border in chosen, with_wish(found.border, reason))
            )
            told.add(found.border)
    inside = set(split_points.shard_borders(graph))
    points += [_point(graph, b, "chosen", True, reasons.get(b, why)) for b in borders if b not in told | inside]
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
