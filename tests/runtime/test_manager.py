"""Managers with real nodes and clients, over links in memory and over sockets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

from hyps.adapters.file_cache import FileCache
from hyps.adapters.links import Links
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.adapters.zmq_links import ZmqLinks
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.errors import PeerError
from hyps.formats.messages import AskStatus, Failed, Heartbeat, Hello, MachineFacts, Probe, Probed, Status, TensorHeader
from hyps.formats.node_messages import (
    NODE_PROTOCOL_VERSION,
    Fetch,
    Join,
    Joined,
    Tensor,
    decode_from_manager,
    encode_node_message,
)
from hyps.formats.plan import Prediction, Variant
from hyps.formats.replanning import Answer, Question
from hyps.node import NodeOptions
from manager_fixtures import RunningManager, ScriptedClient, ScriptedPlanner
from node_fixtures import RunningNode
from plan_fixtures import Dataflow, cnn, mlp, sharded, write_plan_file

OPTIONS = ManagerOptions(beat_s=0.2)


class Cluster:
    """A manager, nodes and clients of one test."""

    def __init__(self, make_links: Callable[[], Links], address: Callable[[str], str], folder: Path) -> None:
        self._make_links, self._address, self._folder = make_links, address, folder
        self._stack = ExitStack()
        self._endpoint = ""

    def close(self) -> None:
        self._stack.close()

    def start(
        self,
        flow: Dataflow,
        placement: Mapping[str, str],
        options: ManagerOptions = OPTIONS,
        *,
        replicas: Mapping[str, tuple[str, ...]] | None = None,
        **more: Any,
    ) -> RunningManager:
        """Start a manager of a plan with one placement."""
        plan = flow.write(self._folder / "plan")
        first = Variant(name="first", placement=dict(placement), replicas=dict(replicas or {}))
        write_plan_file(self._folder / "plan", replace(plan, variants=(first,), entry="client"))
        self._session = onnxruntime.InferenceSession(flow.whole(), providers=["CPUExecutionProvider"])
        links = self._make_links()
        self._endpoint = links.listen(self._address("manager"))
        return self._stack.enter_context(RunningManager(links, self._folder / "plan", options, **more))

    def join(self, device: str, **more: Any) -> RunningNode:
        """Start a node that fetches its files."""
        links = self._make_links()
        endpoints = (links.listen(self._address(device)),) if more.pop("listens", True) else ()
        cache = FileCache(self._folder / f"cache-{device}")
        return self._stack.enter_context(
            RunningNode(links, NodeOptions(self._endpoint, device, endpoints=endpoints, **more), cache)
        )

    def client(self) -> ScriptedClient:
        return ScriptedClient(self.links(), self._endpoint)

    def links(self) -> Links:
        return self._stack.enter_context(self._make_links())

    def dial(self, links: Links) -> int:
        return links.connect(self._endpoint)

    def check(self, answer: Mapping[str, Any], feeds: Mapping[str, Any]) -> None:
        """Compare an answer with the whole model's."""
        names = [output.name for output in self._session.get_outputs()]
        for name, value in zip(names, self._session.run(names, dict(feeds)), strict=True):
            np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["memory", pytest.param("zmq", marks=pytest.mark.network)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    network = MemoryNetwork()

    def make_links() -> Links:
        return MemoryLinks(network) if request.param == "memory" else ZmqLinks()

    def address(name: str) -> str:
        return name if request.param == "memory" else "tcp://127.0.0.1:0"

    made = Cluster(make_links, address, tmp_path)
    yield made
    made.close()


def check_all(cluster: Cluster, client: ScriptedClient, feeds: list[dict[str, Any]], **more: Any) -> None:
    """Submit requests at once, and compare the answers and their order."""
    first = len(client.ended)
    names = [f"r{first + number}" for number in range(len(feeds))]
    for name, given in zip(names, feeds, strict=True):
        client.submit(name, given, **more)
    client.until(lambda: len(client.ended) == first + len(feeds))
    assert client.ended[first:] == names
    for name, given in zip(names, feeds, strict=True):
        cluster.check(client.answers[name], given)


def check_nothing_is_left(manager: RunningManager) -> None:
    manager.leave()
    assert manager.is_whole
    state = manager.state
    state.check_invariants()
    assert not len(state.queue)
    assert not len(state.hub)
    assert not len(state.leases)
    assert not len(manager.manager.store)


@pytest.mark.parametrize("is_via_hub", [False, True])
def test_requests_pass_through_nodes_and_come_back_in_order(cluster: Cluster, is_via_hub: bool) -> None:
    flow = cnn()
    manager = cluster.start(
        flow, {"stem": "a", "body": "b", "head": "a"}, ManagerOptions(beat_s=0.2, is_via_hub=is_via_hub)
    )
    cluster.join("a")
    cluster.join("b")
    client = cluster.client()
    check_all(cluster, client, [dict(flow.feeds(seed)) for seed in range(8)])
    assert client.accepted == client.ended
    assert (manager.state.hub.passed_nbytes > 0) == is_via_hub
    check_nothing_is_left(manager)


def test_shards_are_scattered_over_devices_and_gathered(cluster: Cluster) -> None:
    flow = sharded()
    manager = cluster.start(flow, {"first": "a", "fc0": "a", "fc1": "b", "fc2": "c", "last": "b"})
    for device in "abc":
        cluster.join(device)
    check_all(cluster, cluster.client(), [dict(flow.feeds(seed, batch=3)) for seed in range(5)])
    check_nothing_is_left(manager)


def test_replicas_share_the_requests(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    manager = cluster.start(flow, {"v0": "a", "v1": "b"}, replicas={"v1": ("c",)})
    for device in "abc":
        cluster.join(device)
    client = cluster.client()
    check_all(cluster, client, [dict(flow.feeds(seed, batch=2)) for seed in range(12)])
    client.say(AskStatus("s"))
    client.until(lambda: bool(client.other))
    assert sum(course.done for course in manager.state.network.book) == 12
    check_nothing_is_left(manager)


def test_requests_survive_a_node_that_dies(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    manager = cluster.start(flow, {"v0": "a", "v1": "b"}, ManagerOptions(beat_s=0.2, keep=ALL_TENSORS))
    cluster.join("a")
    dying = cluster.join("b")
    client = cluster.client()
    check_all(cluster, client, [dict(flow.feeds(0, batch=2))])
    feeds = [dict(flow.feeds(seed, batch=2)) for seed in range(6)]
    for number, given in enumerate(feeds):
        client.submit(f"n{number}", given)
    dying.node.leave()
    dying.node.leave()
    dying.join()
    cluster.join("b")
    client.until(lambda: len(client.ended) == 7)
    for number, given in enumerate(feeds):
        cluster.check(client.answers[f"n{number}"], given)
    check_nothing_is_left(manager)


def test_a_draining_node_goes_when_its_work_is_done(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    manager = cluster.start(flow, {"v0": "a", "v1": "b"}, replicas={"v1": ("c",)})
    cluster.join("a")
    leaving = cluster.join("b")
    cluster.join("c")
    client = cluster.client()
    check_all(cluster, client, [dict(flow.feeds(seed, batch=2)) for seed in range(4)])
    leaving.node.leave()
    leaving.join()
    assert leaving.is_whole
    check_all(cluster, client, [dict(flow.feeds(seed, batch=2)) for seed in range(4)])
    check_nothing_is_left(manager)


def test_a_search_finds_a_placement_for_devices_that_the_plan_does_not_know(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)

    def answer(question: Question) -> Answer:
        names = [device.name for device in question.devices]
        placement = {part.id: names[index % len(names)] for index, part in enumerate(question.partitions)}
        return Answer(number=question.number, placement=placement, prediction=Prediction())

    planner = ScriptedPlanner(answer)
    manager = cluster.start(flow, {"v0": "x", "v1": "y"}, ManagerOptions(beat_s=0.2, gather_s=0.5), planner=planner)
    cluster.join("a")
    cluster.join("b")
    check_all(cluster, cluster.client(), [dict(flow.feeds(seed, batch=2)) for seed in range(4)])
    assert planner.questions
    check_nothing_is_left(manager)


def test_requests_that_are_alike_are_computed_together_and_parted_again(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    options = ManagerOptions(beat_s=0.2, batch_rows=8, batch_wait_s=0.2)
    manager = cluster.start(flow, {"v0": "a", "v1": "b"}, options)
    cluster.join("a")
    cluster.join("b")
    client = cluster.client()
    check_all(cluster, client, [dict(flow.feeds(0, batch=8))])
    check_all(cluster, client, [dict(flow.feeds(seed, batch=1 + seed % 3)) for seed in range(8)])
    assert sum(course.done for course in manager.state.network.book) < 8
    check_nothing_is_left(manager)


def test_a_node_without_an_endpoint_is_reached_over_the_hub(cluster: Cluster) -> None:
    flow = mlp(8, 16, 16, 4)
    manager = cluster.start(flow, {"v0": "a", "v1": "b", "v2": "a"})
    cluster.join("a")
    cluster.join("b", listens=False)
    check_all(cluster, cluster.client(), [dict(flow.feeds(seed, batch=2)) for seed in range(4)])
    assert manager.state.hub.passed_nbytes == 4 * 2 * 16 * 4, "what goes to b, and not what comes from it"
    check_nothing_is_left(manager)


# What peers may not do.


def test_requests_that_the_model_does_not_take_are_refused(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    cluster.start(flow, {"v0": "a", "v1": "b"})
    client = cluster.client()
    client.submit("shape", {"t0": np.zeros((2, 9), np.float32)})
    client.submit("name", {"t9": np.zeros((2, 8), np.float32)})
    client.submit("output", flow.feeds(batch=2), outputs=("gone",))
    client.until(lambda: len(client.ended) == 3)
    assert {failure.code for failure in client.failures.values()} == {"E_TENSOR"}
    client.links.send(client.link, [b"nonsense"])
    client.until(lambda: "" in client.failures)
    assert client.failures[""].code == "E_PROTOCOL"
    client.say(Hello(99))
    client.until(lambda: client.ended.count("") == 2)
    assert client.failures[""].code == "E_VERSION"
    client.say(Heartbeat())
    client.until(lambda: bool(client.other))


def test_a_request_that_is_late_and_one_that_is_cancelled_leave_nothing_behind(cluster: Cluster) -> None:
    flow = mlp(8, 16, 4)
    manager = cluster.start(flow, {"v0": "a", "v1": "b"})
    client = cluster.client()
    client.submit("late", flow.feeds(batch=2), timeout_s=0.3)
    client.submit("unwanted", flow.feeds(batch=2))
    client.cancel("unwanted")
    client.until(lambda: "late" in client.ended)
    assert client.failures["late"].code == "E_DEADLINE"
    check_nothing_is_left(manager)


def join_message(**more: Any) -> Join:
    fields = {"version": NODE_PROTOCOL_VERSION, "device": "z", "token": "", "facts": MachineFacts(None, 1, 1e9)}
    return Join(**{**fields, "cpu_family": "cpu", **more})


class Stranger:
    """Somebody who says what a test wants to the manager, as a node would."""

    def __init__(self, cluster: Cluster) -> None:
        self.links = cluster.links()
        self.link = cluster.dial(self.links)

    def ask(self, message: Any, frames: tuple[bytes, ...] = ()) -> Any:
        """Say something and return the first answer that is no echo."""
        self.links.send(self.link, [encode_node_message(message), *frames])
        while True:
            event = self.links.receive(10.0)
            assert event is not None, "no answer"
            heard = getattr(event, "frames", None)
            if heard is not None:
                told = decode_from_manager(memoryview(heard[0]))
                if type(told).__name__ != "Echo":
                    return told


@pytest.mark.parametrize(
    ("join", "code"),
    [
        (join_message(token="guessed"), "E_DENIED"),
        (join_message(token="secret", version=99), "E_VERSION"),
        (join_message(token="secret", device=""), "E_USAGE"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(cluster: Cluster, join: Join, code: str) -> None:
    cluster.start(mlp(8, 4), {"v0": "a"}, token="secret")
    answer = Stranger(cluster).ask(join)
    assert isinstance(answer, Failed)
    assert answer.code == code


def test_a_name_belongs_to_one_node(cluster: Cluster) -> None:
    cluster.start(mlp(8, 4), {"v0": "a"})
    assert isinstance(Stranger(cluster).ask(join_message()), Joined)
    answer = Stranger(cluster).ask(join_message())
    assert isinstance(answer, Failed)
    assert answer.code == "E_DUPLICATE"


def test_real_nodes_with_the_token_join_and_others_hear_why_not(cluster: Cluster) -> None:
    flow = mlp(8, 4)
    cluster.start(flow, {"v0": "a"}, token="secret")
    stranger = cluster.join("b", token="wrong")
    stranger.join()
    assert isinstance(stranger.error, PeerError)
    assert stranger.error.code == "E_DENIED"
    cluster.join("a", token="secret")
    check_all(cluster, cluster.client(), [dict(flow.feeds(batch=2))])


def test_who_has_not_joined_tells_and_gets_nothing(cluster: Cluster) -> None:
    manager = cluster.start(mlp(8, 4), {"v0": "a"})
    digest = manager.state.plan.partitions[0].sha256
    header = TensorHeader("t1", "float32", (1, 4), 16)
    for message, frames in ((Fetch(digest, 0, 100), ()), (Tensor(1, 1, 1, header), (bytes(16),))):
        answer = Stranger(cluster).ask(message, frames)
        assert isinstance(answer, Failed)
        assert answer.code == "E_PROTOCOL"


def test_a_node_gets_no_files_but_its_own(cluster: Cluster) -> None:
    manager = cluster.start(mlp(8, 4), {"v0": "a"})
    stranger = Stranger(cluster)
    assert isinstance(stranger.ask(join_message()), Joined)
    digest = manager.state.plan.partitions[0].sha256
    answer = stranger.ask(Fetch(digest, 0, 100))
    assert isinstance(answer, Failed)
    assert (answer.request, answer.code) == (digest, "E_DENIED"), "who waits for a piece hears which one does not come"
    answer = stranger.ask(Tensor(1, 1, 1, TensorHeader("t1", "float32", (1, 4), 12)), (bytes(12),))
    assert isinstance(answer, Failed)
    assert answer.code == "E_PROTOCOL"


def test_a_probe_measures_the_way_to_the_manager(cluster: Cluster) -> None:
    cluster.start(mlp(8, 4), {"v0": "a"})
    client = cluster.client()
    client.say(Probe("p", 1000, wants_seconds=True), [bytes(10)])
    client.until(lambda: bool(client.other))
    assert isinstance(client.other[0], Probed)


def test_whoever_asks_is_told_how_it_is(cluster: Cluster) -> None:
    cluster.start(mlp(8, 4), {"v0": "a"})
    client = cluster.client()
    client.say(AskStatus("s"))
    client.until(lambda: bool(client.other))
    assert isinstance(client.other[0], Status)
    report = client.reports[0]
    assert (report.role, report.state, report.model) == ("manager", "partitioned", "test")
    assert [part.state for part in report.partitions] == ["created"]


def test_told_twice_to_leave_a_manager_stops_at_once(cluster: Cluster) -> None:
    manager = cluster.start(mlp(8, 4), {"v0": "a"})
    client = cluster.client()
    client.submit("r", mlp(8, 4).feeds(batch=2))
    client.until(lambda: client.accepted == ["r"])
    manager.manager.leave()
    manager.manager.leave()
    manager.join()
    assert manager.is_whole is False
