"""Memory for weights: used again, never mixed up, and given back when it is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.adapters.machine import rss_nbytes
from hyps.adapters.weight_pool import Buffer, WeightPool
from hyps.errors import PlanError

PAGE = 4096


def fill(buffer: Buffer) -> Buffer:
    """Write the whole buffer, as reading does."""
    buffer.memory[: buffer.used_nbytes] = b"\1" * buffer.used_nbytes
    buffer.is_filled = True
    return buffer


def test_what_is_there_is_shared() -> None:
    pool = WeightPool()
    first = fill(pool.take("a", 100))
    assert pool.take("a", 100) is first
    pool.give(first)
    other = pool.take("b", 100)
    assert other is not first  # one user is left
    pool.give(first)
    assert pool.take("a", 100) is first
    assert first.is_filled


def test_memory_is_used_again_and_then_holds_nothing() -> None:
    pool = WeightPool()
    first = fill(pool.take("a", 10 * PAGE))
    pool.give(first)
    second = pool.take("b", 3 * PAGE)
    assert second is first
    assert not second.is_filled
    assert pool.take("a", 10 * PAGE) is not first


def test_what_could_not_be_read_is_not_taken_for_what_it_should_have_been() -> None:
    pool = WeightPool()
    broken = pool.take("a", PAGE)
    pool.give(broken)
    again = pool.take("a", PAGE)
    assert not again.is_filled


@pytest.mark.parametrize("is_pointed_into", [False, True])
def test_memory_too_small_grows_or_makes_way_for_larger(is_pointed_into: bool) -> None:
    pool = WeightPool()
    small = fill(pool.take("a", PAGE))
    view = memoryview(small.memory) if is_pointed_into else None
    pool.give(small)
    large = fill(pool.take("b", 5 * PAGE))
    assert (large is small) != is_pointed_into
    assert len(large.memory) == 5 * PAGE
    assert pool.idle_nbytes == 0
    assert view is None or bytes(view) == b"\1" * PAGE


def test_the_unused_end_of_memory_is_given_back_and_the_rest_stays() -> None:
    pool = WeightPool()
    pool.give(fill(pool.take("a", 100 * PAGE)))
    small = fill(pool.take("b", 10 * PAGE))
    assert pool.idle_nbytes == 90 * PAGE
    pool.shrink(89 * PAGE)
    assert pool.idle_nbytes == 0
    assert small.memory[: 10 * PAGE] == b"\1" * 10 * PAGE
    assert small.memory[10 * PAGE] == 0


@pytest.mark.skipif(rss_nbytes() is None, reason="the system does not tell what is resident")
def test_shrinking_really_gives_back() -> None:
    pool = WeightPool()
    pool.give(fill(pool.take("a", 64_000_000)))
    before = rss_nbytes() or 0
    pool.shrink(0)
    assert before - (rss_nbytes() or 0) > 60_000_000


def test_without_memory_it_says_so() -> None:
    with pytest.raises(PlanError, match="no memory for") as caught:
        WeightPool().take("a", 2**60)
    assert caught.value.code == "E_MEMORY"


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 12)), max_size=40))
def test_users_of_different_weights_never_share_memory(steps: list[tuple[int, bool, int]]) -> None:
    pool = WeightPool()
    held: list[tuple[str, Buffer]] = []
    for number, is_given, shrunk in steps:
        key = f"k{number}"
        if is_given and held:
            pool.give(held.pop(number % len(held))[1])
        else:
            held.append((key, fill(pool.take(key, (number + 1) * PAGE))))
        if shrunk < 10:
            pool.shrink(shrunk * PAGE)
            assert pool.idle_nbytes <= shrunk * PAGE
        assert all(buffer.key == key and buffer.users for key, buffer in held)
        assert all(len(buffer.memory) >= (int(key[1:]) + 1) * PAGE for key, buffer in held)
        by_buffer = {id(buffer): key for key, buffer in held}
        assert all(by_buffer[id(buffer)] == key for key, buffer in held)
