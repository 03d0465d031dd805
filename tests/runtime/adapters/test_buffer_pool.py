"""Buffers come back when nobody reads them, and never before."""

import gc
import weakref

import numpy as np

from hyps.adapters.buffer_pool import BufferPool

LARGE = 3_000_000


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_a_buffer_is_used_again_when_its_last_array_is_gone() -> None:
    pool = BufferPool()
    view = pool.take(LARGE)
    first = address(view)
    array = np.frombuffer(view, np.float32).reshape(-1, 3)[5:]
    del view
    gc.collect()
    other = pool.take(LARGE)
    assert address(other) != first
    del array
    assert address(pool.take(LARGE - 1000)) == first


def test_buffers_have_the_size_that_was_asked_for_and_are_aligned() -> None:
    pool = BufferPool()
    for nbytes in (1, 100, 2**20 - 1, 2**20, LARGE, LARGE - 5, 2 * LARGE):
        view = pool.take(nbytes)
        assert (len(view), view.format, address(view) % 64) == (nbytes, "B", 0)


def test_a_pool_that_keeps_nothing_gives_each_buffer_back_at_once() -> None:
    pool = BufferPool(kept_nbytes=0)
    view = pool.take(LARGE)
    gone = weakref.ref(view.obj)
    assert gone() is not None
    del view
    assert gone() is None
    assert not pool._used


def test_no_more_is_kept_than_allowed_nor_longer_than_needed() -> None:
    pool = BufferPool(kept_nbytes=2 * LARGE + 1000)
    views = [pool.take(LARGE) for _ in range(5)]
    assert len({address(view) for view in views}) == 5
    views.clear()
    pool.take(2**20)
    assert sum(raw.size for raw in pool._idle) <= 2 * LARGE + 1000
    pool.trim()
    assert pool.is_stale
    pool.trim()
    assert not pool._idle
    assert not pool.is_stale
