"""Blocks: the weights of a form that lie in one file, and what is read of that file to have them.

Tables of look-ups are none of them: their rows are read when they are known.
"""

import math
from dataclasses import dataclass

from hyps.formats.plan import FileRef, Partition

_PAGE_NBYTES = 4096
_GAP_NBYTES = 64 * 1024
"""Reading on over a gap of this size costs less than another call."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive bytes of a file."""

    offset: int
    nbytes: int
    start: int
    """Where they come to lie in the block's memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """What a partition needs of one file; equal blocks hold equal bytes."""

    file: FileRef
    spans: tuple[Span, ...]

    @property
    def key(self) -> str:
        """What tells the block from every other, in whatever folder its file lies."""
        return f"{self.file.sha256}:" + ",".join(f"{span.offset}+{span.nbytes}" for span in self.spans)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.spans[-1].start + self.spans[-1].nbytes

    def place_of(self, offset: int) -> int:
        """Return where a byte of the file lies in the block's memory."""
        span = next(span for span in reversed(self.spans) if span.offset <= offset)
        return span.start + offset - span.offset


def blocks_of(partition: Partition) -> dict[str, Block]:
    """Return the blocks of a partition's form by the path of their file; none where it has no form, or no weights.

    A span begins at a page and ends at one or at the file's end, so that weights lie in memory as aligned as in files.
    """
    wanted: dict[str, list[tuple[int, int]]] = {}
    for weight in partition.form.weights if partition.form is not None else ():
        if not weight.looked_up_by:
            wanted.setdefault(weight.path, []).append((weight.offset, weight.offset + weight.nbytes))
    files = {ref.path: ref for ref in partition.weights}
    return {path: Block(files[path], _spans(files[path], pieces)) for path, pieces in wanted.items()}


def rows_nbytes(table_nbytes: int, rows: int, count: int) -> int:
    """Return the most bytes of a table of so many rows that looking up `count` of them has in memory, by whole pages.

    >>> rows_nbytes(30522 * 3072, 30522, 128)
    1048576
    """
    width = table_nbytes // rows
    offsets = math.gcd(width, _PAGE_NBYTES)  # a row begins at a multiple of it in its page
    pages = -(-(_PAGE_NBYTES - offsets + width) // _PAGE_NBYTES)
    return min(table_nbytes, count * pages * _PAGE_NBYTES)


def _spans(file: FileRef, pieces: list[tuple[int, int]]) -> tuple[Span, ...]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(pieces):
        low = start - start % _PAGE_NBYTES
        high = min(file.nbytes, stop + -stop % _PAGE_NBYTES)
        if merged and low - merged[-1][1] <= _GAP_NBYTES:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    spans, at = [], 0
    for low, high in merged:
        spans.append(Span(low, high - low, at))
        at += high - low + -high % _PAGE_NBYTES
    return tuple(spans)
