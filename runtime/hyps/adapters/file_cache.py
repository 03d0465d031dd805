"""Where a node finds its partitions' files: in a plan folder, in a cache on disk, or fetched piece by piece into it.

The cache has one folder per partition, named by a digest over the digests of its files, in which they lie as they do in
the plan, so that a model finds its weights. A folder appears whole or not at all. Processes that share a cache do not
take each other's folders away: whoever uses one holds a lock on it.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hyps.adapters.plan_files import check_files
from hyps.errors import HypsError, OutputError, PeerError, PlanError, printable
from hyps.formats.plan import Partition, Plan, file_digests, is_inside, partition_files
from hyps.formats.quantities import format_nbytes

PIECE_NBYTES = 2**20
"""Of what is fetched at once."""

MAX_MODEL_FILE_NBYTES = 2**31
"""Of an ONNX file without its weights, whose length no plan tells: more is none."""

_HASTE = "give more with `--cache-size`, or another folder with `--cache`"
_TEMPORARY = ".fetching-"
_MAX_FILES = 10_000
_STALE_S = 60.0
"""A folder younger than that may have its lock yet to come."""


def partition_digest(partition: Partition) -> str:
    """Return what tells a partition from every other: a digest over its files' names, digests and lengths."""
    lengths = {ref.path: str(ref.nbytes) for ref in partition.weights}
    entries = [(path, sha256, lengths.get(path, "")) for path, sha256 in file_digests(partition)]
    digest = hashlib.sha256()
    for entry in sorted(entries):
        digest.update(repr(entry).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Want:
    """A piece of a file that is to be fetched."""

    sha256: str
    offset: int
    nbytes: int


class FileCache:
    """The files of partitions, by what is in them; `close` lets others remove what was used.

    One thread at a time may look, fetch and let go; another one may `close` meanwhile.
    """

    def __init__(self, root: Path, limit_nbytes: int | None = None, plan_folder: Path | None = None) -> None:
        """Look in `plan_folder` first, then in the folder `root`, which is made when something is to be stored.

        `limit_nbytes` bounds what the cache holds; what was not used for longest goes first.
        """
        self._root, self._limit_nbytes, self._plan_folder = root, limit_nbytes, plan_folder
        self._locks: dict[str, int] = {}
        """Descriptors of the folders that are in use, by their names; whoever takes one out closes it."""
        self._is_closed = False
        self._guard = threading.Lock()
        """Of these two."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes remove what this one used; nothing more is used after that."""
        with self._guard:
            self._is_closed = True
        self._let_go_but(frozenset())

    def keep_only(self, partitions: Iterable[Partition]) -> None:
        """Let go of all that other partitions used: it may be removed when room is needed."""
        self._let_go_but(frozenset(partition_digest(partition) for partition in partitions))

    def _let_go_but(self, names: frozenset[str]) -> None:
        with self._guard:
            descriptors = [self._locks.pop(name) for name in [*self._locks] if name not in names]
        for descriptor in descriptors:
            os.close(descriptor)

    def find(self, plan: Plan, partition: Partition) -> Path | None:
        """Return the folder in which the partition's files lie, compared with their digests; None: there is none.

        Takes as long as reading them does. What is damaged in the cache is removed.
        """
        if self._plan_folder is not None and _has_files(self._plan_folder, plan, partition):
            return self._plan_folder
        name = partition_digest(partition)
        folder = self._root / name
        if not self._use(name):
            return None
        if _has_files(folder, plan, partition):
            with contextlib.suppress(OSError):
                os.utime(folder)
            return folder
        self._remove(name)
        return None

    def begin(self, plan: Plan, partition: Partition) -> "Download":
        """Make ready to fetch a partition.

        Raises:
            PlanError: a path in it leaves the plan folder (`E_PATH`).
            OutputError: it is larger than the whole cache may be, or the cache cannot be written.
        """
        outside = [path for path in partition_files(partition) if not is_inside(path)]
        if outside or len(partition.weights) > _MAX_FILES:
            shown = printable(outside[0]) if outside else f"{len(partition.weights)} files"
            raise PlanError(f"`{shown}` in partition `{printable(partition.id)}` is no path of a plan", code="E_PATH")
        nbytes = sum(ref.nbytes for ref in partition.weights)
        with _writing(self._root):
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.make_room(nbytes)
            folder = self._root / f"{_TEMPORARY}{secrets.token_hex(8)}"
            folder.mkdir(mode=0o700)
        return Download(self, plan, partition, folder)

    def make_room(self, nbytes: int) -> None:
        """Remove what was not used for longest until `nbytes` more fit.

        Raises:
            OutputError: they do not fit even beside nothing but what is in use.
        """
        self._remove_stale()
        if self._limit_nbytes is None:
            return
        entries = [(entry.stat().st_mtime, entry.name, _nbytes_in(Path(entry))) for entry in self._entries()]
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total + nbytes <= self._limit_nbytes:
                return
            if name not in self._locks and self._remove(name):
                total -= size
        if total + nbytes > self._limit_nbytes:
            text = f"{format_nbytes(nbytes)} do not fit in the cache of {format_nbytes(self._limit_nbytes)}"
            raise OutputError(text, _HASTE, "E_CACHE")

    def adopt(self, folder: Path, partition: Partition) -> Path:
        """Give a fetched and checked folder its name; of two processes that fetch the same, the first wins."""
        name = partition_digest(partition)
        final = self._root / name
        try:
            os.rename(folder, final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _sync(self._root)
        self._use(name)
        return final

    def _use(self, name: str) -> bool:
        """Lock a folder of the cache against removal; return whether it is there, and the cache is open."""
        with self._guard:
            if name in self._locks:
                return True
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not (self._root / name).is_dir():  # it was removed while we waited
            os.close(descriptor)
            return False
        with self._guard:
            if not self._is_closed:
                self._locks[name] = descriptor
                return True
        os.close(descriptor)
        return False

    def _remove(self, name: str) -> bool:
        """Remove a folder unless another process uses it; return whether it is gone."""
        with self._guard:
            own = self._locks.pop(name, None)
        if own is not None:
            os.close(own)
        aside = self._root / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return not os.path.lexists(self._root / name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(self._root / name, aside)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _remove_stale(self) -> None:
        """Remove what processes left that died while they fetched: nobody holds a lock on it."""
        with contextlib.suppress(OSError), os.scandir(self._root) as found:
            for entry in found:
                is_ours = entry.name.startswith(_TEMPORARY) and entry.is_dir(follow_symlinks=False)
                if is_ours and time.time() - entry.stat().st_mtime > _STALE_S:
                    _remove_unlocked(Path(entry.path))

    def _entries(self) -> Iterator["os.DirEntry[str]"]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as found:
            for entry in found:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    yield entry


@dataclass(slots=True)
class _File:
    """A file on its way."""

    descriptor: int
    total_nbytes: int | None
    """None: the first piece tells."""
    asked_nbytes: int = 0
    got_nbytes: int = 0
    asked: dict[int, int] = field(default_factory=dict)
    """Offset to bytes of the pieces that were asked for and have not come."""

    @property
    def is_whole(self) -> bool:
        return self.total_nbytes is not None and self.got_nbytes >= self.total_nbytes


class Download:
    """The files of one partition on their way into the cache."""

    def __init__(self, cache: FileCache, plan: Plan, partition: Partition, folder: Path) -> None:
        self._cache, self._plan, self._partition, self._folder = cache, plan, partition, folder
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._files: dict[str, _File] = {}
        """By their digests: two of one digest are fetched once and copied."""
        self._paths: dict[str, list[str]] = {}
        try:
            with _writing(folder):
                lengths = {ref.path: ref.nbytes for ref in partition.weights}
                for path, sha256 in file_digests(partition):
                    self._open(path, sha256, lengths.get(path))
        except OutputError:
            self.abandon()
            raise

    @property
    def partition(self) -> Partition:
        """What is fetched."""
        return self._partition

    @property
    def is_whole(self) -> bool:
        """Whether every piece has come."""
        return all(file.is_whole for file in self._files.values())

    def next_wants(self, most: int) -> list[Want]:
        """Return what to ask for next; at most `most` pieces are under way."""
        wants = []
        room = most - sum(len(file.asked) for file in self._files.values())
        for sha256, file in self._files.items():
            while room > 0 and (want := _next_want(sha256, file)) is not None:
                wants.append(want)
                room -= 1
        return wants

    def take(self, sha256: str, offset: int, total_nbytes: int, data: bytes | bytearray | memoryview) -> None:
        """Write a piece; one that was not asked for is ignored.

        Raises:
            PeerError: it is not what the plan or the pieces before it told (`E_PROTOCOL`).
            OutputError: it cannot be written.
        """
        file = self._files.get(sha256)
        asked = None if file is None else file.asked.pop(offset, None)
        if file is None or asked is None:
            return
        if file.total_nbytes is None:
            if total_nbytes > MAX_MODEL_FILE_NBYTES:
                raise PeerError(f"a model file of {format_nbytes(total_nbytes)} is offered", code="E_PROTOCOL")
            self._cache.make_room(total_nbytes + sum(other.total_nbytes or 0 for other in self._files.values()))
            file.total_nbytes = total_nbytes
            file.asked_nbytes = min(file.asked_nbytes, total_nbytes)
        expected = min(asked, file.total_nbytes - offset)
        if total_nbytes != file.total_nbytes or len(data) != expected:
            text = f"a piece of {len(data)} bytes at {offset} of {total_nbytes} came instead of {expected}"
            raise PeerError(f"{text} of {file.total_nbytes}", code="E_PROTOCOL")
        with _writing(self._folder):
            _write(file.descriptor, data, offset)
        file.got_nbytes += len(data)

    def finish(self) -> Path:
        """Return the folder in the cache in which the files lie, after comparing them with their digests.

        Raises:
            PlanError: they are not those that the plan tells of (`E_TAMPERED`); nothing is left of them.
            OutputError: they cannot be written.
        """
        try:
            with _writing(self._folder):
                self._copy_doubles()
                for file in self._files.values():
                    os.fsync(file.descriptor)
            check_files(self._folder, self._plan, {self._partition.id})
            with _writing(self._folder):
                return self._cache.adopt(self._folder, self._partition)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave nothing of what is not in the cache."""
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, path: str, sha256: str, nbytes: int | None) -> None:
        known = self._files.get(sha256)
        self._paths.setdefault(sha256, []).append(path)
        if known is not None:
            known.total_nbytes = nbytes if known.total_nbytes is None else known.total_nbytes
            return
        self._files[sha256] = _File(_create(self._folder, path), nbytes)

    def _copy_doubles(self) -> None:
        for sha256, paths in self._paths.items():
            for path in dict.fromkeys(paths[1:]):
                if path == paths[0]:
                    continue
                descriptor = _create(self._folder, path)
                with os.fdopen(descriptor, "wb") as target:
                    os.lseek(self._files[sha256].descriptor, 0, os.SEEK_SET)
                    with os.fdopen(os.dup(self._files[sha256].descriptor), "rb") as source:
                        shutil.copyfileobj(source, target, PIECE_NBYTES)


def _next_want(sha256: str, file: _File) -> Want | None:
    is_told = file.total_nbytes is not None
    if not is_told and file.asked_nbytes:
        return None  # the first piece tells how many more there are
    left = (file.total_nbytes or 0) - file.asked_nbytes if is_told else PIECE_NBYTES
    if left <= 0:
        return None
    want = Want(sha256, file.asked_nbytes, min(left, PIECE_NBYTES))
    file.asked[want.offset] = want.nbytes
    file.asked_nbytes += want.nbytes
    return want


def _has_files(folder: Path, plan: Plan, partition: Partition) -> bool:
    try:
        check_files(folder, plan, {partition.id})
    except (HypsError, OSError):
        return False
    return True


def _create(folder: Path, path: str) -> int:
    """Return a descriptor of a new file; the folders on the way are ours, made a moment ago."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _nbytes_in(folder: Path) -> int:
    found = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(where, name)).st_size
    return found


def _remove_unlocked(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = printable(error.strerror or str(error))
        text = f"the cache `{printable(str(folder))}` cannot be written: {reason}"
        raise OutputError(text, _HASTE, "E_CACHE") from error
