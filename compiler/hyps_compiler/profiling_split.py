"""Divides measured seconds among layers and borders: arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class CutSeconds:
    """What was measured of one border: both sides, without what any partition costs."""

    head_s: float
    tail_s: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Seconds of stretches of layers between borders, and what cuts cost beside them."""

    stretches: list[float]
    """Before the first border, between it and the next, and so on, behind the last."""
    export_s: list[float]
    import_s: list[float]


def share_out(whole_s: float, cuts: Sequence[CutSeconds]) -> Shares:
    """Return seconds of the layers between borders that are never negative and sum up to `whole_s`.

    The layers up to a border take at most what its head takes, and at least what is left of the whole beside its tail.
    Between the two any value, as long as it never falls from one border to the next, predicts every head, every tail
    and everything between two borders alike; the middle is taken. Where noise leaves no room, both sides give way.

    Args:
        whole_s: seconds of the whole, without what any partition costs.
        cuts: of the borders in running order.
    """
    if not cuts:
        return Shares([whole_s], [], [])
    most = np.array([min(cut.head_s, whole_s) for cut in cuts])
    least = np.array([max(whole_s - cut.tail_s, 0.0) for cut in cuts])
    most = np.minimum.accumulate(most[::-1])[::-1]
    least = np.maximum.accumulate(least)
    done = np.clip((most + least) / 2, 0.0, whole_s)
    stretches = np.diff(np.concatenate(([0.0], done, [whole_s])))
    export_s = [max(0.0, cut.head_s - float(d)) for cut, d in zip(cuts, done, strict=True)]
    import_s = [max(0.0, cut.tail_s - (whole_s - float(d))) for cut, d in zip(cuts, done, strict=True)]
    return Shares([float(s) for s in stretches], export_s, import_s)


def share_out_pairs(alone_s: Sequence[float], pairs_s: Sequence[float | None], session_s: float) -> Shares:
    """Return seconds of layers that were measured one by one, and each with the next, in partitions of their own.

    What two of them take together less than one by one is what the border between them costs; half of it is put to
    each side, and 0 where the pair was not measured.

    Args:
        alone_s: of each stretch of layers, in running order.
        pairs_s: of each with the next.
        session_s: what any partition costs.
    """
    between = zip(alone_s, alone_s[1:], pairs_s, strict=False)
    saved = [0.0 if pair is None else max(0.0, left + right - session_s - pair) for left, right, pair in between]
    halves = [0.0, *(seconds / 2 for seconds in saved), 0.0]
    stretches = [
        max(0.0, seconds - session_s - halves[place] - halves[place + 1]) for place, seconds in enumerate(alone_s)
    ]
    return Shares(stretches, halves[1:-1], halves[1:-1])
