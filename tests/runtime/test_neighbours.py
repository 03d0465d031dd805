"""A node's links to other nodes: tried, lost, found again, and closed to strangers."""

from collections.abc import Callable

import pytest

from hyps.adapters.links import Heard, Lost, Opened
from hyps.adapters.memory_links import MemoryLinks, MemoryNetwork
from hyps.core.node_events import NeighbourBack, NeighbourLost
from hyps.formats.node_messages import (
    NODE_PROTOCOL_VERSION,
    Greet,
    Neighbour,
    Setup,
    decode_from_node,
    encode_node_message,
)
from hyps.neighbours import _GREET_S, _MAX_STRANGERS, _PAUSES_S, Neighbours


class Rig:
    """One node's neighbours, the links of another process, and a clock."""

    def __init__(self) -> None:
        network = MemoryNetwork()
        self.links, self.other = MemoryLinks(network), MemoryLinks(network)
        self.links.listen("here")
        self.told: list[NeighbourLost | NeighbourBack] = []
        self.neighbours = Neighbours(self.links, "me", self.told.append)
        self.now_s = 100.0

    def follow(self, *targets: Neighbour, sources: tuple[Neighbour, ...] = ()) -> None:
        self.neighbours.follow(self.now_s, Setup(1, None, (), targets, sources))

    def pump(self) -> None:
        """Hand over what came."""
        while (event := self.links.receive(0.0)) is not None:
            match event:
                case Opened():
                    self.neighbours.on_opened(self.now_s, event.link, came_to_us=event.came_to_us)
                case Lost():
                    self.neighbours.on_lost(self.now_s, event.link)
                case Heard():
                    message = decode_from_node(memoryview(event.frames[0]))
                    assert isinstance(message, Greet)
                    self.neighbours.on_greet(event.link, message)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.neighbours.on_time(self.now_s)
        self.pump()

    def come(self, device: str, secret: str) -> int:
        link = self.other.connect("here")
        self.other.send(link, [encode_node_message(Greet(NODE_PROTOCOL_VERSION, device, secret))])
        self.pump()
        return link

    def let_in(self) -> int:
        return sum(self.neighbours.is_let_in(link) for link in list(self.neighbours._sources))


def test_a_device_is_greeted_with_its_secret_and_found_again_after_a_loss() -> None:
    rig = Rig()
    rig.other.listen("there")
    rig.follow(Neighbour("b", "secret", ("there",)))
    rig.pump()
    assert rig.told == [NeighbourBack("b")]
    came = [event for event in iter(lambda: rig.other.receive(0.0), None) if isinstance(event, Heard)]
    assert decode_from_node(memoryview(came[0].frames[0])) == Greet(NODE_PROTOCOL_VERSION, "me", "secret")
    rig.other.close_link(came[0].link)
    rig.pump()
    assert rig.neighbours.link_to("b") is None
    assert rig.told[1:] == [NeighbourLost("b")]
    rig.wait(_PAUSES_S[0])
    assert rig.told[2:] == [NeighbourBack("b")]
    assert rig.neighbours.link_to("b") is not None


def test_another_endpoint_is_tried_where_nobody_answers() -> None:
    rig = Rig()
    rig.other.listen("far")
    rig.follow(Neighbour("b", "secret", ("near", "far")))
    rig.pump()
    rig.wait(_PAUSES_S[-1])
    assert rig.neighbours.link_to("b") is not None
    assert rig.told[-1] == NeighbourBack("b")


def test_a_device_that_nothing_leads_to_is_lost() -> None:
    rig = Rig()
    rig.follow(Neighbour("b", "secret", ()))
    assert rig.told == [NeighbourLost("b")]
    for _ in range(5):
        rig.wait(10.0)
    assert rig.told == [NeighbourLost("b")]


def test_what_no_setup_names_any_more_is_dropped() -> None:
    rig = Rig()
    rig.other.listen("there")
    rig.follow(Neighbour("b", "secret", ("there",)))
    rig.pump()
    rig.follow()
    assert not rig.neighbours.is_target("b")
    assert rig.told == [NeighbourBack("b"), NeighbourLost("b"), NeighbourBack("b")]
    assert any(isinstance(event, Lost) for event in iter(lambda: rig.other.receive(0.0), None))


@pytest.mark.parametrize(
    ("device", "secret", "is_let_in"), [("a", "right", True), ("a", "wrong", False), ("x", "right", False)]
)
def test_only_who_knows_its_secret_is_let_in(device: str, secret: str, is_let_in: bool) -> None:
    rig = Rig()
    rig.follow(sources=(Neighbour("a", "right"),))
    rig.come(device, secret)
    assert rig.let_in() == is_let_in


def test_who_comes_before_its_setup_waits_for_it() -> None:
    rig = Rig()
    rig.come("a", "right")
    assert rig.let_in() == 0
    rig.follow(sources=(Neighbour("a", "right"),))
    assert rig.let_in() == 1
    rig.follow(sources=(Neighbour("a", "changed"),))
    assert rig.let_in() == 0


@pytest.mark.parametrize("come", [lambda rig: rig.other.connect("here"), lambda rig: rig.come("x", "y")])
def test_who_says_nothing_that_helps_is_sent_away(come: Callable[[Rig], int]) -> None:
    rig = Rig()
    come(rig)
    rig.pump()
    assert rig.neighbours.next_s == rig.now_s + _GREET_S
    rig.wait(_GREET_S + 0.1)
    assert not rig.neighbours._sources
    assert any(isinstance(event, Lost) for event in iter(lambda: rig.other.receive(0.0), None))


def test_strangers_are_bounded_and_friends_stay() -> None:
    rig = Rig()
    rig.follow(sources=(Neighbour("a", "right"),))
    rig.come("a", "right")
    for _ in range(_MAX_STRANGERS + 5):
        rig.other.connect("here")
    rig.pump()
    assert len(rig.neighbours._sources) == _MAX_STRANGERS + 1
    assert rig.let_in() == 1


def test_nobody_is_left_when_the_manager_is_gone() -> None:
    rig = Rig()
    rig.other.listen("there")
    rig.follow(Neighbour("b", "secret", ("there",)), sources=(Neighbour("a", "right"),))
    rig.come("a", "right")
    rig.neighbours.drop_all()
    assert not rig.neighbours._targets
    assert not rig.neighbours._sources
    rig.come("a", "right")
    assert rig.let_in() == 0
