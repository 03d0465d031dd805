from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_fixtures import cut_graphs, figures, layer, value, weight
from hyps_passes.graph import MODEL, CutGraph
from hyps_passes.searches.chain import Limits, balanced_partitions, fewest_partitions


def some_limits(data: st.DataObject, graph: CutGraph) -> Limits:
    """Draw limits that some windows just keep and others just break."""
    found = [window for first in range(len(graph.layers)) for window in graph.windows(first)]
    parameters = data.draw(st.none() | st.sampled_from(sorted({window.parameters for window in found})))
    peak_bytes = data.draw(st.none() | st.sampled_from(sorted({Limits().needed_nbytes(window) for window in found})))
    slack = data.draw(st.integers(-1, 1))
    return Limits(
        parameters=None if parameters is None else parameters + slack,
        peak_bytes=None if peak_bytes is None else peak_bytes + slack,
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


@settings(max_examples=300, deadline=None)
@given(cut_graphs(), st.data())
def test_fewest_partitions_agrees_with_trying_everything(graph: CutGraph, data: st.DataObject) -> None:
    limits = some_limits(data, graph)
    forced = some_borders(data, graph)
    best = min(((len(b), crossing(graph, b)) for b in divisions(graph, forced, limits)), default=None)
    found = fewest_partitions(graph, forced, limits)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert tuple(found) in set(divisions(graph, forced, limits))
    assert (len(found), crossing(graph, tuple(found))) == best


@settings(max_examples=200, deadline=None)
@given(cut_graphs(), st.integers(1, 5), st.data())
def test_balanced_partitions_agrees_with_trying_everything(graph: CutGraph, count: int, data: st.DataObject) -> None:
    limits = some_limits(data, graph)
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


@pytest.mark.parametrize(("crossing_bytes", "best"), [((8, 4), 1), ((4, 8), 0), ((4, 4), 0)])
def test_of_equally_few_partitions_those_with_the_fewest_bytes_crossing(
    crossing_bytes: tuple[int, int], best: int
) -> None:
    layers = tuple(layer(index, [weight(f"w{index}", 5)]) for index in range(3))
    values = [value("x", MODEL, [0], 4), value("y", 2, [], 4, is_output=True)]
    values += [value(f"v{index}", index, [index + 1], nbytes) for index, nbytes in enumerate(crossing_bytes)]
    graph = CutGraph(layers, tuple(values))
    assert fewest_partitions(graph, (), Limits(10)) == [best]
    assert balanced_partitions(graph, (), Limits(10), 2) is not None


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
    assert Limits().needed_nbytes(window) == 40
    assert Limits(peak_bytes=40).allow(window)
    assert not Limits(peak_bytes=39).allow(window)


@pytest.mark.parametrize("count", [4, 0])
def test_more_partitions_than_layers_or_none_cannot_be(count: int) -> None:
    assert balanced_partitions(chain_of(1, 2, 3), (), Limits(), count) is None
