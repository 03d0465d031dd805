"""Groups with real managers above, nodes below and neighbours, over links in memory and over sockets."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

from hyps.adapters.file_cache import FileCache
from hyps.adapters.links import Heard, Links, Lost
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.adapters.zmq_links import ZmqLinks
from hyps.below import BelowOptions
from hyps.core.manager_options import ManagerOptions
from hyps.errors import HypsError
from hyps.formats.messages import Failed, Hello, TensorHeader, decode_from_worker, encode
from hyps.formats.node_messages import NODE_PROTOCOL_VERSION, Greet, Tensor, encode_node_message
from hyps.formats.plan import Prediction, Variant
from hyps.formats.replanning import Answer, Question
from hyps.group import Group, GroupOptions
from hyps.node import NodeOptions
from hyps.tracing import Tracing
from manager_fixtures import WAIT_S, RunningManager, ScriptedClient, ScriptedPlanner
from node_fixtures import RunningNode
from plan_fixtures import cnn, write_plan_file

OPTIONS = ManagerOptions(beat_s=0.2)
BELOW = ManagerOptions(beat_s=0.2, gather_s=0.3)


class RunningGroup:
    """A group in a thread of its own, whose search has partitions take turns on its nodes."""

    def __init__(self, links: Links, options: GroupOptions, cache: FileCache) -> None:
        self.notices: list[str] = []
        self.error: HypsError | None = None
        self.is_whole: bool | None = None
        self._links, self._cache = links, cache
        secrets = iter(f"{options.device}{number}" for number in range(10_000))
        planner = ScriptedPlanner(in_turn)
        self.group = Group(links, options, cache, planner, lambda: next(secrets), self.notices.append)
        self._thread = threading.Thread(target=self._run, name=options.device, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.group.leave()
        self.group.leave()
        self.join()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the group does not end"

    def heard(self, words: str) -> bool:
        return any(words in notice for notice in self.notices)

    def _run(self) -> None:
        try:
            self.is_whole = self.group.run()
        except HypsError as error:
            self.error = error
        finally:
            self._links.close()
            self._cache.close()


def in_turn(question: Question) -> Answer:
    names = sorted(device.name for device in question.devices)
    placement = {part.id: names[index % len(names)] for index, part in enumerate(question.partitions)}
    return Answer(number=question.number, placement=placement, prediction=Prediction())


class Tree:
    """A manager, groups and nodes of one test."""

    def __init__(self, make_links: Callable[[], Links], address: Callable[[str], str], folder: Path) -> None:
        self._make_links, self._address, self._folder = make_links, address, folder
        self._stack = ExitStack()
        self.endpoint = ""
        self.flow = cnn()

    def close(self) -> None:
        self._stack.close()

    def start(self, token: str = "", *, wants_spans: bool = False, **placement: str) -> RunningManager:
        plan = self.flow.write(self._folder / "plan")
        first = Variant(name="first", placement=placement)
        write_plan_file(self._folder / "plan", replace(plan, variants=(first,), entry="client"))
        links = self._make_links()
        self.endpoint = links.listen(self._address("manager"))
        options = dataclasses.replace(OPTIONS, wants_spans=wants_spans)
        return self._stack.enter_context(RunningManager(links, self._folder / "plan", options, token=token))

    def group(self, device: str, above: str = "", token: str = "") -> tuple[RunningGroup, str]:
        """Start a group; return it and where its nodes come."""
        links = self._make_links()
        endpoints = (links.listen(self._address(f"{device}-data")),)
        address = links.listen(self._address(f"{device}-nodes"))
        below = BelowOptions(device, "", BELOW)
        options = GroupOptions(above or self.endpoint, device, token, endpoints, below=below)
        cache = FileCache(self._folder / f"cache-{device}")
        return self._stack.enter_context(RunningGroup(links, options, cache)), address

    def node(self, device: str, above: str = "") -> RunningNode:
        links = self._make_links()
        options = NodeOptions(above or self.endpoint, device, endpoints=(links.listen(self._address(device)),))
        return self._stack.enter_context(RunningNode(links, options, FileCache(self._folder / f"cache-{device}")))

    def client(self) -> ScriptedClient:
        return ScriptedClient(self.links(), self.endpoint)

    def links(self) -> Links:
        return self._stack.enter_context(self._make_links())

    def check(self, client: ScriptedClient, count: int = 6) -> None:
        """Submit requests at once, and compare the answers with the whole model's."""
        session = onnxruntime.InferenceSession(self.flow.whole(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        first = len(client.ended)
        for number in range(first, first + count):
            client.submit(f"r{number}", dict(self.flow.feeds(number)))
        client.until(lambda: len(client.ended) == first + count)
        for number in range(first, first + count):
            assert f"r{number}" in client.answers, client.failures
            self._compare(client.answers[f"r{number}"], names, session.run(names, dict(self.flow.feeds(number))))

    @staticmethod
    def _compare(answer: Mapping[str, Any], names: list[str], values: list[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["memory", pytest.param("zmq", marks=pytest.mark.network)])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    network = MemoryNetwork()

    def make_links() -> Links:
        return MemoryLinks(network) if request.param == "memory" else ZmqLinks()

    def address(name: str) -> str:
        return name if request.param == "memory" else "tcp://127.0.0.1:0"

    made = Tree(make_links, address, tmp_path)
    yield made
    made.close()


def until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, "it took too long"
        time.sleep(0.02)


def test_a_partition_elsewhere_lies_between_two_of_a_group(tree: Tree) -> None:
    manager = tree.start(stem="g", body="a", head="g")
    group, below = tree.group("g")
    for device in ("x", "y"):
        tree.node(device, below)
    tree.node("a")
    tree.check(tree.client())
    manager.leave()
    assert manager.is_whole
    assert not len(manager.manager.store)
    until(lambda: group.heard("looking for it"))
    group.group.leave()
    group.join()
    assert group.is_whole
    assert not group.group.held_nbytes


def test_a_group_below_a_group_answers_too_and_all_leave_in_order(tree: Tree) -> None:
    tree.start(stem="g", body="g", head="g")
    outer, middle = tree.group("g")
    inner, below = tree.group("h", middle)
    node = tree.node("x", below)
    tree.check(tree.client())
    for group in (inner, outer):
        group.group.leave()
        group.join()
        assert group.is_whole
    assert node.error is None


def test_who_watches_above_sees_the_group_s_devices_and_what_they_compute(tree: Tree, tmp_path: Path) -> None:
    manager = tree.start(stem="g", body="g", head="g", wants_spans=True)
    tracing = manager.manager.tracing = Tracing(tmp_path / "trace.json", manager.state.plan)
    _group, below = tree.group("g")
    for device in ("x", "y"):
        tree.node(device, below)
    tree.check(tree.client())

    def devices_below() -> list[str]:
        (node,) = manager.manager.report().nodes
        return [] if node.group is None else [told.device for told in node.group.nodes if told.items_done]

    until(lambda: devices_below() == ["x", "y"])
    manager.leave()
    tracing.close()
    events = json.loads((tmp_path / "trace.json").read_text())
    computed = {event["name"] for event in events if event["ph"] == "X" and event.get("cat") == "compute"}
    assert computed >= {"stem", "body", "head"}


def test_a_group_without_workers_is_not_there_until_one_comes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyps.group._ALONE_S", 0.3)
    manager = tree.start(stem="g", body="g", head="g")
    group, below = tree.group("g")
    first = tree.node("x", below)
    client = tree.client()
    tree.check(client)
    first.node.leave()
    first.node.leave()
    first.join()
    until(lambda: group.heard("no worker is left"))
    until(lambda: not len(manager.state.network.members))
    tree.node("x2", below)
    tree.check(client)


def test_strangers_and_clients_get_nothing_of_a_group_and_it_goes_on(tree: Tree) -> None:
    tree.start(stem="g", body="g", head="g")
    _group, below = tree.group("g")
    tree.node("x", below)
    client = tree.client()
    tree.check(client)
    links = tree.links()
    header = TensorHeader("t", "float32", (1,), 4)
    said: list[list[bytes]] = [
        [b"what is this"],
        [encode_node_message(Greet(NODE_PROTOCOL_VERSION, "a", "a guess"))],
        [encode_node_message(Tensor(1, 1, 1, header)), b"1234"],
        [encode(Hello(NODE_PROTOCOL_VERSION))],
    ]
    for frames in said:
        links.send(links.connect(below), frames)
    refused = 0
    end_s = time.monotonic() + WAIT_S
    while refused < 3:
        assert time.monotonic() < end_s, "it took too long"
        event = links.receive(0.05)
        if isinstance(event, Heard):
            assert isinstance(decode_from_worker(memoryview(event.frames[0])), Failed)
        refused += isinstance(event, Heard | Lost)
    tree.check(client)


def test_a_group_with_another_token_is_refused_in_one_sentence(tree: Tree) -> None:
    tree.start(token="open sesame", stem="g", body="g", head="g")
    group, below = tree.group("g", token="let me in")
    tree.node("x", below)
    group.join()
    assert group.error is not None
    assert group.error.code == "E_DENIED"
