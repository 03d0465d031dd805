"""Partitions' files in a cache: whole or not at all, checked, bounded, and nobody else's."""

import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from hyps.adapters import file_cache
from hyps.adapters.file_cache import Download, FileCache, Want, partition_digest
from hyps.adapters.sessions import Mode, Sessions
from hyps.errors import OutputError, PeerError, PlanError
from hyps.formats.plan import FileRef, Partition, Plan
from plan_fixtures import mlp


class Source:
    """A plan on disk from which pieces come, and a cache to bring them to."""

    def __init__(self, folder: Path, *widths: int) -> None:
        self.folder = folder / "plan"
        self.plan: Plan = mlp(*widths).write(self.folder)
        self.root = folder / "cache"

    def piece(self, partition: Partition, want: Want) -> tuple[int, bytes]:
        paths = {partition.sha256: partition.file, **{ref.sha256: ref.path for ref in reversed(partition.weights)}}
        data = (self.folder / paths[want.sha256]).read_bytes()
        return len(data), data[want.offset : want.offset + want.nbytes]

    def fill(self, download: Download, most: int = 3) -> None:
        while not download.is_whole:
            wants = download.next_wants(most)
            assert 0 < len(wants) <= most
            for want in reversed(wants):
                total, data = self.piece(download.partition, want)
                download.take(want.sha256, want.offset, total, data)

    def fetch(self, cache: FileCache, index: int = 0) -> Path:
        download = cache.begin(self.plan, self.plan.partitions[index])
        self.fill(download)
        return download.finish()

    def left_over(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name.startswith("."))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path, 8, 300, 4)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "PIECE_NBYTES", 1000)


@pytest.mark.usefixtures("small_pieces")
def test_what_was_fetched_in_pieces_in_any_order_is_found_and_can_be_opened(source: Source) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        assert cache.find(source.plan, part) is None
        folder = source.fetch(cache)
        assert cache.find(source.plan, part) == folder
    assert folder.name == partition_digest(part)
    assert source.left_over() == []
    session = Sessions(1).open(folder / part.file, Mode.FAST, "none")
    assert [output.name for output in session.get_outputs()] == list(part.outputs)


def test_a_plan_folder_comes_first(source: Source) -> None:
    with FileCache(source.root, None, source.folder) as cache:
        assert cache.find(source.plan, source.plan.partitions[0]) == source.folder
    assert not source.root.exists()


def test_a_plan_folder_with_altered_files_is_passed_over(source: Source) -> None:
    (source.folder / source.plan.partitions[0].file).write_bytes(b"other")
    with FileCache(source.root, None, source.folder) as cache:
        assert cache.find(source.plan, source.plan.partitions[0]) is None


def test_altered_bytes_are_refused_and_leave_nothing(source: Source) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        download = cache.begin(source.plan, part)
        while not download.is_whole:
            for want in download.next_wants(8):
                total, data = source.piece(part, want)
                download.take(want.sha256, want.offset, total, bytes(len(data)))
        with pytest.raises(PlanError) as caught:
            download.finish()
        assert caught.value.code == "E_TAMPERED"
        assert list(source.root.iterdir()) == []


def test_a_damaged_entry_is_removed_and_fetched_again(source: Source) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        folder = source.fetch(cache)
    data = bytearray((folder / part.weights[0].path).read_bytes())
    data[100] ^= 1
    (folder / part.weights[0].path).write_bytes(data)
    with FileCache(source.root) as cache:
        assert cache.find(source.plan, part) is None
        assert not folder.exists()
        assert source.fetch(cache) == folder


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo"])
def test_only_plain_files_of_the_cache_are_taken(source: Source, kind: str, tmp_path: Path) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        folder = source.fetch(cache)
    path = folder / part.file
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    make = {"symlink": path.symlink_to, "hardlink": path.hardlink_to, "fifo": lambda _target: os.mkfifo(path)}
    make[kind](elsewhere)  # type: ignore[no-untyped-call]  # a lambda has no types
    with FileCache(source.root) as cache:
        assert cache.find(source.plan, part) is None


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a//b", ""])
def test_paths_that_leave_the_folder_are_refused(source: Source, path: str) -> None:
    bad = replace(source.plan.partitions[0], file=path)
    with FileCache(source.root) as cache, pytest.raises(PlanError) as caught:
        cache.begin(source.plan, bad)
    assert caught.value.code == "E_PATH"
    assert not source.root.exists()


def test_a_file_in_the_way_of_a_folder_is_refused(source: Source) -> None:
    part = source.plan.partitions[0]
    bad = replace(part, weights=(replace(part.weights[0], path=f"{part.file}/w"),))
    with FileCache(source.root) as cache, pytest.raises(OutputError):
        cache.begin(source.plan, bad)


def test_a_fetch_that_cannot_begin_leaves_nothing_open(source: Source) -> None:
    part = source.plan.partitions[0]
    doubled = replace(part, weights=(replace(part.weights[0], path=part.file),))
    before = len(os.listdir("/proc/self/fd"))
    with FileCache(source.root) as cache:
        for _ in range(5):
            with pytest.raises(OutputError, match="cannot be written"):
                cache.begin(source.plan, doubled)
    assert source.left_over() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_pieces_that_were_not_asked_for_are_ignored(source: Source) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        download = cache.begin(source.plan, part)
        download.take(part.sha256, 0, 10, b"x" * 10)
        download.take("0" * 64, 0, 10, b"x" * 10)
        source.fill(download)
        download.take(part.weights[0].sha256, 0, 10, b"x" * 10)
        assert download.finish().is_dir()


def test_pieces_that_contradict_the_plan_are_refused(source: Source) -> None:
    part = source.plan.partitions[0]
    with FileCache(source.root) as cache:
        download = cache.begin(source.plan, part)
        wants = {want.sha256: want for want in download.next_wants(8)}
        weights = part.weights[0]
        with pytest.raises(PeerError, match="bytes"):
            download.take(weights.sha256, 0, weights.nbytes + 1, bytes(wants[weights.sha256].nbytes))
        with pytest.raises(PeerError, match="model file"):
            download.take(part.sha256, 0, file_cache.MAX_MODEL_FILE_NBYTES + 1, bytes(wants[part.sha256].nbytes))
        download.abandon()
    assert source.left_over() == []


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    source = Source(tmp_path, 8, 100, 100, 100)
    sizes = [sum(path.stat().st_size for path in source.folder.glob(f"partitions/v{i}.*")) for i in range(3)]
    with FileCache(source.root) as cache:
        first, second = source.fetch(cache, 0), source.fetch(cache, 1)
    os.utime(second, (1, 1))
    with FileCache(source.root, sum(sizes) - 1) as cache:
        third = source.fetch(cache, 2)
    assert first.is_dir()
    assert third.is_dir()
    assert not second.exists()


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    source = Source(tmp_path, 8, 100, 100)
    with FileCache(source.root) as other:
        used = source.fetch(other, 0)
        with FileCache(source.root, used.stat().st_size) as cache, pytest.raises(OutputError) as caught:
            source.fetch(cache, 1)
        assert caught.value.code == "E_CACHE"
        assert used.is_dir()
    assert source.left_over() == []


def test_what_is_no_longer_used_may_be_removed(tmp_path: Path) -> None:
    source = Source(tmp_path, 8, 100, 100)
    size = sum(path.stat().st_size for path in source.folder.glob("partitions/v1.*"))
    with FileCache(source.root, size + 100) as cache:
        first = source.fetch(cache, 0)
        with pytest.raises(OutputError):
            source.fetch(cache, 1)
        cache.keep_only(source.plan.partitions[1:])
        source.fetch(cache, 1)
        assert not first.exists()


def test_one_thread_closes_what_another_lets_go(tmp_path: Path) -> None:
    source = Source(tmp_path, *[4] * 13)
    filled = FileCache(source.root)
    for index in range(len(source.plan.partitions)):
        source.fetch(filled, index)
    for _ in range(10):
        cache = FileCache(source.root)
        parts = source.plan.partitions
        assert None not in [cache.find(source.plan, part) for part in parts]
        start = threading.Barrier(3)
        jobs: list[Callable[[], None]] = [cache.close, cache.close, partial(cache.keep_only, parts[:1])]
        with ThreadPoolExecutor(len(jobs)) as pool:
            for ended in [pool.submit(_together, start, job) for job in jobs]:
                ended.result(20)  # a descriptor that is closed twice is an OSError
        assert cache.find(source.plan, parts[0]) is None, "a closed cache takes hold of nothing more"


def _together(start: threading.Barrier, job: Callable[[], None]) -> None:
    start.wait(20)
    job()


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_fetches_is_not(source: Source) -> None:
    for name in (".fetching-dead", ".fetching-live"):
        (source.root / name).mkdir(parents=True)
        os.utime(source.root / name, (1, 1))
    live = os.open(source.root / ".fetching-live", os.O_RDONLY)
    fcntl.flock(live, fcntl.LOCK_SH)
    with FileCache(source.root) as cache:
        source.fetch(cache)
        assert source.left_over() == [".fetching-live"]
    os.close(live)


def test_of_two_that_fetch_the_same_the_first_wins(source: Source) -> None:
    with FileCache(source.root) as one, FileCache(source.root) as other:
        first = one.begin(source.plan, source.plan.partitions[0])
        second = other.begin(source.plan, source.plan.partitions[0])
        source.fill(first)
        source.fill(second)
        assert first.finish() == second.finish()
    assert source.left_over() == []


def test_two_files_of_equal_bytes_are_fetched_once(source: Source) -> None:
    part = source.plan.partitions[0]
    twin = FileRef(path="partitions/twin", sha256=part.weights[0].sha256, nbytes=part.weights[0].nbytes)
    both = replace(part, weights=(*part.weights, twin))
    plan = replace(source.plan, partitions=(both,))
    with FileCache(source.root) as cache:
        download = cache.begin(plan, both)
        assert len(download.next_wants(8)) == 2
        download.abandon()
        download = cache.begin(plan, both)
        source.fill(download)
        folder = download.finish()
    assert (folder / "partitions/twin").read_bytes() == (folder / part.weights[0].path).read_bytes()


def test_a_cache_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with FileCache(tmp_path / "file") as cache, pytest.raises(OutputError, match="file"):
        cache.begin(source.plan, source.plan.partitions[0])


def test_the_digest_tells_partitions_apart_by_bytes_and_names(source: Source) -> None:
    part = source.plan.partitions[0]
    others = [replace(part, sha256="0" * 64), replace(part, file="other.onnx"), replace(part, weights=())]
    assert len({partition_digest(part), *map(partition_digest, others)}) == 4
    assert partition_digest(replace(part, id="renamed")) == partition_digest(part)
