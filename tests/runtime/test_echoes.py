"""A manager's echoes, with a node that answers after so many seconds."""

from typing import TYPE_CHECKING

import pytest

from hyps.core.link_estimates import LinkEstimates
from hyps.echoes import Echoes
from hyps.formats.replanning import HUB

if TYPE_CHECKING:
    from hyps.formats.node_messages import Echo


class Network:
    """Keeps what is sent, and answers when it is told to."""

    def __init__(self, bytes_per_s: float, latency_s: float, backlog_nbytes: int = 0) -> None:
        self.sent: list[tuple[int, Echo, bytes]] = []
        self.now_s = 0.0
        self.links = LinkEstimates()
        self.rate, self.latency_s, self.backlog_nbytes = bytes_per_s, latency_s, backlog_nbytes
        self.echoes = Echoes(self.links, lambda *echo: self.sent.append(echo), lambda link: backlog_nbytes)

    def answer_all(self) -> int:
        """Answer one echo after the other; return how many there were."""
        count = 0
        while len(self.sent) > count:
            link, echo, frame = self.sent[count]
            nbytes = len(frame) + echo.nbytes + self.backlog_nbytes
            self.now_s += 2 * self.latency_s + nbytes / self.rate
            count += 1
            self.echoes.answered(link, echo.number, self.now_s)
        return count


def test_the_way_to_a_node_that_joins_is_measured_one_echo_at_a_time() -> None:
    network = Network(7e6, 0.014)

    network.echoes.begin(3, "pi", 0.0)

    assert len(network.sent) == 1
    assert network.answer_all() >= 11
    for source, target in ((HUB, "pi"), ("pi", HUB)):
        told = network.links.get(source, target)
        assert told is not None
        assert told.bytes_per_s == pytest.approx(7e6, rel=0.02)
        assert told.latency_s == pytest.approx(0.014, rel=0.02)


def test_what_waits_before_an_echo_is_counted() -> None:
    network = Network(7e6, 0.014, backlog_nbytes=3_000_000)

    network.echoes.begin(3, "pi", 0.0)
    network.answer_all()

    told = network.links.get(HUB, "pi")
    assert told is not None
    assert told.seconds(3_000_000) == pytest.approx(3_000_000 / 7e6, rel=0.1)


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    network = Network(7e6, 0.014)
    network.echoes.begin(3, "pi", 0.0)

    network.echoes.answered(3, 99, 1.0)
    network.echoes.answered(4, 1, 1.0)

    assert network.links.facts() == ()
    assert len(network.sent) == 1


def test_a_node_that_is_gone_or_a_way_without_end_is_not_measured_further() -> None:
    gone, endless = Network(7e6, 0.014), Network(7e6, 6.0)
    for network in (gone, endless):
        network.echoes.begin(3, "pi", 0.0)

    gone.echoes.forget(3)

    assert gone.answer_all() == 1
    assert endless.answer_all() == 1
