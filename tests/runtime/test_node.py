"""A node against a manager that follows a script: joins, loads, runs, sends, and leaves."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyps.adapters.file_cache import FileCache
from hyps.adapters.frames import to_frames
from hyps.adapters.links import Links, Lost
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.adapters.zmq_links import ZmqLinks
from hyps.core.node_events import NodeInstruction
from hyps.errors import InternalError
from hyps.formats.messages import TensorHeader
from hyps.formats.node_messages import (
    NODE_PROTOCOL_VERSION,
    Drain,
    Echo,
    Echoed,
    Finished,
    Goodbye,
    Greet,
    ItemFailed,
    Retire,
    Spans,
    Started,
    Tensor,
    encode_node_message,
)
from hyps.local import LocalRunner
from hyps.node import NodeOptions
from node_fixtures import WAIT_S, RunningNode, ScriptedManager
from plan_fixtures import Dataflow, cnn, mlp, sharded

MakeLinks = Callable[[], Links]


class Cluster:
    """A manager and nodes of one test."""

    def __init__(self, make_links: MakeLinks, flow: Dataflow, folder: Path, address: Callable[[str], str]) -> None:
        self._make_links, self._address = make_links, address
        self.folder, self.flow = folder, flow
        self.plan = flow.write(folder / "plan")
        self._stack = contextlib.ExitStack()
        links = self._stack.enter_context(make_links())
        self.manager = ScriptedManager(links, self.plan)
        self.endpoint = links.listen(address("manager"))

    def close(self) -> None:
        self._stack.close()

    def start(self, device: str, *, fetches: bool = False, **more: Any) -> RunningNode:
        """Start a node that finds the plan's files, or fetches them."""
        links = self._make_links()
        endpoints = (links.listen(self._address(device)),) if more.pop("listens", True) else ()
        options = NodeOptions(self.endpoint, device, endpoints=endpoints, **more)
        cache = FileCache(self.folder / f"cache-{device}", None, None if fetches else self.folder / "plan")
        return self._stack.enter_context(RunningNode(links, options, cache))

    def join(self, *devices: str, **more: Any) -> list[RunningNode]:
        """Start nodes and wait until all have joined."""
        nodes = [self.start(device, **more) for device in devices]
        self.manager.until(lambda: set(devices) <= set(self.manager.members))
        return nodes

    def whole(self, feeds: Any) -> dict[str, Any]:
        """Return what the plan computes in one process."""
        with LocalRunner(self.folder / "plan", threads=1) as runner:
            return runner.run(feeds)


@pytest.fixture(params=["memory", pytest.param("zmq", marks=pytest.mark.network)])
def cluster_for(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Dataflow], Cluster]]:
    network = MemoryNetwork()
    made: list[Cluster] = []

    def make_links() -> Links:
        return MemoryLinks(network) if request.param == "memory" else ZmqLinks()

    def address(name: str) -> str:
        return name if request.param == "memory" else "tcp://127.0.0.1:0"

    def make(flow: Dataflow) -> Cluster:
        made.append(Cluster(make_links, flow, tmp_path, address))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def check_equal(answer: dict[str, Any], whole: dict[str, Any]) -> None:
    assert answer.keys() == whole.keys()
    for name, value in whole.items():
        assert answer[name].dtype == value.dtype
        np.testing.assert_array_equal(answer[name], value)


@pytest.mark.parametrize("via_hub", [False, True])
def test_partitions_on_two_nodes_give_the_same_bits_as_the_whole_plan(
    cluster_for: Callable[[Dataflow], Cluster], via_hub: bool
) -> None:
    cluster = cluster_for(cnn())
    manager = cluster.manager
    cluster.join("a", "b")
    placement = {"stem": "a", "body": "b", "head": "a"}
    manager.set_up(placement, via_hub=via_hub)
    for request in (1, 2, 3):
        feeds = cluster.flow.feeds(seed=request)
        manager.feed(request, feeds, placement)
        if via_hub:
            _pass_on(manager, request, placement)
        check_equal(manager.answer(request), cluster.whole(feeds))
    manager.until(lambda: len(manager.said(Finished)) == 9)
    finished = [(m.request, m.partition) for m in manager.said(Finished)]
    assert sorted(finished) == sorted((r, p) for r in (1, 2, 3) for p in placement)
    assert not manager.said(ItemFailed)


def _pass_on(manager: ScriptedManager, request: int, placement: dict[str, str]) -> None:
    """Do what a hub does: pass on each tensor between partitions to its readers."""
    for name in ("a", "b"):
        manager.until(lambda name=name: (request, 1, name) in manager.tensors)  # type: ignore[misc]  # default: now
        maker = next(part.id for part in manager.plan.partitions if name in part.outputs)
        readers = {placement[part.id] for part in manager.plan.partitions if name in part.inputs}
        headers, frames = to_frames({name: manager.tensors[request, 1, name]})
        for device in sorted(readers - {placement[maker]}):
            manager.say(device, Tensor(request, 1, 1, headers[0]), *frames)


def test_what_takes_long_is_told_to_have_begun(
    cluster_for: Callable[[Dataflow], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    cluster.join("a")
    manager.set_up({"v0": "a"})
    manager.feed(1, cluster.flow.feeds(), {"v0": "a"})
    manager.answer(1)
    assert not manager.said(Started)
    monkeypatch.setattr("hyps.node._BEGUN_S", 0.0)
    manager.feed(2, cluster.flow.feeds(batch=20_000), {"v0": "a"})
    manager.answer(2)
    manager.until(lambda: len(manager.said(Finished)) == 2)
    assert manager.said(Started) == [Started(2, 1, "v0")]


def test_shards_run_on_several_nodes_and_meet_in_their_merge(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(sharded())
    cluster.join("a", "b")
    placement = {"first": "a", "fc0": "a", "fc1": "b", "fc2": "b", "last": "b"}
    cluster.manager.set_up(placement)
    feeds = cluster.flow.feeds()
    cluster.manager.feed(1, feeds, placement)
    check_equal(cluster.manager.answer(1), cluster.whole(feeds))


def test_files_are_fetched_once_and_found_in_the_cache_afterwards(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(8, 300, 4))
    manager = cluster.manager
    manager.folder = cluster.folder / "plan"
    (node,) = cluster.join("a", fetches=True)
    placement = {"v0": "a", "v1": "a"}
    manager.set_up(placement)
    feeds = cluster.flow.feeds(batch=2)
    manager.feed(1, feeds, placement)
    check_equal(manager.answer(1), cluster.whole(feeds))
    expected = sum(path.stat().st_size for path in (cluster.folder / "plan" / "partitions").iterdir())
    assert manager.fetched_nbytes == expected
    node.node.leave()
    node.node.leave()
    node.join()
    manager.until(lambda: manager.lost == ["a"])
    del manager.members["a"]
    cluster.join("a", fetches=True)
    manager.set_up(placement)
    assert manager.fetched_nbytes == expected


def test_altered_files_are_refused_and_said_so(
    cluster_for: Callable[[Dataflow], Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = cluster_for(mlp(4, 4, 4))
    manager = cluster.manager
    manager.folder = cluster.folder / "plan"
    data = manager.folder / "partitions" / "v1.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    cluster.join("a", fetches=True)
    manager.set_up({"v0": "a", "v1": "a"})
    beat = manager.members["a"].beat
    assert beat is not None
    assert beat.loaded == ("v0",)
    assert beat.refused[0][0] == "v1"
    assert "not the one" in beat.refused[0][1]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"cannot load partition `v1`: {beat.refused[0][1]}"], "whoever looks at the node's log is told once"
    assert not list((cluster.folder / "cache-a").glob(".fetching-*"))


def test_a_budget_that_holds_one_partition_at_a_time_is_enough(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(64, 64, 64, 64))
    (node,) = cluster.join("a")
    node.node._state = type(node.node._state)(40_000, 0)
    node.node._state.handle(0.0, _found())
    placement = {"v0": "a", "v1": "a", "v2": "a"}
    cluster.manager.set_up(placement)
    assert len(node.node._state.residency.kept) < 3
    for request in (1, 2):
        feeds = cluster.flow.feeds(seed=request)
        cluster.manager.feed(request, feeds, placement)
        np.testing.assert_allclose(
            cluster.manager.answer(request)["t3"], cluster.whole(feeds)["t3"], rtol=1e-5, atol=1e-6
        )


def _found() -> Any:
    from hyps.core.node_events import ManagerFound

    return ManagerFound(0.1)


def test_a_wrong_tensor_ends_its_request_and_the_node_goes_on(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    cluster.join("a")
    manager.set_up({"v0": "a"})
    wrong = TensorHeader("t0", "float64", (1, 4), 32)
    manager.say("a", Tensor(1, 1, 1, wrong), bytes(32))
    manager.say("a", Tensor(2, 1, 1, TensorHeader("t0", "float32", (1, 4), 16)), bytes(12))
    manager.until(lambda: len(manager.said(ItemFailed)) == 2)
    first, second = manager.said(ItemFailed)
    assert (first.request, first.partition, first.code) == (1, "v0", "E_TENSOR")
    assert (second.request, second.code) == (2, "E_PROTOCOL")
    feeds = cluster.flow.feeds()
    manager.feed(3, feeds, {"v0": "a"})
    check_equal(manager.answer(3), cluster.whole(feeds))


def test_what_a_run_fails_of_is_told(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    cluster.join("a")
    manager.set_up({"v0": "a"})
    manager.feed(1, {"t0": np.zeros((0, 4), np.float32)}, {"v0": "a"})
    manager.feed(2, cluster.flow.feeds(), {"v0": "a"})
    manager.until(lambda: len(manager.said(Finished)) + len(manager.said(ItemFailed)) == 2)
    assert (2, "v0") in [(m.request, m.partition) for m in manager.said(Finished)]


def test_nothing_is_left_of_retired_requests(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4, 4))
    manager = cluster.manager
    (node,) = cluster.join("a")
    placement = {"v0": "a", "v1": "a"}
    manager.set_up(placement)
    for request in range(1, 30):
        manager.feed(request, cluster.flow.feeds(), placement)
        if request % 2:
            manager.say("a", Retire(((request, 1),)))
    for request in range(2, 30, 2):
        manager.answer(request)
    manager.until(lambda: not node.node._state._requests)
    manager.until(lambda: not node.node._runs and not node.node._sent)
    assert not node.node._store
    assert not node.node._ran


def test_a_node_that_does_not_know_what_to_do_any_more_ends_and_does_not_linger(
    cluster_for: Callable[[Dataflow], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_for(mlp(4, 4))
    (node,) = cluster.join("a")

    def fail(_now_s: float, _event: object) -> list[NodeInstruction]:
        raise InternalError("what cannot happen has happened")

    monkeypatch.setattr(node.node._state, "handle", fail)
    cluster.manager.say("a", Retire(((1, 1),)))
    node.join()
    assert isinstance(node.error, InternalError)


class Held:
    """A session that does not begin before it may."""

    def __init__(self, session: Any) -> None:
        self.may_go, self._session = threading.Event(), session

    def run(self, *args: Any) -> Any:
        assert self.may_go.wait(WAIT_S)
        return self._session.run(*args)


def test_what_is_given_ahead_waits_and_is_not_said_to_run(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    (node,) = cluster.join("a")
    placement = {"v0": "a"}
    manager.set_up(placement)
    feeds = cluster.flow.feeds(seed=1)
    manager.feed(1, feeds, placement)
    manager.answer(1)
    sessions = node.node._executor._sessions
    ((key, session),) = sessions.items()
    held = Held(session)
    sessions[key] = held
    for request in (2, 3, 4):
        manager.feed(request, feeds, placement)
    manager.until(lambda: bool((beat := manager.members["a"].beat) and beat.running and beat.waiting == 2))
    beat = manager.members["a"].beat
    assert beat is not None
    assert [item.request for item in beat.running] == [2]
    assert len(node.node._runs) == 2, "one more than is computed"
    manager.until(lambda: bool(manager.said(Started)))
    assert [message.request for message in manager.said(Started)] == [2]
    held.may_go.set()
    for request in (2, 3, 4):
        check_equal(manager.answer(request), cluster.whole(feeds))


def test_strangers_are_not_heard(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4, 4))
    manager = cluster.manager
    cluster.join("a", "b")
    placement = {"v0": "a", "v1": "b"}
    manager.set_up(placement)
    headers, frames = to_frames({"t1": np.ones((1, 4), np.float32)})
    forged = [encode_node_message(Tensor(1, 1, 1, headers[0])), *frames]
    for greet in (None, Greet(NODE_PROTOCOL_VERSION, "a", "wrong"), Greet(NODE_PROTOCOL_VERSION, "x", "a>b")):
        with cluster._make_links() as stranger:
            link = stranger.connect(manager.members["b"].join.endpoints[0])
            if greet is not None:
                stranger.send(link, [encode_node_message(greet)])
            stranger.send(link, forged)
            assert _is_lost(stranger)
    assert not [m for m in manager.said(Finished) if m.partition == "v1"]
    feeds = cluster.flow.feeds()
    manager.feed(1, feeds, placement)
    check_equal(manager.answer(1), cluster.whole(feeds))


def _is_lost(links: Links) -> bool:
    while (event := links.receive(5.0)) is not None:
        if isinstance(event, Lost):
            return True
    return False


def test_a_node_finds_its_manager_again_and_keeps_what_it_had_loaded(
    cluster_for: Callable[[Dataflow], Cluster],
) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    (node,) = cluster.join("a")
    manager.set_up({"v0": "a"})
    manager.feed(1, cluster.flow.feeds(), {"v0": "a"})
    manager.answer(1)
    before = dict(node.node._executor._sessions)
    manager.links.close_link(manager.members.pop("a").link)
    manager.until(lambda: "a" in manager.members)
    manager.setups = 0
    manager.tensors.clear()
    manager.set_up({"v0": "a"})
    feeds = cluster.flow.feeds(seed=3)
    manager.feed(1, feeds, {"v0": "a"})
    check_equal(manager.answer(1), cluster.whole(feeds))
    assert node.node._executor._sessions == before
    assert any("is gone" in notice for notice in node.notices)


def test_a_told_node_drains_and_leaves_when_nothing_is_left(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    (node,) = cluster.join("a")
    manager.set_up({"v0": "a"})
    node.node.leave()
    manager.until(lambda: bool(manager.said(Drain)))
    feeds = cluster.flow.feeds()
    manager.feed(1, feeds, {"v0": "a"})
    check_equal(manager.answer(1), cluster.whole(feeds))
    manager.say("a", Drain())
    manager.until(lambda: bool(manager.said(Goodbye)))
    node.join()
    assert node.is_whole is True


def test_a_node_told_twice_stops_at_once(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    (node,) = cluster.join("a")
    cluster.manager.set_up({"v0": "a"})
    node.node.leave()
    node.node.leave()
    node.join()
    assert node.is_whole is False


def test_a_refused_node_ends_with_the_managers_sentence(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    cluster.manager.token = "right"
    node = cluster.start("a", token="wrong")
    cluster.manager.until(lambda: node.error is not None)
    assert node.error is not None
    assert node.error.code == "E_AUTH"
    assert node.error.hint == "ask its operator"


def test_a_name_that_is_taken_is_refused_after_a_while(
    cluster_for: Callable[[Dataflow], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyps.upstream._DUPLICATE_S", 0.5)
    cluster = cluster_for(mlp(4, 4))
    cluster.join("a")
    node = cluster.start("a", listens=False)
    cluster.manager.until(lambda: node.error is not None)
    assert node.error is not None
    assert node.error.code == "E_DUPLICATE"


def test_a_node_gives_up_a_manager_that_is_not_there_when_told_how_long(
    cluster_for: Callable[[Dataflow], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyps.node._NOTICE_S", 0.1)
    cluster = cluster_for(mlp(4, 4))
    cluster.manager.links.close()
    node = cluster.start("a", connect_timeout_s=0.5)
    node.join()
    assert node.error is not None
    assert node.error.code == "E_UNAVAILABLE"
    assert [notice for notice in node.notices if "waiting" in notice] == [
        f"waiting for the manager at {cluster.endpoint}"
    ]


def test_traces_are_told_where_they_are_wanted(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4, 4))
    manager = cluster.manager
    manager.wants_spans = True
    cluster.join("a", "b")
    placement = {"v0": "a", "v1": "b"}
    manager.set_up(placement)
    manager.feed(1, cluster.flow.feeds(), placement)
    manager.answer(1)
    wanted = {("load", "v0"), ("queue", "v0"), ("compute", "v0"), ("send", "t1"), ("compute", "v1"), ("send", "t2")}

    def found() -> set[tuple[str, str]]:
        return {(span.kind, span.name) for spans in manager.said(Spans) for span in spans.spans}

    manager.until(lambda: wanted <= found())
    assert all(span.end_s >= span.start_s for spans in manager.said(Spans) for span in spans.spans)


def test_the_way_to_a_node_can_be_measured(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    cluster = cluster_for(mlp(4, 4))
    manager = cluster.manager
    cluster.join("a")
    manager.say("a", Echo(7, 1000), bytes(10))
    manager.until(lambda: bool(manager.said(Echoed)))
    assert manager.said(Echoed) == [Echoed(7)]


def test_a_device_that_cannot_be_reached_is_told(
    cluster_for: Callable[[Dataflow], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyps.neighbours._OPEN_S", 0.2)
    cluster = cluster_for(mlp(4, 4, 4))
    manager = cluster.manager
    cluster.join("a")
    cluster.join("b", listens=False)
    manager.set_up({"v0": "a", "v1": "b"})
    beat = manager.members["a"].beat
    manager.until(lambda: manager.members["a"].beat is not None and manager.members["a"].beat.unreachable == ("b",))
    assert beat is not None


def test_no_thread_is_left(cluster_for: Callable[[Dataflow], Cluster]) -> None:
    before = set(threading.enumerate())
    cluster = cluster_for(mlp(4, 4))
    (node,) = cluster.join("a", timeout_s=5.0)
    cluster.manager.set_up({"v0": "a"})
    cluster.manager.feed(1, cluster.flow.feeds(), {"v0": "a"})
    cluster.manager.answer(1)
    node.node.leave()
    node.node.leave()
    node.join()
    for thread in set(threading.enumerate()) - before:
        if thread.name in ("compute", "files", "deadlines"):
            thread.join(WAIT_S)
            assert not thread.is_alive()
