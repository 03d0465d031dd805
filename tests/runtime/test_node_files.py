"""How a node gets files: what is no longer wanted, or is denied, stands in nobody's way."""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from cluster_fixtures import plan_of
from hyps.adapters.executor import Completion, Done, Executor
from hyps.adapters.file_cache import FileCache, partition_digest
from hyps.adapters.sessions import Sessions
from hyps.core.node_events import NotObtained, Obtained
from hyps.formats.messages import Failed
from hyps.node_files import NodeFiles

if TYPE_CHECKING:
    from hyps.formats.node_messages import Fetch

PLAN = plan_of([("first", ["x"], ["y"]), ("second", ["y"], ["z"])], {"first": "a", "second": "a"}, outputs=["z"])
FIRST, SECOND = (replace(part, sha256=digit * 64) for part, digit in zip(PLAN.partitions, "12", strict=True))


class _Node:
    """What a node has for its files: a cache, an executor, and somebody to ask."""

    def __init__(self, folder: Path, executor: Executor, completions: "queue.SimpleQueue[Completion]") -> None:
        self.asked: list[Fetch] = []
        self.told: list[Obtained | NotObtained] = []
        self.files = NodeFiles(FileCache(folder), executor, self.asked.append, self.told.append)
        self._completions = completions

    def obtain(self, partition: object) -> None:
        wanted = FIRST if partition is FIRST else SECOND
        self.files.obtain((wanted.id, partition_digest(wanted)), PLAN, wanted)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            completion = self._completions.get(timeout=20.0)
            assert isinstance(completion, Done)
            self.files.on_done(completion)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[_Node]:
    completions: queue.SimpleQueue[Completion] = queue.SimpleQueue()
    executor = Executor(Sessions(1), None, completions.put)
    yield _Node(tmp_path / "cache", executor, completions)
    executor.close(20.0)


def test_a_fetch_for_a_partition_that_is_placed_elsewhere_gives_way_to_the_next(node: _Node) -> None:
    node.files.keep_only([FIRST])
    node.obtain(FIRST)
    node.until(lambda: bool(node.asked))

    node.files.keep_only([SECOND])  # the manager gives nothing of the first one any more
    node.obtain(SECOND)

    node.until(lambda: node.asked[-1].sha256 == SECOND.sha256)
    assert node.told == []


def test_what_waits_for_its_turn_is_forgotten_when_it_is_placed_elsewhere(node: _Node) -> None:
    node.files.keep_only([FIRST, SECOND])
    node.obtain(FIRST)
    node.obtain(SECOND)
    node.until(lambda: bool(node.asked))

    node.files.keep_only([FIRST])
    node.files.on_failed(Failed(FIRST.sha256, "E_DENIED", "no"))
    node.files.keep_only([FIRST, SECOND])
    node.obtain(SECOND)

    node.until(lambda: node.asked[-1].sha256 == SECOND.sha256)
    assert [event.partition for event in node.told] == ["first"]


def test_a_piece_that_the_manager_does_not_give_ends_the_fetch(node: _Node) -> None:
    node.files.keep_only([FIRST])
    node.obtain(FIRST)
    node.until(lambda: bool(node.asked))

    node.files.on_failed(Failed(node.asked[0].sha256, "E_NO_PLAN", "the file is gone"))

    assert node.told == [NotObtained("first", "the file is gone", partition_digest(FIRST), "E_NO_PLAN")]
