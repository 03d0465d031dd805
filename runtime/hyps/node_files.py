"""How a node gets its partitions' files: one after another, looked for here first, else fetched from the manager."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyps.adapters.executor import Done, Executor, Key
from hyps.adapters.file_cache import Download, FileCache, Want, partition_digest
from hyps.adapters.links import Buffer
from hyps.adapters.plan_files import check_cpu
from hyps.core.node_events import NotObtained, Obtained
from hyps.errors import HypsError
from hyps.formats.messages import Failed
from hyps.formats.node_messages import Fetch, Piece
from hyps.formats.plan import Partition, Plan, file_digests

_PIECES_UNDER_WAY = 8


@dataclass(frozen=True, slots=True)
class _Progress:
    wants: Sequence[Want]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Errand:
    """What the thread beside the computing was asked for."""

    what: str
    key: Key
    attempt: int


@dataclass(frozen=True, slots=True)
class _Case:
    """A partition that is wanted."""

    plan: Plan
    partition: Partition


class NodeFiles:
    """Looks for and fetches partitions; everything slow is done by the executor's second thread.

    Attributes:
        folders: where the files of each partition lie that was obtained.
    """

    def __init__(
        self,
        cache: FileCache,
        executor: Executor,
        fetch: Callable[[Fetch], None],
        tell: Callable[[Obtained | NotObtained], None],
    ) -> None:
        """Take the cache, and whom to ask for pieces and to tell of the outcome."""
        self._cache, self._executor = cache, executor
        self._fetch, self._tell = fetch, tell
        self.folders: dict[Key, Path] = {}
        self._cases: dict[Key, _Case] = {}
        self._queue: deque[Key] = deque()
        self._now: Key | None = None
        self._download: Download | None = None
        self._attempt = 0
        """What comes back of an earlier one is over."""

    def keep_only(self, partitions: Sequence[Partition]) -> None:
        """Let go of the files of all other partitions, and give up what is under way to get them.

        The manager gives a node nothing of partitions that are not its own any more: to wait for such a piece would
        keep all that stands behind it waiting for ever.
        """
        keys = {(partition.id, partition_digest(partition)) for partition in partitions}
        self.folders = {key: folder for key, folder in self.folders.items() if key in keys}
        self._cases = {key: case for key, case in self._cases.items() if key in keys}
        self._queue = deque(key for key in self._queue if key in keys)
        if self._now is not None and self._now not in keys:
            self._end()
        self._executor.do(None, lambda: self._cache.keep_only(partitions))
        self._begin_next()

    def obtain(self, key: Key, plan: Plan, partition: Partition) -> None:
        """Get a partition's files; `tell` is told when they are here, or why not."""
        try:
            check_cpu(plan)
        except HypsError as error:
            self._tell(NotObtained(key[0], error.message, key[1], error.code))
            return
        if key not in self._cases:
            self._cases[key] = _Case(plan, partition)
            self._queue.append(key)
        self._begin_next()

    def give_up(self) -> None:
        """Forget what was not obtained: whom it would come from is gone."""
        self._cases.clear()
        self._queue.clear()
        self._end()

    def on_piece(self, piece: Piece, frames: Sequence[Buffer]) -> None:
        """A piece has come."""
        download = self._download
        if download is None or self._now is None or len(frames) != 1:
            return

        def take() -> _Progress:
            download.take(piece.sha256, piece.offset, piece.total_nbytes, frames[0])
            return _progress(download)

        self._do("take", take)

    def on_failed(self, failed: Failed) -> None:
        """The manager does not give a piece."""
        if self._download is not None and any(
            failed.request == sha256 for sha256 in _digests(self._download.partition)
        ):
            self._fail(HypsError(failed.message, failed.hint, failed.code))

    def on_done(self, done: Done) -> None:
        """The executor's thread has done something for us."""
        errand, result = done.name, done.result
        if not isinstance(errand, _Errand) or errand.attempt != self._attempt or errand.key != self._now:
            if isinstance(result, Download):
                self._executor.do(None, result.abandon)
            return
        if isinstance(result, HypsError):
            self._fail(result)
        elif isinstance(result, Path):
            self._succeed(errand.key, result)
        elif result is None:
            case = self._cases[errand.key]
            self._do("begin", lambda: self._cache.begin(case.plan, case.partition))
        elif isinstance(result, Download):
            self._download = result
            self._do("take", lambda: _progress(result))
        elif isinstance(result, _Progress):
            self._on_progress(result)

    def _on_progress(self, progress: _Progress) -> None:
        assert self._download is not None, "progress is a download's"
        for want in progress.wants:
            self._fetch(Fetch(want.sha256, want.offset, want.nbytes))
        if progress.is_whole:
            download, self._download = self._download, None
            self._do("finish", download.finish)

    def _begin_next(self) -> None:
        if self._now is None and self._queue:
            self._now = key = self._queue.popleft()
            case = self._cases[key]
            self._do("find", lambda: self._cache.find(case.plan, case.partition))

    def _succeed(self, key: Key, folder: Path) -> None:
        self.folders[key] = folder
        self._end()
        del self._cases[key]
        self._tell(Obtained(*key))
        self._begin_next()

    def _fail(self, error: HypsError) -> None:
        key = self._now
        assert key is not None, "what fails is under way"
        self._end()
        del self._cases[key]
        self._tell(NotObtained(key[0], error.message, key[1], error.code))
        self._begin_next()

    def _end(self) -> None:
        self._now = None
        self._attempt += 1
        download, self._download = self._download, None
        if download is not None:
            self._executor.do(None, download.abandon)

    def _do(self, what: str, errand: Callable[[], object]) -> None:
        assert self._now is not None, "errands are for what is under way"
        self._executor.do(_Errand(what, self._now, self._attempt), errand)


def _progress(download: Download) -> _Progress:
    return _Progress(download.next_wants(_PIECES_UNDER_WAY), download.is_whole)


def _digests(partition: Partition) -> set[str]:
    return {sha256 for _, sha256 in file_digests(partition)}
