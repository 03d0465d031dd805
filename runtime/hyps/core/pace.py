"""How much a link keeps under way: enough to keep it busy, little enough that what is urgent need not wait long."""

from dataclasses import dataclass

from hyps.formats.packets import MAX_PIECE_NBYTES

MIN_WINDOW_NBYTES = 32 * 1024
START_WINDOW_NBYTES = 512 * 1024
MAX_WINDOW_NBYTES = 8 * 2**20
MIN_PIECE_NBYTES = 16 * 1024

_QUEUE_S = 0.15
"""What bytes may wait on the way, at a link's own speed, before less is sent at once."""

_INSTANT_S = 1e-6
_MIN_PATIENCE_S, _MAX_PATIENCE_S = 2.0, 20.0


@dataclass(slots=True)
class Pace:
    """The window of a link: it doubles while it is what holds the sender back, and shrinks when packets queue."""

    window_nbytes: int = START_WINDOW_NBYTES
    is_full: bool = False
    """Whether the window held something back since it grew last."""
    _best_s: float = float("inf")
    _late_s: float = 0.0
    """The slowest of late."""
    _shrunk_s: float = float("-inf")

    @property
    def piece_nbytes(self) -> int:
        """The most bytes of a message that one packet should have."""
        if self.window_nbytes >= MAX_PIECE_NBYTES:
            return MAX_PIECE_NBYTES
        return max(MIN_PIECE_NBYTES, self.window_nbytes // 4)

    @property
    def patience_s(self) -> float:
        """How long nothing may be acknowledged before what is under way is taken for lost."""
        return min(_MAX_PATIENCE_S, max(_MIN_PATIENCE_S, 4 * self._late_s))

    def note(self, now_s: float, took_s: float, nbytes: int) -> None:
        """Note that a packet was acknowledged `took_s` after it was sent, and `nbytes` in all in that time."""
        self._best_s = min(self._best_s, took_s)
        self._late_s = max(took_s, 0.9 * self._late_s)
        if took_s > self._best_s + _QUEUE_S:
            if now_s - self._shrunk_s > took_s:
                self.window_nbytes = max(MIN_WINDOW_NBYTES, self.window_nbytes * 2 // 3)
                self._shrunk_s = now_s
        elif self.is_full and took_s < self._best_s + _QUEUE_S / 2:
            carried = int(2 * nbytes / max(took_s, _INSTANT_S) * (self._best_s + _QUEUE_S))
            self.window_nbytes = max(self.window_nbytes, min(MAX_WINDOW_NBYTES, 2 * self.window_nbytes, carried))
            self.is_full = False

    def restart(self) -> None:
        """Begin anew on another connection, or after a loss: carefully, for the link may be another one."""
        self.window_nbytes = max(MIN_WINDOW_NBYTES, min(START_WINDOW_NBYTES, self.window_nbytes // 4))
        self._best_s = float("inf")
