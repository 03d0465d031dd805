"""A manager among peers that ask for more than they take, and for what is not theirs."""

from pathlib import Path

import numpy as np
import pytest

from hyps import carrying
from hyps.adapters.links import LinkEvent, Lost, Taken
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.carrying import ToldToken
from hyps.core.manager_options import ManagerOptions
from hyps.formats.messages import AskStatus, Heartbeat, MachineFacts
from hyps.formats.node_messages import NODE_PROTOCOL_VERSION, Fetch, Join, encode_node_message
from manager_fixtures import RunningManager, ScriptedClient
from plan_fixtures import mlp


class Deaf(MemoryLinks):
    """A manager's links whose peers take nothing that they are told."""

    def receive(self, timeout_s: float) -> LinkEvent | None:
        event = super().receive(timeout_s)
        while isinstance(event, Taken) and isinstance(event.token, ToldToken):
            event = super().receive(0.0)
        return event


def start(links: MemoryLinks, folder: Path) -> RunningManager:
    mlp(8, 4).write(folder / "plan")
    links.listen("manager")
    return RunningManager(links, folder / "plan", ManagerOptions(beat_s=0.2))


@pytest.mark.parametrize("message", [Heartbeat(), AskStatus("s")])
def test_who_asks_and_asks_and_takes_no_answer_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Heartbeat | AskStatus
) -> None:
    monkeypatch.setattr(carrying, "MOST_UNREAD_NBYTES", 200_000)
    network = MemoryNetwork()
    with start(Deaf(network), tmp_path), MemoryLinks(network) as links, MemoryLinks(network) as others:
        client = ScriptedClient(links, "manager")
        for _ in range(500):
            client.say(message)
        client.until(lambda: client.is_lost)
        other = ScriptedClient(others, "manager")
        other.say(Heartbeat())
        other.until(lambda: bool(other.other))


def test_a_node_that_fetches_and_fetches_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "MOST_UNREAD_NBYTES", 200_000)
    network = MemoryNetwork()
    with start(Deaf(network), tmp_path) as manager, MemoryLinks(network) as links:
        link = links.connect("manager")
        facts = MachineFacts(None, 1, 1e9)
        join = Join(NODE_PROTOCOL_VERSION, "local", "", facts, "cpu")
        digest = manager.state.plan.partitions[0].sha256
        links.send(link, [encode_node_message(join)])
        for _ in range(1000):
            links.send(link, [encode_node_message(Fetch(digest, 0, 2**20))])
        while not isinstance(event := links.receive(10.0), Lost):
            assert event is not None, "it was not cut off"


def test_who_takes_the_answers_may_ask_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "MOST_UNREAD_NBYTES", 200_000)
    network = MemoryNetwork()
    with start(MemoryLinks(network), tmp_path), MemoryLinks(network) as links:
        client = ScriptedClient(links, "manager")
        for count in range(100, 2000, 100):
            for _ in range(100):
                client.say(Heartbeat())
            client.until(lambda count=count: len(client.other) == count or client.is_lost)  # type: ignore[misc]
        assert not client.is_lost
        client.submit("r", {"x": np.zeros((1, 3), np.float32)})
        client.until(lambda: "r" in client.failures)
