"""How many requests a client has under way at once: as many as its peer was seen to take."""

_FIRST = 8.0


class SendWindow:
    """Opens with every answer, twice as wide after each round, until the peer refuses; then to what it took, slowly on.

    A refused request has crossed the link for nothing: a window that stays what it was would waste the link on them.
    """

    def __init__(self, most: int) -> None:
        """Take the bound that holds whatever the peer takes."""
        self._most = float(most)
        self._width = min(_FIRST, self._most)
        self._was_refused = False

    @property
    def width(self) -> int:
        """How many may be under way."""
        return int(self._width)

    def note_answer(self) -> None:
        """Widen: the peer has taken and answered one."""
        step = 1 / self._width if self._was_refused else 1.0
        self._width = min(self._most, self._width + step)

    def note_refusal(self, in_flight: int) -> None:
        """Narrow to the `in_flight` that the peer has taken, one at least."""
        self._was_refused = True
        self._width = float(max(1, min(self.width, in_flight)))
