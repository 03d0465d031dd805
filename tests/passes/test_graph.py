from itertools import pairwise

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_fixtures import cut_graphs, figures, layer, value, weight
from hyps_passes.graph import MODEL, CutGraph, can_cross


@given(cut_graphs())
def test_the_figures_of_windows_are_what_their_definition_says(graph: CutGraph) -> None:
    for first in range(len(graph.layers)):
        for window in graph.windows(first):
            found = figures(graph, window.first, window.last)
            assert (window.parameters, window.weight_bytes) == (found.parameters, found.weight_bytes)
            assert window.peak_bytes == found.peak_bytes


@given(cut_graphs())
def test_what_passes_a_window_by_was_made_before_it_and_is_only_needed_behind_it(graph: CutGraph) -> None:
    for first in range(len(graph.layers)):
        for window in graph.windows(first):
            passing = [
                value.nbytes or 0
                for value in graph.values
                if MODEL < value.producer < first
                and not any(first <= consumer <= window.last for consumer in value.consumers)
                and (value.is_output or any(consumer > window.last for consumer in value.consumers))
            ]
            assert window.passing_bytes == sum(passing)
            assert window.peak_bytes is None or window.weight_bytes + window.passing_bytes <= window.peak_bytes


@given(cut_graphs())
def test_no_figure_of_a_window_falls_as_it_grows(graph: CutGraph) -> None:
    """The searches stop at the first window that breaks a limit."""
    for first in range(len(graph.layers)):
        grown = [(w.parameters, w.weight_bytes, w.peak_bytes or 0, -w.passing_bytes) for w in graph.windows(first)]
        assert [w.last for w in graph.windows(first)] == list(range(first, len(graph.layers)))
        for smaller, larger in pairwise(grown):
            assert all(before <= after for before, after in zip(smaller, larger, strict=True))


@given(cut_graphs())
def test_what_crosses_a_border_was_made_before_it_and_is_used_behind_it(graph: CutGraph) -> None:
    for border, crossing in enumerate(graph.borders):
        expected = {
            v.name
            for v in graph.values
            if v.producer != MODEL and v.producer <= border and any(c > border for c in v.consumers)
        }
        assert {v.name for v in crossing} == expected
        assert len(crossing) == len(expected)


@given(cut_graphs(all_cross=True), st.data())
def test_cut_values_agree_with_the_borders_of_the_running_order(graph: CutGraph, data: st.DataObject) -> None:
    border = data.draw(st.integers(0, len(graph.layers) - 1))
    crossing = graph.cut_values(range(border + 1))
    assert {v.name for v in crossing if v.producer != MODEL} == {v.name for v in graph.borders[border]}


def test_cut_values_refuse_a_set_that_lacks_a_predecessor() -> None:
    graph = CutGraph((layer(0), layer(1)), (value("v", 0, [1], 4), value("y", 1, [], 4, is_output=True)))
    with pytest.raises(ValueError, match="layer 1 is in the set"):
        graph.cut_values([1])


def test_a_border_that_a_value_cannot_cross_is_not_legal() -> None:
    values = (value("list", 0, [1], None, crosses=False), value("v", 1, [2], 4))
    graph = CutGraph((layer(0), layer(1), layer(2)), values)
    assert graph.legal_borders() == [1]
    assert not graph.is_legal(2)


def test_of_several_values_each_must_be_able_to_cross() -> None:
    for name in "ab":
        values = tuple(value(other, 0, [1], 4, crosses=other != name) for other in "ab")
        assert CutGraph((layer(0), layer(1)), values).legal_borders() == []


def test_only_tensors_of_types_that_numpy_has_can_cross() -> None:
    held, foreign = "FLOAT FLOAT16 DOUBLE BOOL STRING INT8 UINT64", "BFLOAT16 FLOAT8E4M3FN INT4 UINT4 COMPLEX64"
    for name in held.split():
        assert can_cross(ir.Value(name="v", type=ir.TensorType(ir.DataType[name])))
    for name in foreign.split():
        assert not can_cross(ir.Value(name="v", type=ir.TensorType(ir.DataType[name])))
    assert not can_cross(ir.Value(name="v", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))))
    assert not can_cross(ir.Value(name="v"))


def test_tied_weights_count_once() -> None:
    shared = weight("shared", 10)
    graph = CutGraph((layer(0, [shared]), layer(1, [shared, weight("own", 5)])), ())
    assert [w.parameters for w in graph.windows(0)] == [10, 15]
    assert graph.window(1, 1).weight_bytes == 60
