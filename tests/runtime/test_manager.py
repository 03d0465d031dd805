"""Managers with real nodes, over links in memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from msgspec.structs import replace

from hyps.adapters.file_cache import FileCache
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.core.manager_options import ManagerOptions
from hyps.formats.plan import Variant
from hyps.node import NodeOptions
from manager_fixtures import RunningManager, ScriptedClient
from node_fixtures import RunningNode
from plan_fixtures import Dataflow, mlp, write_plan_file

MANAGER = "manager"


class Cluster:
    """A manager, nodes and clients on one network in memory."""

    def __init__(self, folder: Path, flow: Dataflow, placement: Mapping[str, str], **variant: Any) -> None:
        self.folder, self.flow = folder, flow
        plan = flow.write(folder)
        first = Variant(name="first", placement=dict(placement), **variant)
        self.plan = replace(plan, variants=(first,), entry="client")
        write_plan_file(folder, self.plan)
        self.network = MemoryNetwork()
        self.stack = ExitStack()
        self._session = onnxruntime.InferenceSession(flow.whole(), providers=["CPUExecutionProvider"])

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stack.close()

    def manager(self, options: ManagerOptions | None = None, **more: Any) -> RunningManager:
        links = MemoryLinks(self.network)
        links.listen(MANAGER)
        running = RunningManager(links, self.folder, options or ManagerOptions(beat_s=0.2), **more)
        return self.stack.enter_context(running)

    def node(self, device: str, **more: Any) -> RunningNode:
        links = MemoryLinks(self.network)
        links.listen(device)
        options = NodeOptions(MANAGER, device, endpoints=(device,), **more)
        cache = FileCache(self.folder.parent / f"cache-{device}")
        return self.stack.enter_context(RunningNode(links, options, cache))

    def client(self) -> ScriptedClient:
        return ScriptedClient(MemoryLinks(self.network), MANAGER)

    def expected(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def check(cluster: Cluster, answer: Mapping[str, Any], feeds: Mapping[str, Any]) -> None:
    for name, value in cluster.expected(feeds).items():
        np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


def test_requests_pass_through_two_nodes(tmp_path: Path) -> None:
    flow = mlp(8, 16, 4)
    with Cluster(tmp_path / "plan", flow, {"v0": "a", "v1": "b"}) as cluster:
        manager = cluster.manager()
        cluster.node("a")
        cluster.node("b")
        client = cluster.client()
        feeds = [flow.feeds(seed, batch=2) for seed in range(8)]
        for number, given in enumerate(feeds):
            client.submit(f"r{number}", given)
        client.until(lambda: len(client.ended) == len(feeds))
        for number, given in enumerate(feeds):
            check(cluster, client.answers[f"r{number}"], given)
        assert client.ended == client.accepted == [f"r{number}" for number in range(8)]
        manager.leave()
        assert manager.is_whole
        assert not len(manager.state.queue)
        assert not len(manager.state.hub)
