"""Where partitions are drawn: nothing overlaps, what belongs together stands together, long models stay in shape."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_compiler.report.layout import Box, lay_out


def overlap(one: Box, two: Box) -> bool:
    return (
        one.x < two.x + two.width
        and two.x < one.x + one.width
        and one.y < two.y + two.height
        and two.y < one.y + one.height
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 40))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, min(count, a + 6))]
    return count, sorted(set(draw(st.lists(st.sampled_from(pairs), max_size=60)))) if pairs else []


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_no_two_partitions_overlap_and_all_lie_inside(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    layout = lay_out(count, edges, {})
    assert len(layout.nodes) == count
    assert not any(overlap(one, two) for one, two in itertools.combinations(layout.nodes, 2))
    assert all(box.x >= 0 and box.x + box.width <= layout.width for box in layout.nodes)
    assert all(box.y >= 0 and box.y + box.height <= layout.height for box in layout.nodes)


def test_a_short_chain_stands_in_one_column() -> None:
    layout = lay_out(6, [(i, i + 1) for i in range(5)], {})
    assert len({box.x for box in layout.nodes}) == 1
    assert [box.y for box in layout.nodes] == sorted({box.y for box in layout.nodes})


def test_parts_of_a_layer_stand_beside_each_other_and_their_merge_below() -> None:
    edges = [(0, part) for part in (1, 2, 3, 4)] + [(part, 5) for part in (1, 2, 3, 4)]
    layout = lay_out(6, edges, dict.fromkeys((1, 2, 3, 4), "fc1"))
    parts = layout.nodes[1:5]
    assert len({box.y for box in parts}) == 1
    assert layout.nodes[0].y < parts[0].y < layout.nodes[5].y
    frame = layout.groups["fc1"]
    assert all(frame.x <= box.x and box.x + box.width <= frame.x + frame.width for box in parts)
    assert not overlap(frame, layout.nodes[5])


@pytest.mark.parametrize("count", [30, 200, 1000])
def test_a_long_chain_is_about_as_wide_as_the_page(count: int) -> None:
    layout = lay_out(count, [(i, i + 1) for i in range(count - 1)], {})
    assert 0.8 < layout.width / layout.height < 2.6


def test_many_parts_take_several_rows_of_one_column() -> None:
    edges = [(0, part) for part in range(1, 51)] + [(part, 51) for part in range(1, 51)]
    layout = lay_out(52, edges, dict.fromkeys(range(1, 51), "fc1"))
    assert len({box.y for box in layout.nodes[1:51]}) > 1
    assert "fc1" in layout.groups


def test_the_same_graph_is_always_drawn_the_same() -> None:
    edges = [(0, 3), (0, 1), (0, 2), (1, 4), (2, 4), (3, 4)]
    assert lay_out(5, edges, {1: "a", 2: "a"}) == lay_out(5, list(reversed(edges)), {2: "a", 1: "a"})
