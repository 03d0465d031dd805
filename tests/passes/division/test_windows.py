"""Windows by counting: each position of a piece looks at the rows that the same position of the whole looks at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps_passes.division.rule import IndivisibleError, Span
from hyps_passes.division.windows import Window


@st.composite
def windows(draw: st.DrawFn) -> Window:
    kernel, dilation, stride = (draw(st.integers(1, most)) for most in (4, 3, 4))
    extent = (kernel - 1) * dilation + 1
    before, after = (draw(st.integers(0, extent + 3)) for _ in range(2))
    size = max(1, extent - before - after) + draw(st.integers(0, 9))
    count = (size + before + after - extent) // stride + 1
    return Window(size, count, kernel, stride, dilation, before, after)


def rows(window: Window, position: int, first: int = 0) -> list[int]:
    """Return the real rows under the kernel, the window's own first one being row `first`."""
    start = position * window.stride - window.before
    under = (start + tap * window.dilation for tap in range(window.kernel))
    return [first + row for row in under if 0 <= row < window.size]


def positions(window: Window) -> int:
    """Return how often the kernel fits, as a convolution counts."""
    return (window.size + window.before + window.after - window.extent) // window.stride + 1


@given(windows(), st.data())
def test_a_piece_looks_at_the_rows_of_its_span(window: Window, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, window.count - 1))
    span = Span(start, data.draw(st.integers(start + 1, window.count)))
    read, piece = window.over_any(span)
    assert 0 <= read.start < read.stop <= window.size
    assert len(read) == piece.size
    assert min(piece.before, piece.after) >= 0
    assert positions(piece) == piece.count == len(span)
    for index in range(len(span)):
        assert rows(piece, index, read.start) == rows(window, span.start + index)


@given(windows(), st.data())
def test_a_piece_reads_no_row_that_none_of_its_positions_reaches(window: Window, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, window.count - 1))
    span = Span(start, data.draw(st.integers(start + 1, window.count)))
    reach = window.reach(span)
    if reach.stop <= 0 or reach.start >= window.size:
        with pytest.raises(IndivisibleError, match="look at padding alone"):
            window.over(span)
    else:
        assert window.over(span)[0] == Span(max(0, reach.start), min(window.size, reach.stop))


def test_positions_over_padding_alone_are_refused_where_no_row_may_stand_in() -> None:
    with pytest.raises(IndivisibleError, match="positions 0 to 1 look at padding alone"):
        Window(size=3, count=6, kernel=1, stride=1, dilation=1, before=2, after=1).over(Span(0, 2))
