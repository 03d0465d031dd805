"""Which of many points no other one beats: nothing else is at most as large in every coordinate."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_CHUNK = 256


def nondominated(points: Floats) -> Indices:
    """Return the rows that no other row beats, of equal rows the first, in lexicographic order of their values."""
    return nondominated_by_group(np.zeros(len(points), np.intp), points)


def nondominated_by_group(groups: Indices, points: Floats) -> Indices:
    """Return the rows that no other row of the same group beats, ordered by group and then by their values.

    >>> nondominated_by_group(np.array([0, 0, 0, 1]), np.array([[1.0, 5], [2, 4], [2, 6], [9, 9]])).tolist()
    [0, 1, 3]
    """
    order = np.lexsort((*points.T[::-1], groups))
    groups, points = groups[order], points[order]
    if points.shape[1] == 1:
        return order[_first_of_each(groups)]
    if points.shape[1] == 2:
        return order[_below_all_before(groups, points[:, 1])]
    ends = [*np.flatnonzero(np.diff(groups)) + 1, len(groups)]
    kept, start = [], 0
    for end in ends:
        kept.append(start + _filtered(points[start:end]))
        start = end
    return order[np.concatenate(kept)]


def _first_of_each(groups: Indices) -> npt.NDArray[np.bool_]:
    return np.concatenate([np.ones(min(len(groups), 1), bool), np.diff(groups) > 0])


def _below_all_before(groups: Indices, values: Floats) -> npt.NDArray[np.bool_]:
    """Return which values are below all before them in their group."""
    ranks = np.unique(values, return_inverse=True)[1].reshape(-1) - groups * (len(values) + 1)
    least = np.minimum.accumulate(ranks)
    return np.concatenate([np.ones(min(len(groups), 1), bool), ranks[1:] < least[:-1]])


def _filtered(points: Floats) -> Indices:
    """Return the rows of sorted points that none before them is at most as large as."""
    kept = np.zeros(0, np.intp)
    for start in range(0, len(points), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(points)))
        rows = rows[~_is_beaten(points[kept], points[rows])]
        own = _at_most(points[rows], points[rows])
        rows = rows[~np.triu(own, 1).any(axis=0)]
        kept = np.concatenate([kept, rows])
    return kept


def _is_beaten(by: Floats, points: Floats) -> npt.NDArray[np.bool_]:
    beaten = np.zeros(len(points), bool)
    for start in range(0, len(by), 4 * _CHUNK):
        beaten |= _at_most(by[start : start + 4 * _CHUNK], points).any(axis=0)
    return beaten


def _at_most(left: Floats, right: Floats) -> npt.NDArray[np.bool_]:
    """Return by row of each whether the left one is at most as large in every coordinate."""
    result = np.ones((len(left), len(right)), bool)
    for column in range(left.shape[1]):
        result &= left[:, None, column] <= right[None, :, column]
    return result
