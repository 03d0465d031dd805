"""Arithmetic of spans: what is shared out, handed on and made fits together, whatever is needed."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps_passes.division.rule import IndivisibleError, Span
from hyps_passes.division.spans import MaybeSpan, common, even_spans, handed_on, hull, new_parts, owned, widened


@st.composite
def spans(draw: st.DrawFn, size: int = 12) -> MaybeSpan:
    start = draw(st.integers(0, size - 1))
    return draw(st.one_of(st.none(), st.just(Span(start, draw(st.integers(start + 1, size))))))


def positions(span: MaybeSpan) -> set[int]:
    return set() if span is None else set(range(span.start, span.stop))


def union(found: Iterable[MaybeSpan]) -> set[int]:
    return set().union(*map(positions, found))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 7))
def test_even_spans_tile_at_multiples(size: int, count: int, grain: int) -> None:
    made = [span for span in even_spans(size, count, grain) if span is not None]
    assert (made[0].start, made[-1].stop) == (0, size)
    assert all(left.stop == right.start for left, right in pairwise(made))
    assert all(span.start % grain == 0 for span in made)
    assert len(made) == min(count, max(1, size // grain))
    if size % grain == 0:
        assert max(map(len, made)) - min(map(len, made)) <= grain


@given(spans(), st.integers(1, 5))
def test_widened_spans_are_the_smallest_that_hold_it(span: MaybeSpan, grain: int) -> None:
    wide = widened(span, grain, 12)
    blocks = {position // grain for position in positions(span)}
    assert positions(wide) == {position for position in range(12) if position // grain in blocks}


@given(st.lists(spans(), min_size=1, max_size=6))
def test_what_is_owned_is_all_of_it_once_and_what_is_there_if_it_can_be(needed: list[MaybeSpan]) -> None:
    owns = owned(needed, 12)
    assert sorted(position for span in owns for position in positions(span)) == list(range(12))
    stops = [span.stop for span in needed if span is not None]
    in_turn = stops == sorted(stops) and all(
        union(needed[: index + 1]) == set(range(max((0, *(s.stop for s in needed[: index + 1] if s)))))
        for index in range(len(needed))
    )
    if in_turn and union(needed) == set(range(12)):
        assert all(positions(own) <= positions(need) for own, need in zip(owns, needed, strict=True))


def is_out_of_turn(need: MaybeSpan, before: set[int]) -> bool:
    """Return whether a need lies in front of what the pieces before needed, or of a gap in that."""
    new = positions(need) - before
    has_gap = bool(before) and len(before) <= max(before) - min(before)
    return bool(before) and bool((new and min(new) < max(before)) or (need is not None and has_gap))


@given(st.lists(spans(), min_size=1, max_size=6))
def test_pieces_that_hand_on_make_everything_once_and_get_all_they_need(needed: list[MaybeSpan]) -> None:
    try:
        made = new_parts(needed, "v")
    except IndivisibleError:
        assert any(is_out_of_turn(need, union(needed[:index])) for index, need in enumerate(needed))
        return
    assert sum(len(positions(span)) for span in made) == len(union(made)) == len(union(needed))
    tails = handed_on(needed, made)
    for index, (need, new, tail) in enumerate(zip(needed, made, tails, strict=True)):
        assert positions(need) <= union(tails[:index]) | positions(new)
        later = union(needed[index + 1 :]) & positions(new)
        assert later <= positions(tail) <= positions(new)
        assert not later or {min(later), max(later)} <= positions(tail)
        assert bool(later) == (tail is not None)


def test_what_is_needed_from_behind_is_shared_out_evenly() -> None:
    assert owned([Span(6, 8), Span(3, 6), Span(0, 3)], 8) == [Span(0, 2), Span(2, 5), Span(5, 8)]


def test_what_would_have_to_be_made_in_front_is_refused() -> None:
    with pytest.raises(IndivisibleError, match="another order"):
        new_parts([Span(4, 6), Span(2, 7)], "v")


def test_a_later_piece_may_look_further_back() -> None:
    needed = [Span(0, 4), Span(3, 6), Span(1, 6)]
    made = new_parts(needed, "v")
    assert made == [Span(0, 4), Span(4, 6), None]
    assert handed_on(needed, made) == [Span(1, 4), Span(4, 6), None]


def test_a_hull_of_nothing_is_nothing() -> None:
    assert hull([None, None]) is None
    assert hull([None, Span(4, 5), Span(1, 2)]) == Span(1, 5)
    assert common(Span(1, 4), Span(3, 6)) == Span(3, 4)
    assert common(Span(1, 3), Span(3, 6)) is None
