"""Memory between two processes: what is put there is read there, freed when nobody reads it, and gone at the end."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyps.adapters.links import Buffer
from hyps.adapters.shared_memory import IS_SUPPORTED, PAGE_NBYTES, Arena, SharedFrames, Tenancy
from hyps.errors import PeerError
from hyps.formats.packets import Freed, Mapped, Offer

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="this system has no sealed memory files")

NBYTES = 2**20
LARGE = 100_000


def shared() -> tuple[SharedFrames, SharedFrames]:
    """Return a receiver and a sender who has opened what it offers."""
    receiver, sender = SharedFrames(NBYTES), SharedFrames(NBYTES)
    offer = receiver.offer()
    assert offer is not None
    answer = sender.on_message(offer)
    assert answer == Mapped(True)
    assert receiver.on_message(Mapped(True)) is None
    return receiver, sender


def frame(value: int, nbytes: int = LARGE) -> Buffer:
    return bytes([value]) * nbytes


def test_a_large_frame_is_read_where_it_was_put() -> None:
    receiver, sender = shared()
    frames = [b"small", frame(7), frame(8)]
    places = sender.lodge(frames, 0.0)
    assert [index for index, _ in places] == [1, 2]
    assert frames == [b"small", b"", b""]
    views = [receiver.view(offset, LARGE) for _, offset in places]
    assert [bytes(view) for view in views] == [frame(7), frame(8)]
    assert all(np.frombuffer(view, np.float64, 1).ctypes.data % 64 == 0 for view in views)


def test_a_block_is_free_when_the_last_array_on_it_is_gone() -> None:
    receiver, sender = shared()
    ((_, offset),) = sender.lodge([frame(1, 900_000)], 0.0)
    array = np.frombuffer(receiver.view(offset, 900_000), np.float32).reshape(-1, 4)
    part = array[5:9]
    del array
    gc.collect()
    assert sender.lodge([frame(2, 900_000)], 0.0) == (), "no room: it goes another way"
    assert receiver.take_news() is None
    assert (part.view(np.uint8) == 1).all()
    del part
    assert receiver._arena is not None
    assert receiver._arena.has_freed
    sender.on_message(Freed((offset,)))
    assert len(sender.lodge([frame(3, 900_000)], 0.0)) == 1


def test_freed_blocks_are_told_when_it_is_worth_a_message() -> None:
    receiver, sender = SharedFrames(8 * NBYTES), SharedFrames(8 * NBYTES)
    offer = receiver.offer()
    assert offer is not None
    sender.on_message(offer)
    told = []
    for value in range(200):
        ((_, offset),) = sender.lodge([frame(value)], 0.0)
        assert receiver.view(offset, LARGE)[0] == value
        news = receiver.take_news()
        if news is not None:
            told.append(len(news.offsets))
            sender.on_message(news)
    assert told == [42] * (200 // 42), "42 blocks are over 4 MiB"


def test_blocks_never_overlap_and_all_room_comes_back() -> None:
    arena = Arena(NBYTES)
    tenancy = Tenancy(arena.offer)
    generator = np.random.default_rng(0)
    held: dict[int, tuple[int, int]] = {}
    for step in range(2000):
        nbytes = int(generator.integers(1, 200_000))
        offset = tenancy.put(bytes([step % 251]) * nbytes)
        if offset is not None:
            held[offset] = nbytes, step % 251
        if held and (offset is None or generator.random() < 0.5):
            chosen = sorted(held)[int(generator.integers(len(held)))]
            size, value = held.pop(chosen)
            assert bytes(arena._map[chosen : chosen + size]) == bytes([value]) * size
            tenancy.free(chosen)
    for offset in held:
        tenancy.free(offset)
    assert tenancy._free == [(PAGE_NBYTES, NBYTES)]


def test_memory_that_is_not_used_goes_back_to_the_system() -> None:
    arena = Arena(NBYTES)
    tenancy = Tenancy(arena.offer)
    offset = tenancy.put(frame(1, 500_000))
    assert offset is not None
    tenancy.trim()
    assert arena._map[offset] == 1, "in use"
    assert blocks_of(arena) > 400_000
    tenancy.free(offset)
    tenancy.trim()
    assert blocks_of(arena) <= 2 * PAGE_NBYTES
    assert tenancy.put(frame(2)) == offset
    assert Tenancy(arena.offer).put(frame(3)) == offset, "the secret is still there"


def blocks_of(arena: Arena) -> int:
    return os.fstat(arena._fd).st_blocks * 512


@pytest.mark.parametrize("offset", [0, 1, PAGE_NBYTES + 1, NBYTES - PAGE_NBYTES, NBYTES, 2**61])
def test_a_place_that_cannot_be_is_refused(offset: int) -> None:
    receiver, _ = shared()
    with pytest.raises(PeerError):
        receiver.view(offset, 5000)


def test_a_block_is_not_given_twice_nor_freed_twice() -> None:
    receiver, sender = shared()
    ((_, offset),) = sender.lodge([frame(1)], 0.0)
    view = receiver.view(offset, LARGE)
    with pytest.raises(PeerError):
        receiver.view(offset, LARGE)
    sender.on_message(Freed((offset,)))
    with pytest.raises(PeerError):
        sender.on_message(Freed((offset,)))
    assert view[0] == 1


def test_nothing_was_offered() -> None:
    with pytest.raises(PeerError):
        SharedFrames(NBYTES).view(PAGE_NBYTES, 5)
    assert SharedFrames(0).offer() is None
    assert SharedFrames(0).lodge([frame(1)], 0.0) == ()


def test_what_is_no_arena_is_not_written_to(tmp_path: Path) -> None:
    """A peer that lies must not make us write into other files of the same user."""
    arena = Arena(NBYTES)
    good = arena.offer
    with (tmp_path / "precious").open("w+b") as file:
        file.truncate(NBYTES)
        plain = os.memfd_create("hyps-arena")
        os.ftruncate(plain, NBYTES)
        offers = {
            "a file": Offer(os.getpid(), file.fileno(), NBYTES, bytes(32)),
            "not sealed": Offer(os.getpid(), plain, NBYTES, bytes(32)),
            "another size": Offer(good.process, good.descriptor, 2 * NBYTES, good.secret),
            "another secret": Offer(good.process, good.descriptor, NBYTES, bytes(32)),
            "no descriptor": Offer(os.getpid(), 2**30, NBYTES, bytes(32)),
            "no process": Offer(2**30, 3, NBYTES, bytes(32)),
        }
        for offer in offers.values():
            sender = SharedFrames(NBYTES)
            assert sender.on_message(offer) == Mapped(False)
            assert sender.lodge([frame(1)], 0.0) == ()
        os.close(plain)
    assert SharedFrames(NBYTES).on_message(good) == Mapped(True)


def test_nobody_can_make_it_smaller() -> None:
    arena = Arena(NBYTES)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(arena._fd, 10)


def test_frames_outlive_the_link() -> None:
    receiver, sender = shared()
    ((_, offset),) = sender.lodge([frame(9)], 0.0)
    array = np.frombuffer(receiver.view(offset, LARGE), np.uint8)
    receiver.close()
    sender.close()
    gc.collect()
    assert (array == 9).all()


def test_nothing_is_left_behind() -> None:
    def open_files() -> list[Any]:
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before, files = open_files(), sorted(os.listdir("/dev/shm"))
    for _ in range(20):
        receiver, sender = shared()
        ((_, offset),) = sender.lodge([frame(9)], 0.0)
        view: memoryview | None = receiver.view(offset, LARGE)
        assert view is not None
        del view
        receiver.close()
        sender.close()
        del receiver, sender
    assert open_files() == before
    assert sorted(os.listdir("/dev/shm")) == files
