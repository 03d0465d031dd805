"""Memory for frames that come in pieces, used again when nobody reads it: the system has to clear fresh pages."""

import weakref
from collections import deque
from functools import partial
from typing import Any

import numpy as np

_ALIGN_NBYTES = 64
_POOLED_NBYTES = 2**20
"""Smaller buffers cost less than keeping them."""


class BufferPool:
    """Hands out buffers of any size; keeps those that were given back, up to a bound, for a short time."""

    def __init__(self, kept_nbytes: int = 64 * 2**20) -> None:
        self._kept_nbytes = kept_nbytes
        self._idle: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        self._returned: deque[int] = deque()
        self._used: dict[int, tuple[np.ndarray[Any, np.dtype[np.uint8]], weakref.ref[Any]]] = {}
        self._next = 0
        self.is_stale = False
        """Whether there are idle buffers that were not asked for since `trim`."""

    def take(self, nbytes: int) -> memoryview:
        """Return a buffer that nobody else has, its content undefined; it comes back with the last view of it."""
        if nbytes < _POOLED_NBYTES or not self._kept_nbytes:
            return _aligned(np.empty(nbytes + _ALIGN_NBYTES, np.uint8), nbytes).data
        self._collect()
        raw = self._find(nbytes)
        view = _aligned(raw, nbytes)
        number, self._next = self._next, self._next + 1
        self._used[number] = raw, weakref.ref(view, partial(_note, self._returned, number))
        self.is_stale = False
        return view.data

    def trim(self) -> None:
        """Let go of what nobody asked for since the last time."""
        self._collect()
        if self.is_stale:
            self._idle.clear()
        self.is_stale = bool(self._idle)

    def _find(self, nbytes: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        for index, raw in enumerate(self._idle):
            if nbytes + _ALIGN_NBYTES <= raw.size <= 2 * nbytes:
                return self._idle.pop(index)
        return np.empty(nbytes + _ALIGN_NBYTES, np.uint8)

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._used.pop(self._returned.popleft())[0])
        while sum(raw.size for raw in self._idle) > self._kept_nbytes:
            self._idle.pop(0)


def _aligned(raw: "np.ndarray[Any, np.dtype[np.uint8]]", nbytes: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    start = -raw.ctypes.data % _ALIGN_NBYTES
    return raw[start : start + nbytes]


def _note(returned: deque[int], number: int, _: object) -> None:
    returned.append(number)
