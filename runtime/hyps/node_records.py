"""What a node measures of its work, for those who watch: what took how long, and what its links can do."""

from collections import deque
from collections.abc import Sequence

from hyps.formats.node_messages import HUB, Sending, Span

_MAX_SENDINGS = 256
_MAX_SPANS = 4096


class NodeRecords:
    """Collects until it is told; only the latest where nobody asks for long.

    Attributes:
        wants_spans: whether the manager wants traces.
    """

    def __init__(self) -> None:
        self.wants_spans = False
        self._spans: deque[Span] = deque(maxlen=_MAX_SPANS)
        self._sendings: deque[Sending] = deque(maxlen=_MAX_SENDINGS)

    def note_loaded(self, partition: str, start_s: float, end_s: float) -> None:
        """A partition was loaded."""
        self._note(Span(0, "load", partition, start_s, end_s))

    def note_computed(self, request: int, partition: str, waited_s: float, start_s: float, end_s: float) -> None:
        """A work item was computed, after it had waited."""
        self._note(Span(request, "queue", partition, start_s - waited_s, start_s))
        self._note(Span(request, "compute", partition, start_s, end_s))

    def note_sent(
        self, request: int, tensor: str, device: str, nbytes: int, behind_nbytes: int, start_s: float, end_s: float
    ) -> None:
        """A tensor was sent, and has arrived."""
        self._sendings.append(Sending(device, nbytes, behind_nbytes, end_s - start_s))
        self._note(Span(request, "send", tensor, start_s, end_s, device or HUB, nbytes))

    def take_sendings(self) -> tuple[Sending, ...]:
        """Return what was sent since the last call."""
        taken = tuple(self._sendings)
        self._sendings.clear()
        return taken

    def take_spans(self) -> Sequence[Span]:
        """Return what was traced since the last call; empty where nobody wants traces."""
        taken = tuple(self._spans)
        self._spans.clear()
        return taken

    def _note(self, span: Span) -> None:
        if self.wants_spans:
            self._spans.append(span)
