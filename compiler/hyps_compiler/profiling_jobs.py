"""What a profile's parent process asks of the child that measures, and what that answers; light enough for both."""

from msgspec import Struct

from hyps.formats.profiles import Sample


class Piece(Struct, frozen=True, kw_only=True):
    """Consecutive layers as one file."""

    file: str
    first: int
    last: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    activation_bytes: int
    """Of one request."""

    def session_bytes(self, batch: int) -> int:
        """Return what a session of it takes at most: weights twice, since they are laid out anew, and activations."""
        return 2 * self.weight_bytes + batch * self.activation_bytes


class Border(Struct, frozen=True, kw_only=True):
    """A place to cut, and both sides of it."""

    index: int
    head: Piece
    tail: Piece


class Job(Struct, frozen=True, kw_only=True):
    """What to measure."""

    folder: str
    threads: int
    requests: dict[int, str]
    """By batch: the .npz file of a request, in the folder."""
    repeats: int
    memory_bytes: int | None
    """The most that the process may have resident; null: most of what is available."""
    empty: str
    """A model that does nothing to speak of."""
    whole: Piece
    borders: tuple[Border, ...]
    layers: tuple[Piece, ...]
    """Each layer alone, for a device that cannot hold the whole; what cannot be cut between two stays together."""
    pairs: tuple[Piece, ...]
    """Each of `layers` with the next."""
    timeout_s: float = 0.0


class Answer(Struct, frozen=True, kw_only=True, tag="answer"):
    """What was measured; the first key is a border's index, or a piece's place, the second a batch."""

    session_s: float
    whole: dict[int, Sample] | None
    heads: dict[int, dict[int, Sample]] = {}
    tails: dict[int, dict[int, Sample]] = {}
    alone: dict[int, dict[int, Sample]] = {}
    """Layers one by one, where the whole does not fit."""
    pairs: dict[int, dict[int, Sample]] = {}
    """A layer with the next one, likewise."""
    peak_memory_bytes: int | None = None


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """How far the child is."""

    done: int
    total: int
