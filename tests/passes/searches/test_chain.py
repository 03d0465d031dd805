from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_fixtures import cut_graphs, figures, layer, value, weight
from hyps_passes.graph import MODEL, CutGraph
from hyps_passes.searches.chain import Limits, balanced_partitions, fewest_partitions, needed_nbytes

LIMITS = st.builds(
    Limits,
    parameters=st.none() | st.integers(0, 200),
    peak_bytes=st.none() | st.integers(0, 900),
)


def divisions(graph: CutGraph, forced: set[int], limits: Limits) -> Iterator[tuple[int, ...]]:
    """Yield the borders of every division that keeps the limits."""
    legal = graph.legal_borders()
    for size in range(len(legal) + 1):
        for borders in combinations(legal, size):
            if forced <= set(borders) and all(keeps(graph, limits, *window) for window in windows(graph, borders)):
                yield borders


def windows(graph: CutGraph, borders: tuple[int, ...]) -> list[tuple[int, int]]:
    starts, ends = [0, *(border + 1 for border in borders)], [*borders, len(graph.layers) - 1]
    return list(zip(starts, ends, strict=True))


def keeps(graph: CutGraph, limits: Limits, first: int, last: int) -> bool:
    found = figures(graph, first, last)
    holds_parameters = limits.parameters is None or found.parameters <= limits.parameters
    return holds_parameters and (limits.peak_bytes is None or found.peak_bytes <= limits.peak_bytes)


def crossing(graph: CutGraph, borders: tuple[int, ...]) -> int:
    """Return the bytes over all borders; a value counts at each border that it crosses."""
    return sum(
        v.nbytes or 0
        for v in graph.values
        for border in borders
        if v.producer != MODEL and v.producer <= border and any(consumer > border for consumer in v.consumers)
    )


def some_borders(data: st.DataObject, graph: CutGraph) -> set[int]:
    legal = graph.legal_borders()
    return set(data.draw(st.lists(st.sampled_from(legal), max_size=2))) if legal else set()


@given(cut_graphs(), LIMITS, st.data())
def test_fewest_partitions_agrees_with_trying_everything(graph: CutGraph, limits: Limits, data: st.DataObject) -> None:
    forced = some_borders(data, graph)
    best = min(((len(b), crossing(graph, b)) for b in divisions(graph, forced, limits)), default=None)
    found = fewest_partitions(graph, forced, limits)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert tuple(found) in set(divisions(graph, forced, limits))
    assert (len(found), crossing(graph, tuple(found))) == best


@given(cut_graphs(), LIMITS, st.integers(1, 5), st.data())
def test_balanced_partitions_agrees_with_trying_everything(
    graph: CutGraph, limits: Limits, count: int, data: st.DataObject
) -> None:
    forced = some_borders(data, graph)
    scores = [
        (max(figures(graph, *window).peak_bytes for window in windows(graph, b)), crossing(graph, b))
        for b in divisions(graph, forced, limits)
        if len(b) == count - 1
    ]
    found = balanced_partitions(graph, forced, limits, count)
    if not scores:
        assert found is None
        return
    assert found is not None
    assert tuple(found) in set(divisions(graph, forced, limits))
    largest = max(figures(graph, *window).peak_bytes for window in windows(graph, tuple(found)))
    assert (largest, crossing(graph, tuple(found))) == min(scores)


def chain_of(*parameters: int) -> CutGraph:
    layers = tuple(layer(index, [weight(f"w{index}", count)]) for index, count in enumerate(parameters))
    values = [value("x", MODEL, [0], 4)]
    for index in range(len(parameters)):
        last = index == len(parameters) - 1
        values.append(value(f"v{index}", index, [] if last else [index + 1], 4, is_output=last))
    return CutGraph(layers, tuple(values))


def test_a_graph_that_fits_stays_whole() -> None:
    assert fewest_partitions(chain_of(1, 2, 3), (), Limits(6)) == []
    assert fewest_partitions(chain_of(1, 2, 3), (), Limits(5)) != []


def test_a_layer_that_breaks_the_limit_alone_leaves_no_division() -> None:
    assert fewest_partitions(chain_of(1, 7, 3), (), Limits(6)) is None
    assert balanced_partitions(chain_of(1, 7, 3), (), Limits(6), 2) is None


def test_a_graph_without_layers_is_one_division() -> None:
    assert fewest_partitions(CutGraph((), ()), (), Limits()) == []


def test_partitions_of_unknown_sizes_are_judged_by_their_weights() -> None:
    graph = CutGraph(
        (layer(0, [weight("w", 10)]),), (value("x", MODEL, [0], None), value("y", 0, [], 4, is_output=True))
    )
    window = graph.window(0, 0)
    assert window.peak_bytes is None
    assert needed_nbytes(window) == 40
    assert Limits(peak_bytes=40).allow(window)
    assert not Limits(peak_bytes=39).allow(window)


@pytest.mark.parametrize("count", [4, 0])
def test_more_partitions_than_layers_or_none_cannot_be(count: int) -> None:
    assert balanced_partitions(chain_of(1, 2, 3), (), Limits(), count) is None
