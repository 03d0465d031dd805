"""Chooses how layers that do not fit are divided: every way is tried on a copy, and the cheapest that fits is taken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from hyps_compiler.choice_cuts import Cut, DenseRows, Sizes, Way, dense_rows, region_ways, special_cuts
from hyps_compiler.choice_trial import Excerpt, Found, Outcome, fewest_pieces, layer_nbytes
from hyps_compiler.choice_windows import Flow
from hyps_passes.graph import CutGraph, Layer
from hyps_passes.layers import build_cut_graph
from hyps_passes.searches.chain import Limits

_MOST_ROUNDS = 12
_MOST_REGIONS = 4
_STEPS = 20
"""How often the interval in which the smallest limit lies is halved: to 100 bytes of 100 MB."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """A model whose layers all keep the limits."""

    graph: CutGraph
    rewrites: tuple[str, ...]
    """Their text forms, in the order in which they were made."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A layer that nothing makes fit."""

    layer: Layer
    graph: CutGraph
    """With what has been divided before."""
    reasons: tuple[str, ...]
    """Why each cut that was tried does not help, the most telling first."""


@dataclass
class Trials:
    """What was found out about layers, by their signature: it holds for their like, and under other limits."""

    ways: dict[object, tuple[list[Way], list[str]]] = field(default_factory=dict)
    outcomes: dict[object, dict[int, Outcome]] = field(default_factory=dict)


@dataclass
class Choice:
    """Divides one model in place."""

    model: ir.Model
    sizes: Sizes
    fused: frozenset[str]
    limits: Limits
    carry: bool = True
    """Whether tiles may hand their overlap on, since they run one after another."""
    trials: Trials = field(default_factory=Trials)

    def divide(self) -> Sliced | Blocked:
        """Divide until every layer keeps the limits or one cannot be made to."""
        graph = build_cut_graph(self.model, self.sizes, fused=self.fused)
        rewrites: list[str] = []
        for _ in range(_MOST_ROUNDS):
            blockers = [layer for layer in graph.layers if self._is_over(graph, layer)]
            if not blockers:
                return Sliced(graph, tuple(rewrites))
            picked = self._picked(graph, blockers)
            if isinstance(picked, Blocked):
                return picked
            for found in picked:
                rewrites.append(found.cut.apply(self.model, self.sizes, found.count))
                self.fused -= found.cut.inputs
            graph = build_cut_graph(self.model, self.sizes, fused=self.fused)
        return Blocked(blockers[0], graph, (f"it is still too large after {_MOST_ROUNDS} rounds of dividing",))

    def _picked(self, graph: CutGraph, blockers: Sequence[Layer]) -> "list[Found] | Blocked":
        """Return the cuts that make all the layers fit for the least, in running order."""
        flow, indices = Flow(graph, may_spill=self.limits.may_spill), [layer.index for layer in blockers]
        offers: dict[tuple[int, int], Found] = {}
        for index in sorted(indices, key=lambda i: (-self._needed(graph, i), i)):
            reasons = self._add_offers(flow, index, indices, offers, opened=False)
            if not _covers(offers, index):
                reasons += self._add_offers(flow, index, indices, offers, opened=True)
            if not _covers(offers, index):
                return Blocked(graph.layers[index], graph, tuple(dict.fromkeys(reasons)))
        return [offers[window] for window in _cheapest_cover(len(graph.layers), indices, offers)]

    def _add_offers(
        self, flow: Flow, index: int, blockers: Sequence[int], offers: dict[tuple[int, int], Found], *, opened: bool
    ) -> list[str]:
        """Add the best cut of each region around a layer to `offers`, and return why others do not help."""
        reasons: list[str] = []
        for window in flow.likely_windows(index, blockers, self.limits.peak_bytes, _MOST_REGIONS, opened=opened):
            covered = [i for i in blockers if window[0] <= i <= window[1]]
            if window in offers or (len(covered) == 1 and (index, index) in offers):
                continue  # other layers in the region would gain nothing
            found, told = self._best(flow, window, opened=opened)
            reasons += told
            if found is not None:
                offers[window] = found
        return reasons

    def _is_over(self, graph: CutGraph, layer: Layer) -> bool:
        if self.limits.parameters is not None and layer.parameters > self.limits.parameters:
            return True
        peak_bytes = self.limits.peak_bytes
        if peak_bytes is None or layer_nbytes(graph, layer.index, replace(self.limits, may_spill=False)) <= peak_bytes:
            return False
        return layer_nbytes(graph, layer.index, self.limits) > peak_bytes

    def _needed(self, graph: CutGraph, index: int) -> int:
        return layer_nbytes(graph, index, self.limits)

    def _best(self, flow: Flow, window: tuple[int, int], *, opened: bool) -> tuple[Found | None, list[str]]:
        """Return the cheapest cut of the layers, and why others do not help."""
        excerpt = Excerpt(self.model, flow, window, self.sizes, self.fused)
        best: Found | None = None
        offers, reasons = self._offers(excerpt, opened=opened)
        for found in offers:
            if isinstance(found, str):
                reasons.append(found)
            elif best is None or found.outcome.price_s < best.outcome.price_s:
                best = found
        return best, reasons

    def _offers(self, excerpt: Excerpt, *, opened: bool) -> tuple[list[Found | str], list[str]]:
        """Return what comes of each way to divide the layers, and why there are no others."""
        key = (opened, self.carry, excerpt.signature)
        if key not in self.trials.ways:
            model, layers, sizes = excerpt.model(), excerpt.layers, excerpt.sizes
            self.trials.ways[key] = region_ways(model, layers, sizes, carry=self.carry, opened=opened)
        ways, refused = self.trials.ways[key]
        cuts: list[tuple[object, Cut]] = [(way, way.cut(excerpt.layers)) for way in ways]
        reasons = list(refused)
        if len(excerpt.layers) == 1 and not opened:
            special, told = special_cuts(self.model, excerpt.layers[0], self.sizes)
            rows = dense_rows(excerpt.layers[0])
            if isinstance(rows, DenseRows):
                special.append(("rows", rows))
                cuts = [(way, way.cut(excerpt.layers)) for way in ways if way.axis != -1]
            elif not cuts:
                told.append(rows)
            cuts, reasons = [*special, *cuts], [*reasons, *told]
        trials = [(self.trials.outcomes.setdefault((key, way), {}), cut) for way, cut in cuts]
        return [fewest_pieces(excerpt, cut, self.limits, tried) for tried, cut in trials], reasons


def _covers(offers: Mapping[tuple[int, int], Found], index: int) -> bool:
    return any(first <= index <= last for first, last in offers)


def smallest(whole: Choice, figure: str) -> int:
    """Return the smallest limit with which a model can be divided, the other limit kept if that is possible.

    Args:
        whole: a model that is not divided yet; it stays as it is.
        figure: the field of `Limits`.
    """
    graph = build_cut_graph(whole.model, whole.sizes, fused=whole.fused)
    is_memory = figure == "peak_bytes"
    needs = [layer_nbytes(graph, i, whole.limits) if is_memory else x.parameters for i, x in enumerate(graph.layers)]
    low, high = -1, max(needs, default=0)
    if not _can_divide(whole, _with(whole.limits, figure, high)):
        whole = replace(whole, limits=replace(whole.limits, parameters=None, peak_bytes=None))
    step = max(1, high >> _STEPS)
    while high - low > step:
        middle = (low + high) // 2
        if _can_divide(whole, _with(whole.limits, figure, middle)):
            high = middle
        else:
            low = middle
    return high


def start_over(choice: Choice, whole: Choice) -> Choice:
    """Return the choice as it was before it divided anything, its model too, as `whole` is to do it.

    Args:
        choice: what has divided its model and did not come through.
        whole: the same model, not divided; it stays as it is.
    """
    choice.model.graph = whole.model.clone().graph
    choice.sizes.clear()
    choice.sizes.update(whole.sizes)
    return replace(choice, fused=whole.fused, limits=whole.limits, carry=whole.carry)


def _with(limits: Limits, figure: str, most: int) -> Limits:
    return replace(limits, parameters=most) if figure == "parameters" else replace(limits, peak_bytes=most)


def _can_divide(whole: Choice, limits: Limits) -> bool:
    trial = replace(whole, model=whole.model.clone(), sizes=dict(whole.sizes), limits=limits)
    return isinstance(trial.divide(), Sliced)


def _cheapest_cover(
    count: int, blockers: Iterable[int], offers: Mapping[tuple[int, int], Found]
) -> list[tuple[int, int]]:
    """Return the windows, apart from each other, that cover all the layers of `blockers` for the least price.

    Args:
        count: how many layers there are.
        blockers: indices of layers, each in one window at least.
        offers: by first and last layer.
    """
    unreached = (len(offers) + 1, 0.0)
    must = set(blockers)
    best: list[tuple[int, float]] = [(0, 0.0)] + [unreached] * count
    back: list[tuple[int, int] | None] = [None] * (count + 1)
    for end in range(1, count + 1):
        missed, price = best[end - 1]
        best[end] = (missed + (end - 1 in must), price)
        for first, last in offers:
            if last + 1 == end:
                missed, price = best[first]
                offer = (missed, price + max(0.0, offers[first, last].outcome.price_s))
                if offer < best[end]:
                    best[end], back[end] = offer, (first, last)
    chosen = []
    end = count
    while end > 0:
        window = back[end]
        if window is not None:
            chosen.append(window)
        end = window[0] if window else end - 1
    return chosen[::-1]
