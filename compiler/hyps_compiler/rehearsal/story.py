"""What happened in a rehearsal: a number that tells two runs apart, and on demand the story in words."""

from collections.abc import Callable
from dataclasses import dataclass, field

_MASK = 2**64 - 1


class BrokenPromiseError(Exception):
    """Something that must always hold does not."""


def require(holds: bool, otherwise: Callable[[], str] | str) -> None:
    """Raise BrokenPromiseError unless it holds."""
    if not holds:
        raise BrokenPromiseError(otherwise if isinstance(otherwise, str) else otherwise())


@dataclass(slots=True)
class Story:
    """Told by everything in a rehearsal, as it happens."""

    is_told: bool = False
    """Whether words are kept; they take most of the time."""
    lines: list[str] = field(default_factory=list)
    trace: int = 0
    """Over all that was told; equal seeds give equal numbers."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often each kind of thing happened."""
    _kinds: dict[str, int] = field(default_factory=dict)

    def tell(self, time_s: float, who: str, kind: str, thing: object = "") -> None:
        """Note that something happened; `thing` is only looked at where words are kept."""
        number = self._kinds.get(kind)
        if number is None:
            number = self._kinds[kind] = len(self._kinds)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.trace = (self.trace * 1_000_003 ^ hash(time_s) ^ (number << 7)) & _MASK
        if self.is_told:
            self.lines.append(f"{time_s:10.4f}  {who:<10}  {kind}  {thing}")
