"""Which spans of a value each piece needs, makes, owns and hands on: arithmetic of intervals, no graph."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from hyps_passes.division.rule import IndivisibleError, Span

MaybeSpan = Span | None
"""None: nothing of it."""


def even_spans(size: int, count: int, grain: int = 1) -> list[MaybeSpan]:
    """Return `count` spans that tile `size` positions in order, at multiples of `grain`, as equal as that allows.

    Where there are fewer multiples than spans, some are empty; what is left over of `size` goes with the last.
    """
    blocks = max(1, size // grain)
    edges = [grain * (blocks * index // count) for index in range(count)] + [size]
    return [Span(start, stop) if start < stop else None for start, stop in pairwise(edges)]


def hull(spans: Iterable[MaybeSpan]) -> MaybeSpan:
    """Return the smallest span that holds all of `spans`."""
    found: MaybeSpan = None
    for span in spans:
        if span is not None:
            found = span if found is None else found.hull(span)
    return found


def widened(span: MaybeSpan, grain: int, size: int) -> MaybeSpan:
    """Return the span with its ends moved outwards to multiples of `grain`, or to the end."""
    if span is None:
        return None
    return Span(span.start // grain * grain, min(size, -(-span.stop // grain) * grain))


def owned(needed: Sequence[MaybeSpan], size: int) -> list[MaybeSpan]:
    """Return which positions each piece hands out, so that all are handed out once, out of what it has if it can be.

    Where the pieces do not need the value one part behind the other, it is shared out evenly.
    """
    stops = [span.stop if span is not None else 0 for span in needed]
    reached = [max(stops[: index + 1]) for index in range(len(stops))]
    if any(span is not None and span.stop < before for span, before in zip(needed, reached, strict=True)):
        return even_spans(size, len(needed))
    edges = [0, *reached[:-1], size]
    return [Span(start, stop) if start < stop else None for start, stop in pairwise(edges)]


def new_parts(needed: Sequence[MaybeSpan], what: str) -> list[MaybeSpan]:
    """Return what of its need each piece must make when the pieces before it hand on what they made.

    Raises:
        IndivisibleError: a piece would have to make something in front of what the pieces before it made.
    """
    made: list[MaybeSpan] = []
    start = stop = 0  # of what was made without a gap up to here
    for span in needed:
        if span is None:
            made.append(None)
            continue
        if span.start > stop:
            start = span.start
        elif span.start < start:
            raise IndivisibleError(f"the pieces need `{what}` in another order than they run in")
        first = max(span.start, stop)
        made.append(Span(first, span.stop) if first < span.stop else None)
        stop = max(stop, span.stop)
    return made


def handed_on(needed: Sequence[MaybeSpan], made: Sequence[MaybeSpan]) -> list[MaybeSpan]:
    """Return which part of what each piece makes later pieces need, once pieces make but what is new."""
    return [
        hull(common(new, need) for need in needed[index + 1 :]) if new is not None else None
        for index, new in enumerate(made)
    ]


def common(one: MaybeSpan, other: MaybeSpan) -> MaybeSpan:
    """Return what two spans share."""
    if one is None or other is None:
        return None
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return Span(start, stop) if start < stop else None
