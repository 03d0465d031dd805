import pytest

from hyps.core.link_estimates import LinkEstimates
from hyps.core.link_probing import EchoSize, LinkProbing
from hyps.formats.node_messages import MAX_PIECE_NBYTES
from hyps.formats.replanning import HUB


def _probed(up: float, down: float, latency_s: float) -> tuple[LinkEstimates, list[EchoSize]]:
    links, probing, sent, now_s = LinkEstimates(), LinkProbing("pi"), [], 0.0
    while (echo := probing.next_echo()) is not None:
        sent.append(echo)
        seconds = 2 * latency_s + echo.there_nbytes / up + echo.back_nbytes / down
        now_s += seconds
        probing.answered(seconds, now_s, links)
    return links, sent


@pytest.mark.parametrize(("up", "down", "latency_s"), [(7e6, 2e6, 0.014), (1e9, 1e8, 0.0002), (1e5, 1e5, 0.0)])
def test_both_directions_are_measured(up: float, down: float, latency_s: float) -> None:
    links, _ = _probed(up, down, latency_s)

    there, back = links.get(HUB, "pi"), links.get("pi", HUB)

    assert there is not None
    assert back is not None
    assert there.bytes_per_s == pytest.approx(up, rel=0.02)
    assert back.bytes_per_s == pytest.approx(down, rel=0.02)
    assert there.latency_s == pytest.approx(latency_s, abs=1e-6)


def test_a_slow_link_is_not_flooded() -> None:
    _, sent = _probed(1e5, 1e5, 0.01)

    assert sum(echo.there_nbytes + echo.back_nbytes for echo in sent) == 6 * 64 * 1024


def test_a_fast_link_is_measured_with_frames_that_a_message_may_have() -> None:
    _, sent = _probed(1e10, 1e10, 0.0001)

    assert max(echo.there_nbytes for echo in sent) == MAX_PIECE_NBYTES
    assert max(echo.back_nbytes for echo in sent) == MAX_PIECE_NBYTES
    assert len(sent) <= 40
