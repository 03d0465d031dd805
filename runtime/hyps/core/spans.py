"""What a node traces, kept until it is told: bounded, so that a manager that does not listen costs no memory."""

from collections import deque

from hyps.formats.node_messages import Span, Spans

_MOST = 16_384
_MOST_TOLD = 4096
"""In one message."""


class SpanBook:
    """Spans in the order in which they were added; the oldest give way when there are too many.

    >>> book = SpanBook()
    >>> book.wants_spans = True
    >>> book.add(Span(7, "compute", "conv1", 1.0, 1.5))
    >>> [span.name for span in book.take().spans], book.take().spans
    (['conv1'], ())
    """

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=_MOST)
        self.wants_spans = False
        """Whether the manager wants traces (`Joined.wants_spans`); until then nothing is kept."""

    def add(self, span: Span) -> None:
        """Keep a span."""
        if self.wants_spans:
            self._spans.append(span)

    def take(self) -> Spans:
        """Return what is to be told next, and keep it no longer; empty where there is nothing."""
        spans = self._spans
        return Spans(tuple(spans.popleft() for _ in range(min(len(spans), _MOST_TOLD))))

    def __len__(self) -> int:
        return len(self._spans)
