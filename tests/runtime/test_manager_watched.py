"""What a manager tells of itself: to whoever asks, of groups below it, and in its log."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyps.adapters.links import Heard, Opened
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.core.manager_options import ManagerOptions
from hyps.formats.messages import AskStatus, MachineFacts, Status, decode_from_worker, encode
from hyps.formats.node_messages import (
    NODE_PROTOCOL_VERSION,
    Beat,
    FromNode,
    GroupReport,
    ItemFailed,
    Join,
    encode_node_message,
)
from hyps.formats.status import Report, decode_report, encode_report
from manager_fixtures import RunningManager
from plan_fixtures import mlp
from status_fixtures import nested

MANAGER = "manager"
PATIENT = ManagerOptions(silent_beats=1000)


class Peer:
    """Somebody on a link to the manager, who says what a test wants."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.links = MemoryLinks(network)
        self.link = self.links.connect(MANAGER)
        self._hear(lambda event: isinstance(event, Opened))

    def say(self, message: FromNode, *frames: bytes) -> None:
        self.links.send(self.link, [encode_node_message(message), *frames])

    def join(self, device: str, *, is_group: bool = False) -> None:
        facts = MachineFacts(10**9, 1, 1e9)
        self.say(Join(NODE_PROTOCOL_VERSION, device, "", facts, "x86_64", is_group=is_group))

    def ask(self, levels: int = 8) -> Report:
        self.links.send(self.link, [encode(AskStatus("how", levels))])
        heard = self._hear(lambda event: isinstance(event, Heard))
        assert isinstance(heard, Heard)
        assert decode_from_worker(memoryview(heard.frames[0])) == Status("how")
        return decode_report(memoryview(heard.frames[1]))

    def _hear(self, is_wanted: Callable[[object], bool]) -> object:
        for _ in range(100):
            event = self.links.receive(0.2)
            if is_wanted(event):
                return event
        raise AssertionError("nothing was heard")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[MemoryNetwork]:
    mlp(4, 4, 4).write(tmp_path / "plan")
    made = MemoryNetwork()
    links = MemoryLinks(made)
    links.listen(MANAGER)
    with RunningManager(links, tmp_path / "plan", PATIENT):
        yield made


def until(watcher: Peer, holds: Callable[[Report], bool], levels: int = 8) -> Report:
    for _ in range(200):
        report = watcher.ask(levels)
        if holds(report):
            return report
    raise AssertionError(report)


def test_whoever_asks_is_told_without_a_hello(network: MemoryNetwork) -> None:
    report = Peer(network).ask()
    assert (report.role, report.model, report.nodes) == ("manager", "test", ())
    assert {partition.state for partition in report.partitions} == {"created"}
    assert report.requests.clients == 0


def test_the_devices_of_groups_are_shown_to_the_level_that_is_asked_for(network: MemoryNetwork) -> None:
    group, watcher = Peer(network), Peer(network)
    group.join("house", is_group=True)
    group.say(Beat(0, (), resident_nbytes=5))
    group.say(GroupReport(), encode_report(nested()))
    report = until(watcher, lambda report: any(node.group is not None for node in report.nodes))
    (node,) = report.nodes
    assert (node.device, node.is_group) == ("house", True)
    assert node.group == nested()
    assert watcher.ask(levels=1).nodes[0].group is None


@pytest.mark.parametrize("frames", [[], [b"nonsense"], [b"", b""]])
def test_a_group_that_tells_nonsense_is_shown_without_it(network: MemoryNetwork, frames: list[bytes]) -> None:
    group, watcher = Peer(network), Peer(network)
    group.join("house", is_group=True)
    group.say(GroupReport(), *frames)
    group.say(Beat(0, (), resident_nbytes=7))
    report = until(watcher, lambda report: any(node.resident_nbytes == 7 for node in report.nodes))
    assert report.nodes[0].group is None


def test_the_log_names_devices_requests_and_partitions_as_fields(
    network: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hyps.manager")
    node, watcher = Peer(network), Peer(network)
    node.join("pi\n")
    until(watcher, lambda report: bool(report.nodes))
    node.say(ItemFailed(7, 1, "v0", "E_EXECUTION", "no such shape"))
    node.links.close()
    until(watcher, lambda report: not report.nodes)
    told = [
        (record.getMessage(), {name: getattr(record, name, None) for name in ("device", "request", "partition")})
        for record in caplog.records
    ]
    assert told[0] == ("device `pi\\n` joins", {"device": "pi\\n", "request": None, "partition": None})
    failed = (
        "partition `v0` failed on device `pi\\n`: no such shape",
        {"device": "pi\\n", "request": 7, "partition": "v0"},
    )
    assert failed in told
    assert told[-1] == (
        "device `pi\\n` is gone: the peer left",
        {"device": "pi\\n", "request": None, "partition": None},
    )


def test_a_second_node_of_a_name_does_not_look_like_the_first_one_leaving(
    network: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hyps.manager")
    node, other, watcher = Peer(network), Peer(network), Peer(network)
    node.join("pi")
    until(watcher, lambda report: bool(report.nodes))
    other.join("pi")
    other.links.close()
    while len(caplog.records) < 2:
        watcher.ask()
    node.links.close()
    until(watcher, lambda report: not report.nodes)
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ["device `pi` joins", "refused a node called `pi`", "device `pi` is gone"]
